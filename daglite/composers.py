"""Fan-out: a call for each item, and their results."""

from __future__ import annotations

from collections.abc import AsyncIterable, Callable, Coroutine, Iterable
from dataclasses import dataclass
from typing import Any, Generic, Literal, TypeAlias, TypeVar, cast, overload

import anyio

from ._failures import Failures, without_cancellation
from ._fan_out import FanOut
from .exceptions import CallCancelledError, TaskGroupError

__all__ = ["Outcome", "gather_tasks", "partition"]

A = TypeVar("A")
R = TypeVar("R")
Items: TypeAlias = Iterable[A] | AsyncIterable[A]


@dataclass(frozen=True)
class Outcome(Generic[R]):
    """How one call of a fan-out has ended, with `errors="collect"`.

    Args:
        index: The position of its arguments among the items, from 0.
        value: What it returned; `None` if it failed.
        error: What it raised; `None` if it succeeded.
    """

    index: int
    value: R | None = None
    error: Exception | None = None


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


# A function that returns a coroutine is one that returns something, too: the order decides.


@overload
async def gather_tasks(
    task: Callable[[A], Coroutine[Any, Any, R]],
    items: Items[A],
    /,
    *,
    limit: int | None = None,
    errors: Literal["raise"] = "raise",
) -> list[R]: ...
@overload
async def gather_tasks(
    task: Callable[[A], Coroutine[Any, Any, R]],
    items: Items[A],
    /,
    *,
    limit: int | None = None,
    errors: Literal["collect"],
) -> list[Outcome[R]]: ...
@overload
async def gather_tasks(
    task: Callable[[A], R], items: Items[A], /, *, limit: int | None = None, errors: Literal["raise"] = "raise"
) -> list[R]: ...
@overload
async def gather_tasks(
    task: Callable[[A], R], items: Items[A], /, *, limit: int | None = None, errors: Literal["collect"]
) -> list[Outcome[R]]: ...
@overload
async def gather_tasks(
    task: Callable[..., Coroutine[Any, Any, R]],
    /,
    *iterables: Items[Any],
    limit: int | None = None,
    errors: Literal["raise"] = "raise",
) -> list[R]: ...
@overload
async def gather_tasks(
    task: Callable[..., Coroutine[Any, Any, R]],
    /,
    *iterables: Items[Any],
    limit: int | None = None,
    errors: Literal["collect"],
) -> list[Outcome[R]]: ...
@overload
async def gather_tasks(
    task: Callable[..., R], /, *iterables: Items[Any], limit: int | None = None, errors: Literal["raise"] = "raise"
) -> list[R]: ...
@overload
async def gather_tasks(
    task: Callable[..., R], /, *iterables: Items[Any], limit: int | None = None, errors: Literal["collect"]
) -> list[Outcome[R]]: ...
async def gather_tasks(
    task: Any, /, *iterables: Any, limit: int | None = None, errors: Literal["raise", "collect"] = "raise"
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

    Every call has a task of the event loop of its own; those of plain functions run in worker threads. An item is taken
    only when a call of it may begin. The first failure cancels the other calls, and is raised when all have ended.

    Args:
        task: A task, or a function.
        iterables: Where the arguments come from, zipped like those of `map`: sync or async iterables. An async
            generator is closed in the end. An error of theirs ends the calls and comes out as it is.
        limit: How many calls run at once; any number by default.
        errors: `"raise"`, or `"collect"` to let all calls run and return an `Outcome` for each.

    Returns:
        What the calls have returned, or their outcomes.

    Raises:
        TaskGroupError: Calls failed; it holds their errors, without the calls that were cancelled because of them.
        TypeError: `task` cannot be called, there are no iterables, or one is none.
        ValueError: `limit` is less than 1, or `errors` is neither of the two.
        SessionError: The session has begun to end.
    """
    fan_out = FanOut("gather_tasks", task, iterables, limit=limit, errors=errors)
    results: list[Any] = []

    def keep(index: int, value: Any, error: Exception | None) -> None:
        results[index] = Outcome(index, value, error) if fan_out.collect else value

    own: BaseException | None = None
    failures = Failures()
    try:
        async with anyio.create_task_group() as group:
            failures.scope = group.cancel_scope
            try:
                await fan_out.start(group, failures, lambda index: results.append(_MISSING), keep)
            except BaseException as exc:
                own, cancellation = without_cancellation(exc)
                if cancellation is not None:
                    raise cancellation
                group.cancel_scope.cancel()
    except BaseException as exc:
        own = own or exc
    error = failures.concluded(own, f"Calls of task {fan_out.task.name!r} failed") or _missing(results, fan_out)
    if error is not None:
        raise error
    return results


_MISSING: Any = object()


def _missing(results: list[Any], fan_out: FanOut) -> TaskGroupError | None:
    """The error of calls that somebody cancelled, each by itself, with the event loop's own means."""
    errors = [
        CallCancelledError(f"call {index} of task {fan_out.task.name!r} was cancelled")
        for index, result in enumerate(results)
        if result is _MISSING
    ]
    return TaskGroupError(f"Calls of task {fan_out.task.name!r} were cancelled", errors) if errors else None
