"""Runs a scenario once for each point at which something may go wrong, and checks each time that nothing is left of it."""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Generator, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from typing import Any, TypeAlias

import anyio
from anyio.lowlevel import checkpoint

from daglite import Limit, Rate, TaskMetadata, _circles, _flights, current_session, current_task, session
from daglite._context import OPEN
from daglite.events import (
    CacheHit,
    SessionEnded,
    SessionStarted,
    TaskCancelled,
    TaskEvent,
    TaskFailed,
    TaskStarted,
    TaskSucceeded,
)
from daglite.plugins import hook_impl
from daglite.sessions import Session
from daglite.testing import EventRecorder

Scenario: TypeAlias = Callable[[], Coroutine[Any, Any, None]]
Cancelled: TypeAlias = Callable[[int, Scenario], Awaitable[bool]]

MOST = 1000  # points at which something goes wrong, at most; a scenario ends by itself long before


def moments() -> Iterator[int]:
    """The numbers from 0: all of them at first, and then fewer, for a thread may take any number of an event loop's steps."""
    number = 0
    while number < 100_000:
        yield number
        number += 1 + number // 50


active: ContextVar[Any] = ContextVar("active", default=None)


class AtCheckpoint:
    """Awaits a coroutine, and does something when its task waits for the so manieth time."""

    def __init__(self, coroutine: Coroutine[Any, Any, None], number: int, action: Callable[[], object]) -> None:
        self._coroutine = coroutine
        self._number = number
        self._action = action

    def __await__(self) -> Generator[Any, Any, None]:
        steps = self._coroutine.__await__()
        step: Callable[[], Any] = partial(steps.send, None)
        for number in range(1_000_000):
            try:
                waits_for = step()
            except StopIteration:
                return
            if number == self._number:
                self._action()
            try:
                step = partial(steps.send, (yield waits_for))
            except BaseException as exc:
                step = partial(steps.throw, exc)


async def by_scope(number: int, scenario: Scenario) -> bool:
    """Cancel a scenario at that checkpoint of its task; whether that has reached it."""
    with anyio.CancelScope() as scope:
        await AtCheckpoint(scenario(), number, scope.cancel)
    return scope.cancel_called


async def from_outside(number: int, scenario: Scenario) -> bool:
    """Cancel it from another task, after so many steps of the event loop: also between the checkpoints of its task."""

    async def cancel() -> None:
        for _ in range(number):
            await checkpoint()
        scope.cancel()

    async with anyio.create_task_group() as group:
        group.start_soon(cancel)
        with anyio.CancelScope() as scope:
            await scenario()
        group.cancel_scope.cancel()
    return scope.cancel_called


async def natively(number: int, scenario: Scenario) -> bool:
    """Cancel it by asyncio's own `Task.cancel` at that checkpoint of its task."""

    is_reached = False

    async def run() -> None:
        await AtCheckpoint(scenario(), number, cancel)

    def cancel() -> None:
        nonlocal is_reached
        is_reached = True
        running.cancel()

    running = asyncio.get_running_loop().create_task(run())
    try:
        await asyncio.wait([running])
    finally:
        running.cancel()
    if not running.cancelled():
        running.result()
        # A failure of its own wins over a cancellation, in programs that are about one.
        assert not is_reached or "fails" in scenario.__name__, "the cancellation was lost"
    return is_reached


class Balance:
    """A plugin that counts, for each call, what begins and what ends, and sees to it that contexts are what they were."""

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

    on_node_error = on_node_cancelled = after_node_execute

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


class Watch:
    """What there was before a scenario, and that it is so again.

    Args:
        limit: A limit that it may use.
        rate: A rate that it may use.
        plugins: Others that its session has.
    """

    def __init__(self, limit: Limit | None = None, rate: Rate | None = None, *plugins: Any) -> None:
        self.limit = limit or Limit("unused", 1)
        self.rate = rate or Rate(1)
        self.recorder = EventRecorder()
        self.balance = Balance()
        self._plugins = plugins

    async def outside(self, run: Callable[[], Awaitable[bool]]) -> bool:
        """Run it in no session but its own."""
        with self.recorder:
            result = await run()
        assert current_session() is None
        self.assert_nothing_is_left()
        return result

    async def in_session(self, run: Callable[[], Awaitable[bool]]) -> bool:
        """Run it in a session."""
        with self.recorder:
            async with session(plugins=[self.balance, *self._plugins], name="outer") as s:
                result = await run()
                assert current_session() is s
                await self.assert_nothing_runs(s)
        self.assert_nothing_is_left()
        self.assert_ends_are_told(s)
        return result

    async def assert_nothing_runs(self, s: Session) -> None:
        with anyio.move_on_after(10):  # until threads have ended that were abandoned
            while s.tree().calls:
                await checkpoint()
        assert s.tree().calls == ()
        assert (s.stats().running, len(s._books.streams)) == (0, 0)

    def assert_nothing_is_left(self) -> None:
        assert current_task() is None
        assert active.get() is None
        assert (self.limit.available_tokens, self.limit.tasks_waiting) == (self.limit.total_tokens, 0)
        assert self.limit._tokens.streams == {}
        assert self.rate.tasks_waiting == 0
        assert not OPEN
        assert not _flights._running
        assert not _circles._of_tasks
        assert_each_has_one_end(self.recorder)

    def assert_ends_are_told(self, s: Session) -> None:
        started = Counter(event.metadata.id for event in self.recorder.of(TaskStarted))
        assert self.balance.begun == self.balance.ended == started
        assert set(self.balance.inside.values()) <= {0}
        assert self.balance.sessions == 0
        stats = s.stats()
        assert (stats.running, stats.started) == (0, len(started))
        assert stats.failed == len(self.recorder.of(TaskFailed))
        assert stats.cancelled == len(self.recorder.of(TaskCancelled))


def assert_each_has_one_end(recorder: EventRecorder) -> None:
    """Every call and session that has begun has ended, once, and nothing is told of any other."""
    started = Counter(event.metadata.id for event in recorder.of(TaskStarted))
    ended = Counter(event.metadata.id for event in recorder.of(TaskSucceeded, TaskFailed, TaskCancelled))
    assert started == ended
    hits = Counter(event.metadata.id for event in recorder.of(CacheHit))
    assert set((started + hits).values()) <= {1}
    assert {event.metadata.id for event in recorder if isinstance(event, TaskEvent)} == {*started, *hits}
    assert len(recorder.of(SessionStarted)) == len(recorder.of(SessionEnded))


async def assert_scopes_are_whole(tasks: set[anyio.TaskInfo]) -> None:
    """The scopes of this task are what they were, and no other task is left."""
    with anyio.move_on_after(0) as scope:
        await anyio.sleep_forever()
    assert scope.cancelled_caught
    for _ in range(20):
        await checkpoint()
        if not running_tasks() - tasks:
            break
    assert running_tasks() <= tasks


def running_tasks() -> set[anyio.TaskInfo]:
    return set(anyio.get_running_tasks())
