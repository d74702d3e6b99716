"""What is undone where something goes wrong in the middle, so that nobody is misled afterwards."""

import asyncio
import gc
import itertools
import logging
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextvars import Context, copy_context
from typing import Any

import anyio
import pytest
from anyio import to_thread
from anyio.lowlevel import checkpoint

from daglite import (
    Limit,
    _trips,
    check_cancelled,
    current_session,
    current_task,
    gather_tasks,
    remaining,
    session,
    stream_tasks,
    task,
)
from daglite._bindings import Binding
from daglite._books import Books
from daglite._eventloop import Loop, LoopEnded
from daglite._stays import Stay
from daglite._threads import threads_of_loop
from daglite._trips import Trip
from daglite.events import TaskCancelled, TaskSucceeded
from daglite.exceptions import CallCancelledError, SessionError, TaskError, TaskTimeoutError
from daglite.plugins import hook_impl
from daglite.testing import EventRecorder, VirtualClock

if sys.version_info < (3, 11):
    from exceptiongroup import BaseExceptionGroup


class Interrupt(BaseException):
    """What ends a program."""


@task
async def noop(*_: Any) -> None: ...


@task
async def rows(to: int = 2) -> AsyncIterator[int]:
    for number in range(to):
        yield number


@task
async def fatal() -> AsyncIterator[int]:
    try:
        yield 1
    finally:
        raise Interrupt


async def test_a_call_that_is_refused_is_not_current_afterwards() -> None:
    @task(timeout=30)
    def block() -> None: ...

    with pytest.raises(RuntimeError, match="to_thread"):
        block()
    assert current_task() is None
    async with session() as s:
        with pytest.raises(RuntimeError, match="to_thread"):
            block()
        assert current_task() is None
        assert current_session() is s


async def test_a_bind_does_not_hold_the_streams_that_have_ended_under_it() -> None:
    async with session() as s, s.bind():
        (binding,) = s._bindings
        assert [item async for item in rows()] == [0, 1]
        assert not binding.streams
        async with rows() as items:
            await anext(items)
            assert len(binding.streams) == 1
        assert not binding.streams


async def test_a_bind_that_is_refused_is_not_waited_for(
    virtual_clock: VirtualClock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)

    async def late() -> None:
        while not s._home.leaving:
            await checkpoint()
        with pytest.raises(SessionError, match="after it has begun to end"):
            await bind.__aenter__()

    async with session() as s:
        bind = s.bind()
        s.start_soon(late)
    assert virtual_clock.time() == 0
    assert caplog.records == []


async def test_what_ends_a_program_comes_out_of_a_bind_that_closes_streams() -> None:
    async with session() as s:
        with pytest.raises(Interrupt):
            async with s.bind():
                async for _ in fatal():
                    break
        assert not s._bindings


async def test_a_pumped_stream_that_is_entered_after_its_first_step_has_one_task() -> None:
    async with session():
        before = set(anyio.get_running_tasks())
        stream = rows.with_options(pump=True)()
        assert await anext(stream) == 0
        async with stream:
            assert len(set(anyio.get_running_tasks()) - before) == 1
            assert [item async for item in stream] == [1]


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_second_cancellation_by_asyncio_does_not_wait_for_a_close() -> None:
    entered, go_on = asyncio.Event(), asyncio.Event()

    @task(pump=True)
    async def slow() -> AsyncIterator[int]:
        try:
            yield 1
        finally:
            with anyio.CancelScope(shield=True):
                entered.set()
                await go_on.wait()

    async def consume() -> None:
        async with slow() as items:
            await anext(items)

    consumer = asyncio.get_running_loop().create_task(consume())
    await entered.wait()
    for _ in range(2):
        consumer.cancel()
        for _ in range(5):
            await checkpoint()
    assert consumer.cancelled()
    go_on.set()
    for _ in range(5):
        await checkpoint()


@pytest.mark.parametrize(
    ("anyio_backend", "how"), [("asyncio", "failed"), ("trio", "failed"), ("asyncio", "was cancelled by asyncio")]
)
async def test_a_thread_has_its_place_again_after_what_it_awaited(how: str) -> None:
    now, most = 0, 0

    @task
    async def fail() -> None:
        if how == "failed":
            raise ValueError
        running = asyncio.current_task()
        assert running is not None
        running.cancel()
        await checkpoint()

    @task
    def work(number: int) -> None:
        nonlocal now, most
        with pytest.raises(TaskError if how == "failed" else CallCancelledError):
            fail.from_thread()
        now += 1
        most = max(now, most)
        time.sleep(0.005)  # in which others would run, if they could
        now -= 1

    async with session(max_threads=1):
        await gather_tasks(work, range(5))
    assert most == 1


async def test_what_a_thread_waits_for_does_not_begin_after_it_was_cancelled() -> None:
    ran: list[int] = []

    async def work(_: Trip) -> None:
        ran.append(1)

    trip = Trip("work", work, Loop(), None)
    trip.cancel()
    await trip._run()
    assert ran == []


def test_a_stream_for_which_there_is_no_thread_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    @task(item_timeout=30)
    def numbers() -> Iterator[int]:
        yield 1

    stream = numbers()
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        with pytest.raises(TaskError, match="can't start new thread"):
            next(stream)
    assert list(stream) == []


async def test_a_thread_whose_event_loop_has_ended_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    @task
    async def wait() -> None:
        await ended.wait()

    @task
    def back() -> None:
        try:
            with monkeypatch.context() as patch:
                patch.setattr(Loop, "wait", lambda loop, event: False)
                wait.from_thread()
        finally:
            anyio.from_thread.run_sync(ended.set)

    ended = anyio.Event()
    async with session():
        with pytest.raises(TaskError, match="its event loop has ended in the meantime"):
            await back.to_thread()


async def test_what_ends_a_program_comes_out_of_a_thread_that_closes_streams() -> None:
    def bound() -> None:
        with s.bind():
            stream = fatal.from_thread()
            next(stream)

    async with session() as s:
        with pytest.raises(Interrupt):
            await to_thread.run_sync(bound)
        assert not s._bindings

    kept: list[Any] = []

    @task
    def opens() -> None:
        kept.append(fatal.from_thread())
        next(kept[0])

    with pytest.raises(Interrupt):
        await opens.to_thread()


@pytest.mark.parametrize(
    ("anyio_backend", "how"),
    [
        *(("asyncio", how) for how in ("fails", "is cancelled", "is cancelled by asyncio")),
        *(("trio", how) for how in ("fails", "is cancelled")),
    ],
)
async def test_what_a_thread_has_opened_is_closed_also_where_it(how: str) -> None:
    closed: list[int] = []
    opened = anyio.Event()

    @task
    async def open_one() -> AsyncIterator[int]:
        try:
            yield 1
        finally:
            closed.append(1)

    @task
    def work() -> None:
        kept.append(open_one.from_thread())
        next(kept[0])
        anyio.from_thread.run_sync(opened.set)
        while how != "fails":
            check_cancelled()
            time.sleep(0.001)
        raise ValueError

    async def call() -> None:
        with pytest.raises(TaskError, match="ValueError"):
            await work.to_thread()

    kept: list[Any] = []
    if how == "is cancelled by asyncio":
        running = asyncio.get_running_loop().create_task(call())
        await opened.wait()
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
    else:
        async with anyio.create_task_group() as group:
            group.start_soon(call)
            await opened.wait()
            if how == "is cancelled":
                group.cancel_scope.cancel()
    assert closed == [1]


async def test_a_subscription_of_a_thread_ends_with_its_session_and_keeps_nothing() -> None:
    @task
    def read_all() -> int:
        with s.events() as events:
            anyio.from_thread.run_sync(subscribed.set)
            return len(list(events))

    @task
    def read_none() -> list[Any]:
        with s.events() as events:
            plain()
        return list(events)

    @task
    def plain() -> None: ...

    async with session() as s:
        assert await read_none.to_thread() == []
        subscribed = anyio.Event()
        handle = s.start_soon(read_all)
        await subscribed.wait()
    assert await handle >= 0


async def test_a_subscription_of_a_thread_ends_with_its_event_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    def read_all() -> None:
        with s.events() as events, monkeypatch.context() as patch:
            patch.setattr(Loop, "wait", lambda loop, event: False)
            assert list(events) == []

    async with session() as s:
        await to_thread.run_sync(read_all)


async def test_a_thread_is_told_that_a_session_has_ended_with_its_event_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(loop: Loop, func: Any, *args: Any) -> None:
        raise LoopEnded

    def cancel() -> None:
        with monkeypatch.context() as patch:
            patch.setattr(Loop, "call", gone)
            with pytest.raises(SessionError, match="has ended, with its event loop"):
                s.cancel()

    async with session() as s:
        await to_thread.run_sync(cancel)


async def test_a_stream_that_a_thread_has_opened_in_a_session_is_the_sessions() -> None:
    closed: list[int] = []
    kept: list[Any] = []

    @task
    async def numbers() -> AsyncIterator[int]:
        try:
            yield 1
            yield 2
        finally:
            closed.append(1)

    @task
    def open_one() -> None:
        kept.append(numbers.from_thread())
        next(kept[0])

    async with session():
        await open_one.to_thread()
        assert closed == []
        assert await task(next).to_thread(kept[0]) == 2
    assert closed == [1]


async def test_after_a_failure_no_other_call_begins() -> None:
    ran: list[int] = []

    @task
    def work(number: int) -> None:
        ran.append(number)
        if number == 3:
            raise ValueError

    with pytest.raises(TaskError):
        await gather_tasks(work, range(10), backend="inline")
    assert ran[-1] == 3


async def test_a_background_call_that_has_not_begun_is_cancelled_by_its_id() -> None:
    ran: list[int] = []

    @task
    async def work() -> None:
        ran.append(1)

    async with session() as s:
        handle = s.start_soon(work)
        s.cancel(under=handle.id)
        with pytest.raises(CallCancelledError):
            await handle
    assert ran == []


async def test_a_call_that_has_ended_in_a_thread_ends_once_also_where_that_is_abandoned(
    recorded_events: EventRecorder,
) -> None:
    begun, gate = anyio.Event(), threading.Event()

    @task
    def inner() -> None: ...

    @task(timeout=60)
    def outer() -> None:
        inner()
        anyio.from_thread.run_sync(begun.set)
        gate.wait(20)

    async with session():
        async with anyio.create_task_group() as group:
            group.start_soon(outer.to_thread)
            await begun.wait()
            group.cancel_scope.cancel()
        gate.set()
    ends = [event for event in recorded_events.of(TaskSucceeded, TaskCancelled) if event.metadata.name == "inner"]
    assert [type(event) for event in ends] == [TaskSucceeded]


@pytest.mark.usefixtures("virtual_clock")
async def test_a_thread_that_is_abandoned_on_its_way_back_has_no_place_any_more() -> None:
    @task
    async def slow() -> None:
        try:
            await anyio.sleep_forever()
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.sleep(1)

    @task(timeout=60)
    def back() -> None:
        slow.from_thread()

    @task
    def quick() -> int:
        return 1

    async with session(max_threads=1) as s:
        with pytest.raises(TaskTimeoutError):
            await back.to_thread()
        while s._threads.stuck:
            await checkpoint()
        with anyio.fail_after(600):
            assert await quick.to_thread() == 1


async def test_nothing_is_left_to_a_thread_whose_caller_is_cancelled() -> None:
    begun = anyio.Event()

    @task
    def ask() -> None:
        anyio.from_thread.run_sync(begun.set)
        began = time.monotonic()
        while remaining():
            assert time.monotonic() - began < 20
            time.sleep(0.001)

    async with session(), anyio.create_task_group() as group:
        group.start_soon(ask.to_thread)
        await begun.wait()
        group.cancel_scope.cancel()


async def test_calls_outside_of_sessions_share_the_threads_of_their_event_loop() -> None:
    assert threads_of_loop() is threads_of_loop()


def test_a_stream_in_a_thread_of_its_own_that_fails_to_close_says_so() -> None:
    @task(item_timeout=30)
    def broken() -> Iterator[int]:
        try:
            yield 1
        finally:
            raise ValueError

    stream = broken()
    assert next(stream) == 1
    with pytest.raises(TaskError, match="ValueError"):
        stream.close()


class States:
    """A plugin that asks what a call waits for when it has been cancelled."""

    def __init__(self) -> None:
        self.states: list[str] = []

    @hook_impl
    def on_node_cancelled(self) -> None:
        s = current_session()
        assert s is not None
        self.states += [call.state for call in s.tree()]


@pytest.mark.parametrize("in_thread", [False, True])
async def test_a_call_that_is_cancelled_does_not_wait_any_more(in_thread: bool) -> None:
    limit = Limit("held", 1)

    @task(limit=limit)
    async def wait() -> None: ...

    plugin = States()
    async with session(plugins=[plugin]) as s:
        limit._tokens.enter()
        async with anyio.create_task_group() as group:
            if in_thread:
                group.start_soon(task(wait.from_thread, name="back").to_thread)  # type: ignore[call-overload]
            else:
                group.start_soon(wait)
            while not limit.tasks_waiting:
                await anyio.sleep(0.001)
            assert "waiting for a limit" in [call.state for call in s.tree()]
            group.cancel_scope.cancel()
        limit._tokens.give_back()
    assert plugin.states
    assert "waiting for a limit" not in plugin.states


@pytest.mark.parametrize("in_stream", [False, True])
def test_an_interrupt_in_a_wait_for_a_limit_comes_out(monkeypatch: pytest.MonkeyPatch, in_stream: bool) -> None:
    limit = Limit("held", 1)
    ran: list[int] = []

    @task(limit=limit)
    def append() -> None:
        ran.append(1)

    @task(limit=limit, item_timeout=30)
    def stream() -> Iterator[None]:
        ran.append(1)
        yield

    def interrupt(waiter: Any) -> float:
        raise Interrupt

    limit._tokens.enter()
    monkeypatch.setattr(limit._tokens, "delay", interrupt)
    with pytest.raises(Interrupt):
        next(stream()) if in_stream else append()
    assert (ran, limit.tasks_waiting) == ([], 0)
    limit._tokens.give_back()
    assert limit.available_tokens == 1


def test_what_has_failed_in_place_is_not_left_in_cycles() -> None:
    @task(total_timeout=30, retries=2)
    def fail() -> None:
        raise ValueError

    @task
    def broken() -> Iterator[int]:
        yield 1
        raise ValueError

    def several() -> None:
        for _ in range(20):
            with pytest.raises(TaskError):
                fail()
            with pytest.raises(TaskError):
                list(broken())

    several()
    gc.collect()
    gc.disable()
    try:
        several()
        assert not [it for it in gc.get_objects() if isinstance(it, (TaskError, ValueError))]
    finally:
        gc.enable()


async def test_what_a_hook_has_started_is_told_that_the_session_has_ended() -> None:
    class Starts:
        context: Context

        @hook_impl
        def before_node_execute(self) -> None:
            self.context = copy_context()

    async def late() -> None:
        with pytest.raises(SessionError, match="which has ended"):
            await noop()

    plugin = Starts()
    async with session(plugins=[plugin]):
        await noop()
    async with anyio.create_task_group() as group:
        plugin.context.run(group.start_soon, late)


@pytest.mark.usefixtures("virtual_clock")
async def test_a_source_that_was_cancelled_by_itself_is_cancelled_with_its_fan_out() -> None:
    async def numbers() -> AsyncIterator[int]:
        with anyio.move_on_after(1):
            yield 0
            yield 1
        for number in range(2, 20):
            taken.append(number)
            yield number

    @task
    async def work(number: int) -> None:
        await anyio.sleep(2)
        if number == 3:
            scope.cancel()

    taken: list[int] = []
    with anyio.CancelScope() as scope:
        await gather_tasks(work, numbers(), limit=1)
    assert scope.cancelled_caught
    assert taken == [2, 3]


async def test_what_a_source_fails_with_when_a_fan_out_is_left_early_is_told() -> None:
    async def numbers() -> AsyncIterator[int]:
        async with anyio.create_task_group():
            try:
                for number in itertools.count():
                    yield number
            finally:
                raise ValueError("at its end")

    with pytest.raises(BaseExceptionGroup) as caught:
        async with stream_tasks(noop, numbers()) as results:
            async for _ in results:
                break
    (error,) = caught.value.exceptions
    assert repr(error) == "ValueError('at its end')"


async def test_a_stream_in_a_thread_that_is_entered_after_its_first_step_has_one_thread() -> None:
    @task
    def numbers() -> Iterator[int]:
        yield 1
        yield 2

    def threads() -> list[str]:
        return [thread.name for thread in threading.enumerate() if thread.name.startswith("stream")]

    stream = numbers.to_thread()
    assert await anext(stream) == 1
    async with stream:
        assert len(threads()) == 1
        assert [item async for item in stream] == [2]


async def test_a_stream_with_a_deadline_in_a_thread_is_closed_also_when_that_is_cancelled() -> None:
    closed: list[int] = []

    @task(item_timeout=30)
    def numbers() -> Iterator[int]:
        try:
            yield 1
        finally:
            time.sleep(0.02)  # in which it would be given up, if it were not shielded
            closed.append(1)

    async with session():
        with anyio.CancelScope() as scope:
            stream = numbers.to_thread()
            await anext(stream)
            scope.cancel()
            await stream.aclose()
        assert closed == [1]


async def test_the_close_of_a_stream_in_a_thread_is_not_cancelled_with_its_step() -> None:
    begun, closed = anyio.Event(), threading.Event()
    go_on = threading.Event()

    @task
    def numbers() -> Iterator[int]:
        try:
            loop.run(begun.set)
            go_on.wait(20)
            yield 1
        finally:
            for _ in range(10):
                time.sleep(0.002)
                check_cancelled()
            closed.set()

    loop = Loop()
    async with numbers.to_thread() as items, anyio.create_task_group() as group:
        group.start_soon(items.__anext__)
        await begun.wait()
        group.cancel_scope.cancel()
        go_on.set()
    assert closed.is_set()


async def test_a_session_keeps_nothing_of_those_that_have_ended_inside_of_it() -> None:
    def kept() -> int:
        gc.collect()
        return sum(isinstance(each, Books) for each in gc.get_objects())

    before = kept()
    async with session() as s:
        for _ in range(5):
            async with session():
                await noop()
        assert kept() - before == 1
        assert s.stats().succeeded == 5


def test_an_interrupt_while_a_sync_session_is_entered_ends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(binding: Binding[Any]) -> None:
        raise Interrupt

    s: Any = session()
    with monkeypatch.context() as patch:
        patch.setattr(Binding, "__enter__", interrupt)
        with pytest.raises(Interrupt):
            s.__enter__()
    with pytest.raises(SessionError, match="was left before"):
        s.__exit__(None, None, None)


def test_an_interrupt_while_a_sync_session_begins_ends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(stay: Stay, event: threading.Event) -> None:
        monkeypatch.undo()
        raise Interrupt

    monkeypatch.setattr(Stay, "_wait_for", interrupt)
    with pytest.raises(Interrupt), session():
        pytest.fail("it was entered")


async def test_a_sync_session_that_was_refused_has_not_to_be_left() -> None:
    s: Any = session()
    with pytest.raises(SessionError, match="use `async with`"):
        s.__enter__()
    with pytest.raises(SessionError, match="is not entered"):
        s.__exit__(None, None, None)


def test_what_ends_a_program_comes_out_of_a_sync_session_that_closes_streams() -> None:
    with pytest.raises(Interrupt), session():
        stream = fatal.from_thread()
        next(stream)


async def test_what_the_way_to_the_event_loop_fails_with_comes_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(func: Any) -> None:
        raise LookupError("gone")

    def back() -> None:
        with monkeypatch.context() as patch:
            patch.setattr(_trips, "way_back", lambda: gone)
            noop.from_thread()

    with pytest.raises(LookupError, match="gone"):
        await to_thread.run_sync(back)
