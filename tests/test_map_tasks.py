"""Fan-out from sync code."""

import threading
from collections.abc import AsyncIterator, Callable, Iterator
from functools import partial
from typing import Any

import anyio
import anyio.to_thread
import pytest
from anyio.lowlevel import checkpoint

from daglite import current_session, current_task, map_tasks, partition, session, task
from daglite.events import TaskStarted
from daglite.exceptions import SessionError, TaskError, TaskGroupError


@task
async def double(number: int) -> int:
    await checkpoint()
    return 2 * number


@task
def triple(number: int) -> int:
    return 3 * number


@task
async def add(one: int, other: int) -> int:
    return one + other


@task
async def fail_on_two(number: int) -> int:
    if number == 2:
        raise ValueError("two")
    await anyio.sleep_forever()
    return number


# Where a fan-out from sync code may be made: the function that makes it is called there.


def without_session(work: Callable[[], Any]) -> Any:
    return work()


def in_session(loop: Any, work: Callable[[], Any]) -> Any:
    with session(event_loop=loop):
        return work()


def in_worker_thread(loop: Any, in_session: bool, work: Callable[[], Any]) -> Any:
    async def main() -> Any:
        call = task(wrap_errors=False)(work).to_thread
        if not in_session:
            return await call()
        async with session():
            return await call()

    return anyio.run(main, backend=loop)


def in_anyio_thread(loop: Any, work: Callable[[], Any]) -> Any:
    return anyio.run(anyio.to_thread.run_sync, work, backend=loop)


PLACES = {"without a session": without_session}
for _loop in ("asyncio", "trio"):
    PLACES[f"with session(), {_loop}"] = partial(in_session, _loop)
    PLACES[f"in a worker thread, {_loop}"] = partial(in_worker_thread, _loop, False)
    PLACES[f"in a worker thread of a session, {_loop}"] = partial(in_worker_thread, _loop, True)
    PLACES[f"in a thread of anyio's, {_loop}"] = partial(in_anyio_thread, _loop)


@pytest.fixture(params=PLACES)
def place(request: pytest.FixtureRequest) -> Any:
    return PLACES[request.param]


def test_results_come_in_the_order_of_the_items(place: Any) -> None:
    def work() -> None:
        assert map_tasks(double, range(5)) == [0, 2, 4, 6, 8]
        assert map_tasks(double, range(5), limit=1) == [0, 2, 4, 6, 8]
        assert map_tasks(add, [1, 2, 3], (10, 20)) == [11, 22]
        assert map_tasks(double, []) == []

    place(work)


def test_all_kinds_of_tasks_and_functions_are_taken(place: Any) -> None:
    @task
    async def count(number: int) -> AsyncIterator[int]:
        for each in range(number):
            yield each

    @task
    def count_here(number: int) -> Iterator[int]:
        yield from range(number)

    async def plain(number: int) -> int:
        return number

    def work() -> None:
        here = threading.get_ident()
        assert map_tasks(triple, [1, 2]) == [3, 6]
        assert map_tasks(count, [1, 2]) == [[0], [0, 1]]
        assert map_tasks(count_here, [1, 2]) == [[0], [0, 1]]
        assert map_tasks(plain, [1, 2]) == [1, 2]
        assert map_tasks(add.partial(other=5), [1, 2]) == [6, 7]
        assert here not in map_tasks(lambda _: threading.get_ident(), range(3))
        inline = map_tasks(lambda _: threading.get_ident(), range(3), backend="inline")
        assert len(set(inline)) == 1

    place(work)


def test_no_more_run_at_once_than_may(place: Any) -> None:
    running = most = 0

    @task
    async def measure(number: int) -> int:
        nonlocal running, most
        running += 1
        most = max(most, running)
        for _ in range(3):
            await checkpoint()
        running -= 1
        return number

    place(lambda: map_tasks(measure, range(10), limit=3))
    assert most == 3


def test_async_iterables_are_taken_too(place: Any) -> None:
    closed: list[str] = []

    async def numbers() -> AsyncIterator[int]:
        try:
            for number in range(3):
                yield number
        finally:
            closed.append("closed")

    assert place(lambda: map_tasks(double, numbers())) == [0, 2, 4]
    assert closed == ["closed"]


def test_the_first_failure_cancels_the_others(place: Any) -> None:
    with pytest.raises(TaskGroupError, match="Calls of task 'fail_on_two' failed") as caught:
        place(lambda: map_tasks(fail_on_two, range(4)))
    (error,) = caught.value.exceptions
    assert isinstance(error, TaskError)
    assert repr(error.__cause__) == "ValueError('two')"


def test_outcomes_are_collected(place: Any) -> None:
    @task
    async def refuse_two(number: int) -> int:
        if number == 2:
            raise ValueError("two")
        return number

    values, errors = partition(place(lambda: map_tasks(refuse_two, range(4), errors="collect")))
    assert values == [0, 1, 3]
    assert [type(error) for error in errors] == [TaskError]


def test_an_error_of_the_source_comes_out_as_it_is(place: Any) -> None:
    error = KeyError("mine")

    def numbers() -> Iterator[int]:
        yield 1
        raise error

    with pytest.raises(KeyError) as caught:
        place(lambda: map_tasks(double, numbers()))
    assert caught.value is error


def test_wrong_arguments_are_errors(place: Any) -> None:
    def work() -> None:
        with pytest.raises(TypeError, match="map_tasks of task 'double': there is no iterable"):
            map_tasks(double)
        with pytest.raises(TypeError, match="map_tasks of task 'double': iterable 1 is 7, which cannot be iterated"):
            map_tasks(double, 7)  # type: ignore[call-overload]
        with pytest.raises(ValueError, match="map_tasks of task 'double': limit must be at least 1, not 0"):
            map_tasks(double, [1], limit=0)
        with pytest.raises(ValueError, match="map_tasks of task 'double': errors must be 'raise' or 'collect'"):
            map_tasks(double, [1], errors="ignore")  # type: ignore[call-overload]
        with pytest.raises(ValueError, match="backend='thread' is for sync functions"):
            map_tasks(double, [1], backend="thread")
        with pytest.raises(TypeError, match="7"):
            map_tasks(7, [1])  # type: ignore[call-overload]

    place(work)


@pytest.mark.parametrize("loop", ["asyncio", "trio"])
def test_in_a_session_the_calls_are_in_it(loop: Any) -> None:
    @task
    async def who(_: int) -> Any:
        running = current_task()
        assert running is not None
        return running.map_index, running.parent_id, current_session()

    @task
    def outer() -> Any:
        running = current_task()
        assert running is not None
        return running.id, map_tasks(who, range(2))

    with session(event_loop=loop) as s:
        with s.events() as events:
            parent, calls = outer()
            assert calls == [(0, parent, s), (1, parent, s)]
            names = [event.metadata.name for event in (next(events), next(events)) if isinstance(event, TaskStarted)]
        assert names[0] == "outer"
        assert s.stats().succeeded == 3


@pytest.mark.parametrize("loop", ["asyncio", "trio"])
def test_a_thread_gives_up_its_place_while_it_waits(loop: Any) -> None:
    @task
    def nest(depth: int) -> int:
        return depth if depth == 0 else sum(map_tasks(nest, [depth - 1] * 2)) + 1

    with session(max_threads=1, event_loop=loop):
        assert map_tasks(nest, [3, 3]) == [7, 7]


async def test_in_the_event_loops_own_thread_it_is_refused() -> None:
    with pytest.raises(
        RuntimeError, match=r"map_tasks of task 'double' in an event loop's own .* await gather_tasks\("
    ):
        map_tasks(double, [1])


def test_after_its_session_it_is_refused() -> None:
    with session() as s:
        with s.bind():
            import contextvars

            context = contextvars.copy_context()
    with pytest.raises(SessionError, match="has ended"):
        context.run(map_tasks, double, [1])


async def test_it_is_cancelled_with_its_thread() -> None:
    begun = anyio.Event()
    cancelled: list[int] = []

    @task
    async def hang(number: int) -> None:
        if number == 2:
            begun.set()
        try:
            await anyio.sleep_forever()
        finally:
            cancelled.append(number)

    async with anyio.create_task_group() as group:
        group.start_soon(task(lambda: map_tasks(hang, range(3))).to_thread)
        await begun.wait()
        group.cancel_scope.cancel()
    assert sorted(cancelled) == [0, 1, 2]


def test_a_background_failure_cancels_it() -> None:
    @task
    async def fail() -> None:
        raise ValueError("no")

    with pytest.raises(TaskGroupError, match="Background calls"):
        with session() as s:
            s.start_soon(fail)
            map_tasks(fail_on_two, [0, 1])
            pytest.fail("it went on")
