"""The scope that owns background calls, events and threads."""

from __future__ import annotations

import sys
import warnings
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable, Iterator
from dataclasses import replace
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, TypeVar, cast, overload
from uuid import UUID

import anyio
from anyio.abc import TaskGroup
from typing_extensions import ParamSpec, Self

from . import _checks, _clock
from ._bindings import Binding, Bindings
from ._books import Books, SessionStats
from ._bus import Bus, Subscription, is_under
from ._children import Children
from ._context import OPEN, Home, Position, Root, reset, set_current, whereabouts
from ._ending import Ending
from ._eventloop import Loop, LoopEnded, in_event_loop, running_task
from ._failures import Failures, is_cancellation
from ._functions import is_coroutine_function
from ._handles import CallHandle
from ._hooks import Hooks, name_of
from ._metadata import new_id
from ._opening import DatasetStoreLike
from ._stores import StoreLike
from ._sync_session import SyncSession
from ._threads import Threads
from ._tree import CallTree, LiveCall, find_call, live_calls, tree_of, why_not_alone
from ._typing import NOT_GIVEN, NotGiven
from ._watchers import Watchers
from .exceptions import SessionError
from .settings import Settings, check_settings
from .tasks import Task, as_task

if TYPE_CHECKING:
    from ._futures import CallFuture
    from ._protocols import Watched
    from ._reports import Reports
    from ._stays import Stay

if sys.version_info < (3, 11):
    from exceptiongroup import BaseExceptionGroup

__all__ = [
    "Binding",
    "CallFuture",
    "CallHandle",
    "CallTree",
    "LiveCall",
    "Session",
    "SessionStats",
    "Subscription",
    "SyncSession",
    "current_session",
    "session",
]

for _public in (Binding, CallHandle, CallTree, LiveCall, SessionStats, Subscription, SyncSession):
    _public.__module__ = __name__  # where people find them
del _public


def __getattr__(name: str) -> Any:
    if name == "CallFuture":  # not every program has threads, and `concurrent.futures` takes a while to import
        from ._futures import CallFuture

        return CallFuture
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")


def session(
    *,
    name: str | NotGiven = NOT_GIVEN,
    grace: float | NotGiven = NOT_GIVEN,
    max_threads: int | NotGiven = NOT_GIVEN,
    backend: str | NotGiven = NOT_GIVEN,
    on_background_error: Literal["raise", "log"] | NotGiven = NOT_GIVEN,
    cache_store: StoreLike | NotGiven | None = NOT_GIVEN,
    dataset_store: DatasetStoreLike | NotGiven | None = NOT_GIVEN,
    plugins: Iterable[Any] = (),
    settings: Settings | NotGiven = NOT_GIVEN,
    event_loop: Literal["asyncio", "trio"] | NotGiven = NOT_GIVEN,
) -> Session:
    """A scope for calls, opened with `async with`, or from sync code with `with`.

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

    Nothing that is started in it outlives it. `with session()` runs it in an event loop in a thread in the background, or
    in that of the enclosing session: async tasks are called with `from_thread`, or with `map_tasks` one for each item.

    ```python
    from daglite import session, task


    @task
    async def double(number: int) -> int:
        return 2 * number


    with session() as s:
        call = s.start_soon(double, 4)
        assert call.result() + double.from_thread(5) == 18
    ```

    What is not given comes from `settings`, if they are given; else from the
    enclosing session, whose subscribers and plugins also hear of the calls in this one; else from
    `daglite.settings.get_settings()`.

    Args:
        name: What events and errors call it; `"session"` by default.
        grace: Seconds that cleaning up may take when it ends; 5 by default. After a cancellation it is also how long threads
            without a timeout are waited for.
        max_threads: How many worker threads its calls may use at once; 40 by default. As many may be stuck past their
            deadlines before another call that needs a thread is refused.
        backend: Where fan-outs and `start_soon` run sync functions that do not say: `"thread"` by default, or
            `"inline"`.
        on_background_error: `"raise"`, the default, if a background call that fails cancels the session, which raises the
            error, as a task group does; `"log"` if it is logged and harms nobody, as suits a server.
        cache_store: Where the results of tasks with `cache=True` are kept that name no store: a store, the path of a folder,
            `"memory://name"`, or the `"redis://..."` of a server; `None`, the default, if nowhere.
        dataset_store: Where the datasets of tasks, and of `save_dataset` and `load_dataset`, are that name no store: a
            `daglite.datasets.DatasetStore`, the path of a folder, or a URL; `None`, the default, if nowhere.
        plugins: Objects and modules with hooks, or with `async def consume(self, events)`, see `daglite.plugins`; or the
            names that installed packages offer them under, by entry points in the group `daglite.plugins`. Those of the
            enclosing session are there as well; each sees each call once.
        settings: All of the above that settings have, and what is shown of the arguments of calls.
        event_loop: `"asyncio"` or `"trio"`, for `with`; by default that of the enclosing session, or else asyncio.

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: An argument is out of range.
        SessionError: When it is entered: by `with` in an event loop's thread, or for a second time.
        ImportError: When it is entered: the event loop is not installed.
    """
    if not isinstance(name, (str, NotGiven)):
        raise TypeError(f"session: name must be a str, not {name!r}")
    if isinstance(plugins, str) or not isinstance(plugins, Iterable):
        raise TypeError(f"session: plugins must be a list of plugins, not {plugins!r}")
    if not isinstance(settings, (Settings, NotGiven)):
        raise TypeError(f"session: settings must be a daglite.settings.Settings, not {settings!r}")
    if not isinstance(event_loop, NotGiven):
        _checks.one_of("session: event_loop", event_loop, ("asyncio", "trio"))
    options = {
        "grace": grace,
        "max_threads": max_threads,
        "backend": backend,
        "on_background_error": on_background_error,
        "cache_store": cache_store,
        "dataset_store": dataset_store,
    }
    given = {option: value for option, value in options.items() if not isinstance(value, NotGiven)}
    check_settings("session", given)
    own_name = "session" if isinstance(name, NotGiven) else name
    return Session(own_name, tuple(plugins), settings, given, None if isinstance(event_loop, NotGiven) else event_loop)


def current_session() -> Session | None:
    """The innermost session that the running code is in; `None` outside all sessions."""
    return whereabouts().home.session  # type: ignore[no-any-return]


class Session:
    """What `session()` opens: the owner of all that is started in it.

    Its methods are for the tasks of its event loop, and for threads, in which it is a `SyncSession`.

    Leaving waits for the background calls, or cancels them if the body failed; then it cancels the services, closes the
    streams that are open, publishes `SessionEnded`, and gives the watchers `grace` seconds to take what waits for them.
    Calls that are new are refused in the meantime, but for those that running calls make. An error of the body comes out as
    it is; failed background calls as a `TaskGroupError`; both in an `ExceptionGroup`, the body's error first.

    Attributes:
        id: The session's, as in its events.
        name: What events and errors call it.
    """

    def __init__(
        self,
        name: str,
        plugins: tuple[Any, ...],
        settings: Settings | NotGiven,
        given: dict[str, Any],
        event_loop: str | None,
    ) -> None:
        self.id: UUID = new_id()
        self.name: str = name
        self._plugins = plugins
        self._base = settings
        self._given = given
        self._event_loop = event_loop
        self._stay: Stay | None = None  # of the thread that it was entered in, if by `with`
        self._state: Literal["new", "open", "leaving", "closing", "ended"] = "new"

    def __repr__(self) -> str:
        return f"<Session {self.name!r}, {self._state}>"

    @property
    def settings(self) -> Settings:
        """What holds for its calls and for inner sessions: what was given, and what it came to for the rest.

        Raises:
            SessionError: The session was not entered.
        """
        self._check_entered("settings")
        return self._home.settings

    def __enter__(self) -> SyncSession:
        self._check_new()
        from ._stays import Stay  # most programs are in an event loop

        stay = Stay(self.name, self, self._event_loop)
        if isinstance(self._base, NotGiven):
            self._base = stay.settings or NOT_GIVEN
        self._stay = stay
        stay.enter()
        return cast("SyncSession", self)  # the same, whose methods do otherwise in a thread

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> bool | None:  # with a plain bool type checkers take it for one that swallows errors
        try:
            if self._stay is None:
                raise SessionError(f"session {self.name!r} was left, and is not entered")
            return self._stay.leave(exc)
        finally:
            del exc  # else its traceback, which holds this frame, would hold itself

    async def __aenter__(self) -> Self:
        self._check_new()
        if self._event_loop is not None and self._stay is None:
            text = "is for `with`; this `async with` is in the event loop that runs already"
            raise SessionError(f"session {self.name!r}: event_loop={self._event_loop!r} {text}")
        from ._reports import Reports  # the events take 15 ms to import, which a program without sessions is spared

        self._outside: Position = whereabouts()
        outer = self._outside.home
        settings = outer.settings if isinstance(self._base, NotGiven) else self._base
        if self._given:
            settings = replace(settings, **self._given)
        # Who watches the enclosing session watches this one, unless it is opened by what a hook has started.
        enclosing = outer.session if isinstance(outer.session, Session) and outer.session._home is outer else None
        hooks = Hooks(self._plugins, None if enclosing is None else enclosing._reports.hooks)
        self._group: TaskGroup = anyio.create_task_group()
        await self._group.__aenter__()
        # From here on all that is begun is undone by leaving.
        self._build(settings, enclosing)
        self._reports: Reports = Reports(self._home, self._bus, hooks, self._outside)
        self._state = "open"
        OPEN[self._home] = None
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

    def _build(self, settings: Settings, enclosing: Session | None) -> None:
        """Make its parts, each of those before it."""
        loop = Loop()
        self._task: Any = running_task()
        self._began = _clock.monotonic()
        self._failures = Failures()
        self._failures.scope = self._group.cancel_scope
        self._ending = Ending(self.name, settings.grace, self._group, self._failures)
        self._threads = Threads(f"session {self.name!r}'s threads", settings.max_threads, self._ending.patience)
        self._books: Books = Books(self.name, self.id, self._threads.stuck, loop, self._outside.home.books)
        self._home: Home = Home(
            self.name,
            session=self,
            threads=self._threads,
            settings=settings,
            books=self._books,
            start_soon=self._group.start_soon,
        )
        self._bus: Bus = Bus(self.id, loop, None if enclosing is None else enclosing._bus)
        self._bindings = Bindings(self._home)
        self._children = Children(
            self.name,
            self._group,
            self._failures,
            self._bindings,
            logs=settings.on_background_error == "log",
            services_end=self._ending.limit_patience,
        )
        self._watchers = Watchers(self._home, self._bus, self._group, self._failures, self._outside)

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> bool | None:
        self._check_leaving()
        reset(self._token)
        self._state = "leaving"
        self._home.leave()
        self._bus.end(lasting=False)
        if exc is not None:
            self._group.cancel_scope.cancel()
        cancellation = await self._children.join(exc if is_cancellation(exc) else None)
        self._state = "closing"
        cancellation = await self._ending.run(self._home, self._books, self._bindings) or cancellation
        self._state = "ended"
        try:
            self._reports.session_ended(self.name, _clock.monotonic() - self._began)
        except BaseException as interrupt:  # in a hook
            self._failures.add(interrupt)
        self._books.close()
        del OPEN[self._home]
        self._bus.end(lasting=True)
        self._watchers.end_soon()
        cancellation = await self._leave_group(cancellation)
        self._task = None
        if stuck := self._threads.stuck.names():
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

    async def _finish(self, deadline: float) -> None:
        """Wait for the background calls before it is left. Those that run at the deadline, also while it is left, are cancelled."""
        self._children.deadline = deadline
        await self._children.finish(self._home.settings.grace)

    def _was_cancelled(self) -> bool:
        return self._group.cancel_scope.cancel_called

    def _check_new(self) -> None:
        if self._state != "new":
            raise SessionError(f"session {self.name!r} was entered before; session() makes another")

    def _check_leaving(self) -> None:
        """Raise if it is not to be left here: before anything of it is undone."""
        self._check_entered("leaving")
        if self._state != "open":
            raise SessionError(f"session {self.name!r} was left before")
        if running_task() is not self._task:
            # What it owns is not to go on without it, and there is nobody else who could be told.
            self._group.cancel_scope.cancel()
            raise SessionError(
                f"session {self.name!r} was left in another task than it was entered in, and is cancelled: keep both in "
                f"one task, or start a task that holds it with `async with` and that is told when to end"
            )
        position = whereabouts()
        inner, binding = position.home.session, position.root.binding
        opened = None
        if binding is not None and binding.task is self._task and binding in self._bindings:
            opened = "bind() of it"
        elif inner is not self and isinstance(inner, Session) and inner._task is self._task and inner._is_inside(self):
            opened = f"session {inner.name!r}"
        if opened is not None:
            text = f"session {self.name!r} was left before {opened}, which the same task has entered since"
            raise SessionError(f"{text}: leave that first")

    def _is_inside(self, other: Session) -> bool:
        session: Any = self
        while isinstance(session, Session) and session is not other:
            session = session._outside.home.session
        return session is other

    def _close_soon(self, steps: Any) -> None:
        """Close a stream that was dropped; called by the collector, in whatever thread and at whatever moment."""
        self._bus.loop.post(self._close_dropped, steps)

    def _close_dropped(self, steps: Any) -> None:
        if self._state == "open" and not steps.ended:
            self._children.close_soon(partial(self._ending.close_now, steps))

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
    def start_soon(self, func: Any, /, *args: Any, **kwargs: Any) -> Any:
        """Start a call in the background, and wait for it when the session ends.

        A plain function runs in a worker thread, and a stream is collected into a list. If the call fails, the session
        is cancelled, as a task group would be.

        Args:
            func: A task, or a function.
            args: Its positional arguments.
            kwargs: Its keyword arguments.

        Returns:
            A handle to wait for the result with, or to cancel the call; in a thread a `CallFuture`.

        Raises:
            TypeError: The function does not take these arguments.
            SessionError: The session is not open, or another event loop than its own runs in this thread.
        """
        return self._start(func, args, kwargs, is_service=False)

    @overload
    def start_service(
        self, func: Callable[P, Coroutine[Any, Any, R]], /, *args: P.args, **kwargs: P.kwargs
    ) -> CallHandle[R]: ...
    @overload
    def start_service(
        self, func: Callable[P, AsyncIterator[R]], /, *args: P.args, **kwargs: P.kwargs
    ) -> CallHandle[list[R]]: ...
    @overload
    def start_service(
        self, func: Callable[P, Iterator[R]], /, *args: P.args, **kwargs: P.kwargs
    ) -> CallHandle[list[R]]: ...
    @overload
    def start_service(self, func: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> CallHandle[R]: ...
    def start_service(self, func: Any, /, *args: Any, **kwargs: Any) -> Any:
        """Start a call in the background that is cancelled when the session ends: once all other calls are done.

        ```python
        import anyio
        from daglite import session, task


        @task
        async def beat(beats: list[float]) -> None:
            while True:
                beats.append(anyio.current_time())
                await anyio.sleep(1)


        async def main() -> int:
            beats: list[float] = []
            async with session() as s:
                s.start_service(beat, beats)
                await anyio.wait_all_tasks_blocked()
            return len(beats)


        assert anyio.run(main) == 1
        ```

        In all else it is as `start_soon`: if it fails, so does the session. What it starts in the background itself may go
        on until it is done, also after the service was cancelled.

        Args:
            func: A task, or a function.
            args: Its positional arguments.
            kwargs: Its keyword arguments.

        Returns:
            A handle to wait for the result with, or to cancel the call sooner; in a thread a `CallFuture`.

        Raises:
            TypeError: The function does not take these arguments.
            SessionError: The session is not open, or another event loop than its own runs in this thread.
        """
        return self._start(func, args, kwargs, is_service=True)

    def _start(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], *, is_service: bool) -> Any:
        task = as_task(func)
        if not self._is_here(f"the background call of {task.name!r}"):
            from ._futures import CallFuture

            def start() -> CallFuture[Any]:  # before the call can have ended
                return CallFuture(self._start_here(task, args, kwargs, is_service=is_service), self)

            return self._in_loop(start)
        return self._start_here(task, args, kwargs, is_service=is_service)

    def _start_here(
        self, task: Task[Any, Any], args: tuple[Any, ...], kwargs: dict[str, Any], *, is_service: bool
    ) -> CallHandle[Any]:
        position = whereabouts()
        self._check_open(f"the background call of {task.name!r}", position)
        if is_service and self._children.services_ended:
            raise SessionError(f"session {self.name!r}: the service {task.name!r} comes after services were cancelled")
        # From a hook of its own it is the call of a hook: watched by nobody.
        home = position.home if position.home.session is self else self._home
        is_serving = is_service or (position.home.session is self and position.root.is_serving)
        origin = position.root.binding
        root = Root(home, position.call, starts_background=True, is_serving=is_serving, origin=origin)
        handle: CallHandle[Any] = CallHandle(*task._prepared(args, kwargs, root), self._bus.loop)
        self._children.start(handle, task.name, is_service=is_service, is_serving=is_serving)
        return handle

    def bind(self) -> Binding[Self]:
        """Make the session current in another task or thread than it was entered in: a request of a web server, say.

        ```python
        import anyio
        from daglite import current_session, session, task


        @task
        async def double(number: int) -> int:
            return 2 * number


        async def main() -> int:
            results: list[int] = []
            async with anyio.create_task_group() as group, session() as s:

                async def handle(number: int, done: anyio.Event) -> None:
                    async with s.bind():  # in a thread of your own: `with s.bind()`
                        results.append(await double(number))
                    done.set()

                done = anyio.Event()
                group.start_soon(handle, 21, done)
                await done.wait()
                assert s.stats().succeeded == 1
            return results[0]


        assert anyio.run(main) == 42
        ```

        When it is left it closes the streams that were opened under it. What is started in the background there is the
        session's, and may go on. The session waits for those who are bound to it before it ends, for at most `grace`
        seconds; what they call goes on so long.

        Returns:
            What is entered once: with `async with` in a task of the session's event loop, with `with` in a thread in which
            none runs. Either gives the session. A `SessionError` says what to do when it cannot be entered.

        Raises:
            SessionError: The session is not open.
        """
        self._check_entered("bind()")
        self._bindings.check()
        return Binding(self, self._home, self._bus.loop, self._bindings)

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
            _checks.whole(f"session {self.name!r}: events: max_buffer", max_buffer, least=1)
        if under is not None and not isinstance(under, UUID):
            raise TypeError(f"session {self.name!r}: events: under must be the id of a call, a UUID, not {under!r}")
        self._is_here("events()")
        self._check_open("events()", None)
        belongs = None if under is None else partial(is_under, id=under)
        return Subscription(self._bus, max_buffer=max_buffer, belongs=belongs)

    def _follow(
        self, belongs: Callable[[Watched | None], bool], max_buffer: int, binding: Binding[Any]
    ) -> Subscription | None:
        """The events of some calls, from now on, until a binding ends; `None` if none of them runs, or is about to."""
        if not self._is_here("events()"):
            return self._in_loop(self._follow, belongs, max_buffer, binding)
        self._check_open("events()", None)
        followed = Subscription(self._bus, max_buffer=max_buffer, belongs=belongs)
        followed._enter()  # in this order: what ends in the meantime, in a thread, is told
        if not self._runs(belongs):
            followed._leave()
            return None
        binding.add(followed)
        return followed

    def _runs(self, belongs: Callable[[Watched | None], bool]) -> bool:
        """Whether any of some calls runs, or is about to."""
        return any(map(belongs, live_calls(self._books))) or any(map(belongs, self._children.waiting()))

    def stats(self) -> SessionStats:
        """How many calls there were by state, those of inner sessions included; also after the session has ended.

        Raises:
            SessionError: The session was not entered.
        """
        self._check_entered("stats()")
        return self._books.stats()

    def tree(self) -> CallTree:
        """The calls that run, as a tree: how old they are, what they wait for, and until when. `print` it.

        Calls in threads are there, streams between their items, threads that were abandoned, and the calls of inner
        sessions. It may be asked from any thread.

        Raises:
            SessionError: The session was not entered.
        """
        self._check_entered("tree()")
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
            SessionError: The session was not entered, another event loop runs in this thread, or the call runs in the task
                of whoever made it, and cannot be cancelled alone.
        """
        if under is not None and not isinstance(under, UUID):
            raise TypeError(f"session {self.name!r}: cancel: under must be the id of a call, a UUID, not {under!r}")
        if self._state == "ended":
            return False
        return self._cancel(under) if self._is_here("cancel()") else self._in_loop(self._cancel, under)

    def _cancel(self, under: UUID | None) -> bool:
        if self._state == "ended":
            return False
        if under is None:
            self._group.cancel_scope.cancel()
            return True
        call = find_call(self._books, under) or self._children.find(under)
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
            SessionError: The session is not open, or another event loop than its own runs in this thread.
        """
        if not is_coroutine_function(consumer):
            raise TypeError(f"session {self.name!r}: watch() takes a coroutine function, not {consumer!r}")
        if not self._is_here("watch()"):
            self._in_loop(self.watch, consumer)
            return
        self._check_open("watch()", None)
        self._watchers.start(consumer, repr(consumer))

    def _check_entered(self, what: str) -> None:
        if self._state == "new":
            raise SessionError(f"session {self.name!r}: {what} before it was entered; use it in `async with`")
        if self._home.session is None:
            raise SessionError(f"session {self.name!r}: {what} in a fork of the process that it is open in")

    def _check_open(self, what: str, position: Position | None) -> None:
        """Raise if the session is not to be used, but for the running calls of one that is about to end."""
        self._check_entered(what)
        is_running = position is not None and position.accepted and position.home.session is not None
        if self._state != "open" and not (self._state == "leaving" and is_running):
            raise SessionError(f"session {self.name!r}: {what} after it has begun to end")

    def _is_here(self, what: str) -> bool:
        """Whether the caller runs in its event loop; a thread does not.

        Raises:
            SessionError: It runs in another event loop, which is not to wait for this one; or the session is not open.
        """
        self._check_entered(what)
        loop = self._bus.loop
        if loop.is_running_here():
            return True
        if in_event_loop():
            raise SessionError(f"session {self.name!r}: {what} in another event loop than its own")
        if self._state == "ended":
            raise SessionError(f"session {self.name!r}: {what} after it has ended")
        return False

    def _in_loop(self, func: Callable[..., T], *args: Any) -> T:
        """Call a function in its event loop, and wait for it in this thread."""
        try:
            return self._bus.loop.call(func, *args)
        except LoopEnded:
            raise SessionError(f"session {self.name!r} has ended, with its event loop") from None
