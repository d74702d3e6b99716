"""`gather_tasks`: results in order, so many at once, and what failures do."""

import threading
from collections.abc import AsyncIterator, Iterator
from typing import Any

import anyio
import pytest
from anyio.lowlevel import checkpoint
from hypothesis import given
from hypothesis import strategies as st

from daglite import Outcome, current_task, gather_tasks, partition, session, task
from daglite.exceptions import SessionError, TaskError, TaskGroupError


class Gauge:
    """How many are inside at once."""

    def __init__(self) -> None:
        self.now = self.most = 0

    async def __aenter__(self) -> None:
        self.now += 1
        self.most = max(self.most, self.now)

    async def __aexit__(self, *exc_info: object) -> None:
        self.now -= 1


@task
async def double(number: int) -> int:
    for _ in range(number % 3):
        await checkpoint()
    return 2 * number


async def test_results_are_in_the_order_of_the_items() -> None:
    assert await gather_tasks(double, range(20)) == list(range(0, 40, 2))
    assert await gather_tasks(double, []) == []


async def test_plain_functions_and_tasks_of_either_kind_are_called() -> None:
    async def triple(number: int) -> int:
        return 3 * number

    assert await gather_tasks(triple, [1, 2]) == [3, 6]
    assert await gather_tasks(task(lambda number: number), [1, 2]) == [1, 2]
    assert threading.get_ident() not in await gather_tasks(lambda _: threading.get_ident(), [1, 2])


async def test_arguments_are_zipped_and_stop_at_the_shortest() -> None:
    async def numbers() -> AsyncIterator[int]:
        for number in (10, 20, 30):
            yield number

    @task
    async def join(a: str, b: int, c: int) -> str:
        return f"{a}{b}{c}"

    assert await gather_tasks(join, "xyz", numbers(), [1, 2]) == ["x101", "y202"]


@pytest.mark.parametrize("limit", [1, 2, 5])
async def test_no_more_calls_run_at_once_than_the_limit(limit: int) -> None:
    gauge = Gauge()

    @task
    async def work(number: int) -> None:
        async with gauge:
            for _ in range(number % 4 + 1):
                await checkpoint()

    await gather_tasks(work, range(30), limit=limit)
    assert gauge.most == limit


async def test_an_item_is_taken_only_when_its_call_may_begin() -> None:
    taken, running = 0, 0

    def items() -> Iterator[int]:
        nonlocal taken
        for number in range(50):
            assert running < 3
            taken += 1
            yield number

    @task
    async def work(number: int) -> None:
        nonlocal running
        running += 1
        await checkpoint()
        running -= 1

    await gather_tasks(work, items(), limit=3)
    assert taken == 50


async def test_a_failure_cancels_the_others_and_an_infinite_source() -> None:
    ended: list[int] = []

    def forever() -> Iterator[int]:
        number = 0
        while True:
            yield number
            number += 1

    @task
    async def work(number: int) -> None:
        if number == 3:
            raise ValueError("three")
        try:
            await anyio.sleep_forever()
        finally:
            ended.append(number)

    with pytest.raises(TaskGroupError, match="Calls of task 'work' failed") as caught:
        await gather_tasks(work, forever(), limit=5)
    (error,) = caught.value.exceptions
    assert isinstance(error, TaskError)
    assert error.metadata is not None
    assert (error.metadata.name, error.metadata.map_index) == ("work[3]", 3)
    assert set(ended) <= {0, 1, 2, 4}


async def test_every_real_failure_is_told_and_no_cancelled_sibling() -> None:
    both = anyio.Event()

    @task
    async def work(number: int) -> None:
        if number == 0:
            await both.wait()
            raise ValueError("first")
        if number == 1:
            try:
                both.set()
                await anyio.sleep_forever()
            finally:
                raise KeyError("second")
        await anyio.sleep_forever()

    with pytest.raises(TaskGroupError) as caught:
        await gather_tasks(work, range(4))
    causes = [error.__cause__ for error in caught.value.exceptions]
    assert {type(cause) for cause in causes} == {ValueError, KeyError}


async def test_a_failure_is_not_lost_when_a_sibling_fails_in_a_task_group_of_its_own() -> None:
    """On Trio such a sibling raises a group with the cancellation in it."""
    ready = anyio.Event()

    async def child() -> None:
        try:
            await anyio.sleep_forever()
        finally:
            raise KeyError("nested")

    @task
    async def work(number: int) -> None:
        if number == 0:
            await ready.wait()
            raise ValueError("first")
        async with anyio.create_task_group() as group:
            group.start_soon(child)
            await checkpoint()
            await checkpoint()
            ready.set()
            await anyio.sleep_forever()

    with pytest.raises(TaskGroupError) as caught:
        await gather_tasks(work, range(2))
    assert all(type(error) is TaskError for error in caught.value.exceptions)
    assert "ValueError" in repr([error.__cause__ for error in caught.value.exceptions])
    assert "KeyError" in repr([error.__cause__ for error in caught.value.exceptions])


async def test_errors_can_be_collected() -> None:
    @task
    async def work(number: int) -> int:
        if number % 2:
            raise ValueError(number)
        return number

    outcomes = await gather_tasks(work, range(4), errors="collect")
    assert [(outcome.index, outcome.value) for outcome in outcomes] == [(0, 0), (1, None), (2, 2), (3, None)]
    values, errors = partition(outcomes)
    assert values == [0, 2]
    assert [str(error.__cause__) for error in errors] == ["1", "3"]
    assert Outcome(1, "x") == Outcome(1, "x", None)


async def test_errors_that_are_not_wrapped_are_in_the_group_as_they_are() -> None:
    @task(wrap_errors=False)
    async def work(number: int) -> None:
        raise LookupError(number)

    with pytest.raises(TaskGroupError) as caught:
        await gather_tasks(work, range(1))
    assert [type(error) for error in caught.value.exceptions] == [LookupError]


@pytest.mark.parametrize("errors", ["raise", "collect"])
async def test_the_error_of_a_source_ends_the_calls_and_comes_out_as_it_is(errors: Any) -> None:
    ended = closed = begun = 0
    running = anyio.Event()

    async def items() -> AsyncIterator[int]:
        nonlocal closed
        try:
            yield 1
            yield 2
            await running.wait()
            raise OSError("source")
        finally:
            closed += 1

    @task
    async def work(number: int) -> None:
        nonlocal ended, begun
        begun += 1
        if begun == 2:
            running.set()
        try:
            await anyio.sleep_forever()
        finally:
            ended += 1

    with pytest.raises(OSError, match="source"):
        await gather_tasks(work, items(), errors=errors)
    assert (ended, closed) == (2, 1)


async def test_an_async_generator_is_closed_when_a_call_fails() -> None:
    closed: list[bool] = []

    async def items() -> AsyncIterator[int]:
        try:
            while True:
                yield 1
        finally:
            await checkpoint()  # also in its cleanup it may wait
            closed.append(True)

    @task
    async def work(number: int) -> None:
        raise ValueError

    with pytest.raises(TaskGroupError):
        await gather_tasks(work, items(), limit=2)
    assert closed == [True]


async def test_a_source_that_fails_to_close_does_not_keep_the_next_from_closing() -> None:
    closed: list[int] = []

    async def items(number: int) -> AsyncIterator[int]:
        try:
            while True:
                yield number
        finally:
            closed.append(number)
            if number == 2:
                raise OSError("in the close")

    with pytest.raises(OSError, match="in the close"):
        await gather_tasks(lambda a, b, c: None, items(1), items(2), range(3))
    assert closed == [2, 1]


async def test_what_ends_a_program_comes_out_bare() -> None:
    class Stop(BaseException):
        pass

    @task
    async def work(number: int) -> None:
        if number == 2:
            raise Stop
        await anyio.sleep_forever()

    def items() -> Iterator[int]:
        yield 0
        raise Stop

    with pytest.raises(Stop):
        await gather_tasks(work, range(4))
    with pytest.raises(Stop):
        await gather_tasks(work, items())


async def test_cancelling_a_fan_out_cancels_its_calls() -> None:
    ended = 0

    @task
    async def work(number: int) -> None:
        nonlocal ended
        try:
            await anyio.sleep_forever()
        finally:
            ended += 1

    with anyio.CancelScope() as scope:
        async with anyio.create_task_group() as group:
            group.start_soon(gather_tasks, work, range(3))
            await anyio.wait_all_tasks_blocked()
            scope.cancel()
    assert ended == 3


async def test_nested_fan_outs_at_their_limits_finish() -> None:
    async def row(number: int) -> list[int]:
        return await gather_tasks(double, range(number), limit=1)

    assert await gather_tasks(row, range(4), limit=1) == [[], [0], [0, 2], [0, 2, 4]]


async def test_calls_have_a_map_index_and_their_parent() -> None:
    @task(name="item {map_index}")
    async def numbered(number: int) -> Any:
        return current_task()

    @task
    async def whole() -> Any:
        return current_task(), await gather_tasks(numbered, "ab")

    me, (a, b) = await whole()
    assert (a.name, b.name) == ("item 0", "item 1")
    assert (a.map_index, b.map_index) == (0, 1)
    assert a.parent_id == b.parent_id == me.id


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_call_that_is_cancelled_natively_by_itself_is_told() -> None:
    import asyncio

    async def work(number: int) -> int:
        current = asyncio.current_task()
        if number == 1 and current is not None:
            current.cancel()
        await asyncio.sleep(0)
        return number

    with pytest.raises(TaskGroupError) as caught:
        await gather_tasks(work, range(3))
    assert "1 of 3 calls of task 'work' were cancelled" in str(caught.value.exceptions[0])


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        ((double,), {}, TypeError, "gather_tasks of task 'double': there is no iterable"),
        ((double, 3), {}, TypeError, "task 'double': iterable 1 is 3, which cannot be iterated over"),
        ((double, [1], None), {}, TypeError, "iterable 2 is None"),
        ((3, [1]), {}, TypeError, "@task takes a function, not 3"),
        ((double, [1]), {"limit": 0}, ValueError, "gather_tasks of task 'double': limit must be at least 1, not 0"),
        ((double, [1]), {"limit": 1.0}, TypeError, "limit must be a whole number, not 1.0"),
        ((double, [1]), {"limit": True}, TypeError, "limit must be a whole number, not True"),
        ((double, [1]), {"errors": "ignore"}, ValueError, "errors must be 'raise' or 'collect', not 'ignore'"),
    ],
)
async def test_bad_arguments_are_refused_at_once(
    arguments: Any, options: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        await gather_tasks(*arguments, **options)


async def test_arguments_that_do_not_fit_are_pythons_own_type_errors() -> None:
    with pytest.raises(TaskGroupError) as caught:
        await gather_tasks(double, [1], [2])
    assert [type(error) for error in caught.value.exceptions] == [TypeError]


async def test_a_fan_out_in_a_session_that_has_ended_is_refused() -> None:
    import contextvars

    async with session(name="gone"):
        context = contextvars.copy_context()
    coroutine = context.run(gather_tasks, double, [1])
    with pytest.raises(SessionError, match="'gone', which has ended"):
        context.run(coroutine.send, None)


@given(
    delays=st.lists(st.integers(0, 4), max_size=12),
    limit=st.none() | st.integers(1, 4),
    failing=st.sets(st.integers(0, 12), max_size=3),
    backend=st.sampled_from(["asyncio", "trio"]),
)
def test_a_fan_out_agrees_with_a_plain_loop(
    delays: list[int], limit: int | None, failing: set[int], backend: str
) -> None:
    async def work(index: int, delay: int) -> int:
        for _ in range(delay):
            await checkpoint()
        if index in failing:
            raise ValueError(index)
        return index + delay

    async def main() -> list[Outcome[int]]:
        return await gather_tasks(work, range(len(delays)), delays, limit=limit, errors="collect")

    outcomes = anyio.run(main, backend=backend)
    assert [outcome.value for outcome in outcomes] == [
        None if index in failing else index + delay for index, delay in enumerate(delays)
    ]
