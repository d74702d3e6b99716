"""One scenario, cancelled once at each of its points: whatever has started has ended, once, and nothing is left."""

from collections import Counter
from collections.abc import AsyncIterator, Iterator
from typing import Any

import anyio
import pytest
from anyio.lowlevel import checkpoint

from daglite import current_session, current_task, gather_tasks, session, stream_tasks, task
from daglite.events import SessionEnded, TaskCancelled, TaskFailed, TaskStarted, TaskSucceeded
from daglite.exceptions import TaskError, TaskGroupError
from tests.test_events import Recorder


@task
async def rows(to: int) -> AsyncIterator[int]:
    try:
        for number in range(to):
            await checkpoint()
            yield number
    finally:
        await checkpoint()


@task
def rows_sync(to: int) -> Iterator[int]:
    yield from range(to)


@task
def square(number: int) -> int:
    return number * number


@task(retries=1, timeout=30)
async def flaky(number: int) -> int:
    await checkpoint()
    if number % 3 == 2:
        raise ValueError(number)
    return number


async def scenario() -> None:
    async with session() as s:
        s.start_soon(double_later, 3)
        async for number in rows(5):
            if number == 2:
                break
        await gather_tasks(square, range(3), limit=2)
        await square.with_options(timeout=30).to_thread(3)
        with pytest.raises(TaskError):
            await flaky(2)
        with pytest.raises(TaskGroupError):  # also if it is cancelled, once a call has failed
            async with stream_tasks(flaky, rows_sync.to_thread(9), limit=2, ordered=True) as results:
                async for _ in results:
                    await checkpoint()
        async with stream_tasks(rows, range(4), limit=3) as lists:
            async for _ in lists:
                break


async def double_later(number: int) -> int:
    for _ in range(number):
        await checkpoint()
    return 2 * number


async def run_until(steps: int, recorder: Recorder) -> bool:
    """Run the scenario, and cancel it after so many steps of the event loop; whether it was cancelled."""

    async def cancel() -> None:
        for _ in range(steps):
            await checkpoint()
        scope.cancel()

    async with session() as outer:
        outer.watch(recorder.watch)
        async with anyio.create_task_group() as group:
            group.start_soon(cancel)
            with anyio.CancelScope() as scope:
                await scenario()
            group.cancel_scope.cancel()
        assert current_session() is outer
    assert current_task() is None
    return scope.cancelled_caught


async def test_whatever_has_started_ends_once_wherever_it_is_cancelled() -> None:
    cancelled = 0
    for steps in range(120):
        recorder = Recorder()
        cancelled += await run_until(steps, recorder)
        started = Counter(event.metadata.id for event in recorder.of(TaskStarted))
        ended: Counter[Any] = Counter(
            event.metadata.id
            for event in recorder.events
            if isinstance(event, (TaskSucceeded, TaskFailed, TaskCancelled))
        )
        assert started == ended, steps
        assert set(started.values()) <= {1}
        assert len(recorder.of(SessionEnded)) == 2 or steps == 0
    assert cancelled > 20
