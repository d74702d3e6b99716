"""What a session tells of its calls."""

import logging
import sys
import threading
from typing import Any

import anyio
import pytest
from anyio.lowlevel import checkpoint

from daglite import gather_tasks, report, session, task
from daglite.events import (
    Event,
    SessionEnded,
    SessionStarted,
    TaskCancelled,
    TaskEvent,
    TaskFailed,
    TaskReported,
    TaskRetrying,
    TaskStarted,
    TaskSucceeded,
)
from daglite.exceptions import TaskError
from daglite.sessions import Subscription

if sys.version_info < (3, 11):
    from exceptiongroup import BaseExceptionGroup


class Mute(Exception):
    """An error without a text."""

    def __str__(self) -> str:
        raise RuntimeError("nothing to say")


class Recorder:
    """Watches a session."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    async def __call__(self, events: Subscription) -> None:
        async for event in events:
            self.events.append(event)

    async def watch(self, events: Subscription) -> None:
        await self(events)

    @property
    def told(self) -> list[str]:
        return [
            type(event).__name__ + (f" {event.metadata.name}" if isinstance(event, TaskEvent) else "")
            for event in self.events
        ]

    def of(self, kind: type[Any]) -> list[Any]:
        return [event for event in self.events if isinstance(event, kind)]


@task
async def answer() -> int:
    return 42


@task(retries=1)
async def fail() -> None:
    raise ValueError("no")


async def test_a_watcher_sees_all_that_happens_in_order() -> None:
    seen = Recorder()
    async with session(name="work") as s:
        s.watch(seen.watch)
        await answer()
        with pytest.raises(TaskError):
            await fail()
    assert seen.told == [
        "TaskStarted answer",
        "TaskSucceeded answer",
        "TaskStarted fail",
        "TaskRetrying fail",
        "TaskFailed fail",
        "SessionEnded",
    ]
    failed = seen.of(TaskFailed)[0]
    assert (failed.error, failed.attempts) == ("ValueError: no", 2)
    assert failed.session_id == s.id
    assert failed.duration >= 0
    retrying = seen.of(TaskRetrying)[0]
    assert (retrying.attempt, retrying.delay, retrying.error) == (1, 0.0, "ValueError: no")
    assert seen.of(SessionEnded)[0].name == "work"


async def test_a_cancelled_call_has_its_terminal_event() -> None:
    seen = Recorder()

    @task
    async def hang() -> None:
        await anyio.sleep_forever()

    async with session() as s:
        s.watch(seen.watch)
        with anyio.CancelScope() as scope:
            scope.cancel()
            await hang()
        s.start_soon(hang).cancel()  # never begins
    assert seen.told == ["TaskStarted hang", "TaskCancelled hang", "SessionEnded"]
    assert len(seen.of(TaskCancelled)) == 1


async def test_a_call_that_fails_while_it_is_cancelled_has_failed() -> None:
    seen = Recorder()

    async def child() -> None:
        try:
            await anyio.sleep_forever()
        finally:
            raise ValueError("child")

    @task
    async def family() -> None:
        async with anyio.create_task_group() as group:
            group.start_soon(child)
            await anyio.sleep_forever()

    async with session() as s:
        s.watch(seen.watch)
        with pytest.raises(BaseExceptionGroup, match="unhandled|Exceptions"):
            with anyio.CancelScope() as scope:
                async with anyio.create_task_group() as group:
                    group.start_soon(family)
                    await anyio.wait_all_tasks_blocked()
                    scope.cancel()
    assert seen.told == ["TaskStarted family", "TaskFailed family", "SessionEnded"]


async def test_what_is_published_before_a_subscription_is_not_seen() -> None:
    async with session() as s:
        await answer()
        async with s.events() as events:
            await answer()
            assert isinstance(await events.__anext__(), TaskStarted)
            assert isinstance(await events.__anext__(), TaskSucceeded)


async def test_a_subscription_ends_when_the_session_begins_to_end() -> None:
    told: list[str] = []

    async def follow() -> None:
        async with s.events() as events:
            ready.set()
            async for event in events:
                told.append(type(event).__name__)

    ready = anyio.Event()
    async with anyio.create_task_group() as group:
        async with session() as s:
            group.start_soon(follow)
            await ready.wait()
            await answer()
    assert told == ["TaskStarted", "TaskSucceeded"]


async def test_what_waits_is_kept_for_a_late_reader() -> None:
    async with session() as s:
        async with s.events() as events:
            for _ in range(500):
                await answer()
            kinds = [type(await events.__anext__()) for _ in range(1000)]
    assert kinds == [TaskStarted, TaskSucceeded] * 500


async def test_a_subscription_is_entered_once() -> None:
    async with session() as s:
        events = s.events()
        with pytest.raises(RuntimeError, match="has to be entered"):
            await events.__anext__()
        async with events:
            pass
        with pytest.raises(RuntimeError, match="can be entered once"):
            await events.__aenter__()
        late = s.events()
    async with late:
        with pytest.raises(StopAsyncIteration):
            await late.__anext__()


async def test_inner_sessions_report_to_the_outer_one() -> None:
    seen = Recorder()
    async with session(name="outer") as outer:
        outer.watch(seen.watch)
        async with session(name="inner") as inner:
            await answer()
    assert [type(event) for event in seen.events] == [
        SessionStarted,
        TaskStarted,
        TaskSucceeded,
        SessionEnded,
        SessionEnded,
    ]
    assert [event.session_id for event in seen.events] == [inner.id] * 4 + [outer.id]


async def test_a_task_reports_its_progress() -> None:
    seen = Recorder()

    @task
    async def work() -> None:
        report("progress", 0.5)

    report("nobody", 1)
    await work()
    async with session() as s:
        s.watch(seen.watch)
        report("outside a call", 1)
        await work()
    (event,) = seen.of(TaskReported)
    assert (event.type, event.data, event.metadata.name) == ("progress", 0.5, "work")


async def test_events_from_threads_arrive_while_the_thread_works() -> None:
    go_on = threading.Event()

    @task
    def inner() -> None:
        pass

    @task
    def work() -> None:
        inner()
        report("ready")
        assert go_on.wait(20)

    async with session() as s:
        async with s.events() as events:
            s.start_soon(work)
            told = []
            async for event in events:
                told.append(type(event))
                if isinstance(event, TaskReported):
                    go_on.set()
                if isinstance(event, TaskSucceeded) and event.metadata.name == "work":
                    break
    assert told == [TaskStarted, TaskStarted, TaskSucceeded, TaskReported, TaskSucceeded]
    assert isinstance(event, TaskSucceeded)
    assert event.metadata.backend == "thread"


async def test_many_threads_publish_at_once_and_nothing_is_lost() -> None:
    @task
    def chatter(number: int) -> None:
        for count in range(200):
            report(str(number), count)

    seen = Recorder()
    async with session() as s:
        s.watch(seen.watch)
        await gather_tasks(chatter, range(8))
    for number in range(8):
        assert [event.data for event in seen.of(TaskReported) if event.type == str(number)] == list(range(200))


async def test_a_watcher_runs_outside_of_the_session() -> None:
    seen = Recorder()

    async def busy(events: Subscription) -> None:
        async for _ in events:
            await answer()

    async with session() as s:
        s.watch(busy)
        s.watch(seen.watch)
        await answer()
    assert seen.told == ["TaskStarted answer", "TaskSucceeded answer", "SessionEnded"]


async def test_a_watcher_that_fails_is_logged_and_harms_nobody(caplog: pytest.LogCaptureFixture) -> None:
    async def broken(events: Subscription) -> None:
        async for _ in events:
            raise LookupError("watcher")

    async with session(name="work") as s:
        s.watch(broken)
        for _ in range(3):
            await answer()
            await checkpoint()
    (record,) = caplog.records
    assert record.name == "daglite"
    assert "session 'work'" in record.getMessage()
    assert record.exc_info is not None


async def test_a_watcher_drains_though_the_session_is_cancelled() -> None:
    seen = Recorder()
    with anyio.CancelScope() as scope:
        async with session() as s:
            s.watch(seen.watch)
            await answer()
            scope.cancel()
            await checkpoint()
    assert seen.told[-1] == "SessionEnded"


async def test_an_error_without_a_text_ends_its_call_all_the_same() -> None:
    @task(retries=1)
    async def fail() -> None:
        raise Mute

    recorder = Recorder()
    async with session() as s:
        s.watch(recorder.watch)
        with pytest.raises(TaskError, match="Task 'fail' failed after 2 attempts with error: Mute"):
            await fail()
        assert s.stats().failed == 1
    assert recorder.told[:-1] == ["TaskStarted fail", "TaskRetrying fail", "TaskFailed fail"]


async def test_a_watcher_that_never_ends_is_cancelled_after_grace(caplog: pytest.LogCaptureFixture) -> None:
    async def endless(events: Subscription) -> None:
        await anyio.sleep_forever()

    async with session(grace=0.01) as s:
        s.watch(endless)
    assert "had not seen all events after 0.01 s" in caplog.text


async def test_watch_takes_a_coroutine_function() -> None:
    async with session() as s:
        with pytest.raises(TypeError, match=r"watch\(\) takes a coroutine function, not 3"):
            s.watch(3)  # type: ignore[arg-type]


async def test_a_subscriber_that_takes_nothing_is_warned_about_once(caplog: pytest.LogCaptureFixture) -> None:
    @task
    async def talk() -> None:
        for number in range(12_000):
            report("n", number)

    async with session() as s:
        async with s.events():
            await talk()
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "10000 events wait for a subscriber" in record.getMessage()


async def test_publishing_in_a_cancelled_scope_works() -> None:
    seen = Recorder()
    async with session() as s:
        s.watch(seen.watch)
        with anyio.CancelScope() as scope:
            scope.cancel()
            await answer()
    assert seen.told[:2] == ["TaskStarted answer", "TaskSucceeded answer"]


async def test_with_nobody_listening_no_metadata_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    from daglite import _call

    def never() -> Any:
        raise AssertionError("an id was made")

    async with session():
        monkeypatch.setattr(_call, "drafted", never)
        assert await answer() == 42
