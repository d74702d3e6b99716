"""Fan-outs over sources that are long, slow, blocked, endless or held open."""

import itertools
import tracemalloc
from collections.abc import AsyncIterator, Callable, Iterator
from contextvars import ContextVar
from typing import Any

import anyio
import pytest
from anyio import get_cancelled_exc_class
from anyio.lowlevel import checkpoint

from daglite import Limit, Outcome, gather_tasks, map_tasks, partition, session, stream_tasks, task
from daglite.exceptions import LimitError, TaskGroupError

from .journal import told_of
from .test_stream_tasks import settle
from .test_tree import until

both = pytest.mark.parametrize("ordered", [False, True], ids=["as they come", "ordered"])


class Counted:
    """Numbers, of which is known how many were taken."""

    def __init__(self, numbers: Iterator[int]) -> None:
        self.taken = 0
        self._numbers = numbers

    def __iter__(self) -> Iterator[int]:
        return self

    def __next__(self) -> int:
        number = next(self._numbers)
        self.taken += 1
        return number


@task
async def double(number: int) -> int:
    await checkpoint()
    return 2 * number


@both
async def test_of_ten_million_items_only_those_are_taken_that_somebody_wants(ordered: bool) -> None:
    numbers = Counted(iter(range(10_000_000)))
    got: list[int] = []
    async with stream_tasks(double, numbers, limit=8, ordered=ordered) as results:
        async for result in results:
            got.append(result)
            if len(got) == 100:
                break
    assert 100 <= numbers.taken <= 100 + 16
    if ordered:
        assert got == list(range(0, 200, 2))


async def test_a_failure_leaves_the_rest_of_ten_million_items_where_they_are() -> None:
    numbers = Counted(iter(range(10_000_000)))

    @task
    async def work(number: int) -> None:
        await checkpoint()
        if number == 50:
            raise ValueError("no")

    with pytest.raises(TaskGroupError):
        await gather_tasks(work, numbers, limit=4)
    assert 51 <= numbers.taken <= 51 + 4


async def test_a_slow_first_item_stalls_an_ordered_consumer_and_not_more_than_the_window() -> None:
    first = anyio.Event()
    numbers = Counted(itertools.count())
    ended: list[int] = []

    @task
    async def work(number: int) -> int:
        if number == 0:
            await first.wait()
        ended.append(number)
        return number

    async with stream_tasks(work, numbers, limit=3, buffer=4, ordered=True) as results:
        await until(lambda: len(ended) == 6)  # all others of the window
        await settle()
        assert numbers.taken == 7
        assert sorted(ended) == [1, 2, 3, 4, 5, 6]
        first.set()
        assert [await results.__anext__() for _ in range(20)] == list(range(20))
        assert numbers.taken <= 20 + 7


@pytest.mark.usefixtures("virtual_clock")
@both
async def test_what_has_ended_is_handed_out_while_the_source_is_blocked(ordered: bool) -> None:
    said: list[str] = []

    async def blocked() -> AsyncIterator[int]:
        async with told_of(said):
            yield 1
            yield 2
            await anyio.sleep_forever()

    async with stream_tasks(double, blocked(), ordered=ordered) as results:
        assert sorted([await results.__anext__(), await results.__anext__()]) == [2, 4]
        with anyio.move_on_after(0.05) as scope:
            await results.__anext__()
        assert scope.cancelled_caught
        assert said == []
    assert said == ["cancelled", "cleaned up"]


@pytest.mark.usefixtures("virtual_clock")
@pytest.mark.parametrize("errors", ["raise", "collect"])
async def test_a_failure_ends_the_wait_for_a_blocked_source(errors: Any) -> None:
    said: list[str] = []

    async def blocked() -> AsyncIterator[int]:
        async with told_of(said):
            yield 1
            await anyio.sleep_forever()

    @task
    async def fail(number: int) -> None:
        await checkpoint()
        raise ValueError("no")

    with anyio.move_on_after(0.3) as scope:
        with pytest.raises(TaskGroupError):
            await gather_tasks(fail, blocked(), errors=errors)
    assert scope.cancelled_caught is (errors == "collect")  # which waits for all that come
    assert said == ["cancelled", "cleaned up"]


async def test_a_source_may_wait_for_what_its_calls_do() -> None:
    done = anyio.Event()

    async def in_turns() -> AsyncIterator[int]:
        nonlocal done
        for number in range(5):
            yield number
            await done.wait()
            done = anyio.Event()

    @task
    async def work(number: int) -> int:
        done.set()
        return number

    assert await gather_tasks(work, in_turns(), limit=3) == [0, 1, 2, 3, 4]


variable: ContextVar[str] = ContextVar("variable", default="unset")


@pytest.mark.parametrize("how", ["all", "failure", "cancelled"])
async def test_a_source_that_holds_a_task_group_open_is_pumped(how: str) -> None:
    said: list[str] = []

    @task(pump=True)
    async def ticks() -> AsyncIterator[int]:
        async with told_of(said), anyio.create_task_group() as group:
            variable.set("inside")
            group.start_soon(anyio.sleep_forever)
            for number in range(5):
                yield number
            group.cancel_scope.cancel()

    @task
    async def work(number: int) -> str:
        await checkpoint()
        if how == "failure" and number == 2:
            raise ValueError("no")
        if how == "cancelled" and number == 2:
            scope.cancel()
            await checkpoint()
        return variable.get()

    with anyio.CancelScope() as scope:
        if how == "failure":
            with pytest.raises(TaskGroupError):
                await gather_tasks(work, ticks(), limit=2)
        else:
            results = await gather_tasks(work, ticks(), limit=2)
            assert results == ["unset"] * 5
    assert scope.cancelled_caught is (how == "cancelled")
    assert said[-1] == "cleaned up"


@pytest.mark.usefixtures("virtual_clock")
async def test_an_async_generator_may_hold_a_deadline_of_its_own() -> None:
    blocked = anyio.Event()

    async def for_a_while() -> AsyncIterator[int]:
        with anyio.move_on_after(0.05) as scope:
            for number in itertools.count():
                yield number
        assert scope.cancelled_caught
        yield -1
        blocked.set()

    @task
    async def work(number: int) -> int:
        await blocked.wait() if number == 0 else await checkpoint()
        return number

    # The deadline passes while the fan-out waits for a place.
    async with anyio.create_task_group() as group:

        async def release() -> None:
            await anyio.sleep(0.3)
            blocked.set()

        group.start_soon(release)
        assert await gather_tasks(work, for_a_while(), limit=1) == [0, -1]


async def test_an_async_generator_that_does_not_let_itself_be_cancelled_is_over() -> None:
    said: list[str] = []
    blocked = anyio.Event()

    async def stubborn() -> AsyncIterator[int]:
        try:
            with anyio.CancelScope() as scope:
                yield 0
                scope.cancel()
                for number in itertools.count(1):
                    try:
                        yield number
                    except get_cancelled_exc_class():
                        said.append("cancelled")
        finally:
            said.append("closed")

    @task
    async def work(number: int) -> int:
        if number == 1:
            await blocked.wait()
        return number

    async def release() -> None:
        await until(lambda: said[-1:] == ["closed"])
        blocked.set()

    async with anyio.create_task_group() as group:
        group.start_soon(release)
        assert await gather_tasks(work, stubborn(), limit=1) == [0, 1, 2]
    assert said == ["cancelled", "closed"]


@pytest.mark.usefixtures("virtual_clock")
@pytest.mark.parametrize("how", ["failure", "cancelled", "deadline", "left early"])
async def test_what_an_async_generator_holds_open_is_left_in_order(how: str) -> None:
    said: list[str] = []

    async def ticks() -> AsyncIterator[int]:
        async with told_of(said):
            with anyio.fail_after(0.1 if how == "deadline" else 30):
                async with anyio.create_task_group() as group:
                    group.start_soon(anyio.sleep_forever)
                    for number in itertools.count():
                        yield number

    @task
    async def work(number: int) -> int:
        if number < 2:
            return number
        if how == "failure":
            raise ValueError("no")
        if how == "cancelled":
            scope.cancel()
        if how != "left early":
            await anyio.sleep_forever()
        return number

    with anyio.CancelScope() as scope:
        if how == "failure":
            with pytest.raises(TaskGroupError):
                await gather_tasks(work, ticks(), limit=2)
        elif how == "deadline":
            with pytest.raises(TimeoutError):
                await gather_tasks(work, ticks(), limit=2)
        elif how == "left early":
            async with stream_tasks(work, ticks(), limit=2) as results:
                assert {await results.__anext__(), await results.__anext__()} == {0, 1}
        else:
            await gather_tasks(work, ticks(), limit=2)
    assert scope.cancelled_caught is (how == "cancelled")
    assert said[-1] == "cleaned up"
    await checkpoint()


@pytest.mark.usefixtures("virtual_clock")
async def test_a_source_that_does_not_close_in_time_is_ended() -> None:
    said: list[str] = []

    async def endless() -> AsyncIterator[int]:
        try:
            for number in itertools.count():
                yield number
        finally:
            async with told_of(said):
                await anyio.sleep_forever()

    async with session(grace=0.05):
        with pytest.raises(TaskGroupError):
            await gather_tasks(lambda number: 1 / 0, endless(), limit=1)
    assert said == ["cancelled", "cleaned up"]


async def test_what_is_no_generator_is_not_closed() -> None:
    send, receive = anyio.create_memory_object_stream[int](4)
    with send, receive:
        for number in range(4):
            send.send_nowait(number)
        async with stream_tasks(double, receive, limit=1, buffer=0) as results:
            assert await results.__anext__() == 0
        assert await receive.receive() in (1, 2, 3)  # the rest is there for others


def test_results_may_be_made_before_there_is_an_event_loop() -> None:
    results = stream_tasks(double, [1, 2], ordered=True)

    async def main() -> list[int]:
        async with results:
            return [result async for result in results]

    assert anyio.run(main) == [2, 4]


async def test_results_are_the_source_of_the_next_fan_out() -> None:
    async with stream_tasks(double, range(20), limit=3, ordered=True) as results:
        assert await gather_tasks(double, results, limit=2) == [4 * number for number in range(20)]
    numbers = Counted(itertools.count())
    async with stream_tasks(double, numbers, limit=2) as doubled, stream_tasks(double, doubled, limit=2) as results:
        got = [await results.__anext__() for _ in range(10)]
    assert sum(number % 4 for number in got) == 0
    assert numbers.taken <= 10 + 8 + 1


async def test_a_fan_out_without_a_limit_does_not_run_ahead_of_calls_that_do_not_wait() -> None:
    now = most = 0

    @task
    async def work(number: int) -> None:
        nonlocal now, most
        now += 1
        most = max(most, now)
        await checkpoint()
        now -= 1

    async def numbers() -> AsyncIterator[int]:
        for number in range(3_000):
            yield number

    await gather_tasks(work, range(3_000))
    await gather_tasks(work, numbers())
    assert most <= 3 * 64


async def test_a_fan_out_without_a_limit_lets_all_wait_at_once() -> None:
    all_there, count = anyio.Event(), 0

    @task
    async def work(number: int) -> int:
        nonlocal count
        count += 1
        if count == 2_000:
            all_there.set()
        await all_there.wait()
        return number

    assert await gather_tasks(work, range(2_000)) == list(range(2_000))


async def test_memory_does_not_grow_with_the_number_of_items() -> None:
    async def most_for(count: int) -> int:
        tracemalloc.start()
        try:
            async with stream_tasks(double, range(count), limit=50) as results:
                async for _ in results:
                    pass
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    await most_for(100)
    few, many = await most_for(300), await most_for(3_000)
    assert many < few + 200_000  # bytes; a call takes some 5,000 while it runs


async def test_nested_fan_outs_at_their_own_limits_and_those_of_their_tasks_finish() -> None:
    shelf, book = Limit("shelf", 2), Limit("book", 3)

    @task(limit=book)
    def read(number: int) -> int:
        return number

    @task(limit=book)
    async def count(number: int) -> int:
        await checkpoint()
        return number

    @task(limit=shelf)
    async def one_shelf(number: int) -> int:
        async with stream_tasks(count, range(number), limit=2, buffer=0, ordered=True) as results:
            total = sum([each async for each in results])
        return total + sum(await gather_tasks(read, range(number), limit=2))

    @task
    async def room(number: int) -> int:
        return sum(await gather_tasks(one_shelf, range(number), limit=2))

    async with session(max_threads=2):
        rooms = await gather_tasks(room, range(6), limit=3)
    assert rooms == [sum(2 * sum(range(shelf)) for shelf in range(room)) for room in range(6)]
    assert (shelf.available_tokens, book.available_tokens) == (2, 3)


def test_nested_fan_outs_of_threads_and_event_loops_finish() -> None:
    @task
    def leaf(number: int) -> int:
        return number

    @task
    def middle(number: int) -> int:
        return sum(map_tasks(leaf, range(number), limit=1))

    @task
    async def top(number: int) -> int:
        return sum(await gather_tasks(middle, range(number), limit=2))

    with session(max_threads=2):
        totals = map_tasks(top, range(5), limit=2)
    assert totals == [sum(sum(range(each)) for each in range(number)) for number in range(5)]


async def test_calls_that_would_wait_for_their_own_source_are_refused() -> None:
    database = Limit("database", 2)

    @task(limit=database)
    async def rows() -> AsyncIterator[int]:
        yield 1

    @task(limit=database)
    async def store(row: int) -> None: ...

    message = "gather_tasks of task 'store': its calls need tokens of limit 'database', of which stream 'rows', which they get"
    with pytest.raises(LimitError, match=message):
        await gather_tasks(store, rows())
    with pytest.raises(LimitError, match="stream_tasks of task 'store': its calls need"):
        stream_tasks(store, rows())


@pytest.mark.parametrize("kind", ["async", "sync", "async stream", "sync stream"])
@both
async def test_outcomes_are_collected_of_every_kind_of_task(kind: str, ordered: bool) -> None:
    async def work(number: int) -> int:
        await checkpoint()
        return check(number)

    async def items(number: int) -> AsyncIterator[int]:
        yield check(number)

    def items_sync(number: int) -> Iterator[int]:
        yield check(number)

    def check(number: int) -> int:
        if number % 3 == 0:
            raise ValueError(f"{number}")
        return number

    made: Any = task({"async": work, "sync": check, "async stream": items, "sync stream": items_sync}[kind])
    value: Callable[[int], Any] = (lambda number: [number]) if "stream" in kind else (lambda number: number)
    gathered = await gather_tasks(made, range(7), limit=3, errors="collect")
    async with stream_tasks(made, range(7), limit=3, ordered=ordered, errors="collect") as results:
        streamed = [outcome async for outcome in results]
    calls = await gather_tasks(*[made.call(number) for number in range(7)], limit=3, errors="collect")
    mapped = await anyio.to_thread.run_sync(lambda: map_tasks(made, range(7), limit=3, errors="collect"))
    for outcomes in (gathered, calls, mapped, sorted(streamed, key=lambda outcome: outcome.index)):
        assert [outcome.index for outcome in outcomes] == list(range(7))
        assert all(isinstance(outcome, Outcome) for outcome in outcomes)
        values, errors = partition(outcomes)
        assert values == [value(number) for number in (1, 2, 4, 5)]
        assert [str(error.__cause__) for error in errors] == ["0", "3", "6"]
    if ordered:
        assert [outcome.index for outcome in streamed] == list(range(7))
