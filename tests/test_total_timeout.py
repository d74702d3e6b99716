"""`total_timeout`: seconds for a whole call, with all its attempts and the waits between them."""

import gc
import math
import re
import threading
import time
from collections.abc import Iterator
from typing import Any

import anyio
import pytest
from anyio import get_cancelled_exc_class

from daglite import Backoff, check_cancelled, session, task
from daglite.events import TaskCancelled, TaskFailed, TaskRetrying, TaskStarted
from daglite.exceptions import BackendError, TaskError, TaskTimeoutError
from tests.test_events import Recorder
from tests.test_thread_deadlines import Gate, gate

__all__ = ["gate"]

SOON = 0.05  # seconds: a deadline that passes
LONG = 30.0  # seconds that no test waits for


@pytest.mark.parametrize(
    ("seconds", "error", "message"),
    [
        (0, ValueError, "total_timeout must be more than 0, not 0"),
        (-3, ValueError, "total_timeout must be more than 0, not -3"),
        (math.inf, ValueError, "total_timeout must be finite, not inf"),
        (True, TypeError, "total_timeout must be a number, not True"),
        ("3", TypeError, "total_timeout must be a number, not '3'"),
    ],
)
def test_bad_seconds_are_refused(seconds: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"task 'named': {message}"):
        task(name="named", total_timeout=seconds)(lambda: None)


def test_streams_have_none() -> None:
    def rows() -> Iterator[int]:
        yield 1

    with pytest.raises(ValueError, match="total_timeout=3 does not apply to streams; use item_timeout="):
        task(total_timeout=3)(rows)


@pytest.mark.usefixtures("virtual_clock")
async def test_it_ends_an_attempt_and_nothing_is_tried_again() -> None:
    recorder, attempts = Recorder(), 0

    @task(total_timeout=SOON, retries=9)
    async def hang() -> None:
        nonlocal attempts
        attempts += 1
        await anyio.sleep_forever()

    assert hang.total_timeout == SOON
    async with session() as s:
        s.watch(recorder.watch)
        with pytest.raises(TaskTimeoutError) as caught:
            await hang()
    error = caught.value
    assert str(error) == "Task 'hang' failed after 1 attempt with error: no result within its total_timeout of 0.05 s"
    assert (error.scope, error.limit, error.attempts) == ("total", SOON, 1)
    assert error.__cause__ is None
    assert error.root_cause is error
    assert attempts == 1
    assert len(recorder.of(TaskStarted)) == len(recorder.of(TaskFailed)) == 1
    assert recorder.of(TaskRetrying) == []


@pytest.mark.usefixtures("virtual_clock")
async def test_it_ends_the_wait_for_a_retry_and_says_what_went_wrong() -> None:
    mine = ValueError("no luck")

    @task(total_timeout=SOON, retries=9, retry_delay=LONG)
    async def fail() -> None:
        raise mine

    with pytest.raises(TaskTimeoutError) as caught:
        await fail()
    error = caught.value
    assert str(error) == (
        "Task 'fail' failed after 1 attempt with error: no result within its total_timeout of 0.05 s, "
        "after ValueError: no luck"
    )
    assert error.__cause__ is mine
    assert error.root_cause is mine


@pytest.mark.usefixtures("virtual_clock")
async def test_it_bounds_all_attempts_together() -> None:
    attempts = 0

    @task(total_timeout=0.5, timeout=0.02, retries=10**6)
    async def hang() -> None:
        nonlocal attempts
        attempts += 1
        await anyio.sleep_forever()

    with pytest.raises(TaskTimeoutError) as caught:
        await hang()
    assert (caught.value.scope, caught.value.limit) == ("total", 0.5)
    assert isinstance(caught.value.__cause__, TaskTimeoutError)
    assert 1 < attempts <= 26


async def test_a_call_in_time_is_as_any_other() -> None:
    attempts = 0

    @task(total_timeout=LONG, retries=2)
    async def second(value: int) -> int:
        nonlocal attempts
        attempts += 1
        if attempts < 2:
            raise ValueError
        return value

    assert await second(3) == 3
    assert (await task(total_timeout=LONG)(lambda: 5).to_thread()) == 5
    with pytest.raises(TaskError, match="after 3 attempts with error: ValueError") as caught:
        attempts = -9
        await second(3)
    assert type(caught.value) is TaskError


@pytest.mark.usefixtures("virtual_clock")
async def test_of_two_equal_deadlines_the_outer_is_heard() -> None:
    @task(total_timeout=SOON, timeout=SOON, retries=9)
    async def hang() -> None:
        await anyio.sleep_forever()

    with pytest.raises(TaskTimeoutError) as caught:
        await hang()
    assert caught.value.scope == "total"
    with anyio.CancelScope(deadline=anyio.current_time() + SOON) as scope:
        await hang()
    assert scope.cancelled_caught


@pytest.mark.usefixtures("virtual_clock")
@pytest.mark.parametrize("option", ["timeout", "total_timeout"])
async def test_an_outer_deadline_that_fires_first_is_the_outers(option: str) -> None:
    recorder = Recorder()

    async def hang() -> None:
        await anyio.sleep_forever()

    async with session() as s:
        s.watch(recorder.watch)
        with anyio.move_on_after(SOON) as scope:
            await task(**{option: LONG}, retries=5)(hang)()  # type: ignore[call-overload]
    assert scope.cancelled_caught
    assert len(recorder.of(TaskCancelled)) == 1


@pytest.mark.parametrize("option", ["timeout", "total_timeout"])
async def test_a_late_value_wins_and_is_warned_of(option: str, caplog: pytest.LogCaptureFixture) -> None:
    def block() -> str:
        time.sleep(0.05)
        return "value"

    async def blocking() -> str:
        return block()

    assert await task(**{option: 0.01}, retries=2)(blocking)() == "value"  # type: ignore[call-overload]
    (record,) = caplog.records
    assert record.name == "daglite"
    assert record.levelname == "WARNING"
    said = (
        rf"task 'blocking': a value came \d\S* s after its {option} of 0.01 s: the function has blocked the event loop"
    )
    assert re.search(said, record.getMessage())
    assert "to_thread()" in record.getMessage()
    caplog.clear()
    assert await task(timeout=0.01, total_timeout=0.02)(blocking)() == "value"
    assert len(caplog.records) == 1
    caplog.clear()
    assert await task(**{option: LONG})(blocking)() == "value"  # type: ignore[call-overload]
    assert caplog.records == []


@pytest.mark.parametrize("option", ["timeout", "total_timeout"])
async def test_a_body_that_swallows_its_cancellation_gives_its_value(option: str) -> None:
    async def stubborn() -> str:
        try:
            await anyio.sleep_forever()
        except get_cancelled_exc_class():
            pass
        return "value"

    assert await task(**{option: 0.01})(stubborn)() == "value"  # type: ignore[call-overload]


@pytest.mark.parametrize(("option", "attempts"), [("timeout", 3), ("total_timeout", 1)])
async def test_a_body_that_makes_another_error_of_it_fails_with_that(option: str, attempts: int) -> None:
    async def translating() -> None:
        try:
            await anyio.sleep_forever()
        except get_cancelled_exc_class():
            raise ValueError("instead") from None

    with pytest.raises(TaskError, match="ValueError: instead") as caught:
        await task(**{option: 0.01}, retries=2)(translating)()  # type: ignore[call-overload]
    assert not isinstance(caught.value, TimeoutError)
    assert caught.value.attempts == attempts


@pytest.mark.usefixtures("virtual_clock")
async def test_a_nested_call_that_ran_out_of_time_may_be_retried_by_the_outer() -> None:
    calls = 0

    @task(total_timeout=0.02)
    async def inner() -> None:
        await anyio.sleep_forever()

    @task(retries=2, retry_on=TaskTimeoutError)
    async def outer() -> int:
        nonlocal calls
        calls += 1
        if calls < 3:
            await inner()
        return calls

    assert await outer() == 3


@pytest.mark.usefixtures("virtual_clock")
async def test_retry_on_sees_what_a_nested_call_has_failed_with() -> None:
    calls = 0

    @task(retries=9, retry_delay=LONG, total_timeout=0.02)
    async def inner() -> None:
        raise ConnectionError

    @task
    async def between() -> None:
        await inner()

    @task(retries=2, retry_on=ConnectionError)
    async def outer() -> None:
        nonlocal calls
        calls += 1
        await between()

    with pytest.raises(TaskError) as caught:
        await outer()
    assert calls == 3
    assert isinstance(caught.value.root_cause, ConnectionError)


async def test_the_tree_shows_how_long_a_call_has() -> None:
    started = anyio.Event()

    @task(total_timeout=LONG, retries=1, retry_delay=LONG * 2)
    async def waits(fail: bool) -> None:
        started.set()
        if fail:
            raise ValueError
        await anyio.sleep_forever()

    for fail in (False, True):
        started = anyio.Event()
        async with session() as s:
            handle = s.start_soon(waits, fail)
            await started.wait()
            await anyio.lowlevel.checkpoint()
            await anyio.lowlevel.checkpoint()
            (call,) = s.tree()
            assert call.state == ("backing off" if fail else "running")
            assert call.deadline is not None
            assert LONG - 5 < call.deadline <= LONG
            handle.cancel()


async def test_nothing_is_left_in_cycles() -> None:
    attempts = 0

    @task(total_timeout=LONG, retries=5)
    async def third() -> None:
        nonlocal attempts
        attempts += 1
        if attempts % 3:
            raise ValueError

    @task(total_timeout=0.001, retries=5, retry_delay=LONG)
    async def never() -> None:
        raise ValueError

    @task(timeout=0.001, retries=1)
    async def hangs_once() -> None:
        nonlocal attempts
        attempts += 1
        if attempts % 2:
            await anyio.sleep_forever()

    async def both() -> None:
        nonlocal attempts
        await third()
        attempts = 0
        await hangs_once()
        attempts = 0
        try:
            await never()
        except TaskError:  # of the time that is up, or on a busy machine of what has failed after that
            pass

    await both()
    gc.collect()
    gc.disable()
    try:
        before = len(gc.get_objects())
        for _ in range(20):
            await both()
        assert len(gc.get_objects()) - before < 100
    finally:
        gc.enable()


# In threads.


async def test_a_thread_past_it_is_abandoned(gate: Gate) -> None:
    hold = task(total_timeout=SOON, retries=9, name="hold")(gate.hold)
    async with session() as s:
        with pytest.raises(TaskTimeoutError) as caught:
            await hold.to_thread()
        assert [call.state for call in s.tree()] == ["stuck in an abandoned thread"]
        gate.opened.set()
    assert (caught.value.scope, caught.value.limit) == ("total", SOON)


async def test_it_bounds_the_wait_for_a_thread(gate: Gate) -> None:
    hold = task(gate.hold)
    quick = task(total_timeout=SOON, name="quick")(lambda: 1)
    async with session(max_threads=1) as s:
        handle = s.start_soon(hold)
        with anyio.fail_after(LONG):
            while not gate.entered.acquire(blocking=False):
                await anyio.sleep(0.001)
        with pytest.raises(TaskTimeoutError) as caught:
            await quick.to_thread()
        assert caught.value.scope == "total"
        gate.opened.set()
        assert await handle == "held"


async def test_threads_that_hang_on_every_retry_end_with_an_error_that_names_them(gate: Gate) -> None:
    hold = task(timeout=0.02, retries=10**6, name="hold")(gate.hold)
    async with session(max_threads=3):
        with anyio.fail_after(LONG), pytest.raises(BackendError) as caught:
            await hold.to_thread()
        assert "3 of " in str(caught.value)
        assert "are stuck past their deadlines in 'hold', 'hold', 'hold'" in str(caught.value)
        gate.opened.set()


def test_in_place_in_a_plain_thread_it_holds(gate: Gate) -> None:
    hold = task(total_timeout=SOON, timeout=LONG, retries=9, name="hold")(gate.hold)
    with pytest.raises(TaskTimeoutError) as caught:
        hold()
    assert (caught.value.scope, caught.value.attempts) == ("total", 1)
    gate.opened.set()

    @task(total_timeout=SOON, retries=9, retry_delay=Backoff(LONG, LONG))
    def fail() -> None:
        raise ValueError("no luck")

    with pytest.raises(TaskTimeoutError, match="after ValueError: no luck") as caught:
        fail()
    assert isinstance(caught.value.__cause__, ValueError)


def test_in_place_attempts_are_bounded_one_by_one_and_together(gate: Gate) -> None:
    threads: set[int] = set()

    @task(total_timeout=0.6, timeout=0.04, retries=10**6)
    def hang() -> None:
        threads.add(threading.get_ident())
        while not gate.opened.is_set():
            check_cancelled()
            time.sleep(0.001)

    with pytest.raises(TaskTimeoutError) as caught:
        hang()
    assert caught.value.scope == "total"
    assert 1 < (caught.value.attempts or 0) <= 16
    assert isinstance(caught.value.__cause__, TaskTimeoutError)


async def test_in_place_on_an_event_loop_it_is_refused() -> None:
    with pytest.raises(RuntimeError, match=r"for its total_timeout of 3 s; write: await .*to_thread\(\.\.\.\)"):
        task(total_timeout=3)(lambda: 1)()
    with pytest.raises(ValueError, match="its total_timeout of 3 s cannot end a function"):
        await task(total_timeout=3)(lambda: 1).run_on("inline")
    with pytest.raises(ValueError, match="total_timeout=3 cannot be enforced on the backend 'inline'"):
        task(total_timeout=3, backend="inline")(lambda: 1)
