"""The worker threads of a session, or of an event loop outside sessions."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from anyio import CapacityLimiter, to_thread
from anyio.lowlevel import RunVar

__all__ = ["MAX_THREADS", "Threads", "threads_of_loop"]

MAX_THREADS = 40
T = TypeVar("T")


class Threads:
    """Worker threads, so many at once.

    Args:
        max_threads: How many.
    """

    def __init__(self, max_threads: int = MAX_THREADS) -> None:
        self.max_threads: int = max_threads
        self._limiter = CapacityLimiter(max_threads)

    async def run(self, func: Callable[[], T]) -> T:
        """Call a function in a worker thread, in a copy of the current context, and wait for it."""
        return await to_thread.run_sync(func, limiter=self._limiter)


# Not anyio's default limiter, whose tokens web frameworks hold for their sync endpoints: those that go back to the
# event loop and into threads again would wait for each other.
_threads: RunVar[Threads] = RunVar("daglite_threads")


def threads_of_loop() -> Threads:
    """The worker threads of calls that are in no session, for each event loop its own."""
    try:
        return _threads.get()
    except LookupError:
        threads = Threads()
        _threads.set(threads)
        return threads
