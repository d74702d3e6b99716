"""`rate=`: so many attempts in a time, evenly, in the order in which they come."""

import math
import pickle
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from daglite import Limit, Rate, _clock, _gates, gather_tasks, map_tasks, session, task
from daglite.events import TaskWaiting
from daglite.exceptions import TaskError, TaskTimeoutError
from daglite.testing import VirtualClock

from .test_events import Recorder
from .test_tree import until

NEVER = Rate(1, per=3600)  # again, in any test


@contextmanager
def takes_at_least(seconds: float) -> Iterator[None]:
    began = time.monotonic()
    yield
    assert time.monotonic() - began >= seconds - 1e-6


class Clock:
    """The time, which stands still unless it is told to go on."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(_clock, "monotonic", clock)
    return clock


class Place:
    """Somebody in the queue of a rate."""

    def __init__(self, rate: Rate) -> None:
        self._gate = rate._gate
        self._waiter = _gates.Waiter(threading.Event(), None)
        self._gate.join(self._waiter)

    @property
    def delay(self) -> float:
        return self._gate.delay(self._waiter)

    def leave(self) -> None:
        self._gate.leave(self._waiter)


def test_attempts_begin_evenly(clock: Clock) -> None:
    rate = Rate(4, per=2)
    began = []
    for _ in range(100):
        if rate._gate.enter():
            began.append(clock.now - 1000)
        clock.now += 0.125
    assert began == [0.5 * number for number in range(25)]


def test_a_burst_is_let_in_after_a_pause_and_made_up_for(clock: Clock) -> None:
    rate = Rate(1, burst=3)
    assert [rate._gate.enter() for _ in range(4)] == [True, True, True, False]
    clock.now += 1
    assert [rate._gate.enter() for _ in range(2)] == [True, False]
    clock.now += 100
    assert [rate._gate.enter() for _ in range(4)] == [True, True, True, False]


def test_those_who_wait_get_in_one_after_another(clock: Clock) -> None:
    rate = Rate(2, per=1)
    assert rate._gate.enter()
    first, second, third = (Place(rate) for _ in range(3))
    assert [first.delay, second.delay, third.delay] == [0.5, math.inf, math.inf]
    clock.now += 0.5
    assert not rate._gate.enter()  # who waits is first
    assert [third.delay, second.delay, first.delay] == [math.inf, math.inf, 0]
    assert [second.delay, third.delay] == [0.5, math.inf]
    second.leave()
    assert third.delay == 0.5  # in its place
    clock.now += 0.5
    assert third.delay == 0
    assert rate.tasks_waiting == 0


@given(
    count=st.integers(1, 50),
    per=st.floats(0.1, 100),
    burst=st.integers(1, 10),
    steps=st.lists(st.floats(0, 3), max_size=60),
)
def test_no_more_get_in_than_the_rate_allows_in_any_time(
    count: int, per: float, burst: int, steps: list[float]
) -> None:
    clock = Clock()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_clock, "monotonic", clock)
        rate = Rate(count, per, burst)
        began: list[float] = []
        for step in steps:
            clock.now += step * per / count
            while rate._gate.enter():
                began.append(clock.now)
    for first in range(len(began)):
        for last in range(first, len(began)):
            allowed = burst + (began[last] - began[first]) * count / per
            assert last - first + 1 <= allowed + 1e-6


async def test_calls_take_their_time(virtual_clock: VirtualClock) -> None:
    @task(rate=Rate(1, per=60))
    async def work(number: int) -> int:
        return number

    assert await gather_tasks(work, range(10)) == list(range(10))
    assert virtual_clock.time() == pytest.approx(9 * 60)
    assert work.rate is not None
    assert work.rate.tasks_waiting == 0


async def test_a_retry_is_an_attempt_like_any_other(virtual_clock: VirtualClock) -> None:
    tries: list[float] = []

    @task(rate=Rate(1, per=60), retries=2)
    async def fail() -> None:
        tries.append(virtual_clock.time())
        raise ValueError("no")

    with pytest.raises(TaskError):
        await fail()
    assert tries == pytest.approx([0, 60, 120])


def test_threads_keep_to_the_rate_too_with_and_without_an_event_loop() -> None:
    done: list[int] = []
    work = task(rate=Rate(100))(done.append)
    threads = [threading.Thread(target=work, args=(number,)) for number in range(3)]
    with takes_at_least(0.07):
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        map_tasks(work, range(3))
        with session():
            work(0)
        anyio.run(work.to_thread, 0)
    assert len(done) == 8


async def test_waiting_is_told_shown_and_cancelled_without_loss() -> None:
    rate = Rate(1, per=3600, name="search")

    @task(rate=rate, limit=3)
    async def search() -> str:
        return "found"

    recorder = Recorder()
    async with session() as s:
        s.watch(recorder)
        assert await search() == "found"
        handles = [s.start_soon(search) for _ in range(2)]
        await until(lambda: rate.tasks_waiting == 2)
        for call in s.tree():
            assert (call.state, call.limit) == ("waiting for a rate", "search")
        assert search.limit is not None
        assert search.limit.borrowed_tokens == 2  # what begins then really begins
        for handle in handles:
            handle.cancel()
        await until(lambda: rate.tasks_waiting == 0)
        assert search.limit.borrowed_tokens == 0
    assert [event.limit for event in recorder.of(TaskWaiting)] == ["search", "search"]


@pytest.mark.usefixtures("virtual_clock")
async def test_the_wait_is_outside_of_timeout_and_inside_of_total_timeout() -> None:
    @task(rate=NEVER, total_timeout=0.05)
    async def late() -> None: ...

    @task(rate=NEVER, total_timeout=0.05)
    def late_sync() -> None: ...

    NEVER._gate.enter()
    for call in (late, late_sync.to_thread):
        with pytest.raises(TaskTimeoutError) as caught:
            await call()
        assert caught.value.scope == "total"
    with pytest.raises(TaskTimeoutError):
        await anyio.to_thread.run_sync(late_sync)
    assert NEVER.tasks_waiting == 0

    @task(rate=Rate(4), timeout=0.2)
    async def in_time() -> str:
        return "there"

    assert [await in_time() for _ in range(3)] == ["there"] * 3


async def test_a_limit_and_a_rate_are_both_kept_to(virtual_clock: VirtualClock) -> None:
    limit, now, most = Limit("both", 2), 0, 0

    @task(limit=limit, rate=Rate(1))
    async def work(number: int) -> None:
        nonlocal now, most
        now += 1
        most = max(now, most)
        await anyio.sleep(4)
        now -= 1

    await gather_tasks(work, range(8))
    assert virtual_clock.time() == pytest.approx(3 * 4 + 1 + 4)
    assert most == 2
    assert limit.available_tokens == 2


async def test_a_sync_task_with_a_rate_is_refused_on_a_loops_thread() -> None:
    @task(rate=Rate(10, name="slow"))
    def count() -> None: ...

    with pytest.raises(RuntimeError, match=r"when it is waiting for a rate \('slow'\); write: await count.to_thread"):
        count()
    await count.to_thread()


def test_a_rate_is_pickled_as_itself_and_says_what_it_is() -> None:
    rate = Rate(60, per=60, burst=5)
    assert pickle.loads(pickle.dumps(rate)) is rate
    assert (rate.count, rate.per, rate.burst, rate.name) == (60, 60, 5, "60 per 60 s")
    assert repr(rate) == "Rate(count=60, per=60, burst=5, name='60 per 60 s')"
    assert task(rate=rate)(lambda: None).with_options(retries=1).rate is rate


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"count": 0}, ValueError, "Rate: count must be more than 0, not 0"),
        ({"count": -1}, ValueError, "Rate: count must be more than 0, not -1"),
        ({"count": math.nan}, ValueError, "Rate: count must be finite, not nan"),
        ({"count": math.inf}, ValueError, "Rate: count must be finite, not inf"),
        ({"count": True}, TypeError, "Rate: count must be a number, not True"),
        ({"count": "60"}, TypeError, "Rate: count must be a number, not '60'"),
        ({"count": 1, "per": 0}, ValueError, "Rate: per must be more than 0, not 0"),
        ({"count": 1, "per": -1.5}, ValueError, "Rate: per must be more than 0, not -1.5"),
        ({"count": 1, "per": math.nan}, ValueError, "Rate: per must be finite, not nan"),
        ({"count": 1, "per": "1"}, TypeError, "Rate: per must be a number, not '1'"),
        ({"count": 1e-300, "per": 1e300}, ValueError, "Rate: per / count must be finite, not inf"),
        ({"count": 1, "burst": 0}, ValueError, "Rate: burst must be at least 1, not 0"),
        ({"count": 1, "burst": 1.5}, TypeError, "Rate: burst must be a whole number, not 1.5"),
        ({"count": 1, "burst": True}, TypeError, "Rate: burst must be a whole number, not True"),
        ({"count": 1, "burst": 10**400}, ValueError, "Rate: burst must be finite"),
        ({"count": 1, "name": ""}, ValueError, "Rate: name must not be empty"),
        ({"count": 1, "name": 3}, TypeError, "Rate: name must be a str, not 3"),
    ],
)
def test_bad_rates_are_refused(arguments: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error) as caught:
        Rate(**arguments)
    assert message in str(caught.value)


@pytest.mark.parametrize("rate", [0, 5, 1.5, -1, math.nan, True, "60/m", (60, 60)])
def test_what_is_no_rate_is_refused(rate: Any) -> None:
    async def fetch() -> None: ...

    with pytest.raises(TypeError) as caught:
        task(rate=rate)(fetch)
    assert str(caught.value) == f"task 'fetch': rate must be a Rate, such as Rate(10, per=1), not {rate!r}"


def test_streams_refuse_a_rate() -> None:
    def rows() -> Iterator[int]:
        yield 1

    with pytest.raises(
        ValueError, match=r"task 'rows' is a generator: rate=Rate\(.*\) does not apply to streams; use limit="
    ):
        task(rate=NEVER)(rows)
