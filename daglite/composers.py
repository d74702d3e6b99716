"""Fan-out: a call for each item, and their results."""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator, Callable, Coroutine, Iterable
from typing import Any, Literal, TypeAlias, TypedDict, TypeVar, cast, overload

from typing_extensions import Required, Unpack

from . import _checks
from ._fan_out import FanOut
from ._jobs import Calls, Items, Jobs
from ._results import Outcome, Race, TaskResults, refuse_missing
from ._trips import find_way
from .sessions import session
from .tasks import SyncStream, TaskCall, as_task

__all__ = ["Outcome", "TaskResults", "gather_tasks", "map_tasks", "partition", "race_tasks", "stream_tasks"]

for _result in (Outcome, TaskResults):
    _result.__module__ = __name__  # where people find them
del _result

A = TypeVar("A")
R = TypeVar("R")
R1 = TypeVar("R1")
R2 = TypeVar("R2")
R3 = TypeVar("R3")
R4 = TypeVar("R4")
AnyIterable: TypeAlias = Iterable[A] | AsyncIterable[A]


def partition(outcomes: Iterable[Outcome[R]]) -> tuple[list[R], list[Exception]]:
    """The values of the calls that succeeded, and the errors of those that failed.

    Args:
        outcomes: What a fan-out with `errors="collect"` gave.

    Returns:
        Both in the order of `outcomes`.
    """
    values: list[R] = []
    errors: list[Exception] = []
    for outcome in outcomes:
        if outcome.error is None:
            values.append(cast("R", outcome.value))
        else:
            errors.append(outcome.error)
    return values, errors


class Raise(TypedDict, total=False):
    """The options of `gather_tasks`, for type checkers."""

    limit: int | None
    backend: str | None
    errors: Literal["raise"]


class Collect(TypedDict, total=False):
    """Those with which it returns an `Outcome` for each call."""

    limit: int | None
    backend: str | None
    errors: Required[Literal["collect"]]


class StreamRaise(TypedDict, total=False):
    """The options of `stream_tasks`, for type checkers."""

    limit: int
    ordered: bool
    buffer: int | None
    backend: str | None
    errors: Literal["raise"]


class StreamCollect(TypedDict, total=False):
    """Those with which it hands out an `Outcome` for each call."""

    limit: int
    ordered: bool
    buffer: int | None
    backend: str | None
    errors: Required[Literal["collect"]]


# One iterable is held against the parameter of the task; with more there would be too many overloads. A function that
# returns a coroutine or an iterator is one that returns something, too: the order decides. `Callable[[A], SyncStream[R]]`
# is a `SyncTaskStream[[A], R]` that type checkers agree on, whatever the name of its parameter.


@overload
async def gather_tasks(c1: TaskCall[R1], /, **options: Unpack[Raise]) -> tuple[R1]: ...
@overload
async def gather_tasks(c1: TaskCall[R1], /, **options: Unpack[Collect]) -> tuple[Outcome[R1]]: ...
@overload
async def gather_tasks(c1: TaskCall[R1], c2: TaskCall[R2], /, **options: Unpack[Raise]) -> tuple[R1, R2]: ...
@overload
async def gather_tasks(
    c1: TaskCall[R1], c2: TaskCall[R2], /, **options: Unpack[Collect]
) -> tuple[Outcome[R1], Outcome[R2]]: ...
@overload
async def gather_tasks(
    c1: TaskCall[R1], c2: TaskCall[R2], c3: TaskCall[R3], /, **options: Unpack[Raise]
) -> tuple[R1, R2, R3]: ...
@overload
async def gather_tasks(
    c1: TaskCall[R1], c2: TaskCall[R2], c3: TaskCall[R3], /, **options: Unpack[Collect]
) -> tuple[Outcome[R1], Outcome[R2], Outcome[R3]]: ...
@overload
async def gather_tasks(
    c1: TaskCall[R1], c2: TaskCall[R2], c3: TaskCall[R3], c4: TaskCall[R4], /, **options: Unpack[Raise]
) -> tuple[R1, R2, R3, R4]: ...
@overload
async def gather_tasks(
    c1: TaskCall[R1], c2: TaskCall[R2], c3: TaskCall[R3], c4: TaskCall[R4], /, **options: Unpack[Collect]
) -> tuple[Outcome[R1], Outcome[R2], Outcome[R3], Outcome[R4]]: ...
@overload
async def gather_tasks(*calls: TaskCall[R], **options: Unpack[Raise]) -> tuple[R, ...]: ...
@overload
async def gather_tasks(*calls: TaskCall[R], **options: Unpack[Collect]) -> tuple[Outcome[R], ...]: ...
@overload
async def gather_tasks(
    task: Callable[[A], AsyncIterator[R]], items: AnyIterable[A], /, **options: Unpack[Raise]
) -> list[list[R]]: ...
@overload
async def gather_tasks(
    task: Callable[[A], AsyncIterator[R]], items: AnyIterable[A], /, **options: Unpack[Collect]
) -> list[Outcome[list[R]]]: ...
@overload
async def gather_tasks(
    task: Callable[[A], Coroutine[Any, Any, R]], items: AnyIterable[A], /, **options: Unpack[Raise]
) -> list[R]: ...
@overload
async def gather_tasks(
    task: Callable[[A], Coroutine[Any, Any, R]], items: AnyIterable[A], /, **options: Unpack[Collect]
) -> list[Outcome[R]]: ...
@overload
async def gather_tasks(
    task: Callable[[A], SyncStream[R]], items: AnyIterable[A], /, **options: Unpack[Raise]
) -> list[list[R]]: ...
@overload
async def gather_tasks(
    task: Callable[[A], SyncStream[R]], items: AnyIterable[A], /, **options: Unpack[Collect]
) -> list[Outcome[list[R]]]: ...
@overload
async def gather_tasks(task: Callable[[A], R], items: AnyIterable[A], /, **options: Unpack[Raise]) -> list[R]: ...
@overload
async def gather_tasks(
    task: Callable[[A], R], items: AnyIterable[A], /, **options: Unpack[Collect]
) -> list[Outcome[R]]: ...
@overload
async def gather_tasks(
    task: Callable[..., AsyncIterator[R]], /, *iterables: AnyIterable[Any], **options: Unpack[Raise]
) -> list[list[R]]: ...
@overload
async def gather_tasks(
    task: Callable[..., AsyncIterator[R]], /, *iterables: AnyIterable[Any], **options: Unpack[Collect]
) -> list[Outcome[list[R]]]: ...
@overload
async def gather_tasks(
    task: Callable[..., Coroutine[Any, Any, R]], /, *iterables: AnyIterable[Any], **options: Unpack[Raise]
) -> list[R]: ...
@overload
async def gather_tasks(
    task: Callable[..., Coroutine[Any, Any, R]], /, *iterables: AnyIterable[Any], **options: Unpack[Collect]
) -> list[Outcome[R]]: ...
@overload
async def gather_tasks(
    task: Callable[..., SyncStream[R]], /, *iterables: AnyIterable[Any], **options: Unpack[Raise]
) -> list[list[R]]: ...
@overload
async def gather_tasks(
    task: Callable[..., SyncStream[R]], /, *iterables: AnyIterable[Any], **options: Unpack[Collect]
) -> list[Outcome[list[R]]]: ...
@overload
async def gather_tasks(
    task: Callable[..., R], /, *iterables: AnyIterable[Any], **options: Unpack[Raise]
) -> list[R]: ...
@overload
async def gather_tasks(
    task: Callable[..., R], /, *iterables: AnyIterable[Any], **options: Unpack[Collect]
) -> list[Outcome[R]]: ...
async def gather_tasks(
    *task_and_iterables: Any,
    limit: int | None = None,
    backend: str | None = None,
    errors: Literal["raise", "collect"] = "raise",
) -> Any:
    """Call a task for each item at the same time, and return the results in the order of the items.

    ```python
    import anyio
    from daglite import gather_tasks, task


    @task(retries=2)
    async def double(number: int) -> int:
        return 2 * number


    async def main() -> list[int]:
        return await gather_tasks(double, range(5), limit=2)


    assert anyio.run(main) == [0, 2, 4, 6, 8]
    ```

    Or make different calls, and get their results as a tuple: `user, posts = await gather_tasks(fetch_user.call(1), fetch_posts.call(1))`.

    Every call has a task of the event loop of its own; those of plain functions run in worker threads, and streams are
    collected into lists. An item is taken only when a call of it may begin. The first failure cancels the other calls, and is raised when all have ended.

    Args:
        task_and_iterables: A task, or a function, and where its arguments come from: sync or async iterables, zipped like
            those of `map`. An async generator is closed in the end. An error of theirs ends the calls and comes out as it
            is. Or calls of any tasks, made with `t.call(...)`.
        limit: How many calls run at once; any number by default.
        backend: Where plain functions run, `"thread"` or `"inline"`; by default where they or the session say.
        errors: `"raise"`, or `"collect"` to let all calls run and return an `Outcome` for each.

    Returns:
        What the calls have returned, or their outcomes: a list, or a tuple if the calls were given.

    Raises:
        TaskGroupError: Calls failed; it holds their errors, without the calls that were cancelled because of them.
        TypeError: The task cannot be called, there are no iterables, one is none, or not all are calls.
        ValueError: `limit` is less than 1, `errors` is neither of the two, or `backend` is given for async functions.
        LimitError: The calls would wait for a stream among the iterables that holds a token of their limit.
        SessionError: The session has begun to end.
    """
    return await _gather("gather_tasks", task_and_iterables, limit, backend, errors)


@overload
def map_tasks(c1: TaskCall[R1], /, **options: Unpack[Raise]) -> tuple[R1]: ...
@overload
def map_tasks(c1: TaskCall[R1], /, **options: Unpack[Collect]) -> tuple[Outcome[R1]]: ...
@overload
def map_tasks(c1: TaskCall[R1], c2: TaskCall[R2], /, **options: Unpack[Raise]) -> tuple[R1, R2]: ...
@overload
def map_tasks(c1: TaskCall[R1], c2: TaskCall[R2], /, **options: Unpack[Collect]) -> tuple[Outcome[R1], Outcome[R2]]: ...
@overload
def map_tasks(
    c1: TaskCall[R1], c2: TaskCall[R2], c3: TaskCall[R3], /, **options: Unpack[Raise]
) -> tuple[R1, R2, R3]: ...
@overload
def map_tasks(
    c1: TaskCall[R1], c2: TaskCall[R2], c3: TaskCall[R3], /, **options: Unpack[Collect]
) -> tuple[Outcome[R1], Outcome[R2], Outcome[R3]]: ...
@overload
def map_tasks(
    c1: TaskCall[R1], c2: TaskCall[R2], c3: TaskCall[R3], c4: TaskCall[R4], /, **options: Unpack[Raise]
) -> tuple[R1, R2, R3, R4]: ...
@overload
def map_tasks(
    c1: TaskCall[R1], c2: TaskCall[R2], c3: TaskCall[R3], c4: TaskCall[R4], /, **options: Unpack[Collect]
) -> tuple[Outcome[R1], Outcome[R2], Outcome[R3], Outcome[R4]]: ...
@overload
def map_tasks(*calls: TaskCall[R], **options: Unpack[Raise]) -> tuple[R, ...]: ...
@overload
def map_tasks(*calls: TaskCall[R], **options: Unpack[Collect]) -> tuple[Outcome[R], ...]: ...
@overload
def map_tasks(
    task: Callable[[A], AsyncIterator[R]], items: AnyIterable[A], /, **options: Unpack[Raise]
) -> list[list[R]]: ...
@overload
def map_tasks(
    task: Callable[[A], AsyncIterator[R]], items: AnyIterable[A], /, **options: Unpack[Collect]
) -> list[Outcome[list[R]]]: ...
@overload
def map_tasks(
    task: Callable[[A], Coroutine[Any, Any, R]], items: AnyIterable[A], /, **options: Unpack[Raise]
) -> list[R]: ...
@overload
def map_tasks(
    task: Callable[[A], Coroutine[Any, Any, R]], items: AnyIterable[A], /, **options: Unpack[Collect]
) -> list[Outcome[R]]: ...
@overload
def map_tasks(
    task: Callable[[A], SyncStream[R]], items: AnyIterable[A], /, **options: Unpack[Raise]
) -> list[list[R]]: ...
@overload
def map_tasks(
    task: Callable[[A], SyncStream[R]], items: AnyIterable[A], /, **options: Unpack[Collect]
) -> list[Outcome[list[R]]]: ...
@overload
def map_tasks(task: Callable[[A], R], items: AnyIterable[A], /, **options: Unpack[Raise]) -> list[R]: ...
@overload
def map_tasks(task: Callable[[A], R], items: AnyIterable[A], /, **options: Unpack[Collect]) -> list[Outcome[R]]: ...
@overload
def map_tasks(
    task: Callable[..., AsyncIterator[R]], /, *iterables: AnyIterable[Any], **options: Unpack[Raise]
) -> list[list[R]]: ...
@overload
def map_tasks(
    task: Callable[..., AsyncIterator[R]], /, *iterables: AnyIterable[Any], **options: Unpack[Collect]
) -> list[Outcome[list[R]]]: ...
@overload
def map_tasks(
    task: Callable[..., Coroutine[Any, Any, R]], /, *iterables: AnyIterable[Any], **options: Unpack[Raise]
) -> list[R]: ...
@overload
def map_tasks(
    task: Callable[..., Coroutine[Any, Any, R]], /, *iterables: AnyIterable[Any], **options: Unpack[Collect]
) -> list[Outcome[R]]: ...
@overload
def map_tasks(
    task: Callable[..., SyncStream[R]], /, *iterables: AnyIterable[Any], **options: Unpack[Raise]
) -> list[list[R]]: ...
@overload
def map_tasks(
    task: Callable[..., SyncStream[R]], /, *iterables: AnyIterable[Any], **options: Unpack[Collect]
) -> list[Outcome[list[R]]]: ...
@overload
def map_tasks(task: Callable[..., R], /, *iterables: AnyIterable[Any], **options: Unpack[Raise]) -> list[R]: ...
@overload
def map_tasks(
    task: Callable[..., R], /, *iterables: AnyIterable[Any], **options: Unpack[Collect]
) -> list[Outcome[R]]: ...
def map_tasks(
    *task_and_iterables: Any,
    limit: int | None = None,
    backend: str | None = None,
    errors: Literal["raise", "collect"] = "raise",
) -> Any:
    """Call a task for each item at the same time, from sync code, and return the results in the order of the items.

    ```python
    from daglite import map_tasks, task


    @task(retries=2)
    async def double(number: int) -> int:
        return 2 * number


    assert map_tasks(double, range(5), limit=2) == [0, 2, 4, 6, 8]
    ```

    It is `gather_tasks` for threads: in a worker thread, or in `with session()`, the calls are made in the event loop of that,
    and are cancelled with the thread. Elsewhere it opens a session for its time. The iterables are taken from in the
    event loop's thread; one that blocks, or that belongs to this thread such as a cursor of sqlite3, is better a list.

    Args:
        task_and_iterables: A task, or a function, and where its arguments come from: sync or async iterables, zipped like
            those of `map`. An async generator is closed in the end. An error of theirs ends the calls and comes out as it
            is. Or calls of any tasks, made with `t.call(...)`.
        limit: How many calls run at once; any number by default.
        backend: Where plain functions run, `"thread"` or `"inline"`; by default where they or the session say.
        errors: `"raise"`, or `"collect"` to let all calls run and return an `Outcome` for each.

    Returns:
        What the calls have returned, or their outcomes: a list, or a tuple if the calls were given.

    Raises:
        TaskGroupError: Calls failed; it holds their errors, without the calls that were cancelled because of them.
        TypeError: The task cannot be called, there are no iterables, one is none, or not all are calls.
        ValueError: `limit` is less than 1, `errors` is neither of the two, or `backend` is given for async functions.
        LimitError: The calls would wait for a stream among the iterables that holds a token of their limit.
        RuntimeError: An event loop runs in this thread: `await gather_tasks(...)`.
        SessionError: The session has begun to end.
    """
    if not task_and_iterables:
        return ()
    first = task_and_iterables[0]
    name = (first.task if isinstance(first, TaskCall) else as_task(first)).name
    what = f"map_tasks of task {name!r}"

    def gather(_: object) -> Coroutine[Any, Any, Any]:
        return _gather("map_tasks", task_and_iterables, limit, backend, errors)

    way = find_way(what, name, "await gather_tasks(...)")
    if way is not None:
        return way.take(what, name, gather)
    with session(name="map_tasks"):
        return map_tasks(*task_and_iterables, limit=limit, backend=backend, errors=errors)


async def _gather(what: str, given: tuple[Any, ...], limit: Any, backend: Any, errors: Any) -> Any:
    are_calls = not given or isinstance(given[0], TaskCall)
    jobs: Jobs = Calls(what, given) if are_calls else Items(what, given[0], given[1:])
    fan_out = FanOut(jobs, limit=limit, backend=backend, errors=errors)
    results: list[Any] = []
    ended = 0

    def keep(index: int, value: Any, error: Exception | None) -> None:
        nonlocal ended
        ended += 1
        if index >= len(results):  # a list, in which one has its place when it has begun, takes the least
            results.extend([None] * (fan_out.started - len(results)))
        results[index] = Outcome(index, value, error) if fan_out.collect else value

    await fan_out.run(keep)
    refuse_missing(fan_out, ended)
    return tuple(results) if are_calls else results


@overload
async def race_tasks(c1: TaskCall[R1], c2: TaskCall[R2], /) -> R1 | R2: ...
@overload
async def race_tasks(c1: TaskCall[R1], c2: TaskCall[R2], c3: TaskCall[R3], /) -> R1 | R2 | R3: ...
@overload
async def race_tasks(
    c1: TaskCall[R1], c2: TaskCall[R2], c3: TaskCall[R3], c4: TaskCall[R4], /
) -> R1 | R2 | R3 | R4: ...
@overload
async def race_tasks(*calls: TaskCall[R]) -> R: ...
async def race_tasks(*calls: TaskCall[Any]) -> Any:
    """Make calls at the same time, and return the result of the first that succeeds.

    ```python
    import anyio
    from daglite import race_tasks, task


    @task
    async def ask(server: str, delay: float) -> str:
        await anyio.sleep(delay)
        return server


    async def main() -> str:
        return await race_tasks(ask.call("near", delay=0.01), ask.call("far", delay=10))


    assert anyio.run(main) == "near"
    ```

    The others are cancelled then, and waited for: a function in a thread until it returns, unless its task has a `timeout`. A
    call that fails is out, and the others go on.

    Args:
        calls: The calls, made with `t.call(...)`. Those of plain functions run in worker threads.

    Returns:
        What the first has returned that has succeeded.

    Raises:
        TaskGroupError: All of them failed; it holds their errors, in the order in which they did.
        TypeError: One is no call, or the call of a stream.
        ValueError: There are none.
        SessionError: The session has begun to end.
    """
    if not calls:
        raise ValueError("race_tasks: there is no call that could succeed")
    race = Race(FanOut(Calls("race_tasks", calls, streams=False), limit=None, backend=None, errors="collect"))
    return await race.run()


@overload
def stream_tasks(
    task: Callable[[A], AsyncIterator[R]], items: AnyIterable[A], /, **options: Unpack[StreamRaise]
) -> TaskResults[list[R]]: ...
@overload
def stream_tasks(
    task: Callable[[A], AsyncIterator[R]], items: AnyIterable[A], /, **options: Unpack[StreamCollect]
) -> TaskResults[Outcome[list[R]]]: ...
@overload
def stream_tasks(
    task: Callable[[A], Coroutine[Any, Any, R]], items: AnyIterable[A], /, **options: Unpack[StreamRaise]
) -> TaskResults[R]: ...
@overload
def stream_tasks(
    task: Callable[[A], Coroutine[Any, Any, R]], items: AnyIterable[A], /, **options: Unpack[StreamCollect]
) -> TaskResults[Outcome[R]]: ...
@overload
def stream_tasks(
    task: Callable[[A], SyncStream[R]], items: AnyIterable[A], /, **options: Unpack[StreamRaise]
) -> TaskResults[list[R]]: ...
@overload
def stream_tasks(
    task: Callable[[A], SyncStream[R]], items: AnyIterable[A], /, **options: Unpack[StreamCollect]
) -> TaskResults[Outcome[list[R]]]: ...
@overload
def stream_tasks(
    task: Callable[[A], R], items: AnyIterable[A], /, **options: Unpack[StreamRaise]
) -> TaskResults[R]: ...
@overload
def stream_tasks(
    task: Callable[[A], R], items: AnyIterable[A], /, **options: Unpack[StreamCollect]
) -> TaskResults[Outcome[R]]: ...
@overload
def stream_tasks(
    task: Callable[..., AsyncIterator[R]], /, *iterables: AnyIterable[Any], **options: Unpack[StreamRaise]
) -> TaskResults[list[R]]: ...
@overload
def stream_tasks(
    task: Callable[..., AsyncIterator[R]], /, *iterables: AnyIterable[Any], **options: Unpack[StreamCollect]
) -> TaskResults[Outcome[list[R]]]: ...
@overload
def stream_tasks(
    task: Callable[..., Coroutine[Any, Any, R]], /, *iterables: AnyIterable[Any], **options: Unpack[StreamRaise]
) -> TaskResults[R]: ...
@overload
def stream_tasks(
    task: Callable[..., Coroutine[Any, Any, R]], /, *iterables: AnyIterable[Any], **options: Unpack[StreamCollect]
) -> TaskResults[Outcome[R]]: ...
@overload
def stream_tasks(
    task: Callable[..., SyncStream[R]], /, *iterables: AnyIterable[Any], **options: Unpack[StreamRaise]
) -> TaskResults[list[R]]: ...
@overload
def stream_tasks(
    task: Callable[..., SyncStream[R]], /, *iterables: AnyIterable[Any], **options: Unpack[StreamCollect]
) -> TaskResults[Outcome[list[R]]]: ...
@overload
def stream_tasks(
    task: Callable[..., R], /, *iterables: AnyIterable[Any], **options: Unpack[StreamRaise]
) -> TaskResults[R]: ...
@overload
def stream_tasks(
    task: Callable[..., R], /, *iterables: AnyIterable[Any], **options: Unpack[StreamCollect]
) -> TaskResults[Outcome[R]]: ...
def stream_tasks(
    task: Any,
    /,
    *iterables: Any,
    limit: int = 16,
    ordered: bool = False,
    buffer: int | None = None,
    backend: str | None = None,
    errors: Literal["raise", "collect"] = "raise",
) -> Any:
    """Call a task for each item, and hand out the results while more calls run.

    ```python
    import anyio
    from daglite import stream_tasks, task


    @task
    async def double(number: int) -> int:
        return 2 * number


    async def main() -> None:
        async with stream_tasks(double, range(100), limit=8, ordered=True) as results:
            async for number in results:
                if number > 10:
                    break


    anyio.run(main)
    ```

    What is taken from the iterables and not yet handed out never exceeds `limit + buffer`: a slow consumer stalls the
    source, which may be infinite. Leaving the block cancels what still runs, and waits for it.

    Args:
        task: A task, or a function, which runs in worker threads. A stream is collected into a list.
        iterables: Where the arguments come from, zipped like those of `map`: sync or async iterables. An async
            generator is closed in the end. An error of theirs ends the calls and comes out as it is.
        limit: How many calls run at once; 16 by default.
        ordered: Whether results are handed out in the order of the items, and not as they come.
        buffer: How many results may wait besides the calls that run; by default as many as `limit`.
        backend: Where plain functions run, `"thread"` or `"inline"`; by default where they or the session say.
        errors: `"raise"`, or `"collect"` to let all calls run and hand out an `Outcome` for each.

    Returns:
        What to enter, and then to iterate over. A failure cancels the other calls; when all have ended, and what had
        finished is handed out, it is raised as a `TaskGroupError` by the next step, or when the block is left.

    Raises:
        TypeError: `task` cannot be called, there are no iterables, one is none, or an option has the wrong type.
        ValueError: `limit` is less than 1, `buffer` less than 0, or `errors` neither of the two.
        SessionError: The session has begun to end.
    """
    fan_out = FanOut(Items("stream_tasks", task, iterables), limit=limit, backend=backend, errors=errors)
    if limit is None:
        raise TypeError(f"{fan_out.where}: limit must be a whole number, not None")
    _checks.flag(f"{fan_out.where}: ordered", ordered)
    waiting = limit if buffer is None else _checks.whole(f"{fan_out.where}: buffer", buffer, least=0)
    return TaskResults[Any](fan_out, limit + waiting, ordered=ordered)
