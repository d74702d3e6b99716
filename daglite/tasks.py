"""The decorator, which makes of a function the kind of task that it calls for."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping
from typing import Any, Protocol, TypeVar, overload

from typing_extensions import Never, ParamSpec

from ._function_tasks import AsyncTask, SyncTask
from ._functions import Function, function_of
from ._opening import DatasetStoreLike
from ._options import CacheHash, CacheTTL, checked_options
from ._retry import RetryDelay, RetryOn
from ._spec import Spec
from ._stores import StoreLike
from ._stream_tasks import AsyncTaskStream, SyncTaskStream
from ._streams import AsyncStream, SyncStream
from ._task import Task
from ._task_call import TaskCall
from ._typing import NOT_GIVEN
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

for _public in (Task, AsyncTask, SyncTask, AsyncTaskStream, SyncTaskStream, AsyncStream, SyncStream, TaskCall):
    _public.__module__ = __name__  # where people find them
del _public

P = ParamSpec("P")
R = TypeVar("R")


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
    cache: bool | StoreLike = False,
    cache_store: StoreLike | None = None,
    cache_ttl: CacheTTL | None = None,
    cache_hash: CacheHash | None = None,
    version: str | int | None = None,
    dataset: str | None = None,
    dataset_store: DatasetStoreLike | None = None,
    dataset_format: str | None = None,
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
    cache: bool | StoreLike = False,
    cache_store: StoreLike | None = None,
    cache_ttl: CacheTTL | None = None,
    cache_hash: CacheHash | None = None,
    version: str | int | None = None,
    dataset: str | None = None,
    dataset_store: DatasetStoreLike | None = None,
    dataset_format: str | None = None,
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
        cache: Whether a result is kept, and given to later calls with equal arguments; off by default. `True` for the store that
            `cache_store`, the session or the settings name, and without effect if none of them does; or a store; or the path of
            a folder for one, `"memory://name"`, or the `"redis://..."` of a server. Failures are not kept. Not for streams. See `daglite.cache`.
        cache_store: The store that `cache=True` means; by default that of the session.
        cache_ttl: For how many seconds a result is kept; by default without end. Or a function of the result that says so, or
            says `None`.
        cache_hash: A function of the task's function and its arguments by parameter name that makes the key's text of them;
            `daglite.cache.default_cache_hash` by default, which takes them as they are, all the way down.
        version: What counts in a key in place of the function's code and of what that closes over; by default they count, so
            that a changed function has new keys. What it calls, and globals, never count.
        dataset: The key under which a result is saved, such as `"{name}.parquet"`; by default it is not. It may hold `{parameter}`,
            `{map_index}`, and `{name}` if no parameter is called that; what they stand for must be a part of one name. A stream saves
            each item, and its key must hold `{iter_index}`. It is saved after the last attempt, outside of all deadlines; what cannot
            be saved is a `DatasetError`, for which the function is not run again. What comes from the cache is not saved.
        dataset_store: Where to: a `daglite.datasets.DatasetStore`, the path of a folder, or a URL; by default that of the session. It
            is also that of `save_dataset` and `load_dataset` in the function.
        dataset_format: In which format; by default the one that the key's extension means.
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
        "cache": cache,
        "cache_store": cache_store,
        "cache_ttl": cache_ttl,
        "cache_hash": cache_hash,
        "version": version,
        "dataset": dataset,
        "dataset_store": dataset_store,
        "dataset_format": dataset_format,
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
