"""What a subscriber gets, however late it wakes, whatever it asked for, and whatever others do."""

import threading
from typing import Any
from uuid import UUID

import anyio
import pytest
from anyio.lowlevel import checkpoint

from daglite import current_task, gather_tasks, report, session, task
from daglite._metadata import new_id
from daglite.events import TaskEvent, TaskReported
from daglite.exceptions import SessionError, TaskError
from daglite.settings import Settings


@task
async def say(*data: Any) -> None:
    for each in data:
        report("said", each)


@task
def say_sync(*data: Any) -> None:
    for each in data:
        report("said", each)


async def said(events: Any) -> list[Any]:
    """What is said until somebody says "end"."""
    heard = []
    async for event in events:
        if isinstance(event, TaskReported):
            if event.data == "end":
                break
            heard.append(event.data)
    return heard


async def test_a_subscriber_that_wakes_late_gets_all_in_order() -> None:
    async with session() as s, s.events() as events:
        for number in range(100):
            await say(number)
            if number % 10 == 0:
                await checkpoint()
        await say("end")
        assert await said(events) == list(range(100))
        assert events.dropped == 0


async def test_each_subscriber_has_its_own_pace() -> None:
    async with session() as s, s.events() as slow, s.events() as quick:
        await say(1, 2, "end")
        assert await said(quick) == [1, 2]
        await say(3, "end")
        assert await said(quick) == [3]
        assert await said(slow) == [1, 2]
        assert await said(slow) == [3]


async def test_a_full_buffer_drops_the_oldest_and_counts_them() -> None:
    async with session() as s, s.events(max_buffer=3) as few, s.events() as all_of_them:
        await say(*range(10), "end")  # 13 events, the last of which is that of its end
        assert few.dropped == 10
        assert await said(few) == [9]
        assert await said(all_of_them) == list(range(10))
        assert all_of_them.dropped == 0


async def test_a_full_buffer_that_threads_write_to_loses_and_counts_exactly() -> None:
    together = threading.Barrier(4)

    @task
    def shout() -> None:
        together.wait(30)
        for number in range(500):
            report("said", number)

    async with session() as s, s.events(max_buffer=10) as events:
        async with anyio.create_task_group() as tg:
            for _ in range(4):
                tg.start_soon(shout.to_thread)
        left = 0
        with anyio.move_on_after(0):
            async for _ in events:
                left += 1
        assert (left, events.dropped) == (10, 4 * 502 - 10)


async def test_a_subscriber_that_left_or_failed_is_no_hindrance() -> None:
    async with session() as s, s.events() as events:
        async with s.events():
            await say(1)
        with pytest.raises(ValueError, match="no"):
            async with s.events() as others:
                await say(2)
                async for _ in others:
                    raise ValueError("no")
        await say(3, "end")
        assert await said(events) == [1, 2, 3]


async def test_a_subscriber_may_run_tasks_itself() -> None:
    doubled: list[int] = []

    @task
    async def double(number: int) -> int:
        return 2 * number

    async with session() as s, s.events() as events:
        await say(1, 2)
        await say("end")
        async for event in events:
            if isinstance(event, TaskReported):
                if event.data == "end":
                    break
                doubled.append(await double(event.data))
    assert doubled == [2, 4]
    assert s.stats().succeeded == 4


# One call and what it started ----------------------------------------------------------------------


@task
async def child(word: str) -> None:
    await checkpoint()
    report("said", word)


@task
async def parent(word: str, started: anyio.Event | None = None, go: anyio.Event | None = None) -> None:
    if started is not None and go is not None:
        started.set()
        await go.wait()
    await child(f"{word} child")
    await gather_tasks(child, [f"{word} mapped"])
    await say_sync.to_thread(f"{word} in thread")
    async with session(name="inner"):
        await child(f"{word} inner")


async def test_events_under_a_call_are_its_own_and_those_of_what_it_starts() -> None:
    started, go = anyio.Event(), anyio.Event()
    async with session() as s:
        handle = s.start_soon(parent, "this", started, go)
        await started.wait()
        async with s.events(under=handle.id) as events, s.events() as everything:
            await parent("other")
            go.set()
            await handle
            await say("end")
            words = {"child", "mapped", "in thread", "inner"}
            assert set(await said(everything)) == {f"{who} {word}" for who in ("this", "other") for word in words}
            kinds: list[str] = []
            heard: list[str] = []
            async for event in events:
                if isinstance(event, TaskReported):
                    heard.append(event.data)
                assert isinstance(event, TaskEvent)
                kinds.append(f"{type(event).__name__} {event.metadata.name}")
                if kinds[-1] == "TaskSucceeded parent":
                    break
    assert heard == ["this child", "this mapped", "this in thread", "this inner"]
    assert len([kind for kind in kinds if kind.startswith("TaskStarted")]) == 4  # its own was before


async def test_events_under_a_call_are_those_of_its_background_calls_too() -> None:
    @task
    async def starter() -> None:
        s.start_soon(child, "from the background")

    async with session() as s:
        handle = s.start_soon(starter)
        async with s.events(under=handle.id) as events:
            await handle
            async for event in events:
                if isinstance(event, TaskReported):
                    assert event.data == "from the background"
                    break


async def test_events_under_a_call_end_with_the_session() -> None:
    seen: list[Any] = []

    async def listen() -> None:
        async with s.events(under=new_id()) as events:
            ready.set()
            seen.extend([event async for event in events])
            done.set()

    ready, done = anyio.Event(), anyio.Event()
    async with anyio.create_task_group() as tg:
        async with session() as s:
            tg.start_soon(listen)
            await ready.wait()
            await say(1)
        await done.wait()
    assert seen == []


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"max_buffer": 0}, ValueError, "session 'session': events: max_buffer must be at least 1, not 0"),
        ({"max_buffer": 1.5}, TypeError, "session 'session': events: max_buffer must be a whole number, not 1.5"),
        ({"under": "abc"}, TypeError, "session 'session': events: under must be the id of a call, a UUID, not 'abc'"),
    ],
)
async def test_bad_arguments_of_events_are_refused(
    arguments: dict[str, Any], error: type[Exception], message: str
) -> None:
    async with session() as s:
        with pytest.raises(error, match=message):
            s.events(**arguments)


# Redaction -----------------------------------------------------------------------------------------


def without_secrets(inputs: Any) -> Any:
    return {name: "***" if name == "password" else value for name, value in inputs.items() if name != "token"}


@task(name="log in {user} {password} {token}")
async def log_in(user: str, password: str, token: str = "t0ken") -> None:
    if user == "mallory":
        raise ValueError("no")


@task
def log_in_sync(user: str, password: str) -> Any:
    current = current_task()
    assert current is not None
    return current.inputs


async def test_inputs_and_names_are_redacted_everywhere() -> None:
    async with session(settings=Settings(redact=without_secrets)) as s, s.events() as events:
        await log_in("ada", "s3cret")
        with pytest.raises(TaskError) as caught:
            await log_in("mallory", "s3cret", token="t0ken2")
        assert await log_in_sync.to_thread("ada", "s3cret") == {"user": "ada", "password": "***"}
        async with session():
            assert log_in_sync("ada", "s3cret") == {"user": "ada", "password": "***"}
        await say("end")
        shown: list[str] = []
        async for event in events:
            shown.append(repr(event))
            if isinstance(event, TaskReported):
                break
    shown += [str(caught.value), repr(caught.value.metadata)]
    assert not [each for each in shown if "s3cret" in each or "t0ken" in each]
    assert caught.value.metadata is not None
    assert caught.value.metadata.name == "log in mallory *** <redacted>"
    assert caught.value.metadata.inputs == {"user": "mallory", "password": "***"}


async def test_other_settings_of_an_inner_session_are_its_own() -> None:
    async with session(settings=Settings(redact=without_secrets)):
        async with session(settings=Settings()):
            assert log_in_sync("ada", "s3cret") == {"user": "ada", "password": "s3cret"}


@pytest.mark.parametrize("broken", [lambda inputs: 1 / 0, lambda inputs: 7])
async def test_if_redaction_fails_nothing_is_shown(broken: Any, caplog: pytest.LogCaptureFixture) -> None:
    async with session(settings=Settings(redact=broken)):
        assert log_in_sync("ada", "s3cret") == {"user": "<redacted>", "password": "<redacted>"}
    (record,) = caplog.records
    assert record.getMessage().startswith("the function that redacts inputs failed: <function")


def test_a_redaction_that_is_no_function_is_refused() -> None:
    with pytest.raises(TypeError, match="Settings: redact must be a function of the inputs, not 'password'"):
        Settings(redact="password")  # type: ignore[arg-type]


# Counts --------------------------------------------------------------------------------------------


@task
async def hang() -> None:
    await anyio.sleep_forever()


@task
async def rows() -> Any:
    yield 1
    yield 2


async def test_stats_count_calls_by_state() -> None:
    inside = anyio.Event()

    @task
    async def wait() -> None:
        inside.set()
        await anyio.sleep_forever()

    s = session()
    with pytest.raises(SessionError, match="before it was entered"):
        s.stats()
    async with s:
        assert s.stats().started == 0
        await say()
        await say_sync.to_thread()
        with pytest.raises(TaskError):
            await log_in("mallory", "")
        with anyio.CancelScope() as scope:
            scope.cancel()
            await hang()
        handle = s.start_soon(wait)
        await inside.wait()
        stream = rows()
        await anext(stream)
        stats = s.stats()
        assert (stats.running, stats.succeeded, stats.failed, stats.cancelled) == (2, 2, 1, 1)
        assert stats.started == 6
        assert s.stats() == stats
        handle.cancel()
    stats = s.stats()
    assert (stats.running, stats.succeeded, stats.failed, stats.cancelled) == (0, 3, 1, 2)


async def test_stats_include_inner_sessions_while_they_run_and_afterwards() -> None:
    async with session() as outer:
        async with session() as inner:
            await say()
            with pytest.raises(TaskError):
                await log_in("mallory", "")
            assert inner.stats() == outer.stats()
            assert inner.stats().started == 2
        assert outer.stats() == inner.stats()
        await say()
        assert outer.stats().succeeded == 2
    assert inner.stats().succeeded == 1


async def test_stats_of_threads_are_exact() -> None:
    together = threading.Barrier(4)

    @task
    def many() -> None:
        together.wait(30)
        for number in range(300):
            try:
                sometimes(number)
            except TaskError:
                pass

    @task
    def sometimes(number: int) -> None:
        if number % 3 == 0:
            raise ValueError("no")

    async with session() as s:
        async with anyio.create_task_group() as tg:
            for _ in range(4):
                tg.start_soon(many.to_thread)
        stats = s.stats()
    assert (stats.running, stats.succeeded, stats.failed, stats.cancelled) == (0, 4 + 800, 400, 0)


@pytest.mark.usefixtures("virtual_clock")
async def test_the_calls_of_an_abandoned_thread_count_as_cancelled() -> None:
    inside, leave, left = threading.Event(), threading.Event(), threading.Event()

    @task
    def inner() -> None:
        inside.set()
        leave.wait(30)

    @task(timeout=1)
    def outer() -> None:
        try:
            inner()
            say_sync()
        finally:
            left.set()

    async with session() as s:
        with pytest.raises(TaskError):
            await outer.to_thread()
        assert inside.is_set()
        before = s.stats()
        leave.set()
        left.wait(30)
    assert (before.running, before.succeeded, before.failed, before.cancelled) == (0, 0, 1, 1)
    assert s.stats() == before


async def test_the_id_of_a_call_is_the_same_for_all_who_ask() -> None:
    ids: set[UUID] = set()
    parents: set[UUID | None] = set()
    together = threading.Barrier(8)

    @task
    def inside() -> None:
        together.wait(30)
        current = current_task()
        assert current is not None
        parents.add(current.parent_id)

    @task
    async def around() -> None:
        async with anyio.create_task_group() as tg:
            for _ in range(8):
                tg.start_soon(inside.to_thread)
        current = current_task()
        assert current is not None
        ids.add(current.id)

    async with session():
        await around()
    assert parents == ids
    assert len(ids) == 1
