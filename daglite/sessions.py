"""The scope that owns background calls, events and threads."""

from __future__ import annotations

import sys
import time
import warnings
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable, Iterator
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, TypeVar, overload
from uuid import UUID

import anyio
from anyio import get_cancelled_exc_class
from anyio.abc import TaskGroup
from typing_extensions import ParamSpec, Self

from . import _numbers
from ._books import Books, SessionStats
from ._bus import Bus, Subscription
from ._context import Home, Position, Root, here, reset, set_current
from ._failures import Failures, is_cancellation
from ._functions import is_coroutine_function
from ._handles import CallHandle
from ._hooks import Hooks, name_of
from ._log import logger
from ._metadata import new_id
from ._options import check_backend
from ._threads import MAX_THREADS, Threads
from ._tree import CallTree, LiveCall, find_call, tree_of, why_not_alone
from ._typing import NOT_GIVEN, NotGiven
from ._watchers import Watchers
from .exceptions import SessionError
from .settings import Settings
from .tasks import as_task

if TYPE_CHECKING:
    from ._reports import Reports

if sys.version_info < (3, 11):
    from exceptiongroup import BaseExceptionGroup

__all__ = [
    "CallHandle",
    "CallTree",
    "LiveCall",
    "Session",
    "SessionStats",
    "Subscription",
    "current_session",
    "session",
]

for _public in (CallHandle, CallTree, LiveCall, SessionStats, Subscription):
    _public.__module__ = __name__  # where people find them
del _public

P = ParamSpec("P")
R = TypeVar("R")


def session(
    *,
    name: str | NotGiven = NOT_GIVEN,
    grace: float | NotGiven = NOT_GIVEN,
    max_threads: int | NotGiven = NOT_GIVEN,
    backend: str | NotGiven = NOT_GIVEN,
    plugins: Iterable[Any] = (),
    settings: Settings | NotGiven = NOT_GIVEN,
) -> Session:
    """A scope for calls, opened with `async with`.

    ```python
    import anyio
    from daglite import session, task


    @task
    async def double(number: int) -> int:
        return 2 * number


    async def main() -> int:
        async with session() as s:
            call = s.start_soon(double, 4)
            return await call + await double(5)


    assert anyio.run(main) == 18
    ```

    Nothing that is started in it outlives it. What is not given comes from the enclosing session, whose subscribers
    also hear of the calls in this one.

    Args:
        name: What events and errors call it; `"session"` by default.
        grace: Seconds that cleaning up may take when it ends; 5 by default.
        max_threads: How many worker threads its calls may use at once; 40 by default. As many may be stuck past their
            deadlines before another call that needs a thread is refused.
        backend: Where fan-outs and `start_soon` run sync functions that do not say: `"thread"` by default, or
            `"inline"`.
        plugins: Objects and modules with hooks, or with `async def consume(self, events)`, see `daglite.plugins`; or the
            names that installed packages offer them under, by entry points in the group `daglite.plugins`. Those of the
            enclosing session are there as well; each sees each call once.
        settings: What else holds for the calls of the session, such as what is shown of their arguments.

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: An argument is out of range.
    """
    if not isinstance(name, (str, NotGiven)):
        raise TypeError(f"session: name must be a str, not {name!r}")
    if not isinstance(grace, NotGiven):
        grace = _numbers.finite("session: grace", grace, least=0)
    if not isinstance(max_threads, NotGiven):
        max_threads = _numbers.whole("session: max_threads", max_threads, least=1)
    if not isinstance(backend, NotGiven):
        check_backend("session", backend)
    if isinstance(plugins, str) or not isinstance(plugins, Iterable):
        raise TypeError(f"session: plugins must be a list of plugins, not {plugins!r}")
    if not isinstance(settings, (Settings, NotGiven)):
        raise TypeError(f"session: settings must be a daglite.settings.Settings, not {settings!r}")
    return Session(
        name=name,
        grace=grace,
        max_threads=max_threads,
        backend=backend,
        plugins=tuple(plugins),
        settings=settings,
    )


def current_session() -> Session | None:
    """The innermost session that the running code is in; `None` outside all sessions."""
    return here().home.session  # type: ignore[no-any-return]


class Session:
    """What `session()` opens: the owner of all that is started in it.

    Leaving waits for the background calls, or cancels them if the body failed. Then `SessionEnded` is published, and
    the watchers have `grace` seconds to take what waits for them. An error of the body comes out as it is; failed
    background calls as a `TaskGroupError`; both in an `ExceptionGroup`, the body's error first.
    """

    def __init__(
        self,
        *,
        name: str | NotGiven,
        grace: float | NotGiven,
        max_threads: int | NotGiven,
        backend: str | NotGiven,
        plugins: Iterable[Any],
        settings: Settings | NotGiven,
    ) -> None:
        self.id: UUID = new_id()
        self.name: str = "session" if isinstance(name, NotGiven) else name
        self._grace = grace
        self._max_threads = max_threads
        self._backend = backend
        self._plugins = plugins
        self._settings = settings
        self._state: Literal["new", "open", "leaving", "closing", "ended"] = "new"

    def __repr__(self) -> str:
        return f"<Session {self.name!r}, {self._state}>"

    async def __aenter__(self) -> Self:
        if self._state != "new":
            raise SessionError(f"session {self.name!r} was entered before; session() makes another")
        from ._reports import Reports  # the events take 15 ms to import, which a program without sessions is spared

        self._outside: Position = here()
        outer = self._outside.home
        # Who watches the enclosing session watches this one, unless it is opened by what a hook has started.
        enclosing = outer.session if isinstance(outer.session, Session) and outer.session._home is outer else None
        hooks = Hooks(self._plugins, None if enclosing is None else enclosing._reports.hooks)
        self._threads = Threads(f"session {self.name!r}'s threads", self._inherited_threads(outer))
        self._home: Home = Home(
            self.name,
            session=self,
            threads=self._threads,
            grace=outer.grace if isinstance(self._grace, NotGiven) else self._grace,
            backend=outer.backend if isinstance(self._backend, NotGiven) else self._backend,
            redact=outer.redact if isinstance(self._settings, NotGiven) else self._settings.redact,
            books=Books(self.name, self.id, self._threads.stuck, outer.books),
        )
        self._bus: Bus = Bus(self.id, None if enclosing is None else enclosing._bus)
        self._reports: Reports = Reports(self._home, self._bus, hooks, self._outside)
        assert self._home.books is not None
        self._books: Books = self._home.books
        self._running = 0
        self._idle: anyio.Event | None = None
        self._group: TaskGroup = anyio.create_task_group()
        await self._group.__aenter__()
        self._failures = Failures()
        self._failures.scope = self._group.cancel_scope
        self._watchers = Watchers(self._home, self._bus, self._group, self._failures, self._outside)
        self._began = time.perf_counter()
        self._state = "open"
        self._token = set_current(Root(self._home, self._outside.call, self._outside.slot))
        try:
            for plugin in hooks.own:
                if hasattr(plugin, "consume"):
                    self._watchers.start(plugin.consume, f"plugin {name_of(plugin)}")
            self._reports.session_started(self.name)
        except BaseException as exc:  # an interrupt in a hook
            await self.__aexit__(type(exc), exc, exc.__traceback__)
            raise
        return self

    def _inherited_threads(self, outer: Home) -> int:
        if not isinstance(self._max_threads, NotGiven):
            return self._max_threads
        return MAX_THREADS if outer.threads is None else outer.threads.max_threads

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> bool | None:
        reset(self._token)
        self._state = "leaving"
        self._home.leave()
        self._bus.end(lasting=False)
        cancellation = await self._join(exc)
        self._state = "closing"
        cancellation = await self._close_streams() or cancellation
        self._home.close()
        cancellation = await self._wait_for_threads() or cancellation
        self._state = "ended"
        try:
            self._reports.session_ended(self.name, time.perf_counter() - self._began)
        except BaseException as interrupt:  # in a hook
            self._failures.add(interrupt)
        self._books.close()
        self._bus.end(lasting=True)
        self._watchers.end_soon()
        cancellation = await self._leave_group(cancellation)
        if stuck := ", ".join(map(repr, self._threads.stuck.names())):
            text = f"session {self.name!r} has ended while threads of it still run, past their deadlines: in {stuck}"
            warnings.warn(text, ResourceWarning, stacklevel=2)
        own = exc if exc is not None and not is_cancellation(exc) else cancellation
        error = self._failures.concluded(own, f"Background calls of session {self.name!r} failed")
        try:
            if error is None or error is exc:
                return error is None
            raise error
        finally:
            del error, own, exc, cancellation  # else its traceback, which holds this frame, would hold itself

    async def _join(self, exc: BaseException | None) -> BaseException | None:
        """Wait for the background calls, which are cancelled if the body failed.

        Returns:
            The cancellation that the body or the wait has ended with.
        """
        cancellation = exc if is_cancellation(exc) else None
        if exc is not None:
            self._group.cancel_scope.cancel()
        shield = False
        while self._running:
            try:
                with anyio.CancelScope(shield=shield):
                    await self._until_idle()
            except get_cancelled_exc_class() as interrupted:
                # To a native `Task.cancel` the shield is none: it may come again, and the calls are waited for all the same.
                cancellation = cancellation or interrupted
                self._group.cancel_scope.cancel()
                shield = True
        return cancellation

    async def _until_idle(self) -> None:
        while self._running:
            self._idle = anyio.Event()
            await self._idle.wait()

    def _close_soon(self, steps: Any) -> None:
        """Close a stream that was dropped; called by the collector, in whatever thread and at whatever moment."""
        self._bus.loop.post(self._close_dropped, steps)

    def _close_dropped(self, steps: Any) -> None:
        if self._state == "open" and not steps.ended:
            self._running += 1
            self._group.start_soon(self._close_now, steps)

    async def _close_now(self, steps: Any) -> None:
        try:
            with anyio.move_on_after(self._home.grace, shield=True):
                await self._close(steps)
        finally:
            self._one_less()

    async def _close_streams(self) -> BaseException | None:
        """Close what is still open, oldest first: a stream that reads from another was opened before that.

        Returns:
            The native cancellation that came in the meantime.
        """
        deadline = anyio.current_time() + self._home.grace
        cancellation: BaseException | None = None
        for steps in list(self._books.streams):
            slot = steps.call.slot
            if slot is not None and slot.given_up:
                continue  # it may run at this moment, and nobody is to hear of it
            # A scope for each: one that takes too long does not keep the next from being closed.
            try:
                with anyio.CancelScope(deadline=deadline, shield=True) as scope:
                    await self._close(steps)
            except get_cancelled_exc_class() as interrupted:
                cancellation = cancellation or interrupted
            if scope.cancelled_caught:
                text = "session %r: stream %r had not closed after %g s"
                logger().warning(text, self.name, steps.call.spec.label, self._home.grace)
        return cancellation

    async def _wait_for_threads(self) -> BaseException | None:
        """Wait for the threads that were abandoned.

        Returns:
            The native cancellation that came in the meantime, and ended the wait.
        """
        try:
            with anyio.move_on_after(self._home.grace, shield=True):
                await self._threads.stuck.until_none()
        except get_cancelled_exc_class() as interrupted:
            return interrupted
        return None

    async def _close(self, steps: Any) -> None:
        try:
            await steps.aclose()
        except Exception:
            logger().exception("session %r: stream %r failed to close", self.name, steps.call.spec.label)
        except BaseException as exc:
            cancellation = self._failures.add(exc)
            if cancellation is not None:
                raise cancellation

    async def _leave_group(self, cancellation: BaseException | None) -> BaseException | None:
        """Wait for the watchers.

        Returns:
            What is left of the cancellation, if it was not only the session's own.
        """
        kind = None if cancellation is None else type(cancellation)
        try:
            if await self._group.__aexit__(kind, cancellation, getattr(cancellation, "__traceback__", None)):
                return None
        except BaseException as exc:
            if isinstance(exc, BaseExceptionGroup) and isinstance(cancellation, BaseExceptionGroup):
                return exc.exceptions[0]  # what was mixed with the cancellation, in the group that it came in
            return exc
        return cancellation

    @overload
    def start_soon(
        self, func: Callable[P, Coroutine[Any, Any, R]], /, *args: P.args, **kwargs: P.kwargs
    ) -> CallHandle[R]: ...
    @overload
    def start_soon(
        self, func: Callable[P, AsyncIterator[R]], /, *args: P.args, **kwargs: P.kwargs
    ) -> CallHandle[list[R]]: ...
    @overload
    def start_soon(
        self, func: Callable[P, Iterator[R]], /, *args: P.args, **kwargs: P.kwargs
    ) -> CallHandle[list[R]]: ...
    @overload
    def start_soon(self, func: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> CallHandle[R]: ...
    def start_soon(self, func: Any, /, *args: Any, **kwargs: Any) -> CallHandle[Any]:
        """Start a call in the background, and wait for it when the session ends.

        A plain function runs in a worker thread, and a stream is collected into a list. If the call fails, the session
        is cancelled, as a task group would be.

        Args:
            func: A task, or a function.
            args: Its positional arguments.
            kwargs: Its keyword arguments.

        Returns:
            A handle to wait for the result with, or to cancel the call.

        Raises:
            TypeError: The function does not take these arguments.
            SessionError: The session is not open, or this is not its event loop's thread.
        """
        task = as_task(func)
        position = here()
        self._check_open(f"the background call of {task.name!r}", position)
        # From a hook of its own it is the call of a hook: watched by nobody.
        home = position.home if position.home.session is self else self._home
        root = Root(home, position.call, starts_background=True)
        handle: CallHandle[Any] = CallHandle(*task._prepared(args, kwargs, root))
        self._running += 1
        self._group.start_soon(self._run, handle, name=task.name)
        return handle

    async def _run(self, handle: CallHandle[Any]) -> None:
        try:
            if not self._group.cancel_scope.cancel_called:
                await handle._run()
        except BaseException as exc:
            try:
                await handle._tell()
            finally:  # whatever native cancellation goes through its shield
                cancellation = self._failures.add(exc)
            if cancellation is not None:
                raise cancellation
        finally:
            handle._done.set()
            self._one_less()

    def _one_less(self) -> None:
        self._running -= 1
        if not self._running and self._idle is not None:
            self._idle.set()

    def events(self, *, max_buffer: int | None = None, under: UUID | None = None) -> Subscription:
        """The events of this session and of those inside it, for `async with`, then `async for`.

        It has everything that is published after it was entered, in order, until the session begins to end: for looking
        while things run. `watch` sees it all.

        Args:
            max_buffer: How many events may wait: then the oldest gives way to the newest, and is counted in `dropped`. By
                default any number, and one warning is logged when 10,000 wait.
            under: The id of a call, to have only its events and those of what it has begun; by default all.

        Raises:
            TypeError: An argument has the wrong type.
            ValueError: `max_buffer` is less than 1.
            SessionError: The session is not open.
        """
        if max_buffer is not None:
            _numbers.whole(f"session {self.name!r}: events: max_buffer", max_buffer, least=1)
        if under is not None and not isinstance(under, UUID):
            raise TypeError(f"session {self.name!r}: events: under must be the id of a call, a UUID, not {under!r}")
        self._check_open("events()", None)
        return Subscription(self._bus, max_buffer=max_buffer, under=under)

    def stats(self) -> SessionStats:
        """How many calls there were by state, those of inner sessions included; also after the session has ended.

        Raises:
            SessionError: The session was not entered.
        """
        if self._state == "new":
            raise SessionError(f"session {self.name!r}: stats() before it was entered; use it in `async with`")
        return self._books.stats()

    def tree(self) -> CallTree:
        """The calls that run, as a tree: how old they are, what they wait for, and until when. `print` it.

        Calls in threads are there, streams between their items, threads that were abandoned, and the calls of inner
        sessions. It may be asked from any thread.

        Raises:
            SessionError: The session was not entered.
        """
        if self._state == "new":
            raise SessionError(f"session {self.name!r}: tree() before it was entered; use it in `async with`")
        return tree_of(self._books)

    def cancel(self, *, under: UUID | None = None) -> bool:
        """Cancel all that runs in the session, its body included; or one call and what it has made.

        The cancellation of the session does not leave it. A call that is cancelled by itself ends as cancelled: whoever
        awaits the handle of a background call gets a `CallCancelledError`, and from a fan-out it comes as one in the
        `TaskGroupError`, after the other calls have ended.

        Args:
            under: The id of the call, which must have a task of the event loop to itself: a background call or one of a
                fan-out, also of an inner session. By default everything is cancelled.

        Returns:
            Whether there was anything to cancel: a call that has ended is none.

        Raises:
            TypeError: `under` is no id.
            SessionError: The session was not entered, this is not its event loop's thread, or the call runs in the task
                of whoever made it, and cannot be cancelled alone.
        """
        if under is not None and not isinstance(under, UUID):
            raise TypeError(f"session {self.name!r}: cancel: under must be the id of a call, a UUID, not {under!r}")
        if self._state == "new":
            raise SessionError(f"session {self.name!r}: cancel() before it was entered; use it in `async with`")
        if not self._bus.loop.is_here():
            raise SessionError(f"session {self.name!r}: cancel() in another thread than that of its event loop")
        if self._state == "ended":
            return False
        if under is None:
            self._group.cancel_scope.cancel()
            return True
        call = find_call(self._books, under)
        if call is None:
            return False
        if call.cancel is None:
            raise SessionError(f"session {self.name!r}: {why_not_alone(call)}")
        call.cancel()
        return True

    def watch(self, consumer: Callable[[Subscription], Awaitable[Any]], /) -> None:
        """Let a coroutine function follow the events, from now until the session has ended.

        It runs beside the session and outside of it: its own calls are in no session of this one, and so not among the
        events. Its failure is logged, and harms nobody. When all else has ended it has `grace` seconds to take what
        still waits.

        Args:
            consumer: Called with the events, to be used in `async for`.

        Raises:
            TypeError: It is not a coroutine function.
            SessionError: The session is not open, or this is not its event loop's thread.
        """
        if not is_coroutine_function(consumer):
            raise TypeError(f"session {self.name!r}: watch() takes a coroutine function, not {consumer!r}")
        self._check_open("watch()", None)
        self._watchers.start(consumer, repr(consumer))

    def _check_open(self, what: str, position: Position | None) -> None:
        """Raise if the session is not to be used, but for the running calls of one that is about to end."""
        if self._state == "new":
            raise SessionError(f"session {self.name!r}: {what} before it was entered; use it in `async with`")
        is_running = position is not None and position.home.session is not None
        if isinstance(position, Root):
            is_running = position.starts_background
        if self._state != "open" and not (self._state == "leaving" and is_running):
            raise SessionError(f"session {self.name!r}: {what} after it has begun to end")
        if not self._bus.loop.is_here():
            raise SessionError(f"session {self.name!r}: {what} in another thread than that of its event loop")
