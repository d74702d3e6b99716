"""Sessions inside sessions, and beside each other."""

import random
import threading
from collections.abc import Iterator
from typing import Any
from uuid import UUID

import anyio
import pytest
from anyio.lowlevel import checkpoint

from daglite import current_session, current_task, gather_tasks, session, task
from daglite.events import Event, TaskStarted, TaskSucceeded
from daglite.plugins import hook_impl
from daglite.settings import Settings, hide, set_settings


@pytest.fixture(autouse=True)
def settings_of_its_own() -> Iterator[None]:
    yield
    set_settings(None)


@task
async def double(number: int) -> int:
    await checkpoint()
    return 2 * number


@task
def thread_name() -> str:
    return threading.current_thread().name


ARGUMENTS: dict[str, tuple[Any, Any]] = {
    "grace": (1.5, 2.5),
    "max_threads": (3, 4),
    "backend": ("inline", "thread"),
    "on_background_error": ("log", "raise"),
}


@pytest.mark.parametrize("name", ARGUMENTS)
async def test_each_argument_comes_from_the_nearest_that_gives_it(name: str) -> None:
    one, other = ARGUMENTS[name]
    set_settings(Settings(**{name: one}))
    async with session() as outermost:
        assert getattr(outermost.settings, name) == one
        async with session(**{name: other}):
            async with session() as inner:
                assert getattr(inner.settings, name) == other
                async with session(**{name: one}) as innermost:
                    assert getattr(innermost.settings, name) == one


async def test_settings_that_are_given_hold_in_place_of_those_around() -> None:
    redact = hide("password")
    async with session(grace=1, max_threads=3):
        async with session(settings=Settings(max_threads=5, redact=redact), grace=2) as inner:
            assert inner.settings == Settings(max_threads=5, redact=redact, grace=2)
            async with session(max_threads=6) as innermost:
                assert innermost.settings == Settings(max_threads=6, redact=redact, grace=2)


async def test_an_inner_session_acts_by_what_it_inherits(caplog: pytest.LogCaptureFixture) -> None:
    @task
    async def fail() -> None:
        raise ValueError("no")

    async with session(backend="inline", on_background_error="log"):
        async with session() as inner:
            assert await gather_tasks(thread_name, [], []) == []
            assert await inner.start_soon(thread_name) == threading.current_thread().name
            inner.start_soon(fail)
            await anyio.wait_all_tasks_blocked()
    assert len(caplog.records) == 1


async def test_settings_change_nothing_of_a_session_that_is_open() -> None:
    async with session() as s:
        set_settings(Settings(backend="inline", grace=1))
        assert (s.settings.backend, s.settings.grace) == ("thread", 5.0)


async def test_calls_outside_of_sessions_go_by_the_settings_of_the_process() -> None:
    names: list[str] = []

    @task(name="log in {password}")
    def log_in(password: str) -> str:
        me = current_task()
        assert me is not None
        names.append(me.name)
        return threading.current_thread().name

    set_settings(Settings(backend="inline", redact=hide("password")))
    assert await gather_tasks(log_in, ["1815"]) == [threading.current_thread().name]
    assert names == ["log in <redacted>[0]"]


async def test_inner_events_reach_the_outer_subscribers_and_no_others() -> None:
    async with session() as outer, outer.events() as outer_events:
        async with session(name="inner") as inner, inner.events() as inner_events:
            assert await double(1) == 2
            seen = [await inner_events.__anext__() for _ in range(2)]
        assert await double(2) == 4
        heard = [await outer_events.__anext__() for _ in range(6)]
    assert [type(event).__name__ for event in seen] == ["TaskStarted", "TaskSucceeded"]
    assert [(type(event).__name__, event.session_id == inner.id) for event in heard] == [
        ("SessionStarted", True),
        ("TaskStarted", True),
        ("TaskSucceeded", True),
        ("SessionEnded", True),
        ("TaskStarted", False),
        ("TaskSucceeded", False),
    ]


class Plugin:
    def __init__(self) -> None:
        self.sessions: list[UUID] = []
        self.calls: list[str] = []
        self.consumers = 0

    @hook_impl
    def before_session_start(self, session_id: UUID) -> None:
        self.sessions.append(session_id)

    @hook_impl
    def before_node_execute(self, metadata: Any) -> None:
        self.calls.append(metadata.name)

    async def consume(self, events: Any) -> None:
        self.consumers += 1
        async for _ in events:
            pass


async def test_each_plugin_sees_each_call_once() -> None:
    shared, own = Plugin(), Plugin()
    async with session(plugins=[shared]) as outer:
        async with session(plugins=[own, shared]) as inner:
            await double(1)
        await double(2)
    assert shared.sessions == [outer.id, inner.id]
    assert own.sessions == [inner.id]
    assert (shared.calls, own.calls) == (["double", "double"], ["double"])
    assert (shared.consumers, own.consumers) == (1, 1)


async def test_sessions_of_sibling_tasks_share_nothing() -> None:
    barrier = [anyio.Event(), anyio.Event()]
    heard: dict[int, list[Event]] = {}
    plugins = [Plugin(), Plugin()]

    async def one(number: int) -> None:
        async with session(name=f"s{number}", plugins=[plugins[number]], grace=number + 1) as s:
            async with s.events() as events:
                barrier[number].set()
                await barrier[1 - number].wait()
                assert current_session() is s
                assert s.settings.grace == number + 1
                await double(number)
                heard[number] = [await events.__anext__() for _ in range(2)]
                assert (s.stats().started, len(s.tree().calls)) == (1, 0)

    async with anyio.create_task_group() as group:
        group.start_soon(one, 0)
        group.start_soon(one, 1)
    for number, plugin in enumerate(plugins):
        assert plugin.calls == ["double"]
        inputs = [event.metadata.inputs for event in heard[number] if isinstance(event, (TaskStarted, TaskSucceeded))]
        assert inputs == [{"number": number}] * 2


@pytest.mark.parametrize("seed", range(5))
async def test_fifty_sessions_opened_and_left_at_random(seed: int) -> None:
    """Each is inside what its task was started in, which ends after it; their calls are counted and told of all the way out."""
    chance = random.Random(seed)
    left = 50
    calls = 0
    log: list[str] = []

    async def grow(around: Any) -> None:
        nonlocal left, calls
        for _ in range(chance.randrange(4)):
            await checkpoint()
        if not left:
            return
        left -= 1
        number = 50 - left
        assert current_session() is around
        async with session(name=str(number)) as s, anyio.create_task_group() as group:
            log.append(f"+{number}")
            for _ in range(chance.randrange(1, 4)):
                assert current_session() is s
                assert await s.start_soon(double, number) == await double(number) == 2 * number
                calls += 2
                if chance.random() < 0.8:
                    group.start_soon(grow, s)
                else:
                    await grow(s)
        log.append(f"-{number}")
        assert s.tree().calls == ()
        assert current_session() is around

    async with session(name="all") as everything:
        async with everything.events() as events:
            while left:
                await grow(everything)
            heard = [event for event in await drained(events) if isinstance(event, TaskSucceeded)]
    stats = everything.stats()
    assert (stats.succeeded, stats.running) == (calls, 0)
    assert len(heard) == calls
    assert len({event.session_id for event in heard}) == 50
    assert sorted(log) == sorted(f"{sign}{number}" for number in range(1, 51) for sign in "+-")


async def drained(events: Any) -> list[Event]:
    """What waits by now."""
    found: list[Event] = []
    with anyio.move_on_after(0):
        async for event in events:
            found.append(event)
    return found


async def test_a_session_may_outlive_the_one_around_it_in_a_task_of_its_own() -> None:
    """Nobody owns it but that task: it goes on without subscribers."""
    go = anyio.Event()
    results: list[int] = []

    async def one() -> None:
        async with session() as inner:
            opened.set()
            await go.wait()
            results.append(await double(4))
            results.append(await inner.start_soon(double, 5))

    async with anyio.create_task_group() as group:
        async with session() as outer, outer.events() as events:
            opened = anyio.Event()
            group.start_soon(one)
            await opened.wait()
            assert [type(event).__name__ for event in await drained(events)] == ["SessionStarted"]
        go.set()
    assert results == [8, 10]
