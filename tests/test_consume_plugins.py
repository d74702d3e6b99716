"""Plugins that consume events: a subscription and a task of their own, and no harm to others."""

import logging
import sys
import threading
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from daglite import current_session, current_task, report, session, task
from daglite.events import (
    Event,
    SessionEnded,
    SessionStarted,
    TaskFailed,
    TaskReported,
    TaskStarted,
    TaskSucceeded,
)
from daglite.exceptions import TaskError, TaskGroupError
from daglite.plugins import hook_impl

if sys.version_info < (3, 11):
    from exceptiongroup import ExceptionGroup


@task
async def double(number: int) -> int:
    return 2 * number


@task
def halve(number: int) -> int:
    return number // 2


@task
async def say(type: str, data: Any = None) -> None:
    report(type, data)


class Consumer:
    """Keeps every event."""

    def __init__(self) -> None:
        self.seen: list[Event] = []
        self.ended = False

    async def consume(self, events: Any) -> None:
        async for event in events:
            self.seen.append(event)
        self.ended = True

    @property
    def kinds(self) -> list[type[Event]]:
        return [type(event) for event in self.seen]


ALL = [SessionStarted, TaskStarted, TaskSucceeded, SessionEnded]


async def test_a_consumer_gets_everything_from_the_start_to_the_end() -> None:
    consumer = Consumer()
    async with session(plugins=[consumer]) as s:
        await double(1)
    assert consumer.kinds == ALL
    assert consumer.ended
    assert {event.session_id for event in consumer.seen} == {s.id}


async def test_a_consumer_reads_while_the_session_goes_on() -> None:
    heard = anyio.Event()
    seen: list[Any] = []

    class Listener:
        async def consume(self, events: Any) -> None:
            async for event in events:
                seen.append(type(event))
                if isinstance(event, TaskReported):
                    heard.set()

    async with session(plugins=[Listener()]):
        await say("hello")
        await heard.wait()
        assert seen[:3] == [SessionStarted, TaskStarted, TaskReported]
        assert SessionEnded not in seen


async def test_a_consumer_hears_of_threads_and_of_inner_sessions() -> None:
    outer, inner = Consumer(), Consumer()
    async with session(plugins=[outer]):
        await halve.to_thread(4)
        async with session(plugins=[inner, outer]):
            await double(1)
    assert outer.kinds == [
        SessionStarted,
        *[TaskStarted, TaskSucceeded],
        *ALL,
        SessionEnded,
    ]
    assert inner.kinds == ALL


async def test_a_plugin_may_both_consume_and_have_hooks() -> None:
    class Both(Consumer):
        def __init__(self) -> None:
            super().__init__()
            self.results: list[Any] = []

        @hook_impl
        def after_node_execute(self, result: Any) -> None:
            self.results.append(result)

    both = Both()
    async with session(plugins=[both]):
        await double(1)
    assert both.results == [2]
    assert both.kinds == ALL


async def test_each_consumer_has_a_subscription_of_its_own() -> None:
    consumers = [Consumer(), Consumer()]
    async with session(plugins=consumers):
        await double(1)
    assert [consumer.kinds for consumer in consumers] == [ALL, ALL]


async def test_a_consumer_is_not_in_the_session_that_it_consumes() -> None:
    # Else a task that it calls for each event would make another event.
    seen: list[Any] = []

    class Calling:
        async def consume(self, events: Any) -> None:
            async for event in events:
                seen.append((type(event), await double(1), current_session(), current_task()))

    async with session(plugins=[Calling()]):
        await say("hello")
    assert seen == [
        (kind, 2, None, None) for kind in (SessionStarted, TaskStarted, TaskReported, TaskSucceeded, SessionEnded)
    ]


async def test_a_consumer_hears_how_a_failed_session_ended() -> None:
    consumer = Consumer()
    with pytest.raises(ValueError, match="body"):
        async with session(plugins=[consumer]):
            raise ValueError("body")
    assert consumer.kinds == [SessionStarted, SessionEnded]
    with pytest.raises(TaskGroupError):
        async with session(plugins=[consumer]) as s:
            s.start_soon(task(_fail))
    assert consumer.kinds[2:] == [SessionStarted, TaskStarted, TaskFailed, SessionEnded]


async def _fail() -> None:
    raise ValueError("no")


async def test_a_consumer_of_a_cancelled_session_gets_to_read_the_rest() -> None:
    class Slow(Consumer):
        async def consume(self, events: Any) -> None:
            async for event in events:
                await anyio.lowlevel.checkpoint()
                self.seen.append(event)

    slow = Slow()
    with anyio.CancelScope() as scope:
        async with session(plugins=[slow]):
            await double(1)
            scope.cancel()
            await anyio.sleep_forever()
    assert slow.kinds == ALL


# One that misbehaves ----------------------------------------------------------------------------


@pytest.mark.parametrize("when", ["at once", "later"])
async def test_a_consumer_that_raises_is_logged_by_name_and_changes_nothing(
    when: str, caplog: pytest.LogCaptureFixture
) -> None:
    class Broken:
        async def consume(self, events: Any) -> None:
            if when == "later":
                async for event in events:
                    if isinstance(event, TaskStarted):
                        break
            raise RuntimeError("consumer")

        def __repr__(self) -> str:
            raise RuntimeError("no text")

    consumer = Consumer()
    async with session(plugins=[Broken(), consumer]) as s:
        await double(1)
        await anyio.wait_all_tasks_blocked()
        assert await double(1) == 2
        handle = s.start_soon(double, 4)
        assert await handle == 8
    assert consumer.kinds == [SessionStarted, *[TaskStarted, TaskSucceeded] * 3, SessionEnded]
    (record,) = caplog.records
    assert (record.name, record.levelno) == ("daglite", logging.ERROR)
    assert "Broken failed to watch it" in record.getMessage()
    assert record.exc_info
    assert str(record.exc_info[1]) == "consumer"


async def test_a_group_that_a_consumer_raises_is_logged_too(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Broken:
        async def consume(self, events: Any) -> None:
            raise ExceptionGroup("several", [ValueError()])

    async with session(plugins=[Broken()]):
        await double(1)
    (record,) = caplog.records
    assert "Broken failed to watch it" in record.getMessage()


async def test_a_consumer_may_leave_early() -> None:
    class Brief:
        async def consume(self, events: Any) -> None:
            async for _ in events:
                break

    consumer = Consumer()
    async with session(plugins=[Brief(), consumer]):
        await anyio.wait_all_tasks_blocked()
        await double(1)
    assert consumer.kinds[-1] is SessionEnded


async def test_a_consumer_that_has_left_holds_no_events() -> None:
    class Brief:
        async def consume(self, events: Any) -> None:
            pass

    async with session(plugins=[Brief()]):
        await anyio.wait_all_tasks_blocked()
        made: list[int] = []

        class Noted:
            def __init__(self) -> None:
                made.append(1)

            def __del__(self) -> None:
                made.pop()

        await say("noted", Noted())
        assert made == []


async def test_a_consumer_that_never_reads_holds_nobody_up_until_the_end() -> None:
    done = anyio.Event()

    class Deaf:
        async def consume(self, events: Any) -> None:
            await done.wait()

    async with session(plugins=[Deaf()]):
        for number in range(1000):
            await say("number", number)
        assert await double(1) == 2
        done.set()


@pytest.mark.usefixtures("virtual_clock")
async def test_a_consumer_that_hangs_is_cancelled_after_grace_and_named_in_the_log(
    caplog: pytest.LogCaptureFixture,
) -> None:
    ended: list[str] = []

    class Hanging:
        async def consume(self, events: Any) -> None:
            try:
                await anyio.sleep_forever()
            finally:
                ended.append("cancelled")

    consumer = Consumer()
    async with session(plugins=[Hanging(), consumer], grace=0.5):
        await double(1)
    assert ended == ["cancelled"]
    assert consumer.kinds == ALL
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "Hanging had not seen all events after 0.5 s" in record.getMessage()


@pytest.mark.usefixtures("virtual_clock")
async def test_a_consumer_that_hangs_in_a_session_that_fails_does_not_hide_the_error(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Hanging:
        async def consume(self, events: Any) -> None:
            try:
                await anyio.sleep_forever()
            finally:
                raise RuntimeError("cleanup")

    with pytest.raises(ValueError, match=r"^body$"):
        async with session(plugins=[Hanging()], grace=0.5):
            await anyio.wait_all_tasks_blocked()
            raise ValueError("body")
    (record,) = caplog.records
    assert "failed to watch it" in record.getMessage()


async def test_a_consumer_that_is_interrupted_ends_the_session() -> None:
    class Interrupt(BaseException):
        pass

    class Interrupted:
        async def consume(self, events: Any) -> None:
            raise Interrupt

    consumer = Consumer()
    with pytest.raises(Interrupt):
        async with session(plugins=[Interrupted(), consumer]):
            await anyio.sleep_forever()
    assert current_session() is None
    assert consumer.kinds == [SessionStarted, SessionEnded]


async def test_a_consumer_may_wait_in_a_thread_for_what_it_hears() -> None:
    threads: list[int] = []

    class Writing:
        async def consume(self, events: Any) -> None:
            async for _ in events:
                await anyio.to_thread.run_sync(lambda: threads.append(threading.get_ident()))

    async with session(plugins=[Writing()]):
        await double(1)
    assert len(threads) == len(ALL)
    assert threading.get_ident() not in threads


async def test_a_failed_call_inside_a_consumer_is_its_own_failure(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Failing:
        async def consume(self, events: Any) -> None:
            await task(_fail)()

    async with session(plugins=[Failing()]):
        await anyio.wait_all_tasks_blocked()
    (record,) = caplog.records
    assert record.exc_info
    assert isinstance(record.exc_info[1], TaskError)


async def test_a_consume_without_events_is_refused() -> None:
    class WithoutEvents:
        async def consume(self) -> None: ...

    with pytest.raises(TypeError, match="WithoutEvents: consume must be"):
        async with session(plugins=[WithoutEvents()]):
            pass
