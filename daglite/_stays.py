"""Sessions of sync code: each is open in a task of an event loop in another thread, for as long as the code is in it."""

from __future__ import annotations

import threading
from contextvars import copy_context
from typing import TYPE_CHECKING, Any, Protocol

import anyio
from anyio import get_cancelled_exc_class

from ._bindings import Binding
from ._context import here
from ._eventloop import check_installed, in_event_loop
from ._failures import is_cancellation
from ._log import logger
from ._slots import Slot, ThreadCancelled
from ._trips import Trip
from .exceptions import SessionError

if TYPE_CHECKING:
    from .settings import Settings

__all__ = ["Stay"]


class Stays(Protocol):
    """A session, as the event loop sees it."""

    def _was_cancelled(self) -> bool: ...

    def bind(self) -> Binding[Any]:
        """Make it current in a thread."""
        ...

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
        if event_loop is not None:
            check_installed(f"session {name!r}", event_loop)
        position = here()
        home = position.home
        is_inner = home.books is not None and not home.closed and event_loop in (None, home.books.loop.name)
        outer = position.slot if is_inner and isinstance(position.slot, Slot) else None
        loop = home.books.loop if is_inner and home.books is not None else None
        super().__init__(f"session {name!r}", self._stay, loop, outer)
        self._holder = None  # its code goes on in the thread
        self._binding: Binding[Any] | None = None  # of the thread to the session
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

    @property
    def settings(self) -> Settings | None:
        """Those of the session around, which another event loop would not see."""
        home = here().home
        return None if home.session is None else home.settings

    def enter(self) -> None:
        """Enter the session, and make it current in this thread.

        Raises:
            SessionError: An event loop runs in this thread.
            BaseException: What it raises that goes wrong.
        """
        if in_event_loop():
            raise SessionError(
                f"{self._what}: `with` in an event loop's own thread, which it would block; use `async with`"
            )
        self._begin()
        binding = self._binding = self._session.bind()
        try:
            binding.__enter__()
            if self._is_cancelled:  # by now
                binding.let_notice()
        except BaseException as interrupt:
            if binding.is_here():
                binding.__exit__(None, None, None)
            self._end(interrupt)
            raise

    def leave(self, exc: BaseException | None) -> bool:
        """Leave the session, in the thread that has entered it.

        Args:
            exc: What the thread's code has come to.

        Returns:
            Whether that is dealt with: it was the cancellation of the session itself.

        Raises:
            SessionError: It is not to be left here, or not yet.
            BaseException: What the session has come to, if that is something else.
        """
        binding = self._checked_binding()
        try:
            try:
                binding.__exit__(None, None, None)
            except BaseException as interrupt:  # in a stream that was closed
                exc = interrupt
                self._end(exc)
                raise
            return self._end(exc)
        except BaseException:
            # Python raises a `KeyboardInterrupt` anywhere, also while nothing waits for the event loop.
            if not self.has_ended and not self.was_interrupted:
                self._give_up()
            raise
        finally:
            del exc  # else its traceback, which holds this frame, would hold itself

    def _begin(self) -> None:
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
                self._end(interrupt)
            raise
        if not self._entered:
            self._end(None)

    def _checked_binding(self) -> Binding[Any]:
        """That of this thread, or an error before anything is undone."""
        own = self._binding
        if own is None or own.ended or self.has_ended:
            raise SessionError(f"{self._what} was left, and is not entered, or was left before")
        if not own.is_here():
            self._session.cancel()  # what it owns is not to go on without it
            raise SessionError(
                f"{self._what} was left in another thread than it was entered in, and is cancelled: keep both in one "
                f"thread, and enter it in others with `with s.bind()`"
            )
        position = here()
        inner, binding = position.home.session, position.root.binding
        opened = None
        if isinstance(binding, Binding) and binding is not own and binding.is_here() and not binding.ended:
            opened = "bind() of it" if inner is self._session else f"session {position.home.name!r}"
        if opened is not None:
            text = f"{self._what} was left before {opened}, which the same thread has entered since"
            raise SessionError(f"{text}: leave that first")
        return own

    def _end(self, exc: BaseException | None) -> bool:
        """Leave the session in the event loop; the arguments and all else are those of `leave`."""
        self._body = exc
        try:
            self._leave()
            return bool(self.result(is_interrupted=exc is not None and not isinstance(exc, Exception)))
        finally:
            self._body = exc = None  # else its traceback, which holds this frame, would hold itself
            self._join()

    def _give_up(self) -> None:
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
            is_own = self._session._was_cancelled()
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
            if self._binding is not None:
                self._binding.let_notice()
            with anyio.CancelScope(shield=True):  # what the session owns ends now, but not the code that is in it
                await self._leaving.wait()
