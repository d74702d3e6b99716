"""Streams with `pump=True`: their generators live in tasks of their own."""

import logging
import math
import pickle
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from contextvars import ContextVar
from typing import Any

import anyio
import pytest
from anyio.lowlevel import checkpoint
from hypothesis import given
from hypothesis import strategies as st

from daglite import current_task, gather_tasks, session, stream_tasks, task
from daglite.events import TaskCancelled, TaskFailed, TaskSucceeded
from daglite.exceptions import TaskError
from tests.journal import told_of
from tests.tasks_for_pickle import read
from tests.test_events import Recorder

if sys.version_info < (3, 11):
    from exceptiongroup import BaseExceptionGroup

variable: ContextVar[str] = ContextVar("variable", default="unset")


class Journal:
    """A stream that holds a task group across its yields, and what happens to it."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.waits = anyio.Event()
        self.numbers = task(name="numbers", pump=True)(self._numbers)

    async def _numbers(self, count: int = 9, hang: bool = False) -> AsyncIterator[int]:
        here = anyio.get_current_task().id
        async with told_of(self.said), anyio.create_task_group() as group:
            group.start_soon(anyio.sleep_forever)
            for number in range(count):
                await checkpoint()
                assert anyio.get_current_task().id == here
                yield number
            if hang:
                self.waits.set()
                await anyio.sleep_forever()
            group.cancel_scope.cancel()


@pytest.fixture
def journal() -> Journal:
    return Journal()


async def test_it_is_one_of_the_options() -> None:
    assert Journal().numbers.pump
    assert not Journal().numbers.with_options(pump=False).pump


@pytest.mark.parametrize(
    ("pump", "error", "message"),
    [
        (1, TypeError, "pump must be a bool, not 1"),
        (None, TypeError, "pump must be a bool, not None"),
        (True, ValueError, "pump=True is for async generators"),
    ],
)
def test_what_cannot_be_pumped_is_refused(pump: Any, error: type[Exception], message: str) -> None:
    def sync_stream() -> Iterator[int]:
        yield 1

    async def coroutine() -> None: ...

    for func in (sync_stream, coroutine, lambda: 1):
        with pytest.raises(error, match=message):
            task(name="refused", pump=pump)(func)
    with pytest.raises(ValueError, match=r"'refused': .* is a sync generator; .* use to_thread\(\)"):
        task(name="refused", pump=True)(sync_stream)


async def test_outside_of_sessions_it_has_to_be_async_with(journal: Journal) -> None:
    stream = journal.numbers(2)
    with pytest.raises(RuntimeError, match=r"write: async with _numbers\(\.\.\.\) as items"):
        await stream.__anext__()
    assert journal.said == []
    async with stream as items:  # nothing was lost
        assert [number async for number in items] == [0, 1]
    assert journal.said == ["cleaned up"]


async def test_async_with_closes_it_at_once(journal: Journal) -> None:
    async with journal.numbers() as items:
        async for number in items:
            if number == 2:
                break
    assert journal.said == ["cleaned up"]
    with pytest.raises(StopAsyncIteration):
        await items.__anext__()


async def test_one_that_is_never_stepped_never_begins(journal: Journal) -> None:
    await journal.numbers().aclose()
    async with journal.numbers():
        pass
    assert journal.said == []


async def test_a_session_closes_what_was_opened_in_it(journal: Journal) -> None:
    recorder = Recorder()
    async with session() as s:
        s.watch(recorder.watch)
        async for _ in journal.numbers():
            break
        kept = journal.numbers()
        assert await kept.__anext__() == 0
    assert journal.said == ["cleaned up"] * 2
    ends = recorder.of(TaskSucceeded)
    assert [(end.items, end.closed) for end in ends] == [(1, True)] * 2


async def test_a_bind_closes_what_was_opened_under_it(journal: Journal) -> None:
    async with session() as s:
        async with s.bind():
            async for _ in journal.numbers():
                break
        assert journal.said == ["cleaned up"]


async def test_what_a_consumer_raises_comes_out_as_it_is(journal: Journal) -> None:
    error = KeyError("mine")
    with pytest.raises(KeyError) as caught:
        async with journal.numbers() as items:
            async for _ in items:
                raise error
    assert caught.value is error
    assert journal.said == ["cleaned up"]


@pytest.mark.parametrize("inside", [False, True])
async def test_cancelling_a_step_cancels_the_generator(journal: Journal, inside: bool) -> None:
    recorder = Recorder()

    async def consume() -> None:
        async with journal.numbers(1, hang=True) as items:
            async for _ in items:
                pass

    async def consume_in_session() -> None:
        async with session() as s:
            s.watch(recorder.watch)
            await consume()

    async with anyio.create_task_group() as group:
        group.start_soon(consume_in_session if inside else consume)
        await journal.waits.wait()
        group.cancel_scope.cancel()
    assert journal.said == ["cancelled", "cleaned up"]
    assert len(recorder.of(TaskCancelled)) == inside


async def test_it_is_stepped_and_closed_from_any_task(journal: Journal) -> None:
    seen: list[int] = []
    async with journal.numbers() as items:

        async def step() -> None:
            seen.append(await items.__anext__())

        for _ in range(3):
            async with anyio.create_task_group() as group:
                group.start_soon(step)
        async with anyio.create_task_group() as group:
            group.start_soon(items.aclose)
            group.start_soon(items.aclose)
        assert journal.said == ["cleaned up"]
    assert seen == [0, 1, 2]


async def test_a_step_that_waits_when_it_is_closed_elsewhere_finds_its_end(journal: Journal) -> None:
    seen: list[int] = []
    async with journal.numbers(2, hang=True) as items:

        async def consume() -> None:
            seen.extend([number async for number in items])

        async with anyio.create_task_group() as group:
            group.start_soon(consume)
            await journal.waits.wait()
            await items.aclose()
    assert seen == [0, 1]
    assert journal.said == ["cancelled", "cleaned up"]


@pytest.mark.parametrize("close_first", [False, True])
async def test_a_step_in_the_moment_of_a_close_finds_its_end(journal: Journal, close_first: bool) -> None:
    ended: list[str] = []
    async with journal.numbers(10**9) as items:
        assert await items.__anext__() == 0

        async def step() -> None:
            with pytest.raises(StopAsyncIteration):
                while True:
                    await items.__anext__()
            ended.append("stepped")

        async def close() -> None:
            await items.aclose()
            ended.append("closed")

        with anyio.fail_after(10):
            async with anyio.create_task_group() as group:
                for func in (close, step) if close_first else (step, close):
                    group.start_soon(func)
    assert sorted(ended) == ["closed", "stepped"]
    assert journal.said[-1] == "cleaned up"


async def test_a_second_step_at_the_same_time_is_refused(journal: Journal) -> None:
    async with journal.numbers(0, hang=True) as items, anyio.create_task_group() as group:

        async def step() -> None:
            with pytest.raises(StopAsyncIteration):
                await items.__anext__()

        group.start_soon(step)
        await journal.waits.wait()
        with pytest.raises(RuntimeError, match="'numbers' was stepped while a step of it runs elsewhere"):
            await items.__anext__()
        await items.aclose()


async def test_a_close_has_grace_seconds(caplog: pytest.LogCaptureFixture) -> None:
    @task(pump=True)
    async def stubborn() -> AsyncIterator[int]:
        try:
            yield 1
        finally:
            await anyio.sleep_forever()

    async with session(grace=0.02):
        async with stubborn() as items:
            assert await items.__anext__() == 1
        assert "stream 'stubborn' had not closed after 0.02 s" in caplog.text


async def test_what_fails_while_it_is_closed_is_raised_by_the_close(caplog: pytest.LogCaptureFixture) -> None:
    @task(pump=True)
    async def brittle() -> AsyncIterator[int]:
        try:
            yield 1
        finally:
            await checkpoint()
            raise ValueError("closing")

    stream = brittle()
    with pytest.raises(TaskError, match="ValueError: closing"):
        async with stream:
            await stream.__anext__()
    assert caplog.records == []
    await stream.aclose()  # it was told of

    recorder = Recorder()
    async with session() as s:
        s.watch(recorder.watch)
        async for _ in brittle():
            break
    assert "stream 'brittle' failed to close" in caplog.text
    assert len(recorder.of(TaskFailed)) == 1


async def test_values_are_sent_and_errors_thrown_into_it() -> None:
    @task(pump=True)
    async def echo() -> AsyncIterator[Any]:
        got: Any = "begun"
        with anyio.CancelScope():
            while True:
                try:
                    got = yield got
                except KeyError as exc:
                    got = exc

    error = KeyError()
    async with echo() as items:
        assert await items.asend(None) == "begun"
        assert await items.asend("more") == "more"
        assert await items.athrow(error) is error
        stranger = ValueError()
        with pytest.raises(ValueError) as caught:
            await items.athrow(stranger)
        assert caught.value is stranger
        with pytest.raises(StopAsyncIteration):
            await items.__anext__()


class NotFound(Exception):
    """What an endpoint raises, for the web framework."""


@pytest.mark.parametrize("grouped", [False, True])
async def test_it_makes_a_dependency_whose_endpoint_fails(grouped: bool) -> None:
    """As FastAPI does with one that yields: by an exit stack, in the task of the request."""
    told: list[BaseException] = []

    @task(pump=True)
    async def connection() -> AsyncIterator[str]:
        try:
            if grouped:
                async with anyio.create_task_group() as group:
                    group.start_soon(anyio.sleep_forever)
                    yield "connection"
            else:
                yield "connection"
        except BaseException as exc:
            told.append(exc)
            raise

    async def request(error: Exception | None) -> str:
        async with AsyncExitStack() as stack:
            got: str = await stack.enter_async_context(asynccontextmanager(connection)())
            await checkpoint()
            if error is not None:
                raise error
            return got

    error = NotFound("404")
    recorder = Recorder()
    async with session() as s:
        s.watch(recorder.watch)
        async with s.bind():
            with pytest.raises(NotFound) as caught:
                await request(error)
    assert caught.value is error
    assert len(told) == 1
    assert told[0] is error or (isinstance(told[0], BaseExceptionGroup) and told[0].exceptions == (error,))
    assert [end.closed for end in recorder.of(TaskSucceeded)] == [True]
    assert recorder.of(TaskFailed) == []


async def test_a_dependency_may_handle_what_its_endpoint_raises() -> None:
    @task(pump=True, wrap_errors=False)
    async def handles(instead: Exception | None) -> AsyncIterator[str]:
        try:
            yield "item"
        except NotFound:
            if instead is not None:
                raise instead from None

    async with session():
        async with asynccontextmanager(handles)(None):
            raise NotFound
        instead = ValueError("instead")
        with pytest.raises(ValueError) as caught:
            async with asynccontextmanager(handles)(instead):
                raise NotFound
    assert caught.value is instead


@pytest.mark.parametrize("failing", [False, True])
async def test_what_cancels_its_own_scope_between_two_steps_reaches_it_there(failing: bool) -> None:
    """A child of it fails, or its own deadline passes, while it is suspended inside of that scope."""
    go = anyio.Event()
    gone = anyio.Event()

    async def child(scope: anyio.CancelScope) -> None:
        await go.wait()
        gone.set()
        if failing:
            raise ValueError("child")
        scope.cancel()

    @task(pump=True)
    async def numbers() -> AsyncIterator[int]:
        async with anyio.create_task_group() as group:
            group.start_soon(child, group.cancel_scope)
            yield 1
            yield 2
        yield 3

    async with numbers() as items:
        assert await items.__anext__() == 1
        go.set()
        await gone.wait()
        for _ in range(5):
            await checkpoint()
        if failing:
            with pytest.raises(TaskError) as caught:
                await items.__anext__()
            group = caught.value.__cause__
            assert isinstance(group, BaseExceptionGroup)
            assert str(group.exceptions[0]) == "child"
        else:
            assert [item async for item in items] == [3]
    with anyio.move_on_after(0) as scope:
        await anyio.sleep(math.inf)
    assert scope.cancelled_caught


async def test_variables_stay_inside_and_the_call_is_current_there() -> None:
    @task(pump=True)
    async def setting() -> AsyncIterator[str]:
        token = variable.set("inside")
        try:
            for _ in range(2):
                metadata = current_task()
                assert metadata is not None
                yield f"{metadata.name} {variable.get()}"
        finally:
            variable.reset(token)

    async with setting() as items:
        async for item in items:
            assert item == "setting inside"
            assert variable.get() == "unset"
            assert current_task() is None


async def test_fan_outs_take_it_as_a_task_and_as_a_source(journal: Journal) -> None:
    assert await gather_tasks(journal.numbers, [1, 2]) == [[0], [0, 1]]
    assert journal.said == ["cleaned up"] * 2

    @task
    async def double(number: int) -> int:
        return 2 * number

    assert await gather_tasks(double, journal.numbers(3)) == [0, 2, 4]
    async with stream_tasks(double, journal.numbers()) as results:
        async for _ in results:
            break
    assert journal.said.count("cleaned up") == 4
    async with session() as s:
        assert await s.start_soon(journal.numbers, 2) == [0, 1]


async def test_it_pickles_with_its_options() -> None:
    assert pickle.loads(pickle.dumps(read.with_options(pump=True))).pump


async def test_nothing_is_logged(caplog: pytest.LogCaptureFixture, journal: Journal) -> None:
    caplog.set_level(logging.DEBUG, "daglite")
    async with session():
        async for _ in journal.numbers():
            break
        async with journal.numbers() as items:
            async for _ in items:
                break
    assert caplog.records == []


async def scripted(plan: list[str]) -> AsyncIterator[Any]:
    got: Any = None
    for number, step in enumerate(plan):
        try:
            if step == "wait":
                await checkpoint()
            elif step == "fail":
                raise ValueError(number)
            else:
                got = yield number, got
        except KeyError:
            got = "caught"


async def told(stream: Any, what: list[str]) -> list[Any]:
    """What comes of stepping a generator, or a stream, in these ways."""
    seen: list[Any] = []
    for number, each in enumerate(what):
        try:
            if each == "next":
                seen.append(await stream.__anext__())
            elif each == "send":
                seen.append(await stream.asend(number if seen else None))
            elif each == "close":
                seen.append(await stream.aclose())
            else:
                seen.append(await stream.athrow(KeyError(number) if each == "throw" else OSError(number)))
        except (Exception, StopAsyncIteration) as exc:
            error = exc.__cause__ if isinstance(exc, TaskError) else exc
            seen.append((type(error), getattr(error, "args", None)))
    return seen


@given(
    st.lists(st.sampled_from(["yield", "yield", "yield", "wait", "fail"]), max_size=7),
    st.lists(st.sampled_from(["next", "next", "send", "throw", "throw another", "close"]), max_size=9),
)
async def test_a_stream_does_what_its_generator_would(plan: list[str], what: list[str]) -> None:
    bare: Any = scripted(plan)
    expected = await told(bare, ["next", *what])
    await bare.aclose()
    for options in ({}, {"pump": True}, {"item_timeout": 60}):
        stream: Any = task(**options)(scripted)(plan)
        async with stream:
            seen = await told(stream, ["next", *what])
        # One that has ended raises what is thrown into it, or finds its end: by the kind of generator, and its Python.
        end = next((at for at, each in enumerate(seen) if each is None or type(each[0]) is type), len(seen))
        assert seen[: end + 1] == expected[: end + 1]
