"""Streams: stepped by their consumer, in a context of their own."""

import contextlib
import contextvars
import gc
import logging
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import anyio
import pytest
from anyio.lowlevel import checkpoint

from daglite import AsyncTaskStream, SyncTaskStream, check_cancelled, current_task, gather_tasks, session, task
from daglite.events import ItemYielded, TaskCancelled, TaskFailed, TaskStarted, TaskSucceeded
from daglite.exceptions import SessionError, TaskError
from tests.test_events import Recorder

variable = contextvars.ContextVar("variable", default="outside")


@task
async def count(to: int) -> AsyncIterator[int]:
    for number in range(to):
        await checkpoint()
        yield number


@task
def count_sync(to: int) -> Iterator[int]:
    yield from range(to)


class Closing:
    """A stream that notes how it ends, with an awaiting `finally`."""

    def __init__(self) -> None:
        self.closed = 0

    async def __call__(self) -> AsyncIterator[int]:
        try:
            for number in range(100):
                yield number
        finally:
            await checkpoint()
            self.closed += 1


def test_generators_become_streams() -> None:
    assert type(count) is AsyncTaskStream
    assert type(count_sync) is SyncTaskStream
    assert (count.is_async, count.is_generator) == (True, True)
    assert (count_sync.is_async, count_sync.is_generator) == (False, True)
    assert type(task(Closing())) is AsyncTaskStream


async def test_streams_yield_what_their_functions_yield() -> None:
    assert [number async for number in count(3)] == [0, 1, 2]
    assert list(count_sync(3)) == [0, 1, 2]
    assert [number async for number in count_sync.to_thread(3)] == [0, 1, 2]
    assert [number async for number in count.partial(to=2)()] == [0, 1]
    assert list(count_sync.partial(2)()) == [0, 1]


async def test_streams_of_methods() -> None:
    class Shelf:
        def __init__(self, books: int) -> None:
            self.books = books

        @task
        async def each(self) -> AsyncIterator[int]:
            for book in range(self.books):
                yield book

        @task
        def each_sync(self) -> Iterator[int]:
            yield from range(self.books)

    shelf = Shelf(2)
    assert [book async for book in shelf.each()] == [0, 1]
    assert list(shelf.each_sync()) == [0, 1]
    assert [book async for book in shelf.each_sync.to_thread()] == [0, 1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"retries": 1}, "'count' is a generator: retries=1 does not apply to streams; a stream cannot start over"),
        ({"retry_delay": 0.5}, "retry_delay=0.5 does not apply to streams"),
        ({"retry_on": OSError}, "does not apply to streams; a stream cannot start over"),
        ({"timeout": 3}, "timeout=3 does not apply to streams; use item_timeout="),
    ],
)
def test_streams_have_neither_retries_nor_a_timeout(options: dict[str, Any], message: str) -> None:
    for stream in (count, count_sync):
        with pytest.raises(ValueError, match=message.replace("count", stream.name)):
            task(**options)(stream.func)
        with pytest.raises(ValueError, match="does not apply to streams"):
            stream.with_options(**options)


async def test_wrong_arguments_are_an_error_when_called() -> None:
    for call in (lambda: count(), lambda: count_sync(), lambda: count_sync.to_thread()):  # type: ignore[call-arg]
        with pytest.raises(TypeError, match="missing 1 required positional argument: 'to'"):
            call()


async def test_what_a_stream_sets_stays_inside() -> None:
    seen: list[str] = []

    @task
    async def setting() -> AsyncIterator[str]:
        token = variable.set("inside")
        try:
            while True:
                await checkpoint()
                yield variable.get()
        finally:
            seen.append(variable.get())
            variable.reset(token)

    @task
    def setting_sync() -> Iterator[str]:
        token = variable.set("inside")
        try:
            while True:
                yield variable.get()
        finally:
            seen.append(variable.get())
            variable.reset(token)

    variable.set("mine")
    async with setting() as items:
        assert await items.__anext__() == "inside"
        assert variable.get() == "mine"
        assert await items.__anext__() == "inside"
    with setting_sync() as sync_items:
        assert next(sync_items) == "inside"
        assert variable.get() == "mine"
    async with setting_sync.to_thread() as items:
        assert await items.__anext__() == "inside"
        assert variable.get() == "mine"
    assert seen == ["inside"] * 3


async def test_a_stream_sees_the_variables_as_they_were_when_it_was_opened() -> None:
    @task
    async def look() -> AsyncIterator[str]:
        while True:
            yield variable.get()

    variable.set("before the call")
    items = look()
    variable.set("at the first step")
    assert await items.__anext__() == "at the first step"
    variable.set("later")
    assert await items.__anext__() == "at the first step"
    await items.aclose()


async def test_the_stream_is_the_current_task_inside_only() -> None:
    @task
    async def look() -> AsyncIterator[Any]:
        yield current_task()
        yield await inner()

    @task
    async def inner() -> Any:
        return current_task()

    async with look() as items:
        me = await items.__anext__()
        assert (me.name, me.is_generator, me.is_async) == ("look", True, True)
        assert current_task() is None
        assert (await items.__anext__()).parent_id == me.id


async def test_child_tasks_scopes_and_threads_within_a_step_work() -> None:
    @task
    async def busy() -> AsyncIterator[str]:
        variable.set("inside")
        for _ in range(2):
            async with anyio.create_task_group() as group:
                group.start_soon(checkpoint)
            with anyio.move_on_after(0.001):
                await anyio.sleep_forever()
            yield await anyio.to_thread.run_sync(variable.get)

    assert [item async for item in busy()] == ["inside", "inside"]


async def test_an_error_is_a_task_error_at_the_consumer() -> None:
    @task
    async def fail() -> AsyncIterator[int]:
        yield 1
        raise ValueError("no")

    @task
    def fail_sync() -> Iterator[int]:
        yield 1
        raise ValueError("no")

    for items in (fail(), fail_sync.to_thread()):
        assert await items.__anext__() == 1
        with pytest.raises(TaskError, match="failed after 1 item with error: ValueError: no"):
            await items.__anext__()
        with pytest.raises(StopAsyncIteration):
            await items.__anext__()
    sync_items = fail_sync()
    assert next(sync_items) == 1
    with pytest.raises(TaskError, match="'fail_sync' failed after 1 item with error: ValueError: no"):
        next(sync_items)
    assert list(sync_items) == []
    with pytest.raises(ValueError, match="no"):
        list(fail_sync.with_options(wrap_errors=False)())


async def test_every_stream_has_one_terminal_event() -> None:
    seen = Recorder()

    @task
    async def fail() -> AsyncIterator[int]:
        yield 1
        raise ValueError("no")

    @task
    async def hang() -> AsyncIterator[int]:
        yield 1
        await anyio.sleep_forever()

    async with session() as s:
        s.watch(seen.watch)
        assert [number async for number in count(2)] == [0, 1]
        assert list(count_sync(1)) == [0]
        assert [number async for number in count_sync.to_thread(1)] == [0]
        with pytest.raises(TaskError):
            async for _ in fail():
                pass
        with anyio.CancelScope() as scope:
            async for _ in hang():
                scope.cancel()
        for stream in (count(9), count_sync.to_thread(9)):
            async with stream as items:
                await items.__anext__()
        with count_sync(9) as sync_items:
            next(sync_items)
    events = [event for event in seen.events if not isinstance(event, ItemYielded)][:-1]
    assert [type(event) for event in events[0::2]] == [TaskStarted] * 8
    ends: list[Any] = events[1::2]
    assert [
        (type(end), end.metadata.name, getattr(end, "closed", None), getattr(end, "items", None)) for end in ends
    ] == [
        (TaskSucceeded, "count", False, 2),
        (TaskSucceeded, "count_sync", False, 1),
        (TaskSucceeded, "count_sync", False, 1),
        (TaskFailed, "fail", None, None),
        (TaskCancelled, "hang", None, None),
        (TaskSucceeded, "count", True, 1),
        (TaskSucceeded, "count_sync", True, 1),
        (TaskSucceeded, "count_sync", True, 1),
    ]
    assert [event.index for event in seen.of(ItemYielded)] == [0, 1, 0, 0, 0, 0, 0, 0, 0]


async def test_async_with_closes_a_stream_at_once() -> None:
    closing = Closing()
    async with task(closing)() as items:
        async for _ in items:
            break
        assert closing.closed == 0
    assert closing.closed == 1
    await items.aclose()
    assert closing.closed == 1


async def test_a_stream_that_was_never_begun_leaves_nothing() -> None:
    seen = Recorder()
    closing = Closing()
    async with session() as s:
        s.watch(seen.watch)
        items = task(closing)()
        await items.aclose()
        assert [number async for number in items] == []
        count_sync(3).close()
        await count_sync.to_thread(3).aclose()
        del items
    assert seen.told == ["SessionEnded"]
    assert closing.closed == 0


@pytest.mark.parametrize("keep", [False, True])
async def test_after_a_break_the_session_closes_the_stream(keep: bool, caplog: pytest.LogCaptureFixture) -> None:
    closing = Closing()
    kept: list[Any] = []
    seen = Recorder()
    async with session() as s:
        s.watch(seen.watch)
        for _ in range(3):
            items = task(name="dropped")(closing)()
            if keep:
                kept.append(items)
            async for _ in items:
                break
            del items
        gc.collect()
        async for _ in count_sync.to_thread(5):
            break
        for _ in count_sync(5):
            break
        if keep:
            assert closing.closed == 0
    assert closing.closed == 3
    assert [event.closed for event in seen.of(TaskSucceeded)] == [True] * 5
    assert caplog.records == []


async def test_a_dropped_stream_is_closed_while_the_session_goes_on() -> None:
    closed = anyio.Event()

    @task
    async def dropped() -> AsyncIterator[int]:
        try:
            yield 1
        finally:
            await checkpoint()
            closed.set()

    async with session():
        async for _ in dropped():
            break
        gc.collect()
        await closed.wait()


async def test_a_stream_that_fails_to_close_after_a_break_is_logged_and_harms_nobody(
    caplog: pytest.LogCaptureFixture,
) -> None:
    @task
    async def broken() -> AsyncIterator[int]:
        try:
            yield 1
        finally:
            raise ValueError("in the close")

    seen = Recorder()
    async with session() as s:
        s.watch(seen.watch)
        items = broken()
        await items.__anext__()
    (record,) = caplog.records
    assert "stream 'broken' failed to close" in record.getMessage()
    assert [event.error for event in seen.of(TaskFailed)] == ["ValueError: in the close"]
    caplog.clear()

    @task
    def broken_sync() -> Iterator[int]:
        try:
            yield 1
        finally:
            raise ValueError("in the close")

    for _ in broken_sync():
        break
    gc.collect()
    assert "stream 'broken_sync' failed to close" in caplog.text


async def test_a_stream_that_never_closes_is_given_up_after_grace(caplog: pytest.LogCaptureFixture) -> None:
    @task
    async def stuck() -> AsyncIterator[int]:
        try:
            yield 1
        finally:
            await anyio.sleep_forever()

    async with session(name="short", grace=0.01):
        items = stuck()
        await items.__anext__()
    assert "session 'short': stream 'stuck' had not closed after 0.01 s" in caplog.text


async def test_a_stream_that_never_closes_does_not_keep_the_others_from_closing() -> None:
    seen = Recorder()
    closed: list[int] = []

    @task
    async def stuck(number: int) -> AsyncIterator[int]:
        try:
            yield 1
        finally:
            try:
                if number < 2:
                    await anyio.sleep_forever()
            finally:
                closed.append(number)

    async with session(grace=0.01) as s:
        s.watch(seen.watch)
        streams = [stuck(number) for number in range(4)]
        for items in streams:
            await items.__anext__()
    assert closed == [0, 1, 2, 3]
    assert [type(event) for event in seen.events[8:12]] == [TaskCancelled] * 2 + [TaskSucceeded] * 2


async def test_what_ends_a_program_in_a_close_comes_out_of_the_session() -> None:
    class Stop(BaseException):
        pass

    @task
    async def stop() -> AsyncIterator[int]:
        try:
            yield 1
        finally:
            raise Stop

    with pytest.raises(Stop):
        async with session() as s:
            handle = s.start_soon(checkpoint)
            items = stop()
            await items.__anext__()
    await handle


async def test_streams_are_closed_though_the_session_was_cancelled() -> None:
    closing = Closing()
    with anyio.CancelScope() as scope:
        async with session():
            items = task(closing)()
            await items.__anext__()
            scope.cancel()
            await checkpoint()
    assert closing.closed == 1


async def test_a_second_step_at_the_same_time_is_refused() -> None:
    started, go_on = anyio.Event(), anyio.Event()

    @task
    async def slow() -> AsyncIterator[int]:
        started.set()
        await go_on.wait()
        yield 1

    items = slow()
    got: list[int] = []

    async def step() -> None:
        got.append(await items.__anext__())

    async with anyio.create_task_group() as group:
        group.start_soon(step)
        await started.wait()
        with pytest.raises(RuntimeError, match="stream 'slow' was stepped while a step of it runs elsewhere"):
            await items.__anext__()
        with pytest.raises(RuntimeError, match="stream 'slow' was closed while a step of it runs elsewhere"):
            await items.aclose()
        go_on.set()
    assert got == [1]
    await items.aclose()


async def test_a_stream_may_be_stepped_and_closed_from_any_task() -> None:
    token: list[Any] = []

    @task
    async def setting() -> AsyncIterator[int]:
        token.append(variable.set("inside"))
        try:
            for number in range(9):
                yield number
        finally:
            await checkpoint()
            variable.reset(token.pop())

    got: list[int] = []
    items = setting()

    async def step() -> None:
        got.append(await items.__anext__())

    for _ in range(3):
        async with anyio.create_task_group() as group:
            group.start_soon(step)
    async with anyio.create_task_group() as group:
        group.start_soon(items.aclose)
    assert got == [0, 1, 2]
    assert token == []


async def test_two_closers_of_one_stream_are_one_close() -> None:
    closing, go_on = anyio.Event(), anyio.Event()
    closed = 0

    @task
    async def slow() -> AsyncIterator[int]:
        nonlocal closed
        try:
            yield 1
        finally:
            closing.set()
            await go_on.wait()
            closed += 1

    items = slow()
    await items.__anext__()
    async with anyio.create_task_group() as group:
        group.start_soon(items.aclose)
        await closing.wait()
        group.start_soon(items.aclose)
        await checkpoint()
        go_on.set()
    assert closed == 1


@pytest.mark.parametrize("where", ["async", "sync", "thread"])
async def test_values_and_errors_can_be_sent_in(where: str) -> None:
    @task
    async def echo() -> AsyncIterator[Any]:
        value: Any = None
        while True:
            try:
                value = yield value
            except KeyError as error:
                value = error

    @task
    def echo_sync() -> Iterator[Any]:
        value: Any = None
        while True:
            try:
                value = yield value
            except KeyError as error:
                value = error

    error = KeyError("caught")
    foreign = LookupError("let through")
    if where == "sync":
        items = echo_sync()
        assert next(items) is None
        assert items.send(3) == 3
        assert items.throw(error) is error
        assert type(items.throw(KeyError, "three", None)) is KeyError
        with pytest.raises(LookupError) as caught:
            items.throw(foreign)
        assert list(items) == []
    else:
        async_items = echo() if where == "async" else echo_sync.to_thread()
        assert await async_items.__anext__() is None
        assert await async_items.asend(3) == 3
        assert await async_items.athrow(error) is error
        assert type(await async_items.athrow(KeyError)) is KeyError
        with pytest.raises(LookupError) as caught:
            await async_items.athrow(foreign)
        assert [item async for item in async_items] == []
    assert caught.value is foreign


async def test_a_stream_makes_an_async_context_manager() -> None:
    """What a web framework does with a dependency that yields: the endpoint's error is thrown in."""
    seen: list[BaseException] = []

    @task
    async def connection() -> AsyncIterator[str]:
        try:
            yield "open"
        except ValueError as error:
            seen.append(error)
            raise

    manager: Callable[[], Any] = contextlib.asynccontextmanager(connection)
    with pytest.raises(ValueError, match="endpoint"):
        async with manager() as value:
            assert value == "open"
            raise ValueError("endpoint")
    assert [str(error) for error in seen] == ["endpoint"]


async def test_a_stream_in_a_session_that_has_ended_is_refused() -> None:
    async with session(name="gone"):
        context = contextvars.copy_context()
    with pytest.raises(SessionError, match="'count_sync' was called in session 'gone', which has ended"):
        context.run(list, count_sync(3))


async def test_streams_are_collected_in_fan_outs_and_background_calls() -> None:
    seen = Recorder()
    async with session() as s:
        s.watch(seen.watch)
        assert await gather_tasks(count, [1, 2]) == [[0], [0, 1]]
        assert await gather_tasks(count_sync, [1, 2]) == [[0], [0, 1]]
        handle = s.start_soon(count, 2)
        assert await handle == [0, 1]
        assert await s.start_soon(count_sync, 1) == [0]
    names = sorted({event.metadata.name for event in seen.of(TaskSucceeded)})
    assert names == ["count", "count[0]", "count[1]", "count_sync", "count_sync[0]", "count_sync[1]"]
    assert handle.id in {event.metadata.id for event in seen.of(TaskSucceeded) if event.metadata.is_background}


async def test_a_sync_stream_has_one_thread_from_first_to_last() -> None:
    threads: list[int] = []

    @task
    def where() -> Iterator[int]:
        try:
            for _ in range(20):
                yield threading.get_ident()
        finally:
            threads.append(threading.get_ident())

    async with session(max_threads=1):
        streams = [where.to_thread() for _ in range(3)]  # they are outside of `max_threads`
        seen: list[set[int]] = []
        for items in streams:
            seen.append({await items.__anext__() for _ in range(5)})
        for items in streams:
            await items.aclose()
    assert [len(each) for each in seen] == [1, 1, 1]
    assert [{thread} for thread in threads] == seen
    assert threading.get_ident() not in threads


async def test_rows_of_sqlite_come_from_concurrent_streams() -> None:
    import sqlite3

    @task
    def rows(start: int) -> Iterator[int]:
        with contextlib.closing(sqlite3.connect(":memory:")) as connection:
            connection.execute("create table numbers (number)")
            connection.executemany("insert into numbers values (?)", [(start + n,) for n in range(50)])
            for (number,) in connection.execute("select number from numbers order by number"):
                yield number

    results: dict[int, list[int]] = {}

    async def read(start: int) -> None:
        results[start] = [number async for number in rows.to_thread(start)]

    async with anyio.create_task_group() as group:
        for start in range(0, 400, 100):
            group.start_soon(read, start)
    assert results == {start: list(range(start, start + 50)) for start in range(0, 400, 100)}


async def test_cancelling_a_step_in_a_thread_waits_for_it_and_closes_the_stream() -> None:
    started, go_on = threading.Event(), threading.Event()
    closed: list[bool] = []
    seen = Recorder()

    @task
    def slow() -> Iterator[int]:
        try:
            started.set()
            assert go_on.wait(20)
            yield 1
            yield 2
        finally:
            closed.append(True)

    async def cancel() -> None:
        await anyio.to_thread.run_sync(started.wait, 20)
        scope.cancel()
        go_on.set()

    async with session() as s:
        s.watch(seen.watch)
        async with anyio.create_task_group() as group:
            group.start_soon(cancel)
            with anyio.CancelScope() as scope:
                async for _ in slow.to_thread():
                    raise AssertionError("an item came")
        assert scope.cancelled_caught
        assert closed == [True]
    assert seen.told == ["TaskStarted slow", "TaskCancelled slow", "SessionEnded"]


async def test_a_cancelled_step_that_yields_all_the_same_is_closed_undisturbed() -> None:
    started, go_on = threading.Event(), threading.Event()
    closed: list[bool] = []

    @task
    def slow() -> Iterator[int]:
        try:
            started.set()
            assert go_on.wait(20)
            yield 1
        finally:
            check_cancelled()
            closed.append(True)

    async def read() -> None:
        async for _ in slow.to_thread():
            raise AssertionError("an item came")

    with anyio.CancelScope() as scope:
        async with anyio.create_task_group() as group:
            group.start_soon(read)
            await anyio.to_thread.run_sync(started.wait, 20)
            scope.cancel()
            go_on.set()
    assert closed == [True]


async def test_a_thread_of_a_stream_that_is_dropped_outside_a_session_ends() -> None:
    closed = threading.Event()

    @task
    def dropped() -> Iterator[int]:
        try:
            yield 1
        finally:
            closed.set()

    async for _ in dropped.to_thread():
        break
    gc.collect()
    assert await anyio.to_thread.run_sync(closed.wait, 20)


def test_a_dropped_stream_is_closed_in_an_event_loop_that_anyio_has_not_started() -> None:
    import asyncio

    closed: list[str] = []

    @task
    async def dropped() -> AsyncIterator[int]:
        try:
            yield 1
        finally:
            await asyncio.sleep(0)
            closed.append("async")

    @task
    def dropped_sync() -> Iterator[int]:
        try:
            yield 1
        finally:
            closed.append("sync")

    async def main() -> None:
        async with session():
            async for _ in dropped():
                break
            async for _ in dropped_sync.to_thread():
                break
            while len(closed) < 2:
                await asyncio.sleep(0.001)

    asyncio.run(main())
    assert sorted(closed) == ["async", "sync"]


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_native_cancellation_of_a_step_in_a_thread_closes_the_stream() -> None:
    import asyncio

    started, go_on = threading.Event(), threading.Event()
    closed: list[bool] = []

    @task
    def slow() -> Iterator[int]:
        try:
            started.set()
            assert go_on.wait(20)
            yield 1
        finally:
            closed.append(True)

    async def read() -> None:
        async for _ in slow.to_thread():
            raise AssertionError("an item came")

    for times in (1, 2):
        started.clear()
        go_on.clear()
        async with session():
            running = asyncio.create_task(read())
            await anyio.to_thread.run_sync(started.wait, 20)
            for _ in range(times):
                running.cancel()
                await asyncio.sleep(0)
            go_on.set()
            with pytest.raises(asyncio.CancelledError):
                await running
        assert closed == [True] * times


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
async def test_what_ends_a_program_is_not_wrapped(error: type[BaseException]) -> None:
    @task
    async def stop() -> AsyncIterator[int]:
        yield 1
        raise error

    items = stop()
    await items.__anext__()
    with pytest.raises(error):
        await items.__anext__()


async def test_nothing_is_logged_by_the_event_loop(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        async with session():
            async for _ in task(Closing())():
                break
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


class Mine(Exception):
    """What is thrown into a stream, or raised by one."""


async def thrown_in_by_a_context_manager(stream: Any) -> None:
    with contextlib.suppress(Mine):
        async with contextlib.asynccontextmanager(stream)(False):
            raise Mine


async def left_early(stream: Any) -> None:
    async with stream(False) as items:
        await items.__anext__()


async def failed(stream: Any) -> None:
    async with stream(True) as items:
        await items.__anext__()
        with pytest.raises(TaskError):
            await items.__anext__()


@pytest.mark.parametrize("options", [{}, {"pump": True}, {"item_timeout": 60}])
@pytest.mark.parametrize("scenario", [thrown_in_by_a_context_manager, left_early, failed])
async def test_nothing_of_a_stream_is_left_in_cycles(options: dict[str, Any], scenario: Any) -> None:
    @task(**options)
    async def rows(fail: bool) -> AsyncIterator[int]:
        yield 1
        if fail:
            raise Mine

    async with session():
        await scenario(rows)
        gc.collect()
        gc.disable()
        try:
            for _ in range(20):
                await scenario(rows)
            assert gc.collect() < 20  # less than one for each
        finally:
            gc.enable()


@pytest.mark.parametrize("options", [{}, {"item_timeout": 60}])
def test_nothing_of_a_sync_stream_is_left_in_cycles(options: dict[str, Any]) -> None:
    @task(**options)
    def rows() -> Iterator[int]:
        yield 1

    def throw() -> None:
        stream = rows()
        next(stream)
        with pytest.raises(Mine):
            stream.throw(Mine())

    throw()
    gc.collect()
    gc.disable()
    try:
        for _ in range(20):
            throw()
            assert list(rows()) == [1]
        assert gc.collect() < 20
    finally:
        gc.enable()
