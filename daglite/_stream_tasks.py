"""Tasks of generator functions, whose calls are streams."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from typing import Any, Concatenate, TypeVar, overload

from typing_extensions import ParamSpec

from ._bridge import THREAD
from ._call import Call
from ._context import here
from ._from_thread_streams import FromThreadSteps
from ._protocols import Attempt
from ._pumps import PumpedSteps
from ._saving import saved_generator, saved_generator_sync
from ._steps import AsyncSteps, SyncSteps
from ._streams import AsyncStream, SyncStream
from ._task import Task
from ._task_call import TaskCall
from ._thread_streams import ThreadSteps, TimedSteps

__all__ = ["AsyncTaskStream", "SyncTaskStream"]

P = ParamSpec("P")
Rest = ParamSpec("Rest")
R = TypeVar("R")


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
        generator = saved_generator(call, call.spec.func(*call.args, **call.kwargs))
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
        call = Call(self._spec, args, kwargs, here())
        steps = PumpedSteps(call, saved_generator(call, self._spec.func(*args, **kwargs)))
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
        generator = saved_generator_sync(call, call.spec.func(*call.args, **call.kwargs))
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
        call = self._call(args, kwargs, THREAD)
        return AsyncStream(ThreadSteps(call, saved_generator_sync(call, self._spec.func(*args, **kwargs))))

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
