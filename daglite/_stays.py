"""Sessions of sync code: each is open in a task of an event loop in another thread, for as long as the code is in it."""

from __future__ import annotations

import importlib.util
import threading
from contextvars import copy_context
from typing import Any, Protocol

import anyio
from anyio import get_cancelled_exc_class

from ._context import here
from ._failures import is_cancellation
from ._log import logger
from ._slots import Slot, ThreadCancelled
from ._trips import Trip

__all__ = ["Stay"]


class Stays(Protocol):
    """A session, as the event loop sees it."""

    def _is_cancelled(self) -> bool: ...

    def cancel(self) -> Any:
        """Cancel it."""
        ...

    async def __aenter__(self) -> Any:
        """Enter it."""
        ...

    async def __aexit__(self, *exc_info: Any) -> bool | None:
        """Leave it."""
        ...


class Stay(Trip):
    """The trip that enters a session, waits until the thread has come to its end, and leaves it.

    It is in the event loop of the enclosing session, as a part of that, or in one of its own.

    Args:
        name: What messages call the session.
        session: The session.
        event_loop: Which event loop it needs; `None` for that of the enclosing session, or else asyncio.

    Raises:
        ImportError: The event loop is not installed.
    """

    def __init__(self, name: str, session: Stays, event_loop: str | None) -> None:
        if event_loop == "trio" and importlib.util.find_spec("trio") is None:
            raise ImportError(
                f"session {name!r}: event_loop='trio' needs Trio, which is not installed: pip install 'daglite[trio]'"
            )
        position = here()
        home = position.home
        is_inner = home.books is not None and not home.closed and event_loop in (None, home.books.loop.name)
        outer = position.slot if is_inner and isinstance(position.slot, Slot) else None
        loop = home.books.loop if is_inner and home.books is not None else None
        super().__init__(f"session {name!r}", self._stay, loop, outer)
        self._holder = None  # its code goes on in the thread
        self._inside: Slot | None = None  # of the thread, once it is in the session
        self._name = name
        self._session = session
        self._event_loop = event_loop or "asyncio"
        self._home = home if is_inner else None
        self._thread: threading.Thread | None = None
        self._entered: bool = False
        self._is_cancelled: bool = False
        self._ready = threading.Event()  # it has entered, or will not
        self._leaving = anyio.Event()
        self._left: bool = False
        self._body: BaseException | None = None  # what the thread's code has come to

    @property
    def has_ended(self) -> bool:
        """Whether nothing of it is left."""
        return self._ended.is_set()

    def begin(self) -> None:
        """Enter the session, or raise what that raises."""
        try:
            if self._home is not None:
                self.post(self._home, self._what, f"{self._what} was entered")
            else:
                # A daemon: who interrupts the wait for it a second time is not to wait for it all the same.
                target, name = copy_context().run, f"{self._what}: {self._event_loop}"
                self._thread = threading.Thread(target=target, args=(self._run_loop,), name=name, daemon=True)
                self._thread.start()
            self._wait_for(self._ready)
        except BaseException as interrupt:
            if not self.has_ended and (self._thread is None or self._thread.is_alive()):
                self.end(interrupt)
            raise
        if not self._entered:
            self.end(None)

    def watch_over(self, inside: Slot) -> None:
        """Let the thread, which is in the session now, notice if that is cancelled."""
        self._inside = inside
        if self._is_cancelled:  # already
            inside.let_notice()

    def end(self, exc: BaseException | None) -> bool:
        """Leave the session.

        Args:
            exc: What the thread's code has come to.

        Returns:
            Whether that is dealt with: it was the cancellation of the session itself.

        Raises:
            BaseException: What the session has come to, if that is something else.
        """
        self._body = exc
        try:
            self._leave()
            return bool(self.result(is_interrupted=exc is not None and not isinstance(exc, Exception)))
        finally:
            self._body = exc = None  # else its traceback, which holds this frame, would hold itself
            self._join()

    def give_up(self) -> None:
        """Cancel the session and leave it, whatever that comes to: the thread was interrupted."""
        self.cancel()
        self._leave()
        self._wait_for(self._ended)
        self._join()

    def _join(self) -> None:
        if self._thread is not None and self.has_ended:
            self._thread.join()

    def cancel(self, *, alone: bool = False) -> None:
        """Cancel the session; if the thread was given up, without waiting for it."""
        super().cancel(alone=alone)
        if self._slot is not None and self._slot.given_up:
            self._leave()

    def _leave(self) -> None:
        self._left = True
        if self._loop is not None:  # else it sees the other when it begins
            self._loop.run(self._leaving.set)

    def _run_loop(self) -> None:
        """Run the event loop, in its thread."""
        try:
            anyio.run(self._run, backend=self._event_loop)
        except BaseException as exc:
            if self.has_ended:
                logger().error("the event loop of %s failed to end", self._what, exc_info=exc)
            else:
                self._error = exc
        finally:
            self._finish()

    def _finish(self) -> None:
        super()._finish()
        self._ready.set()

    async def _stay(self, _: Trip) -> bool:
        await self._session.__aenter__()
        self._entered = True
        self._ready.set()
        try:
            await self._until_left()
            exc = self._body
            if exc is None or not (isinstance(exc, ThreadCancelled) or is_cancellation(exc)):
                kind, traceback = (None, None) if exc is None else (type(exc), exc.__traceback__)
                return bool(await self._session.__aexit__(kind, exc, traceback))
            # It is the thread that was cancelled: with this session, as the event loop knows, or by something else.
            is_own = self._session._is_cancelled()
            self._session.cancel()
            await self._session.__aexit__(None, None, None)
            return is_own
        finally:
            exc = None  # else its traceback, which holds this frame, would hold itself

    async def _until_left(self) -> None:
        """Wait for the thread; when the session is cancelled, let that notice."""
        if self._left:
            return
        try:
            await self._leaving.wait()
        except get_cancelled_exc_class():
            self._is_cancelled = True
            if self._inside is not None:
                self._inside.let_notice()
            with anyio.CancelScope(shield=True):  # what the session owns ends now, but not the code that is in it
                await self._leaving.wait()
