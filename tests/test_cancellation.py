"""Timeouts and cancellation: what comes from whom, and what is never retried."""

import asyncio
import contextvars
import sys
import time
from collections.abc import AsyncIterator
from typing import Any

import anyio
import pytest
from anyio.lowlevel import checkpoint

from daglite import gather_tasks, session, stream_tasks, task
from daglite.exceptions import CallCancelledError, TaskError, TaskGroupError, TaskTimeoutError

if sys.version_info < (3, 11):
    from exceptiongroup import BaseExceptionGroup, ExceptionGroup

on_asyncio = pytest.mark.parametrize("anyio_backend", ["asyncio"])

LONG = 30.0  # seconds that no test waits for


@pytest.mark.usefixtures("virtual_clock")
async def test_a_timeout_ends_an_attempt() -> None:
    ended = False

    @task(timeout=0.01)
    async def hang() -> None:
        nonlocal ended
        try:
            await anyio.sleep_forever()
        finally:
            ended = True

    with pytest.raises(TaskTimeoutError) as caught:
        await hang()
    error = caught.value
    assert ended
    assert str(error) == "Task 'hang' failed after 1 attempt with error: no result within its timeout of 0.01 s"
    assert isinstance(error, TimeoutError)
    assert (error.scope, error.limit, error.attempts) == ("attempt", 0.01, 1)
    assert error.root_cause is error


@pytest.mark.usefixtures("virtual_clock")
async def test_a_timed_out_attempt_is_retried_like_any_failure() -> None:
    attempts = 0

    @task(timeout=0.01, retries=2, retry_on=TimeoutError)
    async def slow_at_first() -> int:
        nonlocal attempts
        attempts += 1
        if attempts < 3:
            await anyio.sleep_forever()
        return attempts

    assert await slow_at_first() == 3


async def test_each_attempt_has_the_whole_timeout() -> None:
    deadlines: list[float] = []

    @task(timeout=LONG, retries=1)
    async def fail() -> None:
        deadlines.append(anyio.current_effective_deadline() - anyio.current_time())
        raise ValueError

    with pytest.raises(TaskError, match="2 attempts"):
        await fail()
    assert len(deadlines) == 2
    assert all(LONG - 5 < left <= LONG for left in deadlines)


async def test_a_value_that_arrives_late_wins() -> None:
    @task(timeout=0.01)
    async def stubborn() -> str:
        with anyio.CancelScope(shield=True):
            await anyio.sleep(0.05)
        return "value"

    @task(timeout=0.01)
    async def blocking() -> str:
        time.sleep(0.05)
        return "value"

    assert await stubborn() == "value"
    assert await blocking() == "value"


async def test_the_functions_own_timeout_error_is_an_ordinary_failure() -> None:
    @task(timeout=LONG)
    async def own() -> None:
        raise TimeoutError("mine")

    with pytest.raises(TaskError, match="TimeoutError: mine") as caught:
        await own()
    assert type(caught.value) is TaskError


@pytest.mark.usefixtures("virtual_clock")
@pytest.mark.parametrize("seconds", [0.02, 0.01])
async def test_an_outer_deadline_that_is_not_later_is_the_outers(seconds: float) -> None:
    attempts = 0

    @task(timeout=0.02, retries=5)
    async def hang() -> None:
        nonlocal attempts
        attempts += 1
        await anyio.sleep_forever()

    with anyio.CancelScope(deadline=anyio.current_time() + seconds) as scope:
        await hang()
    assert scope.cancelled_caught
    assert attempts == 1


async def test_an_outer_deadline_that_passed_in_a_blocking_attempt_ends_the_call() -> None:
    attempts = 0

    @task(retries=5)
    async def block() -> None:
        nonlocal attempts
        attempts += 1
        time.sleep(0.05)
        raise ValueError

    with anyio.move_on_after(0.01) as scope:
        await block()
    assert scope.cancelled_caught
    assert attempts == 1


async def test_a_cancelled_call_is_neither_wrapped_nor_retried() -> None:
    attempts = 0
    started = anyio.Event()

    @task(retries=5)
    async def hang() -> None:
        nonlocal attempts
        attempts += 1
        started.set()
        await anyio.sleep_forever()

    async with anyio.create_task_group() as group:
        group.start_soon(hang)
        await started.wait()
        group.cancel_scope.cancel()
    assert attempts == 1


async def test_a_call_in_a_cancelled_scope_that_needs_no_wait_succeeds() -> None:
    @task(retries=1, timeout=LONG)
    async def answer() -> int:
        return 42

    with anyio.CancelScope() as scope:
        scope.cancel()
        assert await answer() == 42
        await checkpoint()
    assert scope.cancelled_caught


async def test_a_failure_while_being_cancelled_is_not_retried() -> None:
    attempts = 0
    started = anyio.Event()
    caught: list[TaskError] = []

    @task(retries=5)
    async def clumsy() -> None:
        nonlocal attempts
        attempts += 1
        started.set()
        try:
            await anyio.sleep_forever()
        finally:
            raise ValueError("in the cleanup")

    async def call() -> None:
        try:
            await clumsy()
        except TaskError as error:
            caught.append(error)

    async with anyio.create_task_group() as group:
        group.start_soon(call)
        await started.wait()
        group.cancel_scope.cancel()
    assert attempts == 1
    assert [str(error.root_cause) for error in caught] == ["in the cleanup"]


async def test_a_cancellation_mixed_with_failures_goes_on_and_is_not_retried() -> None:
    attempts = 0
    started = anyio.Event()
    seen: list[BaseException] = []

    async def child() -> None:
        try:
            await anyio.sleep_forever()
        finally:
            raise ValueError("child")

    @task(retries=5)
    async def family() -> None:
        nonlocal attempts
        attempts += 1
        async with anyio.create_task_group() as group:
            group.start_soon(child)
            await checkpoint()
            started.set()
            await anyio.sleep_forever()

    async def call() -> None:
        try:
            await family()
        except BaseException as error:
            seen.append(error)
            raise

    with pytest.raises(BaseExceptionGroup) as caught:
        async with anyio.create_task_group() as outer:
            outer.start_soon(call)
            await started.wait()
            outer.cancel_scope.cancel()
    assert attempts == 1
    failures = caught.value.subgroup(TaskError)
    assert failures is not None
    assert caught.value.split(TaskError)[1] is None  # the cancellation has reached its scope
    error = seen[0]
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    assert isinstance(error, TaskError)
    assert isinstance(error.__cause__, ExceptionGroup)
    assert "child" in repr(error.__cause__.exceptions[0])


async def test_a_retry_is_a_point_at_which_the_call_can_be_cancelled() -> None:
    attempts = 0

    @task(retries=10**9)
    async def fail() -> None:
        nonlocal attempts
        attempts += 1
        if attempts == 5:
            scope.cancel()
        raise ValueError

    with anyio.CancelScope() as scope:
        with pytest.raises(TaskError, match="5 attempts"):
            await fail()
    attempts = 10

    async def call() -> None:
        try:
            await fail()
        except TaskError as error:
            raise AssertionError("not cancelled") from error

    async with anyio.create_task_group() as group:
        group.start_soon(call)
        await checkpoint()
        await checkpoint()
        group.cancel_scope.cancel()
    assert attempts > 10


@on_asyncio
@pytest.mark.parametrize("how", ["cancel", "timeout", "wait_for"])
async def test_a_native_cancellation_comes_through(how: str) -> None:
    attempts = 0
    started = asyncio.Event()

    @task(retries=5, timeout=LONG)
    async def hang() -> None:
        nonlocal attempts
        attempts += 1
        started.set()
        await anyio.sleep_forever()

    if how == "cancel":
        running = asyncio.get_running_loop().create_task(hang())
        await started.wait()
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
    elif how == "timeout":
        if sys.version_info < (3, 11):
            pytest.skip("there is no asyncio.timeout")
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await hang()
    else:
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(hang(), 0.01)
    assert attempts == 1


@on_asyncio
@pytest.mark.skipif(sys.version_info < (3, 11), reason="a task of Python 3.10 does not count its cancellations")
async def test_a_failure_during_a_native_cancellation_is_not_retried() -> None:
    attempts = 0
    started = asyncio.Event()

    @task(retries=5)
    async def clumsy() -> None:
        nonlocal attempts
        attempts += 1
        started.set()
        try:
            await anyio.sleep_forever()
        finally:
            raise ValueError("in the cleanup")

    running = asyncio.get_running_loop().create_task(clumsy())
    await started.wait()
    running.cancel()
    with pytest.raises(TaskError, match="after 1 attempt"):
        await running


@on_asyncio
@pytest.mark.skipif(sys.version_info < (3, 11), reason="a task of Python 3.10 does not count its cancellations")
async def test_a_caller_that_was_cancelled_before_may_still_retry() -> None:
    attempts = 0

    @task(retries=2)
    async def fail() -> None:
        nonlocal attempts
        attempts += 1
        raise ValueError

    async def survivor() -> Any:
        try:
            await anyio.sleep_forever()
        except asyncio.CancelledError:
            pass  # and `cancelling()` stays at 1
        with pytest.raises(TaskError):
            await fail()

    running = asyncio.get_running_loop().create_task(survivor())
    await asyncio.sleep(0)
    running.cancel()
    await running
    assert attempts == 3


async def test_the_functions_context_is_the_callers() -> None:
    variable = contextvars.ContextVar("variable", default="before")

    @task(timeout=LONG)
    async def change() -> Any:
        variable.set("after")
        return anyio.get_current_task().id

    assert await change() == anyio.get_current_task().id
    assert variable.get() == "after"


@task
async def cancel_itself() -> None:
    """What is cancelled by asyncio's own means, of which anyio does not know: so its task groups would end all else."""
    running = asyncio.current_task()
    assert running is not None
    running.cancel()
    await checkpoint()


@on_asyncio
@pytest.mark.parametrize("ordered", [False, True])
async def test_a_call_of_a_fan_out_that_asyncio_cancels_is_cancelled_alone(ordered: bool) -> None:
    @task
    async def work(number: int) -> int:
        if number == 1:
            await cancel_itself()
        for _ in range(20):
            await checkpoint()
        return number

    with pytest.raises(TaskGroupError) as caught:
        await gather_tasks(work, range(3))
    assert [str(error) for error in caught.value.exceptions] == ["1 of 3 calls of task 'work' were cancelled"]
    got: list[int] = []
    with pytest.raises(TaskGroupError):
        async with stream_tasks(work, range(3), ordered=ordered) as results:
            async for result in results:
                got.append(result)
    assert got == [0, 2]


@on_asyncio
@pytest.mark.parametrize("on_background_error", ["raise", "log"])
async def test_what_asyncio_cancels_in_a_session_is_cancelled_alone(
    on_background_error: Any, caplog: pytest.LogCaptureFixture
) -> None:
    @task
    def in_a_thread() -> None:
        with pytest.raises(CallCancelledError, match="'cancel_itself' was cancelled in the event loop"):
            cancel_itself.from_thread()

    @task(pump=True)
    async def numbers() -> AsyncIterator[int]:
        yield 1
        await cancel_itself.func()

    async def follow(events: Any) -> None:
        await cancel_itself()

    async with session(name="web", on_background_error=on_background_error) as s:
        s.watch(follow)
        handle = s.start_soon(cancel_itself)
        with pytest.raises(CallCancelledError):
            await handle
        await in_a_thread.to_thread()
        stream = numbers()
        assert await anext(stream) == 1
        with pytest.raises(CallCancelledError, match="'numbers' was cancelled in its own task"):
            await anext(stream)
        for _ in range(20):
            await checkpoint()
        ended = True
    assert ended
    (record,) = caplog.records
    assert "was cancelled, and watches it no more" in record.getMessage()
