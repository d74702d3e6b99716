"""The decorator and the kinds of task that it makes."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping
from functools import partial
from inspect import Signature
from typing import Any, Concatenate, Generic, NoReturn, Protocol, TypeVar, overload

from typing_extensions import Never, ParamSpec, Self

from ._bridge import INLINE, THREAD, find_backend
from ._call import Call
from ._context import Home, Position, here
from ._from_thread_streams import FromThreadSteps
from ._functions import Function, function_of
from ._lifecycle import run, run_sync
from ._options import Options, checked_options
from ._protocols import Attempt, Backend
from ._pumps import PumpedSteps
from ._reference import reduce_partial, reduce_task
from ._retry import RetryDelay, RetryOn
from ._spec import Spec
from ._steps import AsyncSteps, SyncSteps
from ._streams import AsyncStream, SyncStream
from ._task_call import TaskCall
from ._thread_streams import ThreadSteps, TimedSteps
from ._trips import Trip, run_in_loop
from ._typing import NOT_GIVEN, NotGiven
from .limits import Limit, Rate

__all__ = [
    "AsyncStream",
    "AsyncTask",
    "AsyncTaskStream",
    "SyncStream",
    "SyncTask",
    "SyncTaskStream",
    "Task",
    "TaskCall",
    "task",
]

for _public in (AsyncStream, SyncStream, TaskCall):
    _public.__module__ = __name__  # where people find them
del _public

P = ParamSpec("P")
Rest = ParamSpec("Rest")
R = TypeVar("R")


class _SignatureOfTask:
    """What `inspect.signature` of a task looks at. It is not made before that asks."""

    def __get__(self, instance: Any, owner: Any = None) -> Signature:
        if instance is None:
            raise AttributeError("__signature__")
        return instance._spec.function.signature  # type: ignore[no-any-return]


class Task(Generic[P, R]):
    """What the kinds of task have in common: a function and its options, which never change.

    A task keeps the name, documentation and signature of its function, binds to an object as a method does, and is
    pickled by reference: as the module and name under which it can be imported.
    """

    # Of a task, not of the class.
    __signature__: Any = _SignatureOfTask()

    _spec: Spec
    _source: tuple[Any, tuple[Any, ...], Mapping[str, Any]] | None
    __name__: str
    __qualname__: str

    def __init__(self, spec: Spec, source: tuple[Any, tuple[Any, ...], Mapping[str, Any]] | None = None) -> None:
        origin = spec.function.origin
        self.__dict__.update(
            _spec=spec,
            _source=source,
            __wrapped__=spec.func,
            __module__=getattr(origin, "__module__", None),
            __name__=spec.function.name,
            __qualname__=getattr(origin, "__qualname__", spec.function.name),
            __doc__=getattr(origin, "__doc__", None),
            # Else those of this class would be found, and `typing.get_type_hints` stumble over them.
            __annotations__=getattr(origin, "__annotations__", {}),
        )

    @property
    def func(self) -> Callable[..., Any]:
        """The function that a call runs."""
        return self._spec.func  # type: ignore[no-any-return]

    @property
    def signature(self) -> Signature:
        """The parameters of a call; without `self` if the task was taken from an object."""
        return self._spec.function.signature

    @property
    def is_async(self) -> bool:
        """Whether the function is a coroutine function or an async generator function."""
        return self._spec.function.is_async

    @property
    def is_generator(self) -> bool:
        """Whether the function is a generator function, and the task a stream."""
        return self._spec.function.is_generator

    @property
    def name(self) -> str:
        """What the task is called in errors and events, with its placeholders."""
        return self._spec.options.name

    @property
    def description(self) -> str | None:
        """What the task does."""
        return self._spec.options.description

    @property
    def retries(self) -> int:
        """How often the function is run again after a failure."""
        return self._spec.options.retries

    @property
    def retry_on(self) -> RetryOn:
        """Which failures are retried."""
        return self._spec.options.retry_on

    @property
    def retry_delay(self) -> RetryDelay:
        """Seconds before a retry, or what says how many."""
        return self._spec.options.retry_delay

    @property
    def timeout(self) -> float | None:
        """Seconds for each attempt; `None` if there is no limit."""
        return self._spec.options.timeout

    @property
    def total_timeout(self) -> float | None:
        """Seconds for the whole call; `None` if there is no limit."""
        return self._spec.options.total_timeout

    @property
    def item_timeout(self) -> float | None:
        """Seconds for each item of a stream; `None` if there is no limit."""
        return self._spec.options.item_timeout

    @property
    def pump(self) -> bool:
        """Whether an async generator lives in a task of its own."""
        return self._spec.options.pump

    @property
    def limit(self) -> Limit | None:
        """How many attempts run at once, or streams are open; `None` for any number."""
        return self._spec.options.limit

    @property
    def rate(self) -> Rate | None:
        """How many attempts begin in a time; `None` for any number."""
        return self._spec.options.rate

    @property
    def backend(self) -> str | None:
        """Where fan-outs run a sync function; `None` for where the session says."""
        return self._spec.options.backend

    @property
    def wrap_errors(self) -> bool:
        """Whether a failed call raises a `TaskError`, and not the function's own error."""
        return self._spec.options.wrap_errors

    def __setattr__(self, name: str, value: Any) -> NoReturn:
        remedy = f"; with_options({name}=...) makes another" if name in Options.__slots__ else ""
        raise AttributeError(f"task {self._spec.label!r} is immutable{remedy}")

    def __delattr__(self, name: str) -> NoReturn:
        raise AttributeError(f"task {self._spec.label!r} is immutable")

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name!r}>"

    def __reduce__(self) -> tuple[Any, ...]:
        if self._source is None:
            return reduce_task(self, self._spec)
        task, args, kwargs = self._source
        return reduce_partial(task, self._spec, args, kwargs)

    def with_options(
        self,
        *,
        name: str | NotGiven | None = NOT_GIVEN,
        description: str | NotGiven | None = NOT_GIVEN,
        retries: int | NotGiven = NOT_GIVEN,
        retry_on: RetryOn | NotGiven = NOT_GIVEN,
        retry_delay: RetryDelay | NotGiven = NOT_GIVEN,
        timeout: float | NotGiven | None = NOT_GIVEN,
        total_timeout: float | NotGiven | None = NOT_GIVEN,
        item_timeout: float | NotGiven | None = NOT_GIVEN,
        pump: bool | NotGiven = NOT_GIVEN,
        limit: int | Limit | NotGiven | None = NOT_GIVEN,
        rate: Rate | NotGiven | None = NOT_GIVEN,
        backend: str | NotGiven | None = NOT_GIVEN,
        wrap_errors: bool | NotGiven = NOT_GIVEN,
    ) -> Self:
        """A copy of the task with other options; those that are not given stay as they are.

        Args:
            name: See `task`, as for all others.
            description: As above.
            retries: As above.
            retry_on: As above.
            retry_delay: As above, in seconds.
            timeout: As above, in seconds.
            total_timeout: As above, in seconds.
            item_timeout: As above, in seconds.
            pump: As above.
            limit: As above. A number makes another limit, for the copy and its copies.
            rate: As above.
            backend: As above.
            wrap_errors: As above.

        Raises:
            TypeError: An option has the wrong type.
            ValueError: An option is out of range or does not apply to this kind of task.
        """
        options = {
            "name": name,
            "description": description,
            "retries": retries,
            "retry_on": retry_on,
            "retry_delay": retry_delay,
            "timeout": timeout,
            "total_timeout": total_timeout,
            "item_timeout": item_timeout,
            "pump": pump,
            "limit": limit,
            "rate": rate,
            "backend": backend,
            "wrap_errors": wrap_errors,
        }
        changes = {option: value for option, value in options.items() if value is not NOT_GIVEN}
        spec = self._spec
        return type(self)(Spec(spec.function, spec.options.changed(spec.function, changes)), self._source)

    def _prepared(
        self, args: tuple[Any, ...], kwargs: Mapping[str, Any], parent: Position
    ) -> tuple[Call, Callable[[], Coroutine[Any, Any, Any]]]:
        """A call that somebody awaits later, and how: wrong arguments are an error now.

        A sync function runs on its backend, and a stream is collected into a list.

        Args:
            args: The positional arguments.
            kwargs: The keyword arguments.
            parent: Where it is made.
        """
        self._check_arguments(args, kwargs)
        call = Call(self._spec, args, kwargs, parent)
        if not self.is_async:
            call.backend = self._backend(None, call.home)
        return call, lambda: self._awaited(call)

    def _check_arguments(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        try:
            self._spec.function.signature.bind(*args, **kwargs)
        except TypeError as exc:
            raise TypeError(f"task {self._spec.label!r}: {exc}") from None

    def _unbegun(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> TaskCall[Any]:
        """A call that is begun later: wrong arguments are an error now."""
        self._check_arguments(args, kwargs)
        return TaskCall(self, args, kwargs)

    def _run_one(
        self,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        index: int,
        backend: Backend | None,
        cancel: Callable[[int], None],
    ) -> Coroutine[Any, Any, Any]:
        """The same, for one of a fan-out, here and now.

        Args:
            args: The positional arguments.
            kwargs: The keyword arguments.
            index: Its position in the fan-out.
            backend: Where a sync function runs.
            cancel: Cancels the one of an index alone.
        """
        call = self._call(args, kwargs, backend)
        call.map_index = index
        if call.home.books is not None:  # else nobody can ask for it
            call.cancel = partial(cancel, index)
        return self._awaited(call)

    def _call(self, args: tuple[Any, ...], kwargs: Mapping[str, Any], backend: Backend | None = None) -> Call:
        """A call that is made here, to run on a backend."""
        call = Call(self._spec, args, kwargs, here())
        call.backend = backend
        return call

    @abstractmethod
    def _awaited(self, call: Call) -> Coroutine[Any, Any, Any]:
        """Begin a call and see it through, as each kind of task does."""

    def _backend(self, name: Any, home: Home) -> Backend:
        """Where a call of a sync function runs, if not in place: on the backend of that name, or on the default."""
        options = self._spec.options
        for default in (options.backend, home.settings.backend):
            name = default if name is None else name
        where = f"task {self._spec.label!r}"
        backend = find_backend(where, name, options.deadlines)
        if backend is INLINE and self.is_generator and options.limit is not None:
            raise ValueError(
                f"{where}: its limit cannot be waited for by a generator that is collected in the event loop's own thread; "
                f"use the backend 'thread' instead of 'inline'"
            )
        return backend

    def _bound_to(self, owner: Any) -> Self:
        # As short as can be: it happens whenever a method is called.
        spec = self._spec.bound_to(owner)
        bound: Self = object.__new__(type(self))
        bound.__dict__.update(self.__dict__, _spec=spec, __wrapped__=spec.func)
        return bound

    def _bind(self, instance: Any, owner: Any) -> Any:
        function = self._spec.function
        if function.owner is not None or self._source is not None or function.binding == "static":
            return self  # it is bound already, or never is
        if function.binding == "class":
            return self._bound_to(owner)
        return self if instance is None else self._bound_to(instance)

    def _partial(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        spec = self._spec
        return type(self)(Spec(spec.function.partial(args, kwargs), spec.options), (self, args, kwargs))


class AsyncTask(Task[P, R]):
    """A coroutine function with options. `await` a call, as of the function itself.

    ```python
    import anyio
    from daglite import task


    @task(retries=3, timeout=10)
    async def double(number: int) -> int:
        return 2 * number


    assert anyio.run(double, 21) == 42
    ```

    It runs in the caller's own task and context, and adds no checkpoint on the way to success; before a retry there
    is always one.
    """

    async def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Run the task in the caller's own task.

        Returns:
            What the function returns.

        Raises:
            TaskError: The function failed; its error is the cause.
            TaskTimeoutError: The last attempt took longer than `timeout`, or all together longer than `total_timeout`.
            LimitError: A call around it, or a stream that is open in the same task, holds a token of its limit.
        """
        return await run(Call(self._spec, args, kwargs, here()))  # type: ignore[no-any-return]

    def from_thread(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Run the task in the event loop, for a thread, and wait for it there.

        From a worker thread it goes to the event loop that waits for the thread, else to that of the session that the
        thread is in. It runs in a copy of the thread's context, and is cancelled with whoever waits for the thread. In the
        meantime the thread gives up its place among the session's `max_threads`, so that calls which go to and fro never
        wait for each other.

        ```python
        import anyio
        from daglite import task


        @task
        async def fetch(number: int) -> int:
            return 2 * number


        @task
        def blocking(number: int) -> int:
            return fetch.from_thread(number) + 1


        assert anyio.run(blocking.to_thread, 4) == 9
        ```

        Returns:
            What the function returns.

        Raises:
            TaskError: The function failed; its error is the cause.
            TaskTimeoutError: The last attempt took longer than `timeout`, or all together longer than `total_timeout`.
            LimitError: A call around it, or a stream that is open in the same task, holds a token of its limit.
            CallCancelledError: The call was cancelled by itself.
            RuntimeError: An event loop runs in this thread: `await` the task.
            SessionError: There is no event loop to go to, or the session has ended.
        """

        def call(trip: Trip) -> Coroutine[Any, Any, Any]:
            call = Call(self._spec, args, kwargs, here())
            call.cancel = partial(trip.cancel, alone=True)
            return run(call)

        return run_in_loop(self._spec.label, call, f"await {self.__name__}(...)")  # type: ignore[no-any-return]

    def _awaited(self, call: Call) -> Coroutine[Any, Any, Any]:
        return run(call)

    def call(self, *args: P.args, **kwargs: P.kwargs) -> TaskCall[R]:
        """A call that has yet to begin, for `gather_tasks`, `map_tasks` and `race_tasks`.

        Raises:
            TypeError: The function does not take these arguments.
        """
        return self._unbegun(args, kwargs)

    def partial(self, *args: Any, **kwargs: Any) -> AsyncTask[..., R]:
        """A task with some arguments fixed, as by `functools.partial`.

        Raises:
            TypeError: The function does not take these arguments.
        """
        return self._partial(args, kwargs)  # type: ignore[no-any-return]

    @overload
    def __get__(self, instance: None, owner: Any) -> AsyncTask[P, R]: ...
    @overload
    def __get__(
        self: Callable[Concatenate[Any, Rest], Coroutine[Any, Any, Any]], instance: object, owner: Any = None
    ) -> AsyncTask[Rest, R]: ...
    def __get__(self, instance: Any, owner: Any = None) -> Any:
        """The task as a method of an object."""
        return self._bind(instance, owner)


class SyncTask(Task[P, R]):
    """A plain function with options. A call runs here and now, in the caller's thread.

    With a `timeout` the caller waits for another thread, so that the deadline is real.

    ```python
    from pathlib import Path
    from daglite import task


    @task(retries=2, retry_on=FileNotFoundError)
    def count_lines(path: Path) -> int:
        return len(path.read_bytes().splitlines())
    ```
    """

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Run the task here and now.

        Returns:
            What the function returns.

        Raises:
            TaskError: The function failed; its error is the cause.
            TaskTimeoutError: The last attempt took longer than `timeout`, or all together longer than `total_timeout`.
            LimitError: A call around it, or a stream that is open in the same task, holds a token of its limit.
            RuntimeError: The task has a deadline, a limit or a rate, or waits before a retry, and an event loop runs in this
                thread, which it would block: use `to_thread`.
            BackendError: As many threads as there may be are stuck past their deadlines.
        """
        return run_sync(Call(self._spec, args, kwargs, here()))  # type: ignore[no-any-return]

    async def to_thread(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Run the task in a worker thread, in a copy of the current context, and wait for it there.

        In a session the thread is one of its `max_threads`, else one of 40 of the event loop. Without a `timeout`
        cancellation waits until the function has returned, unless that calls `check_cancelled`. With one the caller goes
        on at the deadline, or when it is cancelled, and the thread is abandoned: Python cannot stop it, its slot is free
        for another, and what it does later is not heard of.

        Returns:
            What the function returns.

        Raises:
            TaskError: The function failed; its error is the cause.
            TaskTimeoutError: The last attempt took longer than `timeout`, or all together longer than `total_timeout`.
            LimitError: A call around it, or a stream that is open in the same task, holds a token of its limit.
            BackendError: As many threads as there may be are stuck past their deadlines.
        """
        return await run(self._call(args, kwargs, THREAD))  # type: ignore[no-any-return]

    def _awaited(self, call: Call) -> Coroutine[Any, Any, Any]:
        call.backend = call.backend or self._backend(None, call.home)
        return run(call)

    async def run_on(self, backend: str, /, *args: P.args, **kwargs: P.kwargs) -> R:
        """Run the task on a backend, whatever its own `backend` says.

        Args:
            backend: `"thread"`, as `to_thread` does, or `"inline"`, in the event loop's own thread.
            args: The function's positional arguments.
            kwargs: The function's keyword arguments.

        Returns:
            What the function returns.

        Raises:
            TaskError: The function failed; its error is the cause.
            ValueError: There is no such backend, or it cannot enforce the task's `timeout`.
        """
        return await run(self._call(args, kwargs, self._backend(backend, here().home)))  # type: ignore[no-any-return]

    def call(self, *args: P.args, **kwargs: P.kwargs) -> TaskCall[R]:
        """A call that has yet to begin, for `gather_tasks`, `map_tasks` and `race_tasks`.

        Raises:
            TypeError: The function does not take these arguments.
        """
        return self._unbegun(args, kwargs)

    def partial(self, *args: Any, **kwargs: Any) -> SyncTask[..., R]:
        """A task with some arguments fixed, as by `functools.partial`.

        Raises:
            TypeError: The function does not take these arguments.
        """
        return self._partial(args, kwargs)  # type: ignore[no-any-return]

    @overload
    def __get__(self, instance: None, owner: Any) -> SyncTask[P, R]: ...
    @overload
    def __get__(
        self: Callable[Concatenate[Any, Rest], Any], instance: object, owner: Any = None
    ) -> SyncTask[Rest, R]: ...
    def __get__(self, instance: Any, owner: Any = None) -> Any:
        """The task as a method of an object."""
        return self._bind(instance, owner)


class AsyncTaskStream(Task[P, R]):
    """An async generator function with options. A call is a stream of the items that it yields.

    ```python
    import anyio
    from collections.abc import AsyncIterator
    from daglite import task


    @task
    async def countdown(start: int) -> AsyncIterator[int]:
        for number in range(start, 0, -1):
            yield number


    async def main() -> list[int]:
        return [number async for number in countdown(3)]


    assert anyio.run(main) == [3, 2, 1]
    ```

    Each step runs in the consumer's own task, but in a context of the stream's own, which is a copy of the one in which
    it was opened: by its first step, or by `async with`. So nothing that the generator sets leaks out of it. It must
    not hold a cancel scope or a task group across a `yield`, unless it has `pump=True`; and one that never awaits cannot
    be cancelled.

    With `pump=True` it lives in a task of its own, in a session or in `async with`.
    """

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> AsyncStream[R]:
        """A stream, which begins with its first step.

        Returns:
            What to iterate over with `async for`. In `async with` it is closed at once; after a bare `break` the
            session closes it.

        Raises:
            TypeError: The function does not take these arguments.
        """
        return AsyncStream(self._steps(Call(self._spec, args, kwargs, here())))

    def _steps(self, call: Call) -> AsyncSteps | PumpedSteps:
        generator = call.spec.func(*call.args, **call.kwargs)
        return PumpedSteps(call, generator) if call.spec.is_pumped else AsyncSteps(call, generator)

    def from_thread(self, *args: P.args, **kwargs: P.kwargs) -> SyncStream[R]:
        """A stream in the event loop, for a thread.

        The generator lives in a task of its own in the event loop that `AsyncTask.from_thread` would go to, and gives one
        item at a time; so it may hold cancel scopes and task groups across a `yield`. A step that is cancelled with the
        thread cancels the generator. In `with` it is closed at once, and has `grace` seconds for that; after a bare `break`
        by its session, or outside of one when the worker thread's call ends.

        ```python
        import anyio
        from collections.abc import AsyncIterator
        from daglite import task


        @task
        async def countdown(start: int) -> AsyncIterator[int]:
            for number in range(start, 0, -1):
                yield number


        @task
        def total(start: int) -> int:
            return sum(countdown.from_thread(start))


        assert anyio.run(total.to_thread, 3) == 6
        ```

        Returns:
            What to iterate over with `for`.

        Raises:
            TypeError: The function does not take these arguments.
            RuntimeError: An event loop runs in this thread: use `async for`.
            SessionError: There is no event loop to go to, or the session has ended.
        """
        spec = self._spec
        steps = PumpedSteps(Call(spec, args, kwargs, here()), spec.func(*args, **kwargs))
        return SyncStream(FromThreadSteps(steps, f"async for item in {self.__name__}(...)"))

    async def _awaited(self, call: Call) -> Any:
        async with AsyncStream[Any](self._steps(call)) as items:
            return [item async for item in items]

    def call(self, *args: P.args, **kwargs: P.kwargs) -> TaskCall[list[R]]:
        """A call that has yet to begin, for `gather_tasks` and `map_tasks`: they collect its items into a list.

        Raises:
            TypeError: The function does not take these arguments.
        """
        return self._unbegun(args, kwargs)

    def partial(self, *args: Any, **kwargs: Any) -> AsyncTaskStream[..., R]:
        """A task with some arguments fixed, as by `functools.partial`.

        Raises:
            TypeError: The function does not take these arguments.
        """
        return self._partial(args, kwargs)  # type: ignore[no-any-return]

    @overload
    def __get__(self, instance: None, owner: Any) -> AsyncTaskStream[P, R]: ...
    @overload
    def __get__(
        self: Callable[Concatenate[Any, Rest], AsyncIterator[Any]], instance: object, owner: Any = None
    ) -> AsyncTaskStream[Rest, R]: ...
    def __get__(self, instance: Any, owner: Any = None) -> Any:
        """The task as a method of an object."""
        return self._bind(instance, owner)


class SyncTaskStream(Task[P, R]):
    """A generator function with options. A call is a stream of the items that it yields.

    ```python
    from collections.abc import Iterator
    from daglite import task


    @task
    def countdown(start: int) -> Iterator[int]:
        yield from range(start, 0, -1)


    assert list(countdown(3)) == [3, 2, 1]
    ```

    Each step runs in the consumer's own thread, but in a context of the stream's own. With `to_thread` it has a thread
    of its own instead.
    """

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> SyncStream[R]:
        """A stream, which begins with its first step.

        Returns:
            What to iterate over with `for`. In `with` it is closed at once; after a bare `break`, when it is dropped.

        Raises:
            TypeError: The function does not take these arguments.
        """
        return SyncStream(self._steps(Call(self._spec, args, kwargs, here())))

    def _steps(self, call: Call) -> SyncSteps | TimedSteps:
        generator = call.spec.func(*call.args, **call.kwargs)
        return SyncSteps(call, generator) if call.spec.item_timeout is None else TimedSteps(call, generator)

    def to_thread(self, *args: P.args, **kwargs: P.kwargs) -> AsyncStream[R]:
        """A stream that is stepped in a worker thread of its own, from the first step to the close.

        So it may hold what belongs to one thread, such as a sqlite3 connection. It does not count among the session's
        `max_threads`. A cancelled step waits for the generator's next `yield`, then closes it.

        Returns:
            What to iterate over with `async for`.

        Raises:
            TypeError: The function does not take these arguments.
        """
        return AsyncStream(ThreadSteps(self._call(args, kwargs, THREAD), self._spec.func(*args, **kwargs)))

    def _awaited(self, call: Call) -> Coroutine[Any, Any, Any]:
        call.backend = call.backend or self._backend(None, call.home)

        def collect() -> list[Any]:
            return list(SyncStream[Any](self._steps(call)))

        return call.backend.run(Attempt(call.spec.label, collect, (), {}))

    def call(self, *args: P.args, **kwargs: P.kwargs) -> TaskCall[list[R]]:
        """A call that has yet to begin, for `gather_tasks` and `map_tasks`: they collect its items into a list.

        Raises:
            TypeError: The function does not take these arguments.
        """
        return self._unbegun(args, kwargs)

    def partial(self, *args: Any, **kwargs: Any) -> SyncTaskStream[..., R]:
        """A task with some arguments fixed, as by `functools.partial`.

        Raises:
            TypeError: The function does not take these arguments.
        """
        return self._partial(args, kwargs)  # type: ignore[no-any-return]

    @overload
    def __get__(self, instance: None, owner: Any) -> SyncTaskStream[P, R]: ...
    @overload
    def __get__(
        self: Callable[Concatenate[Any, Rest], Iterator[Any]], instance: object, owner: Any = None
    ) -> SyncTaskStream[Rest, R]: ...
    def __get__(self, instance: Any, owner: Any = None) -> Any:
        """The task as a method of an object."""
        return self._bind(instance, owner)


# A function that returns an iterator or a coroutine is one that returns something, too: the order decides.


class Decorator(Protocol):
    """What `task(...)` with options returns."""

    @overload
    def __call__(self, func: Callable[P, Never], /) -> SyncTask[P, Any]: ...  # type: ignore[overload-overlap]
    @overload
    def __call__(self, func: Callable[P, AsyncIterator[R]], /) -> AsyncTaskStream[P, R]: ...  # type: ignore[overload-overlap]
    @overload
    def __call__(self, func: Callable[P, Coroutine[Any, Any, R]], /) -> AsyncTask[P, R]: ...  # type: ignore[overload-overlap]
    @overload
    def __call__(self, func: Callable[P, Iterator[R]], /) -> SyncTaskStream[P, R]: ...  # type: ignore[overload-overlap]
    @overload
    def __call__(self, func: Callable[P, R], /) -> SyncTask[P, R]: ...


@overload
def task(func: Callable[P, Never], /) -> SyncTask[P, Any]: ...  # type: ignore[overload-overlap]
@overload
def task(func: Callable[P, AsyncIterator[R]], /) -> AsyncTaskStream[P, R]: ...  # type: ignore[overload-overlap]
@overload
def task(func: Callable[P, Coroutine[Any, Any, R]], /) -> AsyncTask[P, R]: ...  # type: ignore[overload-overlap]
@overload
def task(func: Callable[P, Iterator[R]], /) -> SyncTaskStream[P, R]: ...  # type: ignore[overload-overlap]
@overload
def task(func: Callable[P, R], /) -> SyncTask[P, R]: ...
@overload
def task(
    *,
    name: str | None = None,
    description: str | None = None,
    retries: int = 0,
    retry_on: RetryOn = Exception,
    retry_delay: RetryDelay = 0.0,
    timeout: float | None = None,
    total_timeout: float | None = None,
    item_timeout: float | None = None,
    pump: bool = False,
    limit: int | Limit | None = None,
    rate: Rate | None = None,
    backend: str | None = None,
    wrap_errors: bool = True,
) -> Decorator: ...
def task(
    func: Any = NOT_GIVEN,
    /,
    *,
    name: str | None = None,
    description: str | None = None,
    retries: int = 0,
    retry_on: RetryOn = Exception,
    retry_delay: RetryDelay = 0.0,
    timeout: float | None = None,
    total_timeout: float | None = None,
    item_timeout: float | None = None,
    pump: bool = False,
    limit: int | Limit | None = None,
    rate: Rate | None = None,
    backend: str | None = None,
    wrap_errors: bool = True,
) -> Any:
    """Make a task of a function.

    ```python
    import anyio
    from daglite import task


    @task(retries=3, timeout=10)
    async def double(number: int) -> int:
        return 2 * number


    assert anyio.run(double, 21) == 42
    ```

    A coroutine function becomes an `AsyncTask`, an async generator function an `AsyncTaskStream`, a generator function
    a `SyncTaskStream`, and any other function a `SyncTask`. Every option is checked here, not at the first call.
    Streams have no retries, and an `item_timeout` instead of a timeout. Cancellation, `KeyboardInterrupt` and
    `SystemExit` are never retried, nor is a failure while the caller is being cancelled.

    Args:
        func: The function; given by `@task` without parentheses.
        name: What the task is called in events and errors; the function's name by default. It may hold `{parameter}`
            and `{map_index}`, but no period.
        description: What it does; its docstring by default.
        retries: How often the function is run again after a failure; 0 by default.
        retry_on: Exception types that are retried, every `Exception` by default, compared with the error and, where
            it is the `TaskError` of a nested task, with its `root_cause`; or a function of the error that returns
            whether to try again, or the seconds to wait before it, as for a server that says `Retry-After`. Mind
            that `TaskTimeoutError` is an `OSError`, as Python's `TimeoutError` is.
        retry_delay: Seconds before a retry; 0 by default. Or a `Backoff`, or any function from the retry's number (1, 2, …)
            to seconds.
        timeout: Seconds for each attempt; unlimited by default. A coroutine function is cancelled at its next `await`; of
            a plain function the thread is abandoned, and the caller goes on. A timed-out attempt is retried like any
            other failure. A value that arrives wins, even late, as with `anyio.fail_after`.
        total_timeout: Seconds for the whole call, with all its attempts and the waits between them; unlimited by default. What
            runs at the deadline is ended as by `timeout`, and nothing is tried again. The last attempt's error is the cause.
        item_timeout: For streams: seconds for producing one item; unlimited by default. The time that the consumer takes does
            not count. At the deadline the stream is over: an async generator, which lives in a task of its own as by `pump`,
            is cancelled; the thread of a plain one is abandoned, as by `timeout`. An item that arrives wins, also late.
        pump: For async generators: whether it lives in a task of its own, which gives one item at a time, instead of being
            stepped in the consumer's. Then it may hold cancel scopes and task groups across a `yield`, and be closed from
            anywhere; an item costs more. Off by default.
        limit: How many attempts run at once, or streams are open at once; any number by default. A number is for this task and
            its copies; a `Limit` for all tasks that name it. Others wait in line, outside of `timeout`, and show as waiting.
            A sync function that has one, or a rate, cannot be called in place in an event loop's thread, which it would stop.
        rate: A `Rate`: how many attempts begin in a time; any number by default. Not for streams.
        backend: For sync functions: where fan-outs and `start_soon` run them, `"thread"` or `"inline"`; by default where
            the session says.
        wrap_errors: Whether a failed call raises a `TaskError` with the function's own error as its cause, which is
            the default, or that error itself with a note, as web frameworks want it for an `HTTPException`.

    Returns:
        The task, or a decorator if no function was given.

    Raises:
        TypeError: It is not a function, or an option has the wrong type.
        ValueError: An option is out of range or does not apply to this kind of function.
    """
    options: dict[str, Any] = {
        "name": name,
        "description": description,
        "retries": retries,
        "retry_on": retry_on,
        "retry_delay": retry_delay,
        "timeout": timeout,
        "total_timeout": total_timeout,
        "item_timeout": item_timeout,
        "pump": pump,
        "limit": limit,
        "rate": rate,
        "backend": backend,
        "wrap_errors": wrap_errors,
    }
    if func is NOT_GIVEN:
        return lambda func: make_task(func, options)
    return make_task(func, options)


def make_task(target: Any, options: Mapping[str, Any]) -> Task[Any, Any]:
    """The task of the kind that a function calls for."""
    if isinstance(target, Task):
        raise TypeError(
            f"task {target._spec.label!r} is a task already; use with_options(...) to make one with other options"
        )
    function = function_of(target)
    return kind_for(function)(Spec(function, checked_options(function, **options)))


def as_task(target: Any) -> Task[Any, Any]:
    """A task as it is, or one without options of a plain function."""
    return target if isinstance(target, Task) else task(target)


def kind_for(function: Function) -> type[Task[Any, Any]]:
    """The class of task that a function becomes."""
    if function.is_generator:
        return AsyncTaskStream if function.is_async else SyncTaskStream
    return AsyncTask if function.is_async else SyncTask
