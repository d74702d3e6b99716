"""`stream_tasks`: results while calls run, bounded at both ends."""

import itertools
import sys
from collections.abc import AsyncIterator, Iterator
from typing import Any

import anyio
import pytest
from anyio.lowlevel import checkpoint
from hypothesis import given
from hypothesis import strategies as st

from daglite import Outcome, current_task, gather_tasks, session, stream_tasks, task
from daglite.exceptions import TaskError, TaskGroupError

if sys.version_info < (3, 11):
    from exceptiongroup import ExceptionGroup

both = pytest.mark.parametrize("ordered", [False, True], ids=["as completed", "ordered"])


@task
async def double(number: int) -> int:
    for _ in range(number % 3):
        await checkpoint()
    return 2 * number


async def settle() -> None:
    """Let everything run that can."""
    for _ in range(50):
        await checkpoint()


@both
async def test_all_results_are_handed_out(ordered: bool) -> None:
    got: list[int] = []
    async with stream_tasks(double, range(50), limit=4, ordered=ordered) as results:
        async for number in results:
            got.append(number)
    assert (got if ordered else sorted(got)) == list(range(0, 100, 2))


async def test_results_come_as_they_are_ready_unless_they_are_ordered() -> None:
    gates = {number: anyio.Event() for number in range(3)}

    @task
    async def wait(number: int) -> int:
        await gates[number].wait()
        return number

    async with stream_tasks(wait, range(3)) as results:
        for number in (2, 0, 1):
            gates[number].set()
            assert await results.__anext__() == number
    gates = {number: anyio.Event() for number in range(3)}
    async with stream_tasks(wait, range(3), ordered=True) as results:
        gates[2].set()
        gates[1].set()
        await settle()
        gates[0].set()
        assert [number async for number in results] == [0, 1, 2]


@pytest.mark.parametrize("source", ["sync", "async", "stream", "thread"])
@both
async def test_infinite_sources_of_every_kind_are_taken_from(source: str, ordered: bool) -> None:
    closed: list[str] = []

    async def numbers() -> AsyncIterator[int]:
        try:
            for number in itertools.count():
                yield number
        finally:
            closed.append("async")

    def numbers_sync() -> Iterator[int]:
        try:
            yield from itertools.count()
        finally:
            closed.append("sync")

    items: Any = {
        "sync": itertools.count,
        "async": numbers,
        "stream": task(numbers),
        "thread": task(numbers_sync).to_thread,
    }[source]
    async with session():
        async with stream_tasks(double, items(), limit=3, ordered=ordered) as results:
            got = [await results.__anext__() for _ in range(10)]
        assert closed == {"sync": [], "async": ["async"], "stream": ["async"], "thread": ["sync"]}[source]
    assert len(got) == 10
    if ordered:
        assert got == list(range(0, 20, 2))


@both
@pytest.mark.parametrize(("limit", "buffer", "most"), [(1, 0, 1), (2, 0, 2), (2, 3, 5), (3, None, 6)])
async def test_what_is_taken_and_not_handed_out_is_bounded(
    ordered: bool, limit: int, buffer: int | None, most: int
) -> None:
    taken = handed_out = running = most_running = 0

    def items() -> Iterator[int]:
        nonlocal taken
        for number in range(40):
            taken += 1
            yield number

    @task
    async def work(number: int) -> int:
        nonlocal running, most_running
        running += 1
        most_running = max(running, most_running)
        for _ in range(5 if number == 0 else 1):  # the first is slow: an ordered consumer waits for it
            await checkpoint()
        running -= 1
        return number

    widest = 0
    async with stream_tasks(work, items(), limit=limit, ordered=ordered, buffer=buffer) as results:
        await settle()
        assert taken == most  # a consumer that takes nothing stalls the source
        async for _ in results:
            handed_out += 1
            await settle()
            widest = max(widest, taken - handed_out)
    assert handed_out == 40
    assert widest == most
    assert most_running == limit


@both
async def test_a_failure_is_raised_once_what_had_finished_is_handed_out(ordered: bool) -> None:
    fail, cancelled = anyio.Event(), 0

    @task
    async def work(number: int) -> int:
        nonlocal cancelled
        if number == 2:
            await fail.wait()
            raise ValueError("two")
        if number == 4:
            try:
                await anyio.sleep_forever()
            finally:
                cancelled += 1
        return number

    got: list[int] = []
    with pytest.raises(TaskGroupError) as caught:
        async with stream_tasks(work, range(5), ordered=ordered) as results:
            await settle()
            fail.set()
            await settle()
            async for number in results:
                got.append(number)
    assert sorted(got) == [0, 1, 3]
    assert got == sorted(got) or not ordered
    assert cancelled == 1
    (error,) = caught.value.exceptions
    assert isinstance(error, TaskError)
    assert error.metadata is not None
    assert error.metadata.map_index == 2


async def test_a_failure_that_no_step_has_raised_is_raised_when_the_block_is_left() -> None:
    @task
    async def work(number: int) -> int:
        if number:
            raise ValueError(number)
        return number

    with pytest.raises(TaskGroupError):
        async with stream_tasks(work, range(2)) as results:
            await settle()
            assert await results.__anext__() == 0
    with pytest.raises(ExceptionGroup) as caught:
        async with stream_tasks(work, range(2)) as results:
            await settle()
            raise KeyError("body")
    body, calls = caught.value.exceptions
    assert isinstance(body, KeyError)
    assert isinstance(calls, TaskGroupError)
    with pytest.raises(TaskGroupError, match="Calls of task"):
        async with stream_tasks(work, range(2)) as results:
            while True:
                try:
                    await results.__anext__()
                except TaskGroupError as error:
                    raise error


async def test_a_failure_that_was_caught_at_the_step_is_not_raised_again() -> None:
    @task
    async def fail(number: int) -> int:
        raise ValueError(number)

    async with stream_tasks(fail, [1]) as results:
        with pytest.raises(TaskGroupError):
            await results.__anext__()
        with pytest.raises(StopAsyncIteration):
            await results.__anext__()


async def test_leaving_early_cancels_the_calls_and_waits_for_them() -> None:
    begun = ended = 0

    @task
    async def work(number: int) -> int:
        nonlocal begun, ended
        if number == 0:
            return 0
        begun += 1
        try:
            await anyio.sleep_forever()
            return number
        finally:
            with anyio.CancelScope(shield=True):
                await checkpoint()
            ended += 1

    async with stream_tasks(work, itertools.count(), limit=4) as results:
        async for _ in results:
            await settle()
            break
    assert begun == ended > 0
    with pytest.raises(KeyError):
        async with stream_tasks(work, itertools.count(), limit=4) as results:
            await settle()
            raise KeyError
    assert begun == ended


@both
async def test_errors_can_be_collected(ordered: bool) -> None:
    @task
    async def work(number: int) -> int:
        if number == 1:
            raise ValueError(number)
        return number

    async with stream_tasks(work, range(3), errors="collect", ordered=ordered) as results:
        outcomes: list[Outcome[int]] = [outcome async for outcome in results]
    assert sorted((outcome.index, outcome.value) for outcome in outcomes if outcome.error is None) == [(0, 0), (2, 2)]
    (failed,) = [outcome for outcome in outcomes if outcome.error is not None]
    assert failed.index == 1
    assert isinstance(failed.error, TaskError)


@both
async def test_the_error_of_a_source_comes_out_as_it_is(ordered: bool) -> None:
    async def items() -> AsyncIterator[int]:
        yield 1
        yield 2
        await settle()
        raise OSError("source")

    got: list[int] = []
    with pytest.raises(OSError, match="source"):
        async with stream_tasks(double, items(), ordered=ordered) as results:
            async for number in results:
                got.append(number)
    assert sorted(got) == [2, 4]


async def test_a_cancelled_consumer_cancels_the_calls() -> None:
    ended = 0

    @task
    async def hang(number: int) -> None:
        nonlocal ended
        try:
            await anyio.sleep_forever()
        finally:
            ended += 1

    with anyio.CancelScope() as scope:
        async with stream_tasks(hang, range(3)) as results:
            await settle()
            scope.cancel()
            await results.__anext__()
    assert scope.cancelled_caught
    assert ended == 3


async def test_what_ends_a_program_comes_out_bare() -> None:
    class Stop(BaseException):
        pass

    @task
    async def stop(number: int) -> None:
        raise Stop

    with pytest.raises(Stop):
        async with stream_tasks(stop, range(3)) as results:
            await results.__anext__()
    with pytest.raises(Stop):
        async with stream_tasks(stop, range(3)):
            await settle()


async def test_results_are_entered_once() -> None:
    results = stream_tasks(double, range(3))
    with pytest.raises(RuntimeError, match="stream_tasks of task 'double': its results have to be entered"):
        await results.__anext__()
    async with results:
        with pytest.raises(RuntimeError, match="its results can be entered once"):
            await results.__aenter__()


async def test_several_tasks_may_share_the_results() -> None:
    got: list[int] = []

    @task
    async def slow(number: int) -> int:
        await settle()
        return number

    async def take() -> None:
        async for number in results:
            got.append(number)

    async with stream_tasks(slow, range(9), limit=2) as results:
        async with anyio.create_task_group() as group:
            for _ in range(3):
                group.start_soon(take)
    assert sorted(got) == list(range(9))


async def test_streams_in_streams_in_streams_finish() -> None:
    async def row(number: int) -> list[int]:
        async with stream_tasks(double, range(number), limit=1, buffer=0, ordered=True) as results:
            return [item async for item in results]

    assert await gather_tasks(row, range(4), limit=2) == [[], [0], [0, 2], [0, 2, 4]]


async def test_calls_have_a_map_index_and_the_parent_of_the_block() -> None:
    @task
    async def numbered(number: int) -> Any:
        return current_task()

    @task
    async def whole() -> Any:
        async with stream_tasks(numbered, "ab", ordered=True) as results:
            return current_task(), [item async for item in results]

    me, (a, b) = await whole()
    assert (a.name, b.name) == ("numbered[0]", "numbered[1]")
    assert a.parent_id == b.parent_id == me.id


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        ((double,), {}, TypeError, "stream_tasks of task 'double': there is no iterable"),
        ((double, 3), {}, TypeError, "iterable 1 is 3, which cannot be iterated over"),
        ((None, [1]), {}, TypeError, "@task takes a function, not None"),
        ((double, [1]), {"limit": 0}, ValueError, "stream_tasks of task 'double': limit must be at least 1, not 0"),
        ((double, [1]), {"limit": None}, TypeError, "limit must be a whole number, not None"),
        ((double, [1]), {"buffer": -1}, ValueError, "task 'double': buffer must be at least 0, not -1"),
        ((double, [1]), {"buffer": 0.5}, TypeError, "buffer must be a whole number, not 0.5"),
        ((double, [1]), {"ordered": "yes"}, TypeError, "ordered must be a bool, not 'yes'"),
        ((double, [1]), {"errors": None}, ValueError, "errors must be 'raise' or 'collect', not None"),
    ],
)
async def test_bad_arguments_are_refused_at_once(
    arguments: Any, options: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        stream_tasks(*arguments, **options)


@given(
    delays=st.lists(st.integers(0, 4), max_size=12),
    limit=st.integers(1, 4),
    buffer=st.none() | st.integers(0, 3),
    ordered=st.booleans(),
    taken=st.integers(0, 12),
    backend=st.sampled_from(["asyncio", "trio"]),
)
def test_a_stream_of_results_agrees_with_a_plain_loop(
    delays: list[int], limit: int, buffer: int | None, ordered: bool, taken: int, backend: str
) -> None:
    async def work(index: int, delay: int) -> int:
        for _ in range(delay):
            await checkpoint()
        return index

    async def main() -> list[int]:
        got: list[int] = []
        async with stream_tasks(
            work, range(len(delays)), delays, limit=limit, buffer=buffer, ordered=ordered
        ) as results:
            async for index in results:
                got.append(index)
                if len(got) == taken:
                    break
        return got

    got = anyio.run(main, backend=backend)
    assert len(got) == (min(taken, len(delays)) or len(delays))
    assert len(set(got)) == len(got)
    if ordered:
        assert got == list(range(len(got)))
