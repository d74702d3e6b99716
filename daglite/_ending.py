"""How a session ends when its calls have: what is left of it has `grace` seconds."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import anyio
from anyio import get_cancelled_exc_class

from ._bindings import Bindings
from ._books import Books
from ._context import Home
from ._failures import Failures
from ._log import logger
from ._open_streams import Closing
from ._threads import Patience, Stuck

if TYPE_CHECKING:
    from anyio.abc import TaskGroup

__all__ = ["Ending"]


class Ending:
    """Ends those who use a session from elsewhere, streams and threads, and bounds the wait for each.

    Args:
        name: What messages call the session.
        grace: Seconds.
        group: What all of it runs in.
        failures: What has failed in the meantime.

    Attributes:
        patience: How long calls that were cancelled wait for their threads: `grace` from when the session is cancelled.
    """

    def __init__(self, name: str, grace: float, group: TaskGroup, failures: Failures) -> None:
        self.patience: Patience = Patience(self._watch_cancellation)
        self._name = name
        self._grace = grace
        self._group = group
        self._failures = failures
        self._until_cancelled: anyio.CancelScope | None = None

    def limit_patience(self) -> None:
        """Let those that were cancelled wait for their threads for `grace` seconds from now."""
        if self.patience.deadline == math.inf:
            self.patience.end_at(anyio.current_time() + self._grace)

    def _watch_cancellation(self) -> None:
        """Limit the patience when the session is cancelled; called by those that begin to wait."""
        if self._until_cancelled is None:
            self._until_cancelled = anyio.CancelScope()
            self._group.start_soon(self._limit_when_cancelled, self._until_cancelled)

    async def _limit_when_cancelled(self, ended: anyio.CancelScope) -> None:
        with ended:
            try:
                await anyio.sleep_forever()
            finally:
                if not ended.cancel_called:
                    self.limit_patience()

    async def run(self, home: Home, books: Books, bindings: Bindings) -> BaseException | None:
        """End all of it, and accept no more calls.

        Args:
            home: The session.
            books: Its calls, streams and threads.
            bindings: Those who use it from elsewhere.

        Returns:
            The native cancellation that came in the meantime; anyio's does not get in.
        """
        if self._until_cancelled is not None:
            self._until_cancelled.cancel()
        if bound := ", ".join(bindings.give_up()):
            logger().warning("session %r ends while it is still bound: to %s", self._name, bound)
        deadline = anyio.current_time() + self._grace
        threads_until = min(self.patience.deadline, deadline)  # they have had their time, if all was cancelled before
        self.patience.end_at(deadline)
        cancellation = await self._close(books.streams, deadline)
        home.close()
        for call in list(books.live):  # where nobody of the session's own waits for them
            if call.slot is not None:
                call.slot.give_up()  # it runs now, and may be about to end by itself
            elif (tell_plugins := call.give_up(told=False)) is not None:
                tell_plugins()
        return await self._wait_for(books.stuck, threads_until) or cancellation

    async def close_now(self, stream: Any) -> None:
        """Close a stream that was dropped, while the session goes on."""
        cancellation = await self._close([stream], anyio.current_time() + self._grace)
        if cancellation is not None:
            raise cancellation

    async def _close(self, streams: Any, deadline: float) -> BaseException | None:
        closing = Closing(f"session {self._name!r}", self._grace)
        await closing.close_all(streams, deadline)
        if closing.fatal is not None:
            self._failures.add(closing.fatal)
        return closing.cancellation

    async def _wait_for(self, stuck: Stuck, deadline: float) -> BaseException | None:
        """Wait for the threads that were abandoned, and return the native cancellation that ended the wait."""
        if not stuck:
            return None
        try:
            with anyio.CancelScope(deadline=deadline, shield=True):
                await stuck.until_none()
        except get_cancelled_exc_class() as interrupted:
            return interrupted
        return None
