"""asyncio's own cancellations, which anyio does not know of: never lost, in whatever tick they come."""

import asyncio
import contextlib
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import anyio
import anyio.to_thread
import pytest
from anyio.lowlevel import checkpoint

from daglite import session, task
from daglite.events import TaskCancelled, TaskFailed, TaskSucceeded
from daglite.exceptions import TaskError, TaskTimeoutError
from tests.test_events import Recorder

pytestmark = [
    pytest.mark.parametrize("anyio_backend", ["asyncio"]),
    pytest.mark.skipif(sys.version_info < (3, 11), reason="a task of Python 3.10 does not count its cancellations"),
]

TIMES = 20
SOON = 0.005  # seconds: a deadline that passes
LONG = 30.0  # seconds that no test waits for

kinds = pytest.mark.parametrize(
    "options",
    [
        {"timeout": SOON},
        {"timeout": SOON, "retries": 3},
        {"total_timeout": SOON},
        {"total_timeout": SOON, "retries": 3},
    ],
    ids=["timeout", "timeout-retries", "total", "total-retries"],
)


async def outcome(coroutine: Any, cancel: Callable[[asyncio.Task[Any]], object]) -> BaseException | None:
    """What a task of asyncio's own ends with, when something is done to it."""
    running = asyncio.get_running_loop().create_task(coroutine)
    cancel(running)
    try:
        await running
    except BaseException as exc:
        return exc
    return None


@kinds
@pytest.mark.parametrize("offset", [-1e-6, 0.0, 1e-6])
async def test_in_the_tick_of_a_timeout_it_is_not_lost(options: dict[str, Any], offset: float) -> None:
    """Which of the two comes first is up to the event loop; a cancelled task must not go on as if nothing were."""

    @task(**options)
    async def hang() -> None:
        loop, me = asyncio.get_running_loop(), asyncio.current_task()
        assert me is not None
        if not me.cancelling():
            loop.call_at(anyio.current_effective_deadline() + offset, me.cancel)
        await asyncio.sleep(LONG)

    went_on = 0

    async def caller() -> None:
        nonlocal went_on
        try:
            await hang()
        except TaskError:
            pass  # the deadline was first by more than a tick
        await asyncio.sleep(LONG)
        went_on += 1

    for _ in range(TIMES):
        assert isinstance(await outcome(caller(), lambda running: None), asyncio.CancelledError)
    assert went_on == 0


async def test_in_the_tick_of_completion_it_is_not_lost() -> None:
    """Its function is about to return what it waits for; as with any coroutine, the cancellation wins there."""

    async def wait_for(event: asyncio.Event) -> str:
        await event.wait()
        return "value"

    for options in ({}, {"timeout": LONG}, {"total_timeout": LONG, "retries": 2}, {"retries": 2}):
        waits: Any = task(**options)(wait_for)
        for order in range(2):
            for _ in range(TIMES):
                event = asyncio.Event()
                running = asyncio.get_running_loop().create_task(waits(event))
                await asyncio.sleep(0)
                for step in (event.set, running.cancel) if order else (running.cancel, event.set):
                    step()
                with pytest.raises(asyncio.CancelledError):
                    await running


@pytest.mark.parametrize("offset", [-1e-6, 0.0, 1e-6])
async def test_asyncio_timeout_around_a_call_with_the_same_deadline(offset: float) -> None:
    @task(timeout=SOON, retries=2)
    async def hang() -> None:
        await asyncio.sleep(LONG)

    for _ in range(TIMES):
        with pytest.raises(TimeoutError) as caught:
            async with asyncio.timeout(SOON + offset):
                await hang()
        assert not isinstance(caught.value, TaskTimeoutError) or caught.value.attempts == 3
        assert asyncio.current_task().cancelling() == 0  # type: ignore[union-attr]
    await checkpoint()


async def test_asyncio_timeout_inside_a_call_is_a_failure_of_its_function() -> None:
    attempts = 0

    @task(timeout=LONG, total_timeout=LONG, retries=2)
    async def inside() -> None:
        nonlocal attempts
        attempts += 1
        async with asyncio.timeout(SOON):
            await anyio.sleep(LONG)

    with pytest.raises(TaskError, match="TimeoutError") as caught:
        await inside()
    assert not isinstance(caught.value, TaskTimeoutError)
    assert attempts == 3


async def test_wait_for_inside_a_call_is_a_failure_of_its_function() -> None:
    @task
    async def inner() -> None:
        await anyio.sleep(LONG)

    @task(timeout=LONG, retries=1)
    async def inside() -> None:
        await asyncio.wait_for(inner(), SOON)

    with pytest.raises(TaskError, match="after 2 attempts with error: TimeoutError"):
        await inside()


async def test_wait_for_around_a_call_ends_it_and_nothing_is_retried() -> None:
    recorder, attempts = Recorder(), 0

    @task(timeout=LONG, retries=5)
    async def hang() -> None:
        nonlocal attempts
        attempts += 1
        await anyio.sleep(LONG)

    async with session() as s:
        s.watch(recorder.watch)
        for _ in range(TIMES):
            with pytest.raises(TimeoutError) as caught:
                await asyncio.wait_for(hang(), SOON)
            assert not isinstance(caught.value, TaskError)
    assert attempts == TIMES
    assert len(recorder.of(TaskCancelled)) == TIMES
    assert recorder.of(TaskFailed) == recorder.of(TaskSucceeded) == []


@pytest.mark.parametrize("options", [{}, {"timeout": LONG}, {"total_timeout": LONG}])
async def test_a_body_that_swallows_it_gives_its_value(options: dict[str, Any]) -> None:
    @task(retries=2, **options)
    async def stubborn() -> str:
        try:
            await anyio.sleep(LONG)
        except asyncio.CancelledError:
            pass
        return "value"

    for _ in range(TIMES):
        running = asyncio.get_running_loop().create_task(stubborn())
        await asyncio.sleep(0)
        running.cancel()
        assert await running == "value"  # as of the bare function
        assert running.cancelling() == 1


@pytest.mark.parametrize("options", [{}, {"timeout": LONG}, {"total_timeout": LONG}])
async def test_a_body_that_makes_another_error_of_it_is_not_retried(options: dict[str, Any]) -> None:
    attempts = 0

    @task(retries=5, **options)
    async def translating() -> None:
        nonlocal attempts
        attempts += 1
        try:
            await anyio.sleep(LONG)
        except asyncio.CancelledError:
            raise ValueError("instead") from None

    for number in range(TIMES):
        running = asyncio.get_running_loop().create_task(translating())
        await asyncio.sleep(0)
        running.cancel()
        with pytest.raises(TaskError, match="after 1 attempt with error: ValueError: instead"):
            await running
        assert attempts == number + 1


async def test_in_the_wait_for_a_retry_it_ends_the_call() -> None:
    @task(retries=5, retry_delay=LONG, total_timeout=LONG)
    async def fail() -> None:
        raise ValueError

    running = asyncio.get_running_loop().create_task(fail())
    for _ in range(5):
        await asyncio.sleep(0)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running


class Pumped:
    """A pumped stream that waits for an event, and what has become of its generator."""

    def __init__(self) -> None:
        self.go = asyncio.Event()
        self.waits = asyncio.Event()
        self.ended = 0

    async def items(self) -> AsyncIterator[int]:
        try:
            async with anyio.create_task_group():
                self.waits.set()
                await self.go.wait()
                yield 1
                await anyio.sleep(LONG)
        finally:
            self.ended += 1


@pytest.mark.parametrize("options", [{"pump": True}, {"item_timeout": LONG}])
@pytest.mark.parametrize("order", [0, 1, 2])
async def test_in_the_tick_of_an_item_it_is_not_lost(options: dict[str, Any], order: int) -> None:
    for _ in range(TIMES):
        pumped = Pumped()
        rows: Any = task(**options)(pumped.items)

        async def consume(rows: Any = rows) -> None:
            async with rows() as items:
                async for _ in items:
                    pass

        running = asyncio.get_running_loop().create_task(consume())
        await pumped.waits.wait()
        steps: list[Callable[[], object]] = [pumped.go.set, running.cancel]
        for step in steps if order else reversed(steps):
            step()
            if order == 2:
                await asyncio.sleep(0)
        with pytest.raises(asyncio.CancelledError):
            await running
        assert pumped.ended == 1


@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.filterwarnings("ignore:coroutine .* was never awaited")  # anyio's, of which the task never begins
async def test_a_pump_that_never_begins_keeps_nobody_waiting(inside: bool) -> None:
    """A task that asyncio cancels before its first step does not run at all."""
    me = asyncio.current_task()
    for ticks in range(12):
        pumped = Pumped()

        async def consume(pumped: Pumped = pumped) -> None:
            async with session() if inside else contextlib.AsyncExitStack():
                async with task(pump=True)(pumped.items)() as items:
                    await items.__anext__()

        before = asyncio.all_tasks()
        running = asyncio.get_running_loop().create_task(consume())
        for _ in range(ticks):
            await asyncio.sleep(0)
        for each in asyncio.all_tasks() - before:
            assert each is not me
            each.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        assert pumped.ended == pumped.waits.is_set()


@pytest.mark.parametrize("apart", [0, 1, 2])
async def test_a_second_cancellation_does_not_wait_for_a_pump_which_ends_by_itself(apart: int) -> None:
    for ticks in range(8):
        ended = asyncio.Event()

        @task(pump=True)
        async def items(ended: asyncio.Event = ended) -> AsyncIterator[int]:
            try:
                yield 1
            finally:
                for _ in range(20):
                    with anyio.CancelScope(shield=True):
                        await checkpoint()
                ended.set()

        async def consume(items: Any = items) -> None:
            async with items() as stream:
                await stream.__anext__()

        running = asyncio.get_running_loop().create_task(consume())
        for _ in range(ticks):
            await asyncio.sleep(0)
        running.cancel()
        for _ in range(apart):
            await asyncio.sleep(0)
        running.cancel()
        try:
            await running
        except asyncio.CancelledError:
            pass
        if ticks > 4:
            await asyncio.wait_for(ended.wait(), LONG)


async def test_while_an_error_is_thrown_into_a_pumped_stream_it_is_not_lost() -> None:
    leaves = asyncio.Event()

    @task(pump=True)
    async def items() -> AsyncIterator[int]:
        async with anyio.create_task_group():
            try:
                yield 1
            finally:
                leaves.set()
                try:
                    await anyio.sleep(LONG)
                except asyncio.CancelledError:
                    pass

    went_on = 0

    async def consume() -> None:
        nonlocal went_on
        async with items() as stream:
            await stream.__anext__()
            try:
                await stream.athrow(KeyError())
            except KeyError:
                went_on += 1

    running = asyncio.get_running_loop().create_task(consume())
    await leaves.wait()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert went_on == 0


@pytest.mark.parametrize("offset", [-1e-6, 0.0, 1e-6])
async def test_in_the_tick_of_an_items_deadline_it_is_not_lost(offset: float) -> None:
    went_on = 0

    async def consume(pumped: Pumped, rows: Callable[[], Any]) -> None:
        nonlocal went_on
        async with rows() as items:
            try:
                await items.__anext__()
            except TaskError:
                pass
        await asyncio.sleep(LONG)
        went_on += 1

    for _ in range(TIMES):
        pumped = Pumped()
        loop = asyncio.get_running_loop()
        running = loop.create_task(consume(pumped, task(item_timeout=SOON)(pumped.items)))
        await pumped.waits.wait()
        loop.call_later(SOON + offset, running.cancel)
        with pytest.raises(asyncio.CancelledError):
            await running
        assert pumped.ended == 1
    assert went_on == 0


async def test_a_thread_with_a_deadline_is_abandoned_and_the_cancellation_goes_on() -> None:
    opened = threading.Event()

    @task(timeout=LONG, retries=3)
    def hold() -> None:
        opened.wait(20)

    running = asyncio.get_running_loop().create_task(hold.to_thread())
    await asyncio.sleep(0.02)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    opened.set()


async def test_a_step_in_a_thread_with_a_deadline_is_abandoned() -> None:
    opened, entered, closed = threading.Event(), threading.Event(), threading.Event()

    @task(item_timeout=LONG)
    def rows() -> Iterator[int]:
        try:
            entered.set()
            opened.wait(20)
            yield 1
        finally:
            closed.set()

    async def consume() -> None:
        async with rows.to_thread() as items:
            await items.__anext__()

    running = asyncio.get_running_loop().create_task(consume())
    await anyio.to_thread.run_sync(entered.wait)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    opened.set()
    await anyio.to_thread.run_sync(closed.wait)
