"""Async streams that are stepped from threads: each lives in a task of its own in the event loop."""

import contextlib
import gc
import logging
import threading
import warnings
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextvars import ContextVar
from typing import Any

import anyio
import anyio.to_thread
import pytest
from anyio.lowlevel import checkpoint

from daglite import current_session, current_task, session, task
from daglite.events import ItemYielded, TaskCancelled, TaskFailed, TaskStarted, TaskSucceeded
from daglite.exceptions import SessionError, TaskError, TaskTimeoutError
from daglite.plugins import hook_impl
from daglite.sessions import Subscription
from tests.journal import told_of

variable: ContextVar[str] = ContextVar("variable", default="unset")


class Journal:
    """A stream, and what happens to it."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.waits = anyio.Event()
        self.numbers = task(name="numbers")(self._numbers)

    async def _numbers(self, count: int, hang: bool = False) -> AsyncIterator[int]:
        async with told_of(self.said):
            for number in range(count):
                await checkpoint()
                yield number
            if hang:
                self.waits.set()
                await anyio.sleep_forever()


@pytest.fixture
def journal() -> Journal:
    return Journal()


@pytest.fixture(params=["outside", "session"])
def inside(request: pytest.FixtureRequest) -> Any:
    """A session to be in, or nothing."""

    class Nothing:
        async def __aenter__(self) -> None: ...
        async def __aexit__(self, *exc_info: object) -> None: ...

    return session() if request.param == "session" else Nothing()


def in_thread(func: Callable[[], Any]) -> Awaitable[Any]:
    """What a function returns, as a task in a worker thread."""
    call: Any = task(name="in_thread", wrap_errors=False)(func)
    return call.to_thread()  # type: ignore[no-any-return]


async def test_a_thread_iterates_over_it_to_its_end(inside: Any, journal: Journal) -> None:
    async with inside:
        assert await in_thread(lambda: list(journal.numbers.from_thread(3))) == [0, 1, 2]
        assert journal.said == ["cleaned up"]

        def twice() -> list[Any]:
            stream = journal.numbers.from_thread(2)
            return [*stream, *stream, next(stream, "ended")]

        assert await in_thread(twice) == [0, 1, "ended"]


async def test_the_generator_runs_in_the_event_loop_in_one_task(inside: Any) -> None:
    @task
    async def where() -> AsyncIterator[tuple[int, int]]:
        for _ in range(3):
            await checkpoint()
            yield threading.get_ident(), anyio.get_current_task().id

    async with inside:
        seen = await in_thread(lambda: list(where.from_thread()))
    assert len(set(seen)) == 1
    assert seen[0][0] == threading.get_ident()


async def test_it_may_hold_scopes_and_task_groups_across_a_yield(inside: Any) -> None:
    ended: list[str] = []

    @task
    async def numbers() -> AsyncIterator[int]:
        send, receive = anyio.create_memory_object_stream[int]()

        async def produce() -> None:
            with send:
                for number in range(4):
                    await send.send(number)

        with receive, anyio.CancelScope():
            async with anyio.create_task_group() as group:
                group.start_soon(produce)
                try:
                    async for number in receive:
                        yield number
                finally:
                    ended.append("left")

    def first() -> int:
        with numbers.from_thread() as items:
            for number in items:
                return number
        return -1

    async with inside:
        assert await in_thread(lambda: list(numbers.from_thread())) == [0, 1, 2, 3]
        # A close is a group of nothing but `GeneratorExit`, which is as good as one alone.
        assert await in_thread(first) == 0
    assert ended == ["left", "left"]


@pytest.mark.parametrize("how", ["with", "close", "break"])
async def test_an_early_end_runs_what_is_to_be_cleaned_up(inside: Any, journal: Journal, how: str) -> None:
    said_inside: list[str] = []

    def leave_early() -> None:
        stream = journal.numbers.from_thread(3)
        if how == "with":
            with stream as items:
                assert next(items) == 0
        else:
            for _ in stream:
                break
            if how == "close":
                stream.close()
                stream.close()
        said_inside.extend(journal.said)
        if how != "break":
            assert list(stream) == []

    async with inside:
        await in_thread(leave_early)
    assert said_inside == ([] if how == "break" else ["cleaned up"])
    assert journal.said == ["cleaned up"]


async def test_a_stream_that_is_never_stepped_never_begins(inside: Any, journal: Journal) -> None:
    def look() -> None:
        journal.numbers.from_thread(3).close()
        with journal.numbers.from_thread(3):
            pass
        journal.numbers.from_thread(3)

    async with inside:
        await in_thread(look)
    assert journal.said == []


async def test_an_error_comes_out_in_the_thread_and_ends_it(inside: Any) -> None:
    @task
    async def fail() -> AsyncIterator[int]:
        yield 1
        raise ValueError("no")

    def look() -> list[Any]:
        stream = fail.from_thread()
        seen: list[Any] = [next(stream)]
        with pytest.raises(TaskError, match="'fail' failed after 1 item with error: ValueError: no") as caught:
            next(stream)
        return [*seen, type(caught.value.__cause__), *stream]

    async with inside:
        assert await in_thread(look) == [1, ValueError]


async def test_values_are_sent_and_errors_thrown_into_it(inside: Any) -> None:
    @task
    async def echo() -> AsyncIterator[Any]:
        sent: Any = None
        while True:
            try:
                sent = yield sent
            except KeyError as error:
                sent = repr(error)

    def look() -> list[Any]:
        with echo.from_thread() as stream:
            seen = [next(stream), stream.send(4), stream.throw(KeyError("mine"))]
            with pytest.raises(LookupError, match="mine"):
                stream.throw(LookupError, LookupError("mine"), None)
            return [*seen, *stream]

    async with inside:
        assert await in_thread(look) == [None, 4, "KeyError('mine')"]


async def test_variables_stay_inside(inside: Any) -> None:
    @task
    async def change() -> AsyncIterator[str]:
        token = variable.set("inside")
        try:
            yield variable.get()
            yield variable.get()
        finally:
            variable.reset(token)
        yield variable.get()

    def look() -> list[str]:
        variable.set("thread")
        seen: list[str] = []
        for item in change.from_thread():
            seen += [item, variable.get()]
        return seen

    async with inside:
        assert await in_thread(look) == ["inside", "thread", "inside", "thread", "thread", "thread"]


async def test_several_are_open_side_by_side(inside: Any, journal: Journal) -> None:
    def look() -> list[Any]:
        return list(zip(*[journal.numbers.from_thread(5) for _ in range(3)], strict=True))

    async with inside:
        assert await in_thread(look) == [(number,) * 3 for number in range(5)]


async def test_a_thread_gives_up_its_place_while_it_waits_for_an_item() -> None:
    @task
    def double(number: int) -> int:
        return 2 * number

    @task
    async def doubles() -> AsyncIterator[int]:
        for number in range(3):
            yield await double.to_thread(number)

    async with session(max_threads=1):
        assert await in_thread(lambda: list(doubles.from_thread())) == [0, 2, 4]


# What is told of it


async def test_events_and_hooks_are_those_of_any_stream() -> None:
    told: list[str] = []
    inside: list[str] = []

    class Plugin:
        @hook_impl
        def activate(self, metadata: Any) -> Any:
            @contextlib.contextmanager
            def current() -> Iterator[None]:
                token = variable.set(metadata.name)
                yield
                variable.reset(token)

            return current()

    @task
    async def numbers() -> AsyncIterator[int]:
        inside.append(variable.get())
        yield 1
        inside.append(variable.get())
        yield 2

    @task
    def consume() -> int:
        assert variable.get() == "consume"
        return sum(numbers.from_thread())

    async def follow(events: Subscription) -> None:
        async for event in events:
            if isinstance(event, (TaskStarted, TaskSucceeded, ItemYielded)):
                told.append(f"{type(event).__name__} {event.metadata.name}")

    async with session(plugins=[Plugin()]) as s:
        s.watch(follow)
        assert await consume.to_thread() == 3
    assert told == [
        "TaskStarted consume",
        "TaskStarted numbers",
        "ItemYielded numbers",
        "ItemYielded numbers",
        "TaskSucceeded numbers",
        "TaskSucceeded consume",
    ]
    assert inside == ["numbers", "numbers"]


async def test_parents_and_sessions_are_known_there() -> None:
    @task
    async def look() -> AsyncIterator[Any]:
        yield current_task(), current_session()

    @task
    def outer() -> Any:
        return current_task(), *next(look.from_thread())

    async with session() as s:
        of_outer, of_inner, current = await outer.to_thread()
        assert of_inner.parent_id == of_outer.id
        assert current is s


# Cancellation


@pytest.mark.parametrize("timeout", [None, 1000])
async def test_a_step_is_cancelled_with_the_thread_and_cancels_the_generator(
    inside: Any, journal: Journal, timeout: float | None
) -> None:
    heard: list[BaseException] = []

    def consume() -> None:
        try:
            list(journal.numbers.from_thread(1, hang=True))
        except BaseException as exc:
            heard.append(exc)
            raise

    async with inside:
        async with anyio.create_task_group() as group:
            group.start_soon(task(timeout=timeout)(consume).to_thread)
            await journal.waits.wait()
            group.cancel_scope.cancel()
        assert journal.said == ["cancelled", "cleaned up"]
        while not heard:  # an abandoned thread hears of it on its own
            await anyio.sleep(0.001)
    assert not isinstance(heard[0], Exception)


@pytest.mark.usefixtures("virtual_clock")
async def test_at_its_deadline_an_abandoned_thread_steps_nothing_any_more(inside: Any, journal: Journal) -> None:
    async with inside:
        with pytest.raises(TaskTimeoutError):
            await task(timeout=1)(lambda: list(journal.numbers.from_thread(1, hang=True))).to_thread()
        assert journal.said == ["cancelled", "cleaned up"]


async def test_what_an_abandoned_thread_has_left_open_is_closed(inside: Any, journal: Journal) -> None:
    gate = threading.Event()
    kept: list[Any] = []

    @task(timeout=0.5)
    def hold() -> None:
        kept.append(journal.numbers.from_thread(3))
        next(kept[0])
        gate.wait(20)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        async with inside:
            with pytest.raises(TaskTimeoutError):
                await hold.to_thread()
            gate.set()
    assert journal.said == ["cleaned up"]


async def test_a_cancellation_is_reported_as_one(journal: Journal) -> None:
    ends: list[str] = []

    async def follow(events: Subscription) -> None:
        async for event in events:
            if isinstance(event, (TaskSucceeded, TaskFailed, TaskCancelled)):
                ends.append(f"{type(event).__name__} {event.metadata.name}")

    async with session() as s:
        s.watch(follow)
        async with anyio.create_task_group() as group:
            group.start_soon(task(name="consume")(lambda: list(journal.numbers.from_thread(1, hang=True))).to_thread)
            await journal.waits.wait()
            group.cancel_scope.cancel()
    assert ends == ["TaskCancelled numbers", "TaskCancelled consume"]


async def test_a_failure_while_it_is_cancelled_is_its_failure(inside: Any) -> None:
    waits = anyio.Event()
    heard: list[BaseException] = []

    @task
    async def stubborn() -> AsyncIterator[int]:
        yield 1
        try:
            waits.set()
            await anyio.sleep_forever()
        finally:
            raise ValueError("while cancelled")

    @task(retries=3)
    def consume() -> None:
        try:
            list(stubborn.from_thread())
        except TaskError as error:
            heard.append(error)
            raise

    async with inside:
        with pytest.raises(TaskError, match="'consume' failed after 1 attempt"):
            with anyio.CancelScope() as scope:
                async with anyio.create_task_group() as group:

                    async def call() -> None:
                        try:
                            await consume.to_thread()
                        except TaskError as error:
                            failed.append(error)

                    failed: list[TaskError] = []
                    group.start_soon(call)
                    await waits.wait()
                    scope.cancel()
            raise failed[0]
    assert [repr(error.__cause__) for error in heard] == ["ValueError('while cancelled')"]


@pytest.mark.parametrize("failing", [False, True])
async def test_what_cancels_its_own_scope_between_two_steps_reaches_it_there(inside: Any, failing: bool) -> None:
    suspended = threading.Event()
    go_on, gone = anyio.Event(), anyio.Event()

    @task
    async def numbers() -> AsyncIterator[str]:
        try:
            async with anyio.create_task_group() as group:

                async def child() -> None:
                    await go_on.wait()
                    if failing:
                        raise ValueError("no")
                    group.cancel_scope.cancel()

                group.start_soon(child)
                yield "first"
                await anyio.sleep_forever()
        finally:
            gone.set()
        yield "after the scope"

    def consume() -> list[str]:
        stream = numbers.from_thread()
        seen = [next(stream)]
        suspended.set()
        anyio.from_thread.run(gone.wait)
        return [*seen, *stream]

    async with inside:
        async with anyio.create_task_group() as group:

            async def call() -> None:
                if not failing:
                    assert await in_thread(consume) == ["first", "after the scope"]
                    return
                with pytest.raises(TaskError) as caught:
                    await in_thread(consume)
                assert repr(caught.value.root_cause.exceptions) == "(ValueError('no'),)"  # type: ignore[attr-defined]

            group.start_soon(call)
            await anyio.to_thread.run_sync(suspended.wait)
            go_on.set()


async def test_a_native_cancellation_of_its_task_is_an_error_for_who_steps_it(
    inside: Any, anyio_backend_name: str
) -> None:
    from daglite.exceptions import CallCancelledError

    @task
    async def give_up() -> AsyncIterator[int]:
        yield 1
        if anyio_backend_name == "asyncio":
            import asyncio

            running = asyncio.current_task()
            assert running is not None
            running.cancel()
            await checkpoint()
        else:  # which has no such thing
            raise CallCancelledError("cancelled")

    def consume() -> list[int]:
        stream = give_up.from_thread()
        seen = [next(stream)]
        with pytest.raises((CallCancelledError, TaskError), match="cancelled"):
            next(stream)
        return [*seen, *stream]

    async with inside:
        assert await in_thread(consume) == [1]


# Closing


async def test_a_step_that_waits_when_it_is_closed_elsewhere_finds_its_end(journal: Journal) -> None:
    async with session() as s:

        def consume() -> list[int]:
            stream = journal.numbers.from_thread(1, hang=True)
            streams.append(stream)
            return list(stream)

        streams: list[Any] = []
        call = s.start_soon(task(consume))
        await journal.waits.wait()
        await in_thread(lambda: streams[0].close())
        assert journal.said == ["cancelled", "cleaned up"]
        assert await call == [0]
        assert (s.stats().succeeded, s.stats().cancelled) == (3, 0)
    assert journal.said == ["cancelled", "cleaned up"]


async def test_two_closers_are_one_close(inside: Any) -> None:
    closes: list[str] = []
    may_close = anyio.Event()

    @task
    async def slow() -> AsyncIterator[int]:
        try:
            yield 1
        finally:
            with anyio.CancelScope(shield=True):
                await may_close.wait()
            closes.append("closed")

    async with inside:

        def look() -> None:
            with slow.from_thread() as stream:
                next(stream)
                threads = [threading.Thread(target=contextvars_run(stream.close)) for _ in range(3)]
                for thread in threads:
                    thread.start()
                anyio.from_thread.run_sync(may_close.set)
                for thread in threads:
                    thread.join(20)
                assert closes == ["closed"]

        def contextvars_run(func: Callable[[], None]) -> Callable[[], None]:
            from contextvars import copy_context

            context = copy_context()
            return lambda: context.run(func)

        await in_thread(look)
    assert closes == ["closed"]


async def test_what_fails_while_it_is_closed_is_raised_by_the_close(inside: Any) -> None:
    @task
    async def fail() -> AsyncIterator[int]:
        try:
            yield 1
        finally:
            raise ValueError("while closing")

    def look() -> None:
        with fail.from_thread() as stream:
            next(stream)

    async with inside:
        with pytest.raises(TaskError, match="ValueError: while closing"):
            await in_thread(look)


@pytest.mark.usefixtures("virtual_clock")
async def test_a_close_has_grace_seconds(caplog: pytest.LogCaptureFixture) -> None:
    @task
    async def slow() -> AsyncIterator[int]:
        try:
            yield 1
        finally:
            await anyio.sleep(1000)

    def look() -> None:
        with slow.from_thread() as stream:
            next(stream)

    async with session(grace=0.05):
        await in_thread(look)
    assert caplog.messages == ["stream 'slow' had not closed after 0.05 s"]


async def test_what_was_dropped_is_closed_by_the_session_soon(journal: Journal) -> None:
    async with session() as s:
        assert await in_thread(lambda: next(journal.numbers.from_thread(3))) == 0
        gc.collect()
        while s._books.streams:
            await checkpoint()
        assert journal.said == ["cleaned up"]


async def test_a_bind_closes_what_was_opened_under_it(journal: Journal) -> None:
    async with session() as s:

        def work() -> None:
            with s.bind():
                kept.append(journal.numbers.from_thread(3))
                next(kept[0])
            assert journal.said == ["cleaned up"]

        kept: list[Any] = []
        await anyio.to_thread.run_sync(work)
        assert s.stats().succeeded == 1


async def test_a_sync_session_closes_what_its_body_has_opened() -> None:
    for loop in ("asyncio", "trio"):

        def work(loop: Any = loop) -> list[str]:
            journal = Journal()
            with session(event_loop=loop) as s:
                stream = journal.numbers.from_thread(3)
                assert next(stream) == 0
                assert list(journal.numbers.from_thread(2)) == [0, 1]
                assert s.stats().running == 1
            assert list(stream) == []
            return journal.said

        assert await anyio.to_thread.run_sync(work) == ["cleaned up", "cleaned up"]


async def test_a_session_that_is_cancelled_closes_what_is_suspended(journal: Journal) -> None:
    kept: list[Any] = []

    async with session() as s:

        def hold() -> None:
            kept.append(journal.numbers.from_thread(3))
            next(kept[0])

        await in_thread(hold)
        s.cancel()
    assert journal.said == ["cleaned up"]


# Where it is refused


async def test_in_the_event_loops_own_thread_it_is_refused_at_once(inside: Any, journal: Journal) -> None:
    async with inside:
        with pytest.raises(RuntimeError, match=r"'numbers': from_thread\(\) in an event loop's own.*async for item in"):
            journal.numbers.from_thread(3)


def test_a_plain_thread_has_no_event_loop_to_go_to(journal: Journal) -> None:
    with pytest.raises(SessionError, match="'numbers': from_thread.. has no event loop to go to"):
        journal.numbers.from_thread(3)


async def test_where_nothing_would_close_it_it_has_to_be_with(journal: Journal) -> None:
    def look() -> list[int]:
        with pytest.raises(RuntimeError, match="nothing would close it; write: with numbers.from_thread"):
            list(journal.numbers.from_thread(3))
        with journal.numbers.from_thread(3) as items:
            return list(items)

    assert await anyio.to_thread.run_sync(look) == [0, 1, 2]  # a thread that is none of ours
    assert journal.said == ["cleaned up"]


async def test_two_steps_at_once_are_refused(journal: Journal) -> None:
    async with session() as s:

        def consume() -> None:
            stream = journal.numbers.from_thread(0, hang=True)
            streams.append(stream)
            assert list(stream) == []

        streams: list[Any] = []
        s.start_soon(task(consume))
        await journal.waits.wait()
        with pytest.raises(RuntimeError, match="stepped while a step of it runs elsewhere"):
            await in_thread(lambda: next(streams[0]))
        await in_thread(lambda: streams[0].close())


def test_nothing_is_logged(caplog: pytest.LogCaptureFixture, journal: Journal) -> None:
    with caplog.at_level(logging.DEBUG), session() as s:
        list(journal.numbers.from_thread(3))
        next(journal.numbers.from_thread(3))
        call = s.start_soon(task(lambda: list(journal.numbers.from_thread(1, hang=True))))
        while not journal.waits.is_set():
            pass
        s.cancel()
    assert call.cancelled()
    assert [record for record in caplog.records if record.levelno > logging.DEBUG] == []
