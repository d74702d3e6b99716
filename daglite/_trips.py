"""Trips of threads to the event loop, where they have something awaited, and back with what came of it."""

from __future__ import annotations

import threading
from collections.abc import Awaitable, Callable
from contextvars import copy_context
from typing import Any, TypeVar

import anyio

from ._context import Home, here
from ._eventloop import Loop, comes_from_scope, in_event_loop, way_back
from ._failures import without_cancellation
from ._slots import Slot, ThreadCancelled, check_cancelled
from ._typing import NOT_GIVEN
from .exceptions import CallCancelledError, SessionError

__all__ = ["Trip", "find_way", "run_in_loop", "the_way"]

T = TypeVar("T")


def run_in_loop(name: str, func: Callable[[Trip], Awaitable[T]], instead: str) -> T:
    """Have something awaited in the event loop that belongs to this thread, in a copy of the current context.

    Args:
        name: What messages call the task.
        func: Called in the event loop, with the trip; gives what is to be awaited.
        instead: What to write in the event loop's own thread.

    Returns:
        What it has come to.

    Raises:
        RuntimeError: An event loop runs in this thread, which would wait for itself.
        SessionError: There is no event loop to go to, or its session has ended.
        CallCancelledError: It was cancelled by itself.
        BaseException: It was cancelled because nobody waits for this thread any more.
    """
    return the_way(name, instead).take(f"task {name!r}", name, func)


def the_way(name: str, instead: str) -> Way:
    """How to get to the event loop from this thread, for `from_thread`; the arguments are those of `run_in_loop`.

    Raises:
        RuntimeError: An event loop runs in this thread.
        SessionError: There is none to go to, or its session has ended.
    """
    what = f"task {name!r}: from_thread()"
    way = find_way(what, name, instead)
    if way is None:
        raise SessionError(
            f"{what} has no event loop to go to: this is no worker thread of one, and in no session; open one with "
            f"`with session()`, or enter one that is open with `with s.bind()`"
        )
    return way


def find_way(what: str, name: str, instead: str) -> Way | None:
    """How to get to the event loop whose worker thread this is, or else to that of the session; `None` in neither.

    Args:
        what: What messages call it that would go.
        name: What they call the task.
        instead: What to write in the event loop's own thread.

    Raises:
        RuntimeError: An event loop runs in this thread.
        SessionError: The session has ended.
    """
    if in_event_loop():
        raise RuntimeError(f"{what} in an event loop's own thread would wait for itself; write: {instead}")
    position = here()
    home = position.home
    slot = position.slot if isinstance(position.slot, Slot) else None
    if home.books is not None and (slot is None or not slot.given_up):
        home.refuse(f"task {name!r} was called", position)  # before it is asked of an event loop that may be gone
    is_own = slot is not None and slot.is_here()
    # Of a thread that is not ours only anyio, or Trio, knows which task waits for it, with its cancellation.
    run = None if is_own and home.start_soon is not None else way_back()
    if run is not None:
        return Way(home, slot, run, None)
    if home.books is not None:
        return Way(home, slot, None, home.books.loop)
    if slot is not None and slot.loop is not None:
        return Way(home, slot, slot.loop.run_from_thread, slot.loop)
    return None


class Way:
    """How a thread gets to an event loop.

    Args:
        home: The session that it is in.
        slot: The thread, or another from which it has its context; `None` if it is none of ours.
        run: The `from_thread.run` of whoever made the thread; `None` if the session is to run what is awaited.
        loop: The event loop; `None` if only `run` knows.
    """

    def __init__(self, home: Home, slot: Slot | None, run: Callable[..., Any] | None, loop: Loop | None) -> None:
        self._home = home
        self._slot = slot
        self._run = run
        self._loop = loop

    def take(self, what: str, name: str, func: Callable[[Trip], Awaitable[T]]) -> T:
        """Have something awaited there, and wait for it.

        Args:
            what: What messages call it.
            name: What its task of the event loop is called.
            func: Called in the event loop, with the trip; gives what is to be awaited.
        """
        trip = Trip(what, func, self._loop, self._slot)
        if self._run is None:
            trip.post(self._home, name, f"task {name!r} was called")
        else:
            trip.take(self._run)
        return trip.result()  # type: ignore[no-any-return]


class Trip:
    """One thing that is awaited in the event loop for a thread, in a cancel scope of its own.

    The thread waits until it has ended, also when it is cancelled.

    Args:
        what: What messages call it.
        func: Called in the event loop, with the trip; gives what is to be awaited.
        loop: The event loop; `None` if only who takes it there knows which.
        slot: The thread, or another from which it has its context; `None` if it is none of ours.
    """

    def __init__(self, what: str, func: Callable[[Trip], Awaitable[Any]], loop: Loop | None, slot: Slot | None) -> None:
        self._what = what
        self._func = func
        self._loop = loop
        self._slot = slot
        self._holder = None  # who gives up its place among threads in the meantime
        if slot is not None and slot.is_here() and (loop is None or slot.holder.is_of(loop)):
            self._holder = slot.holder
        self._lock = threading.Lock()
        self._scope: anyio.CancelScope | None = None  # from when it begins
        self.starts_cancelled: bool = False
        self.was_interrupted: bool = False  # the wait for it was
        self._gone: bool = False  # cancelled before it has begun: it never will
        self._ended = threading.Event()
        self._value: Any = NOT_GIVEN
        self._error: BaseException | None = None
        self._cancellation: BaseException | None = None
        self._is_alone: bool = False  # in being cancelled: the thread is not

    def post(self, home: Home, name: str, refused: str) -> None:
        """Let it run in the task group of a session.

        Args:
            home: The session.
            name: What the task of the event loop is called.
            refused: What messages say of it that refuse it.

        Raises:
            SessionError: The event loop has ended.
        """
        assert self._loop is not None
        self._set_out()
        context = copy_context()
        self._loop.enter(context)
        if not self._loop.post(context.run, self._start, home, name, refused):
            self._finish()
            raise SessionError(f"{self._what} is in session {home.name!r}, which has ended with its event loop")

    def _start(self, home: Home, name: str, refused: str) -> None:
        try:
            home.refuse(refused, here())
            assert home.start_soon is not None
            home.start_soon(self._run, name=name)
        except SessionError as exc:
            self._error = exc
            self._finish()

    def take(self, run: Callable[..., Any]) -> None:
        """Let it run as the event loop's own `from_thread.run` does, and wait for it."""
        self._set_out()
        try:
            run(self._run)
        except BaseException as exc:
            if not self._ended.is_set():
                self._finish()
                raise
            # It was cancelled from outside. Trio says so before the thread can find out.
            self._cancellation = None if isinstance(exc, Exception) else exc

    def _set_out(self) -> None:
        if self._slot is not None:
            self._slot.set_out(self)

    def cancel(self, *, alone: bool = False) -> None:
        """Cancel it, from any thread.

        Args:
            alone: Whether that is no cancellation of the thread, which hears of it by a `CallCancelledError`.
        """
        with self._lock:
            self._is_alone = self._is_alone or alone
            if self._scope is None:  # its event loop may be gone, and the thread waits
                self._gone = True
                self._finish()
                return
        assert self._loop is not None
        self._loop.run(self._scope.cancel)

    def result(self, *, is_interrupted: bool = False) -> Any:
        """Wait for what it comes to, and return or raise that.

        Args:
            is_interrupted: Whether the thread was interrupted before.
        """
        try:
            self._wait_for(self._ended)
        except BaseException:  # an interrupt; a second one waits no more
            self.was_interrupted = True
            self.cancel()
            if not is_interrupted:
                self._wait_for(self._ended)
            raise
        if not self._ended.is_set():
            raise SessionError(f"{self._what}: its event loop has ended in the meantime")
        error, self._error = self._error, None
        cancellation, self._cancellation = self._cancellation, None
        try:
            if error is not None:
                raise error
            if self._value is not NOT_GIVEN:
                return self._value
            if self._is_alone:
                raise CallCancelledError(f"{self._what} was cancelled in the event loop")
            check_cancelled()  # which knows what the event loop of a worker thread takes for a cancellation
            raise cancellation or ThreadCancelled(f"{self._what} was cancelled, as is all in this thread")
        finally:
            del error, cancellation  # else a traceback, which holds this frame, would hold itself

    def _wait_for(self, event: threading.Event) -> None:
        if self._loop is None:
            event.wait()
        else:
            self._loop.wait(event)

    def _finish(self) -> None:
        """Nothing more will happen: let the thread go on, and who waits for what it has begun."""
        self._ended.set()
        if self._slot is not None:
            self._slot.returned(self)

    async def _run(self) -> None:
        self._loop = self._loop or Loop()
        with self._lock:
            if self._gone:
                return
            self._scope = anyio.CancelScope()
        # What it shields runs all the same. asyncio's anyio tells nobody who begins in a scope that is cancelled already.
        if self.starts_cancelled or comes_from_scope():
            self._scope.cancel()
        try:
            with self._scope:
                await self._hold()
        finally:
            self._finish()

    async def _hold(self) -> None:
        """Await it, while another thread may have the place of this one."""
        holder = self._holder
        pool = None if holder is None else holder.give_place()
        try:
            await self._keep()
        finally:
            if holder is not None and pool is not None:
                await pool.take_place(holder)

    async def _keep(self) -> None:
        """Await it, and keep what comes of it for the thread; but the cancellation in that goes on."""
        failure: BaseException | None = None
        cancellation: BaseException | None = None
        try:
            self._value = await self._func(self)
        except BaseException as exc:
            failure, cancellation = without_cancellation(exc)
            self._error = failure
            if cancellation is not None:
                if comes_from_scope():
                    raise cancellation
                self._is_alone = True
        finally:
            del failure, cancellation  # else its traceback, which holds this frame, would hold itself
