"""The clock of `daglite.testing`: it jumps over waits, on both event loops, and over no thread's work."""

import asyncio
import math
import re
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest
import trio
from anyio import to_thread
from anyio.lowlevel import checkpoint

from daglite import Backoff, Rate, gather_tasks, remaining, session, stream_tasks, task
from daglite.events import TaskSucceeded
from daglite.exceptions import TaskError, TaskTimeoutError
from daglite.testing import EventRecorder, VirtualClock

HOUR = 3600.0


@task
async def nap(seconds: float) -> float:
    await anyio.sleep(seconds)
    return seconds


@task
def nap_from_thread(seconds: float) -> float:
    return nap.from_thread(seconds)


async def test_it_begins_at_zero_and_stands_still_while_something_runs(virtual_clock: VirtualClock) -> None:
    for _ in range(100):
        await checkpoint()
    assert virtual_clock.time() == 0


async def test_a_sleep_takes_as_long_as_it_says_and_no_real_time(virtual_clock: VirtualClock) -> None:
    began = anyio.current_time()
    await anyio.sleep(HOUR)
    assert virtual_clock.time() == anyio.current_time() - began == HOUR


async def test_tasks_go_on_in_the_order_of_their_times(virtual_clock: VirtualClock) -> None:
    woken: list[tuple[float, float]] = []

    async def sleeper(seconds: float) -> None:
        await anyio.sleep(seconds)
        woken.append((seconds, virtual_clock.time()))

    async with anyio.create_task_group() as group:
        for seconds in (HOUR, 0.5, 60, 1):
            group.start_soon(sleeper, seconds)
    assert woken == [(0.5, 0.5), (1, 1), (60, 60), (HOUR, HOUR)]


async def test_deadlines_are_kept(virtual_clock: VirtualClock) -> None:
    with anyio.move_on_after(60) as scope:
        await anyio.sleep(HOUR)
    assert scope.cancelled_caught
    with pytest.raises(TaskTimeoutError):
        await nap.with_options(timeout=30)(HOUR)
    assert virtual_clock.time() == 90
    with anyio.fail_after(HOUR):
        await checkpoint()
        assert remaining() == HOUR


async def test_retries_wait_for_their_delays(virtual_clock: VirtualClock) -> None:
    attempts: list[float] = []

    @task(retries=3, retry_delay=Backoff(initial=HOUR, maximum=3 * HOUR, jitter=False))
    async def fetch() -> None:
        attempts.append(virtual_clock.time())
        raise ConnectionError

    with pytest.raises(TaskError):
        await fetch()
    assert attempts == [0, HOUR, 3 * HOUR, 6 * HOUR]
    with pytest.raises(TaskTimeoutError):
        await fetch.with_options(total_timeout=2 * HOUR)()
    assert attempts[4:] == [6 * HOUR, 7 * HOUR]
    assert virtual_clock.time() == 8 * HOUR


async def test_rates_and_durations_go_by_it(virtual_clock: VirtualClock, recorded_events: EventRecorder) -> None:
    began: list[float] = []

    @task(rate=Rate(2, per=HOUR))
    async def fetch() -> None:
        began.append(virtual_clock.time())
        await anyio.sleep(60)

    async with session() as s:
        async with anyio.create_task_group() as group:
            for _ in range(3):
                group.start_soon(fetch)
            await anyio.sleep(90)
            ages = sorted(call.age for call in s.tree().calls)
        await fetch()
    assert began == pytest.approx([0, HOUR / 2, HOUR, 1.5 * HOUR])
    assert ages == [90, 90]
    durations = sorted(event.duration for event in recorded_events.of(TaskSucceeded))
    assert durations == pytest.approx([60, HOUR / 2, HOUR / 2 + 60, HOUR + 60])


async def test_fan_outs_and_streams_take_virtual_time(virtual_clock: VirtualClock) -> None:
    assert await gather_tasks(nap, [HOUR] * 10, limit=5) == [HOUR] * 10
    assert virtual_clock.time() == 2 * HOUR
    async with stream_tasks(nap, [3, 1, 2], limit=3) as results:
        assert [each async for each in results] == [1, 2, 3]

    @task(item_timeout=10)
    async def rows() -> AsyncIterator[int]:
        for number in range(3):
            await anyio.sleep(9)
            yield number
        await anyio.sleep(11)

    items = []
    async with rows() as stream:
        with pytest.raises(TaskTimeoutError):
            async for item in stream:
                items.append(item)
                await anyio.sleep(HOUR)
    assert items == [0, 1, 2]
    assert virtual_clock.time() == 2 * HOUR + 3 + 3 * (9 + HOUR) + 10


class Held:
    """A thread that works until it is told to stop."""

    def __init__(self) -> None:
        self.begun = threading.Event()
        self.release = threading.Event()

    def work(self) -> str:
        self.begun.set()
        assert self.release.wait(30)
        return "done"

    async def release_soon(self) -> None:
        """Have it stop when the event loop has had every opportunity to jump."""
        while not self.begun.is_set():
            await checkpoint()
        for _ in range(10):
            await checkpoint()
        threading.Timer(0.05, self.release.set).start()


def in_anyio_thread(func: Callable[[], Any]) -> Any:
    return to_thread.run_sync(func)


def in_task_thread(func: Callable[[], Any]) -> Any:
    return task(func).to_thread()


def in_native_thread(func: Callable[[], Any]) -> Any:
    native: Any = asyncio.to_thread if asyncio._get_running_loop() is not None else trio.to_thread.run_sync
    return native(func)


async def in_stream_thread(func: Callable[[], Any]) -> Any:
    @task
    def rows() -> Iterator[Any]:
        yield func()

    async with rows.to_thread() as stream:
        return await anext(stream)


@pytest.mark.parametrize("in_thread", [in_anyio_thread, in_task_thread, in_native_thread, in_stream_thread])
async def test_it_does_not_jump_while_a_thread_works(virtual_clock: VirtualClock, in_thread: Any) -> None:
    held = Held()
    async with anyio.create_task_group() as group:
        group.start_soon(anyio.sleep, HOUR)
        group.start_soon(held.release_soon)
        assert await in_thread(held.work) == "done"
        assert virtual_clock.time() < 30
    assert virtual_clock.time() == pytest.approx(HOUR)


async def test_it_goes_as_the_real_clock_while_a_thread_works(virtual_clock: VirtualClock) -> None:
    held = Held()
    block = task(timeout=0.3)(held.work)
    with pytest.raises(TaskTimeoutError):
        await block.to_thread()
    assert 0.3 <= virtual_clock.time() < 30
    before = virtual_clock.time()
    await anyio.sleep(HOUR)  # nobody waits for the thread any more
    assert virtual_clock.time() == pytest.approx(before + HOUR)
    held.release.set()


def sleep_by_anyio(seconds: float) -> None:
    anyio.from_thread.run(anyio.sleep, seconds)


def sleep_by_loop(seconds: float) -> None:
    try:
        trio.from_thread.run(trio.sleep, seconds)
    except RuntimeError:  # no thread of Trio's
        anyio.from_thread.run(asyncio.sleep, seconds)


@pytest.mark.parametrize("sleep", [nap_from_thread, sleep_by_anyio, sleep_by_loop])
@pytest.mark.parametrize("in_session", [False, True])
async def test_it_jumps_for_a_thread_that_waits_for_the_event_loop(
    virtual_clock: VirtualClock, sleep: Any, in_session: bool
) -> None:
    async def scenario() -> None:
        before = virtual_clock.time()
        await task(lambda: sleep(HOUR)).to_thread()
        await to_thread.run_sync(sleep, HOUR)
        assert 2 * HOUR <= virtual_clock.time() - before < 2 * HOUR + 30

    if in_session:
        async with session():
            await scenario()
    else:
        await scenario()


async def test_a_thread_that_works_is_waited_for_beside_one_that_waits(virtual_clock: VirtualClock) -> None:
    held = Held()
    async with anyio.create_task_group() as group:
        group.start_soon(to_thread.run_sync, sleep_by_anyio, HOUR)
        group.start_soon(held.release_soon)
        await to_thread.run_sync(held.work)
        assert virtual_clock.time() < 30
    assert virtual_clock.time() >= HOUR


async def test_it_jumps_when_it_is_told_to(virtual_clock: VirtualClock) -> None:
    async with anyio.create_task_group() as group:
        group.start_soon(anyio.sleep, 60)
        await checkpoint()
        await checkpoint()  # by now it sleeps, on Trio too
        virtual_clock.jump(60)
        assert virtual_clock.time() == 60
    assert virtual_clock.time() == 60
    await to_thread.run_sync(virtual_clock.jump, 5)
    assert virtual_clock.time() == pytest.approx(65, abs=5)
    with pytest.raises(ValueError, match="seconds must be at least 0, not -1"):
        virtual_clock.jump(-1)


async def test_the_real_clock_is_back_afterwards() -> None:
    before = anyio.current_time()
    with VirtualClock() as clock:
        await anyio.sleep(HOUR)
    assert anyio.current_time() - before < HOUR / 2
    began = time.perf_counter()
    await anyio.sleep(0.02)
    assert time.perf_counter() - began > 0.01
    assert clock.time() == HOUR  # how far it has come
    with pytest.raises(RuntimeError, match="with VirtualClock"):
        clock.jump(1)


async def test_what_waited_before_is_woken_by_it() -> None:
    async with anyio.create_task_group() as group:
        group.start_soon(anyio.sleep, HOUR)
        await checkpoint()
        await checkpoint()
        with VirtualClock() as clock:
            await anyio.sleep(2 * HOUR)
            assert clock.time() == 2 * HOUR


async def test_with_a_threshold_it_waits_for_files_as_well() -> None:
    import socket

    receiving, sending = socket.socketpair()
    with receiving, sending:
        with VirtualClock(autojump_threshold=5) as clock:
            receiving.setblocking(False)
            async with anyio.create_task_group() as group:
                group.start_soon(anyio.sleep, HOUR)
                timer = threading.Timer(0.1, sending.send, [b"x"])
                timer.start()
                await anyio.wait_readable(receiving)
                assert clock.time() < HOUR
                group.cancel_scope.cancel()
    timer.join()


async def test_a_process_has_one_at_a_time(virtual_clock: VirtualClock) -> None:
    with pytest.raises(RuntimeError, match="a process has one at a time"):
        VirtualClock().__enter__()


async def test_it_is_entered_once() -> None:
    clock = VirtualClock()
    with clock:
        await anyio.sleep(1)
    with pytest.raises(RuntimeError, match="a virtual clock is entered once"):
        clock.__enter__()


def test_it_is_that_of_an_event_loop() -> None:
    with pytest.raises(RuntimeError, match="enter it in an async function"):
        VirtualClock().__enter__()


@pytest.mark.parametrize("threshold", [-1, math.nan, "1", True])
def test_its_threshold_is_checked(threshold: Any) -> None:
    with pytest.raises((TypeError, ValueError), match="VirtualClock: autojump_threshold must be"):
        VirtualClock(autojump_threshold=threshold)


def test_nothing_looks_at_another_clock() -> None:
    for path in (Path(__file__).parent.parent / "daglite").glob("*.py"):
        assert path.name == "_clock.py" or not re.search(
            r"perf_counter|monotonic\b(?<!_clock.monotonic)", path.read_text()
        ), path


class Closed:
    """An event loop that is written in another language."""

    def call_soon_threadsafe(self) -> None: ...


def test_an_event_loop_that_cannot_have_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    from daglite.testing import _clock

    with pytest.raises(RuntimeError, match="not for tests.test_virtual_clock.Closed"):
        _clock._put_into_asyncio(VirtualClock(), Closed())
