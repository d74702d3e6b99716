"""To threads: the backend that runs the attempts of sync functions in worker threads."""

from __future__ import annotations

from functools import partial
from typing import Any

from ._context import here
from ._protocols import Attempt
from ._threads import threads_of_loop

__all__ = ["THREAD", "ThreadBackend"]


class ThreadBackend:
    """Runs attempts in the worker threads of the session, or in those of the event loop outside sessions."""

    name = "thread"

    async def run(self, attempt: Attempt) -> Any:
        """Run an attempt in a worker thread, in a copy of the current context."""
        threads = here().home.threads or threads_of_loop()
        return await threads.run(partial(attempt.func, *attempt.args, **attempt.kwargs))


THREAD = ThreadBackend()
