"""`item_timeout`: seconds for producing one item, after which the stream is over."""

import logging
import re
import signal
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Any

import anyio
import anyio.to_thread
import pytest
from anyio import get_cancelled_exc_class
from anyio.lowlevel import checkpoint

from daglite import check_cancelled, gather_tasks, session, task
from daglite.events import TaskCancelled, TaskFailed, TaskStarted, TaskSucceeded
from daglite.exceptions import BackendError, TaskError, TaskTimeoutError
from daglite.plugins import hook_impl
from tests.journal import told_of
from tests.test_events import Recorder
from tests.test_thread_deadlines import Gate, gate

if sys.version_info < (3, 11):
    from exceptiongroup import BaseExceptionGroup

__all__ = ["gate"]

LONG = 30.0  # seconds that no test waits for


@pytest.mark.parametrize(
    ("seconds", "error", "message"),
    [
        (0, ValueError, "item_timeout must be more than 0, not 0"),
        (-1, ValueError, "item_timeout must be more than 0, not -1"),
        (float("nan"), ValueError, "item_timeout must be finite, not nan"),
        (True, TypeError, "item_timeout must be a number, not True"),
        ("3", TypeError, "item_timeout must be a number, not '3'"),
    ],
)
def test_bad_seconds_are_refused(seconds: Any, error: type[Exception], message: str) -> None:
    async def rows() -> AsyncIterator[int]:
        yield 1

    def rows_sync() -> Iterator[int]:
        yield 1

    for func in (rows, rows_sync):
        with pytest.raises(error, match=f"task 'rows.*': {message}"):
            task(item_timeout=seconds)(func)


def test_it_is_for_streams() -> None:
    async def coroutine() -> None: ...

    for func in (coroutine, lambda: 1):
        with pytest.raises(
            ValueError, match="is no generator: item_timeout=3 is for the items of streams; use timeout="
        ):
            task(item_timeout=3)(func)
    with pytest.raises(ValueError, match="item_timeout=3 cannot be enforced on the backend 'inline'; use 'thread'"):

        @task(item_timeout=3, backend="inline")
        def rows() -> Iterator[int]:
            yield 1


class Source:
    """A stream that gives some items and hangs, and what has become of it."""

    def __init__(self) -> None:
        self.said: list[str] = []

    async def items(self, count: int, grouped: bool = False) -> AsyncIterator[int]:
        async with told_of(self.said):
            for number in range(count):
                await checkpoint()
                yield number
            if grouped:
                async with anyio.create_task_group() as group:
                    group.start_soon(anyio.sleep_forever)
            await anyio.sleep_forever()


@pytest.mark.usefixtures("virtual_clock")
@pytest.mark.parametrize("grouped", [False, True])
async def test_at_the_deadline_of_an_item_the_stream_is_over(grouped: bool) -> None:
    source, recorder, seen = Source(), Recorder(), []
    rows = task(item_timeout=0.3, name="rows")(source.items)
    assert rows.item_timeout == 0.3
    async with session() as s:
        s.watch(recorder.watch)
        async with rows(2, grouped) as items:
            with pytest.raises(TaskTimeoutError) as caught:
                async for item in items:
                    seen.append(item)
            assert source.said == ["cancelled", "cleaned up"]
            with pytest.raises(StopAsyncIteration):
                await items.__anext__()
    error = caught.value
    assert seen == [0, 1]
    assert str(error) == "Task 'rows' failed after 2 items with error: no item within its item_timeout of 0.3 s"
    assert (error.scope, error.limit) == ("item", 0.3)
    assert error.root_cause is error
    assert len(recorder.of(TaskStarted)) == len(recorder.of(TaskFailed)) == 1
    assert recorder.of(TaskSucceeded) == recorder.of(TaskCancelled) == []


@pytest.mark.usefixtures("virtual_clock")
async def test_the_time_of_the_consumer_does_not_count() -> None:
    source = Source()
    rows = task(item_timeout=0.5)(source.items)
    async with rows(3) as items:
        assert await items.__anext__() == 0
        await anyio.sleep(0.7)
        assert await items.__anext__() == 1
    assert source.said == ["cleaned up"]


async def test_it_bounds_each_item_and_not_all_of_them() -> None:
    @task(item_timeout=LONG)
    async def deadlines() -> AsyncIterator[float]:
        while True:
            yield anyio.current_effective_deadline() - anyio.current_time()

    async with deadlines() as items:
        for _ in range(3):
            assert LONG - 5 < await items.__anext__() <= LONG


async def test_outside_of_sessions_it_has_to_be_async_with() -> None:
    with pytest.raises(RuntimeError, match="write: async with"):
        await task(item_timeout=LONG)(Source().items)(1).__anext__()


@pytest.mark.usefixtures("virtual_clock")
@pytest.mark.parametrize("seconds", [0.02, LONG])
async def test_an_outer_deadline_that_is_not_later_is_the_outers(seconds: float) -> None:
    source, recorder = Source(), Recorder()
    rows = task(item_timeout=seconds)(source.items)
    async with session() as s:
        s.watch(recorder.watch)
        async with rows(0) as items:
            with anyio.move_on_after(0.02) as scope:
                await items.__anext__()
            assert scope.cancelled_caught
    assert source.said == ["cancelled", "cleaned up"]
    assert len(recorder.of(TaskCancelled)) == 1


async def test_an_item_that_arrives_late_wins(caplog: pytest.LogCaptureFixture) -> None:
    @task(item_timeout=0.3)
    async def blocking() -> AsyncIterator[int]:
        yield 1
        time.sleep(0.4)
        yield 2
        await checkpoint()
        yield 3

    async with blocking() as items:
        assert [item async for item in items] == [1, 2, 3]
    (record,) = caplog.records
    assert (record.name, record.levelno) == ("daglite", logging.WARNING)
    assert re.search(r"task 'blocking': a value came \d\S* s after its item_timeout of 0.3 s", record.getMessage())
    assert "to_thread()" in record.getMessage()


async def test_a_generator_that_swallows_its_cancellation_gives_one_item_more(caplog: pytest.LogCaptureFixture) -> None:
    @task(item_timeout=0.02)
    async def stubborn() -> AsyncIterator[str]:
        try:
            await anyio.sleep_forever()
        except BaseException:
            yield "late"
        yield "never"

    async with stubborn() as items:
        assert await items.__anext__() == "late"
        with pytest.raises(TaskTimeoutError):
            await items.__anext__()
    async with stubborn() as items:
        assert await items.__anext__() == "late"  # and closed: it was told of nothing
    assert len(caplog.records) == 2


@pytest.mark.usefixtures("virtual_clock")
async def test_a_generator_that_makes_another_error_of_it_fails_with_that() -> None:
    @task(item_timeout=0.02)
    async def translating() -> AsyncIterator[int]:
        try:
            await anyio.sleep_forever()
        except get_cancelled_exc_class():
            raise ValueError("instead") from None
        yield 1

    async with translating() as items:
        with pytest.raises(TaskError, match="ValueError: instead") as caught:
            await items.__anext__()
    assert not isinstance(caught.value, TimeoutError)


@pytest.mark.usefixtures("virtual_clock")
async def test_one_that_ends_when_it_is_cancelled_has_ended() -> None:
    @task(item_timeout=0.3)
    async def ending() -> AsyncIterator[int]:
        yield 1
        with anyio.CancelScope() as scope:
            try:
                await anyio.sleep_forever()
            except get_cancelled_exc_class():
                scope.cancel()
                raise

    async with ending() as items:
        with pytest.raises(TaskTimeoutError):
            assert [item async for item in items] == [1]


@pytest.mark.usefixtures("virtual_clock")
async def test_fan_outs_collect_within_it() -> None:
    rows = task(item_timeout=0.02)(Source().items)
    with pytest.raises(BaseExceptionGroup) as caught:
        await gather_tasks(rows, [1])
    assert isinstance(caught.value.exceptions[0], TaskTimeoutError)


@pytest.mark.usefixtures("virtual_clock")
async def test_for_a_thread_it_is_the_same() -> None:
    source = Source()
    rows = task(item_timeout=0.3)(source.items)

    @task(wrap_errors=False)
    def consume() -> list[int]:
        seen: list[int] = []
        with rows.from_thread(2) as items, pytest.raises(TaskTimeoutError):
            for item in items:
                seen.append(item)
        return seen

    assert await consume.to_thread() == [0, 1]
    assert source.said == ["cancelled", "cleaned up"]


@pytest.mark.parametrize("in_thread", [False, True])
async def test_the_tree_shows_how_long_an_item_may_take(gate: Gate, in_thread: bool) -> None:
    waits = anyio.Event()

    @task(item_timeout=LONG, name="rows")
    async def rows() -> AsyncIterator[int]:
        yield 1
        waits.set()
        await anyio.sleep_forever()

    @task(item_timeout=LONG, name="rows")
    def rows_sync() -> Iterator[int]:
        yield 1
        gate.hold()
        yield 2

    async with session() as s, anyio.create_task_group() as group:
        items = rows_sync.to_thread() if in_thread else rows()
        assert await items.__anext__() == 1
        (call,) = s.tree()
        assert (call.state, call.deadline, call.items) == ("between items", None, 1)

        async def step() -> None:
            await items.__anext__()

        group.start_soon(step)
        if in_thread:
            await anyio.to_thread.run_sync(gate.entered.acquire)
        else:
            await waits.wait()
        (call,) = s.tree()
        assert call.state == ("in a thread" if in_thread else "running")
        assert call.deadline is not None
        assert LONG - 5 < call.deadline <= LONG
        gate.opened.set()
        group.cancel_scope.cancel()


# In threads.


class Rows:
    """A sync stream that gives some items and waits at a gate."""

    def __init__(self, gate: Gate) -> None:
        self.gate = gate
        self.said: list[str] = []
        self.closed = threading.Event()

    def items(self, count: int) -> Iterator[int]:
        try:
            yield from range(count)
            self.gate.hold()
            check_cancelled()
            yield -1
        except BaseException as exc:
            self.said.append(type(exc).__name__)
            raise
        finally:
            self.closed.set()


async def test_a_thread_past_the_deadline_of_an_item_is_abandoned(gate: Gate) -> None:
    rows, recorder = Rows(gate), Recorder()
    stream = task(item_timeout=0.05, name="rows")(rows.items)
    async with session() as s:
        s.watch(recorder.watch)
        async with stream.to_thread(2) as items:
            with pytest.raises(TaskTimeoutError) as caught:
                assert [item async for item in items] == []
            assert [call.state for call in s.tree()] == ["stuck in an abandoned thread"]
            with pytest.raises(StopAsyncIteration):
                await items.__anext__()
        gate.opened.set()
        await anyio.to_thread.run_sync(rows.closed.wait)
    error = caught.value
    assert (error.scope, error.limit, error.attempts) == ("item", 0.05, 1)
    assert rows.said == ["ThreadCancelled"]
    assert len(recorder.of(TaskFailed)) == 1


async def test_an_outer_deadline_in_a_thread_is_the_outers_and_abandons_it(gate: Gate) -> None:
    rows = Rows(gate)
    stream = task(item_timeout=LONG)(rows.items)
    async with stream.to_thread(0) as items:
        with anyio.move_on_after(0.05) as scope:
            await items.__anext__()
        assert scope.cancelled_caught
    gate.opened.set()
    await anyio.to_thread.run_sync(rows.closed.wait)


async def test_a_generator_in_an_abandoned_thread_is_closed_there(gate: Gate) -> None:
    closed = threading.Event()
    seen: list[int] = []

    @task(item_timeout=0.05)
    def rows() -> Iterator[int]:
        mine = threading.get_ident()
        try:
            gate.hold()
            yield 1
        finally:
            seen.append(threading.get_ident() - mine)
            closed.set()

    async with rows.to_thread() as items:
        with pytest.raises(TaskTimeoutError):
            await items.__anext__()
    gate.opened.set()
    await anyio.to_thread.run_sync(closed.wait)
    assert seen == [0]


async def test_a_close_in_a_thread_has_grace_seconds(gate: Gate, caplog: pytest.LogCaptureFixture) -> None:
    @task(item_timeout=LONG)
    def stubborn() -> Iterator[int]:
        try:
            yield 1
        finally:
            gate.hold()

    recorder = Recorder()
    async with session(grace=0.3) as s:
        s.watch(recorder.watch)
        async with stubborn.to_thread() as items:
            assert await items.__anext__() == 1
        assert "stream 'stubborn' had not closed after 0.3 s" in caplog.text
        gate.opened.set()
    assert len(recorder.of(TaskCancelled)) == 1


async def test_as_many_stuck_streams_as_threads_and_another_is_refused(gate: Gate) -> None:
    stream = task(item_timeout=0.05, name="rows")(Rows(gate).items)

    @task
    def work() -> int:
        return 1

    async with session(max_threads=2) as s:
        for _ in range(2):
            async with stream.to_thread(0) as items:
                with pytest.raises(TaskTimeoutError):
                    await items.__anext__()
        with pytest.raises(BackendError, match="2 of .* are stuck past their deadlines in 'rows', 'rows'"):
            await stream.to_thread(0).__anext__()
        with pytest.raises(BackendError, match="'rows', 'rows'"):
            await work.to_thread()
        gate.opened.set()
        while any(call.state == "stuck in an abandoned thread" for call in s.tree()):
            await anyio.sleep(0.001)
        assert await work.to_thread() == 1


@pytest.mark.parametrize("how", ["step", "step in place", "close"])
async def test_what_surrounds_an_abandoned_stream_is_left_once_in_its_thread(gate: Gate, how: str) -> None:
    said: list[str] = []

    class Surrounding:
        @hook_impl
        @contextmanager
        def activate(self, metadata: Any) -> Iterator[None]:
            if metadata.name != "rows":
                yield
                return
            mine = threading.get_ident()
            said.append("entered")
            try:
                yield
            finally:
                said.append("left" if threading.get_ident() == mine else "left elsewhere")

    closed = threading.Event()

    @task(item_timeout=0.1)
    def rows() -> Iterator[int]:
        try:
            if how == "close":
                yield 1
            else:
                gate.hold()
                yield 2
        finally:
            if how == "close":
                gate.hold()
            closed.set()

    def in_place() -> None:
        with rows() as items, pytest.raises(TaskTimeoutError):
            next(items)

    async with session(plugins=[Surrounding()], grace=0.3):
        if how == "step in place":
            await task(wrap_errors=False)(in_place).to_thread()
        elif how == "step":
            async with rows.to_thread() as items:
                with pytest.raises(TaskTimeoutError):
                    await items.__anext__()
        else:
            async with rows.to_thread() as items:
                assert await items.__anext__() == 1
        assert said == ["entered"]
        gate.opened.set()
        await anyio.to_thread.run_sync(closed.wait)
        with anyio.fail_after(LONG):
            while len(said) < 2:
                await anyio.sleep(0.001)
    assert said == ["entered", "left"]


async def test_in_place_on_an_event_loop_it_is_refused(gate: Gate) -> None:
    stream = task(item_timeout=LONG, name="rows")(Rows(gate).items)
    with pytest.raises(
        RuntimeError, match=r"for its item_timeout of 30 s; write: async for item in items.to_thread\(\.\.\.\)"
    ):
        next(stream(1))


def test_in_place_in_a_plain_thread_the_deadline_holds(gate: Gate) -> None:
    rows = Rows(gate)
    stream = task(item_timeout=0.5, name="rows")(rows.items)
    seen: list[int] = []
    with pytest.raises(TaskTimeoutError) as caught:
        for item in stream(1):
            seen.append(item)
            time.sleep(0.7)  # which is the consumer's
    assert seen == [0]
    assert caught.value.scope == "item"
    gate.opened.set()
    assert rows.closed.wait(5)
    assert rows.said == ["ThreadCancelled"]


def test_in_place_it_is_a_stream_like_any_other() -> None:
    @task(item_timeout=LONG)
    def echo(got: Any) -> Iterator[Any]:
        mine = threading.get_ident()
        while True:
            try:
                got = yield got
            except KeyError as exc:
                got = exc
            assert threading.get_ident() == mine

    error = KeyError()
    with echo("begun") as items:
        assert next(items) == "begun"
        assert items.send("more") == "more"
        assert items.throw(error) is error
        stranger = ValueError()
        with pytest.raises(ValueError) as caught:
            items.throw(stranger)
        assert caught.value is stranger
        with pytest.raises(StopIteration):
            next(items)
    assert list(task(item_timeout=LONG)(lambda: (yield 1))()) == [1]
    echo("never begun").close()
    next(echo("dropped"))


def test_in_place_a_close_has_grace_seconds(gate: Gate, caplog: pytest.LogCaptureFixture) -> None:
    @task(item_timeout=LONG)
    def stubborn() -> Iterator[int]:
        try:
            yield 1
        finally:
            gate.hold()

    with pytest.warns(ResourceWarning, match="in 'stubborn'"), session(grace=0.05), stubborn() as items:
        next(items)
    assert "stream 'stubborn' had not closed after 0.05 s" in caplog.text


def test_in_place_an_interrupt_comes_out_as_itself(gate: Gate) -> None:
    @task(item_timeout=LONG)
    def rows() -> Iterator[int]:
        time.sleep(0.3)  # until the other waits: Python notices no signal that comes the moment before
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)  # as Ctrl-C does
        gate.hold()
        yield 1

    stream = rows()
    with pytest.raises(KeyboardInterrupt):
        next(stream)
    gate.opened.set()
    del stream  # whichever moment it was


async def test_a_worker_thread_steps_one_in_place_with_deadlines_that_hold(gate: Gate) -> None:
    """Its own place is not held by the thread that waits, and the stream's thread may go to the event loop."""

    @task
    async def there(number: int) -> int:
        await checkpoint()
        return 2 * number

    @task(item_timeout=LONG)
    def rows() -> Iterator[int]:
        for number in range(3):
            yield there.from_thread(number)

    stuck = task(item_timeout=0.1, name="stuck")(Rows(gate).items)

    @task(wrap_errors=False)
    def consume() -> list[int]:
        with pytest.raises(TaskTimeoutError):
            next(stuck(0))
        return list(rows())

    with pytest.warns(ResourceWarning, match="in 'stuck'"):
        async with session(max_threads=2, grace=0.1):
            assert await consume.to_thread() == [0, 2, 4]
    assert await consume.to_thread() == [0, 2, 4]
    gate.opened.set()


async def test_a_session_closes_one_in_place_that_its_threads_have_left_open() -> None:
    closed = threading.Event()

    @task(item_timeout=LONG)
    def rows() -> Iterator[int]:
        try:
            yield 1
            yield 2
        finally:
            closed.set()

    kept: list[Any] = []

    @task
    def leave() -> None:
        kept.append(rows())
        assert next(kept[0]) == 1

    async with session():
        await leave.to_thread()
        assert not closed.is_set()
    assert closed.is_set()
    assert next(kept[0], "ended") == "ended"
