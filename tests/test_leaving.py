"""How a session ends: in which order, within what time, and with what error."""

import itertools
import logging
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from typing import Any

import anyio
import pytest
from anyio.lowlevel import checkpoint

from daglite import check_cancelled, session, task
from daglite.events import SessionEnded, TaskCancelled, TaskFailed, TaskSucceeded
from daglite.exceptions import CallCancelledError, SessionError, TaskError, TaskGroupError

if sys.version_info < (3, 11):
    from exceptiongroup import BaseExceptionGroup, ExceptionGroup


class Stop(BaseException):
    """As `KeyboardInterrupt`, without what event loops make of that."""


@pytest.fixture
def gate() -> Iterator[threading.Event]:
    """What threads wait for, and which is open in the end: no thread outlives its test."""
    event = threading.Event()
    yield event
    event.set()


@task
async def hang() -> None:
    await anyio.sleep_forever()


@task
async def fail(message: str = "no") -> None:
    raise ValueError(message)


async def test_the_order_is_calls_then_services_then_streams_then_the_last_event_then_watchers() -> None:
    order: list[str] = []

    @task
    async def call() -> None:
        await anyio.wait_all_tasks_blocked()
        order.append("call")

    @task
    async def service() -> None:
        try:
            await anyio.sleep_forever()
        finally:
            order.append("service")

    @task
    async def rows() -> AsyncIterator[int]:
        try:
            yield 1
        finally:
            order.append("stream")

    async def follow(events: Any) -> None:
        async for event in events:
            if isinstance(event, SessionEnded):
                order.append("ended")
        order.append("watcher")

    async with session() as s:
        s.watch(follow)
        s.start_service(service)
        s.start_soon(call)
        stream = rows()
        assert await stream.__anext__() == 1
        assert order == []
    assert order == ["call", "service", "stream", "ended", "watcher"]


async def test_a_service_is_cancelled_and_not_waited_for() -> None:
    ended: list[Any] = []

    async def follow(events: Any) -> None:
        ended.extend([event async for event in events if isinstance(event, (TaskCancelled, TaskFailed, TaskSucceeded))])

    async with session() as s:
        s.watch(follow)
        handle = s.start_service(hang)
        await anyio.wait_all_tasks_blocked()
    with pytest.raises(CallCancelledError, match="'hang' was cancelled"):
        await handle
    assert [type(event) for event in ended] == [TaskCancelled]
    assert ended[0].metadata.id == handle.id


async def test_a_service_that_returns_or_is_cancelled_before_harms_nobody() -> None:
    @task
    async def brief() -> int:
        return 7

    async with session() as s:
        done = s.start_service(brief)
        gone = s.start_service(hang)
        assert await done == 7
        gone.cancel()
        with pytest.raises(CallCancelledError):
            await gone
    assert await done == 7


async def test_a_service_that_fails_cancels_the_session() -> None:
    with pytest.raises(TaskGroupError) as caught:
        async with session() as s:
            s.start_service(fail)
            await anyio.sleep_forever()
    assert [type(error) for error in caught.value.exceptions] == [TaskError]


async def test_a_service_that_fails_while_it_is_cancelled_is_told() -> None:
    @task
    async def service() -> None:
        try:
            await anyio.sleep_forever()
        finally:
            raise ValueError("cleanup")

    with pytest.raises(TaskGroupError) as caught:
        async with session() as s:
            s.start_service(service)
            await anyio.wait_all_tasks_blocked()
    assert isinstance(caught.value.exceptions[0].__cause__, ValueError)


async def test_what_a_service_starts_keeps_nobody_from_ending_and_is_joined_after_it() -> None:
    """A service that starts a call for each message would else keep its session for ever."""
    done: list[str] = []
    started = anyio.Event()
    release = anyio.Event()

    @task
    async def handle() -> None:
        await release.wait()
        done.append("handled")

    @task
    async def serve() -> None:
        s.start_soon(handle)
        started.set()
        try:
            await anyio.sleep_forever()
        finally:
            done.append("served")
            release.set()

    async with session() as s:
        s.start_service(serve)
        await started.wait()
    assert done == ["served", "handled"]


async def test_a_service_may_start_calls_while_the_session_waits_for_others() -> None:
    leaving = anyio.Event()
    told = anyio.Event()
    done: list[str] = []

    @task
    async def note() -> None:
        done.append("noted")
        told.set()

    @task
    async def serve() -> None:
        await leaving.wait()
        s.start_soon(note)
        await anyio.sleep_forever()

    @task
    async def call() -> None:
        await anyio.wait_all_tasks_blocked()  # until the session waits for this
        leaving.set()
        await told.wait()

    async with session() as s:
        s.start_service(serve)
        s.start_soon(call)
    assert done == ["noted"]


async def test_no_service_is_started_once_services_are_cancelled() -> None:
    refused: list[str] = []

    @task
    async def serve() -> None:
        try:
            await anyio.sleep_forever()
        finally:
            with pytest.raises(SessionError) as caught:
                s.start_service(hang)
            refused.append(str(caught.value))

    async with session(name="work") as s:
        s.start_service(serve)
        await anyio.wait_all_tasks_blocked()
    assert refused == ["session 'work': the service 'hang' comes after services were cancelled"]


async def test_failures_of_background_calls_can_be_logged_instead(caplog: pytest.LogCaptureFixture) -> None:
    failed: list[Any] = []

    async def follow(events: Any) -> None:
        failed.extend([event async for event in events if isinstance(event, TaskFailed)])

    async with session(name="web", on_background_error="log") as s:
        s.watch(follow)
        handle = s.start_soon(fail)
        service = s.start_service(fail, "neither")
        for each in (handle, service):
            with pytest.raises(TaskError, match="ValueError: n"):
                await each
    assert sorted(event.error for event in failed) == ["ValueError: neither", "ValueError: no"]
    assert [record.getMessage() for record in caplog.records] == [
        "session 'web': the background call of task 'fail' failed"
    ] * 2
    assert {record.levelno for record in caplog.records} == {logging.ERROR}
    assert all(record.exc_info and isinstance(record.exc_info[1], TaskError) for record in caplog.records)


async def test_a_failed_cleanup_is_logged_too_and_an_interrupt_comes_out(caplog: pytest.LogCaptureFixture) -> None:
    @task
    async def clean_up() -> None:
        try:
            await anyio.sleep_forever()
        finally:
            raise ValueError("cleanup")

    @task
    async def stop() -> None:
        raise Stop

    with pytest.raises(Stop):
        async with session(on_background_error="log") as s:
            s.start_soon(clean_up)
            await anyio.wait_all_tasks_blocked()
            s.start_soon(stop)
    assert [record.getMessage() for record in caplog.records] == [
        "session 'session': the background call of task 'clean_up' failed"
    ]


BODY, CALL, SIBLING = "body", "call", "sibling"


@pytest.mark.parametrize("order", list(itertools.permutations([BODY, CALL, SIBLING])))
async def test_failures_in_every_order_come_out_the_same(order: tuple[str, ...]) -> None:
    """Who fails second does so in its cleanup: the first has cancelled it."""
    turn = {who: anyio.Event() for who in order}

    async def take_turn(who: str) -> None:
        try:
            await turn[who].wait()
            if who != order[0]:
                await anyio.sleep_forever()
        finally:
            with anyio.CancelScope(shield=True):
                await turn[who].wait()
                if (after := order.index(who) + 1) < len(order):
                    turn[order[after]].set()
            raise ValueError(who)

    @task
    async def child(who: str) -> None:
        await take_turn(who)

    with pytest.raises(ExceptionGroup) as caught:
        async with session() as s:
            s.start_soon(child, CALL)
            s.start_soon(child, SIBLING)
            await anyio.wait_all_tasks_blocked()
            turn[order[0]].set()
            await take_turn(BODY)
    body, *background = caught.value.exceptions
    assert type(caught.value) is ExceptionGroup
    assert repr(body) == "ValueError('body')"
    assert [type(error) for error in background] == [TaskError, TaskError]
    assert [str(error.__cause__) for error in background] == [who for who in order if who != BODY]


async def test_a_failure_of_background_after_the_body_is_done_comes_out_alone() -> None:
    @task
    async def fail_later() -> None:
        await anyio.wait_all_tasks_blocked()
        raise ValueError("later")

    with pytest.raises(TaskGroupError) as caught:
        async with session() as s:
            s.start_soon(fail_later)
    assert str(caught.value.exceptions[0].__cause__) == "later"


@pytest.mark.parametrize("how", ["cancel()", "error", "outside"])
async def test_cleanup_that_shields_itself_is_waited_for(how: str) -> None:
    """However little `grace` there is: it bounds what is the session's own."""
    cleaned = False

    @task
    async def clean_up() -> None:
        nonlocal cleaned
        try:
            await anyio.sleep_forever()
        finally:
            with anyio.CancelScope(shield=True):
                for _ in range(20):
                    await checkpoint()
                cleaned = True

    with anyio.CancelScope() as outside:
        try:
            async with session(grace=0) as s:
                s.start_soon(clean_up)
                await anyio.wait_all_tasks_blocked()
                if how == "error":
                    raise KeyError("body")
                if how == "outside":
                    outside.cancel()
                else:
                    s.cancel()
                await anyio.sleep_forever()
        except KeyError:
            assert how == "error"
    assert cleaned
    assert outside.cancelled_caught is (how == "outside")


@pytest.mark.parametrize("how", ["cancel()", "error", "outside", "failed call"])
async def test_a_cancelled_session_abandons_threads_at_the_end_of_its_grace(how: str, gate: threading.Event) -> None:
    started = anyio.Event()

    @task
    def block() -> None:
        anyio.from_thread.run_sync(started.set)
        gate.wait()

    ended: list[Any] = []

    async def follow(events: Any) -> None:
        ended.extend([event async for event in events if isinstance(event, (TaskSucceeded, TaskCancelled))])

    with pytest.warns(ResourceWarning, match="session 'work' has ended while threads of it still run.*in 'block'"):
        with anyio.CancelScope() as outside:
            try:
                async with session(name="work", grace=0.05) as s:
                    s.watch(follow)
                    s.start_soon(block)
                    await started.wait()
                    if how == "error":
                        raise KeyError("body")
                    if how == "outside":
                        outside.cancel()
                    elif how == "cancel()":
                        s.cancel()
                    else:
                        s.start_soon(fail)
                    await anyio.sleep_forever()
            except KeyError:
                assert how == "error"
            except TaskGroupError:
                assert how == "failed call"
    assert [type(event) for event in ended] == [TaskCancelled]


async def test_a_body_that_waits_for_a_thread_is_released_too(gate: threading.Event) -> None:
    """The session is cancelled from outside, and what waits is no background call."""
    started = anyio.Event()

    @task
    def block() -> None:
        anyio.from_thread.run_sync(started.set)
        gate.wait()

    with pytest.warns(ResourceWarning, match="in 'block'"):
        async with anyio.create_task_group() as group:

            async def cancel() -> None:
                await started.wait()
                group.cancel_scope.cancel()

            group.start_soon(cancel)
            async with session(grace=0.05):
                await block.to_thread()
                raise AssertionError("not reached")


async def test_a_cancelled_service_in_a_thread_has_the_grace_as_well(gate: threading.Event) -> None:
    started = anyio.Event()

    def block() -> None:
        anyio.from_thread.run_sync(started.set)
        gate.wait()

    with pytest.warns(ResourceWarning, match="in 'block'"):
        async with session(grace=0.05) as s:
            s.start_service(block)
            await started.wait()


async def test_a_thread_is_waited_for_where_the_session_is_not_cancelled() -> None:
    """A cancellation of a part of it waits for as long as the thread takes."""
    gate = threading.Event()
    started = anyio.Event()

    @task
    def block() -> int:
        anyio.from_thread.run_sync(started.set)
        gate.wait()
        return 7

    results: list[int] = []

    async def call() -> None:
        results.append(await block.to_thread())

    async with session(grace=0):
        async with anyio.create_task_group() as group:
            group.start_soon(call)
            await started.wait()
            group.cancel_scope.cancel()
            with anyio.CancelScope(shield=True):
                await anyio.sleep(0.05)  # longer than the grace
                assert results == []
                gate.set()
    assert results == [7]  # a value that arrives wins


async def test_a_thread_that_notices_is_not_abandoned() -> None:
    started = anyio.Event()
    noticed: list[bool] = []

    @task
    def work() -> None:
        anyio.from_thread.run_sync(started.set)
        try:
            while True:
                check_cancelled()
        except BaseException:
            noticed.append(True)
            raise

    async with session() as s:
        s.start_soon(work)
        await started.wait()
        s.cancel()
    assert noticed == [True]


@pytest.mark.usefixtures("virtual_clock")
@pytest.mark.parametrize("at", ["step", "close"])
async def test_the_thread_of_a_stream_is_abandoned_too(at: str, gate: threading.Event) -> None:
    started = anyio.Event()

    @task
    def rows() -> Iterator[int]:
        try:
            yield 1
            if at == "step":
                anyio.from_thread.run_sync(started.set, token=token)
                gate.wait()
            yield 2
        finally:
            if at == "close":
                gate.wait()

    token = anyio.lowlevel.current_token()
    ended: list[Any] = []

    async def follow(events: Any) -> None:
        ended.extend([event async for event in events if isinstance(event, (TaskSucceeded, TaskCancelled))])

    async def consume(stream: Any) -> None:
        await stream.__anext__()

    with pytest.warns(ResourceWarning, match="in 'rows'"):
        async with session(grace=0.05) as s:
            s.watch(follow)
            stream = rows.to_thread()
            assert await stream.__anext__() == 1
            if at == "step":
                s.start_soon(consume, stream)
                await started.wait()
                s.cancel()
    assert TaskCancelled in [type(event) for event in ended]
    assert "rows" in {event.metadata.name for event in ended}


async def test_a_session_left_in_another_task_says_so_and_cancels_what_it_owns() -> None:
    cancelled = False

    async def child() -> None:
        nonlocal cancelled
        try:
            await anyio.sleep_forever()
        except BaseException:
            cancelled = True
            raise

    s = session(name="work")
    left = anyio.Event()

    async def leave() -> None:
        with pytest.raises(SessionError, match="session 'work' was left in another task than it was entered in"):
            await s.__aexit__(None, None, None)
        left.set()

    async with anyio.create_task_group() as group:
        async with s:
            s.start_soon(child)
            await anyio.wait_all_tasks_blocked()
            group.start_soon(leave)
            with anyio.CancelScope(shield=True):
                await left.wait()
    assert cancelled


async def test_a_session_left_before_one_inside_it_says_so_and_both_can_still_be_left() -> None:
    outer, inner = session(name="outer"), session(name="inner")
    await outer.__aenter__()
    await inner.__aenter__()
    with pytest.raises(SessionError, match="session 'outer' was left before session 'inner'.*leave that first"):
        await outer.__aexit__(None, None, None)
    await inner.__aexit__(None, None, None)
    await outer.__aexit__(None, None, None)
    with pytest.raises(SessionError, match="session 'outer' was left before"):
        await outer.__aexit__(None, None, None)
    with pytest.raises(SessionError, match="session 'session': leaving before it was entered"):
        await session().__aexit__(None, None, None)


async def test_a_session_is_entered_once() -> None:
    s = session(name="work")
    async with s:
        with pytest.raises(SessionError, match="session 'work' was entered before; session\\(\\) makes another"):
            await s.__aenter__()
    with pytest.raises(SessionError, match="was entered before"):
        await s.__aenter__()


class Interrupting:
    """A plugin that stops the program when its session begins."""

    def __init__(self) -> None:
        self.seen: list[Any] = []

    async def consume(self, events: Any) -> None:
        self.seen += [type(event).__name__ async for event in events]


async def test_a_half_built_session_undoes_what_it_built() -> None:
    from daglite.plugins import hook_impl

    class Plugin(Interrupting):
        @hook_impl
        def before_session_start(self, session_id: Any) -> None:
            raise Stop

    plugin = Plugin()
    async with session(name="outer") as outer, outer.events() as events:
        with pytest.raises(Stop):
            async with session(plugins=[plugin]):
                raise AssertionError("not reached")
        assert outer.tree().calls == ()
        assert plugin.seen == ["SessionStarted", "SessionEnded"]
        assert [type(await events.__anext__()).__name__ for _ in range(2)] == ["SessionStarted", "SessionEnded"]

        class Misspelt:
            @hook_impl
            def before_session_begins(self) -> None: ...

        s = session(plugins=[Misspelt()])
        for _ in range(2):  # nothing of it was begun, so it says the same again
            with pytest.raises(ValueError, match="before_session_start"):
                await s.__aenter__()
        assert outer._books.inner == {}
        assert outer._bus._inner == []


async def test_a_session_may_be_entered_in_a_cancelled_scope() -> None:
    with anyio.CancelScope() as scope:
        scope.cancel()
        async with session() as s:
            s.start_soon(hang)
            await checkpoint()
            raise AssertionError("not reached")
    assert scope.cancelled_caught


async def test_cancellation_and_failures_of_cleanup_in_a_session_that_is_cancelled_from_outside() -> None:
    """The failure comes out, as from a task group: it would be lost otherwise."""

    @task
    async def clean_up() -> None:
        try:
            await anyio.sleep_forever()
        finally:
            raise ValueError("cleanup")

    with anyio.CancelScope() as scope:
        with pytest.raises(BaseExceptionGroup) as caught:
            async with session() as s:
                s.start_soon(clean_up)
                await anyio.wait_all_tasks_blocked()
                scope.cancel()
                await anyio.sleep_forever()
    assert [type(error) for error in caught.value.exceptions] == [TaskError]


async def test_a_watcher_has_its_grace_even_where_all_was_cancelled() -> None:
    seen: list[Any] = []

    async def follow(events: Any) -> None:
        async for event in events:
            await checkpoint()
            seen.append(event)

    with anyio.CancelScope() as scope:
        async with session() as s:
            s.watch(follow)
            s.start_soon(hang)
            await anyio.wait_all_tasks_blocked()
            scope.cancel()
            await anyio.sleep_forever()
    assert [type(event).__name__ for event in seen] == [
        "TaskStarted",
        "TaskCancelled",
        "SessionEnded",
    ]
