"""One scenario, cancelled once at each of its points: whatever has started has ended, once, and nothing is left."""

from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import anyio
import pytest
from anyio.lowlevel import checkpoint

from daglite import TaskMetadata, current_session, current_task, gather_tasks, session, stream_tasks, task
from daglite.events import SessionEnded, TaskCancelled, TaskFailed, TaskStarted, TaskSucceeded
from daglite.exceptions import TaskError, TaskGroupError
from daglite.plugins import hook_impl
from daglite.sessions import SessionStats
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


@task(retries=1, timeout=30, total_timeout=60)
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


class Balance:
    """A plugin that counts, for each call, what begins and what ends."""

    def __init__(self) -> None:
        self.begun: Counter[Any] = Counter()
        self.ended: Counter[Any] = Counter()
        self.inside: Counter[Any] = Counter()
        self.sessions = 0

    @hook_impl
    def before_session_start(self) -> None:
        self.sessions += 1

    @hook_impl
    def after_session_end(self) -> None:
        self.sessions -= 1

    @hook_impl
    def before_node_execute(self, metadata: TaskMetadata) -> None:
        self.begun[metadata.id] += 1

    @hook_impl
    def after_node_execute(self, metadata: TaskMetadata) -> None:
        self.ended[metadata.id] += 1

    @hook_impl
    def on_node_error(self, metadata: TaskMetadata) -> None:
        self.ended[metadata.id] += 1

    @hook_impl
    def on_node_cancelled(self, metadata: TaskMetadata) -> None:
        self.ended[metadata.id] += 1

    @hook_impl
    @contextmanager
    def activate(self, metadata: TaskMetadata) -> Iterator[None]:
        token = active.set(metadata.id)
        self.inside[metadata.id] += 1
        try:
            yield
        finally:
            self.inside[metadata.id] -= 1
            active.reset(token)  # an error if it is another context


active: ContextVar[Any] = ContextVar("active", default=None)


async def run_until(steps: int, recorder: Recorder, balance: Balance) -> tuple[bool, SessionStats]:
    """Run the scenario, and cancel it after so many steps of the event loop; whether it was cancelled, and the counts."""

    async def cancel() -> None:
        for _ in range(steps):
            await checkpoint()
        scope.cancel()

    async with session(plugins=[balance]) as outer:
        outer.watch(recorder.watch)
        async with anyio.create_task_group() as group:
            group.start_soon(cancel)
            with anyio.CancelScope() as scope:
                await scenario()
            group.cancel_scope.cancel()
        assert current_session() is outer
        assert active.get() is None
        assert outer.tree().calls == ()
    assert current_task() is None
    return scope.cancelled_caught, outer.stats()


async def test_whatever_has_started_ends_once_wherever_it_is_cancelled() -> None:
    cancelled = 0
    for steps in range(120):
        recorder, balance = Recorder(), Balance()
        was_cancelled, stats = await run_until(steps, recorder, balance)
        cancelled += was_cancelled
        started = Counter(event.metadata.id for event in recorder.of(TaskStarted))
        ended: Counter[Any] = Counter(
            event.metadata.id
            for event in recorder.events
            if isinstance(event, (TaskSucceeded, TaskFailed, TaskCancelled))
        )
        assert started == ended, steps
        assert set(started.values()) <= {1}
        assert balance.begun == balance.ended == started, steps
        assert set(balance.inside.values()) <= {0}
        assert balance.sessions == 0
        assert (stats.running, stats.started) == (0, len(started))
        assert stats.failed == len(recorder.of(TaskFailed))
        assert stats.cancelled == len(recorder.of(TaskCancelled))
        assert len(recorder.of(SessionEnded)) == 2 or steps == 0
    assert cancelled > 20
