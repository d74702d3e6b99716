"""Tasks of functions that give one result: coroutine functions and plain ones."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any, Concatenate, TypeVar, overload

from typing_extensions import ParamSpec

from ._bridge import THREAD
from ._caching import forget, forget_sync
from ._call import Call
from ._context import here
from ._lifecycle import run, run_sync
from ._places import key_of
from ._task import Task
from ._task_call import TaskCall
from ._trips import Trip, run_in_loop

__all__ = ["AsyncTask", "SyncTask"]

P = ParamSpec("P")
Rest = ParamSpec("Rest")
R = TypeVar("R")


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
            CacheKeyError: It has a cache, and no key can be made of its arguments, or of its function.
            DatasetError: It has a dataset, and its result cannot be saved, or there is no store for it.
            ValueError: It has a dataset, and its arguments would lead out of the store.
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
            CacheKeyError: It has a cache, and no key can be made of its arguments, or of its function.
            DatasetError: It has a dataset, and its result cannot be saved, or there is no store for it.
            ValueError: It has a dataset, and its arguments would lead out of the store.
            CallCancelledError: The call was cancelled by itself.
            RuntimeError: An event loop runs in this thread: `await` the task.
            SessionError: There is no event loop to go to, or the session has ended.
        """

        def call(trip: Trip) -> Coroutine[Any, Any, Any]:
            call = Call(self._spec, args, kwargs, here())
            call.cancel = partial(trip.cancel, alone=True)
            return run(call)

        return run_in_loop(self._spec.label, call, f"await {self.__name__}(...)")  # type: ignore[no-any-return]

    def cache_key(self, *args: P.args, **kwargs: P.kwargs) -> str:
        """What the result of a call is kept under, if it is: the same for arguments that are equal and of the same types.

        Raises:
            TypeError: The function does not take these arguments.
            CacheKeyError: No key can be made of the arguments, or of the function.
        """
        self._check_arguments(args, kwargs)
        return key_of(self._spec, args, kwargs)

    async def invalidate(self, *args: P.args, **kwargs: P.kwargs) -> None:
        """Forget what is kept of a call, so that the next one runs the function again.

        One that runs now goes on, for itself and those who wait for it; later ones do not wait for it, and what it gives is
        not kept. Where nothing is kept, nothing is done.

        Raises:
            TypeError: The function does not take these arguments.
            CacheKeyError: No key can be made of the arguments, or of the function.
            Exception: Whatever the store raises.
        """
        self._check_arguments(args, kwargs)
        await forget(self._spec, args, kwargs)

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
            CacheKeyError: It has a cache, and no key can be made of its arguments, or of its function.
            DatasetError: It has a dataset, and its result cannot be saved, or there is no store for it.
            ValueError: It has a dataset, and its arguments would lead out of the store.
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
            CacheKeyError: It has a cache, and no key can be made of its arguments, or of its function.
            DatasetError: It has a dataset, and its result cannot be saved, or there is no store for it.
            ValueError: It has a dataset, and its arguments would lead out of the store.
            BackendError: As many threads as there may be are stuck past their deadlines.
        """
        return await run(self._call(args, kwargs, THREAD))  # type: ignore[no-any-return]

    def cache_key(self, *args: P.args, **kwargs: P.kwargs) -> str:
        """What the result of a call is kept under, if it is: the same for arguments that are equal and of the same types.

        Raises:
            TypeError: The function does not take these arguments.
            CacheKeyError: No key can be made of the arguments, or of the function.
        """
        self._check_arguments(args, kwargs)
        return key_of(self._spec, args, kwargs)

    def invalidate(self, *args: P.args, **kwargs: P.kwargs) -> None:
        """Forget what is kept of a call, here and now, so that the next one runs the function again.

        One that runs now goes on, for itself and those who wait for it; later ones do not wait for it, and what it gives is
        not kept. Where nothing is kept, nothing is done.

        Raises:
            TypeError: The function does not take these arguments.
            CacheKeyError: No key can be made of the arguments, or of the function.
            Exception: Whatever the store raises.
        """
        self._check_arguments(args, kwargs)
        forget_sync(self._spec, args, kwargs)

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
