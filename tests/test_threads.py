"""Sync tasks in worker threads."""

import contextvars
import threading
from typing import Any

import anyio
import pytest

from daglite import check_cancelled, current_session, current_task, gather_tasks, session, task
from daglite.exceptions import TaskError


@task
def where() -> int:
    return threading.get_ident()


async def test_a_sync_task_runs_in_a_worker_thread() -> None:
    here = threading.get_ident()
    assert where() == here
    assert await where.to_thread() != here
    async with session():
        assert await where.to_thread() != here


async def test_a_thread_sees_the_context_of_its_caller() -> None:
    variable = contextvars.ContextVar("variable", default="before")

    @task
    def look() -> Any:
        seen = variable.get(), current_task(), current_session()
        variable.set("in the thread")
        return seen

    async with session() as s:
        variable.set("mine")
        value, metadata, current = await look.to_thread()
        assert (value, current) == ("mine", s)
        assert (metadata.name, metadata.backend) == ("look", "thread")
        assert variable.get() == "mine"


async def test_retries_and_errors_are_as_elsewhere() -> None:
    threads: list[int] = []

    @task(retries=2, retry_delay=0.001)
    def fail(message: str) -> None:
        threads.append(threading.get_ident())
        raise ValueError(message)

    with pytest.raises(TaskError, match="'fail' failed after 3 attempts with error: ValueError: no"):
        await fail.to_thread(message="no")
    assert threading.get_ident() not in threads


async def test_a_session_runs_no_more_threads_at_once_than_it_may() -> None:
    barrier = threading.Barrier(2)
    now = most = 0
    lock = threading.Lock()

    @task
    def meet(number: int) -> None:
        nonlocal now, most
        with lock:
            now += 1
            most = max(most, now)
        barrier.wait(20)  # two are there at once, else it breaks
        with lock:
            now -= 1

    async with session(max_threads=2):
        await gather_tasks(meet, range(6))
    assert most == 2


async def test_an_inner_session_has_as_many_threads_unless_it_says_otherwise() -> None:
    async with session(max_threads=3) as outer:
        async with session() as inner, session(max_threads=1) as other:
            assert [s._home.threads.max_threads for s in (outer, inner, other)] == [3, 3, 1]  # type: ignore[union-attr]


async def test_cancellation_waits_for_a_thread() -> None:
    started, go_on = threading.Event(), threading.Event()
    ended = False

    @task(retries=3)
    def work() -> None:
        nonlocal ended
        started.set()
        assert go_on.wait(20)
        ended = True

    async def cancel() -> None:
        await anyio.to_thread.run_sync(started.wait, 20)
        scope.cancel()
        go_on.set()

    async with anyio.create_task_group() as group:
        group.start_soon(cancel)
        with anyio.CancelScope() as scope:
            await work.to_thread()
            await anyio.sleep_forever()
    assert ended
    assert scope.cancelled_caught


async def test_a_failure_in_a_thread_of_a_cancelled_caller_is_not_retried() -> None:
    started, go_on = threading.Event(), threading.Event()
    attempts = 0

    @task(retries=3)
    def work() -> None:
        nonlocal attempts
        attempts += 1
        started.set()
        assert go_on.wait(20)
        raise ValueError

    async def cancel() -> None:
        await anyio.to_thread.run_sync(started.wait, 20)
        scope.cancel()
        go_on.set()

    async with anyio.create_task_group() as group:
        group.start_soon(cancel)
        with anyio.CancelScope() as scope:
            with pytest.raises(TaskError):
                await work.to_thread()
    assert attempts == 1


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_native_cancellation_waits_for_a_thread_too() -> None:
    import asyncio

    started, go_on = threading.Event(), threading.Event()
    seen: list[str] = []

    @task
    def work() -> None:
        started.set()
        assert go_on.wait(20)
        try:
            check_cancelled()
        except BaseException as error:
            seen.append(type(error).__name__)
            raise

    async with session():
        for timed in (False, True):
            started.clear()
            go_on.clear()
            running = asyncio.create_task(work.with_options(timeout=30 if timed else None).to_thread())
            await anyio.to_thread.run_sync(started.wait, 20)
            running.cancel()
            for _ in range(10):
                await asyncio.sleep(0)
            assert running.done() == timed  # with a deadline it is abandoned at once
            go_on.set()
            with pytest.raises(asyncio.CancelledError):
                await running
    assert seen[0] == "ThreadCancelled"


async def test_a_sync_task_in_a_thread_whose_caller_is_cancelled_does_not_retry_either() -> None:
    started, go_on = threading.Event(), threading.Event()
    attempts = 0

    @task(retries=3)
    def inner() -> None:
        nonlocal attempts
        attempts += 1
        started.set()
        assert go_on.wait(20)
        raise ValueError

    @task
    def outer() -> None:
        inner()

    async def cancel() -> None:
        await anyio.to_thread.run_sync(started.wait, 20)
        scope.cancel()
        go_on.set()

    async with anyio.create_task_group() as group:
        group.start_soon(cancel)
        with anyio.CancelScope() as scope:
            with pytest.raises(TaskError):
                await outer.to_thread()
    assert attempts == 1
