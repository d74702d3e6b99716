"""`remaining()`: the seconds that are left, wherever the code runs."""

import asyncio
import contextlib
import math
import threading
import time
from collections.abc import AsyncIterator, Iterator

import anyio
import anyio.to_thread
import pytest

from daglite import gather_tasks, remaining, session, task
from daglite._eventloop import Loop
from daglite.exceptions import TaskTimeoutError
from tests.test_thread_deadlines import Gate, gate

__all__ = ["gate"]


def is_about(seconds: float) -> bool:
    """Whether it is what is left: a little may have gone by."""
    return seconds - 5 < remaining() <= seconds


async def about(seconds: float) -> bool:
    return is_about(seconds)


ask = task(remaining)


@task
async def ask_async() -> float:
    return remaining()


def test_without_an_event_loop_there_is_no_deadline() -> None:
    assert remaining() == math.inf
    assert ask() == math.inf
    with session():
        assert remaining() == math.inf
        assert ask_async.from_thread() == math.inf


async def test_without_a_deadline_there_is_no_end() -> None:
    assert remaining() == math.inf
    assert await ask_async() == math.inf
    assert await ask.to_thread() == math.inf
    async with session():
        assert await ask.to_thread() == math.inf


async def test_it_is_the_earliest_of_all_deadlines_around() -> None:
    @task(timeout=30, total_timeout=60)
    async def inner() -> None:
        assert is_about(30)
        with anyio.move_on_after(15):
            assert await about(15)
        with anyio.move_on_after(90):
            assert await about(30)
        assert is_about(30)

    @task(total_timeout=45)
    async def outer() -> None:
        assert is_about(45)
        await inner()

    with anyio.fail_after(99):
        assert is_about(99)
        await outer()
        with anyio.CancelScope(shield=True):
            assert await ask_async() == math.inf


async def test_when_it_is_over_nothing_is_left() -> None:
    with anyio.CancelScope() as scope:
        scope.cancel()
        assert await ask_async() == 0
    with anyio.CancelScope(deadline=anyio.current_time() - 3):
        assert await ask_async() == 0


@pytest.mark.parametrize("inside", [False, True])
async def test_a_thread_knows_the_deadlines_of_who_waits_for_it(inside: bool) -> None:
    @task(timeout=30)
    def timed() -> None:
        assert is_about(30)

    @task
    def plain(seconds: float) -> None:
        assert is_about(seconds)

    @task(total_timeout=20)
    def total() -> None:
        assert is_about(20)

    async with session() if inside else contextlib.AsyncExitStack():
        await timed.to_thread()
        await total.to_thread()
        with anyio.fail_after(45):
            await plain.to_thread(45)
            await timed.to_thread()
            await gather_tasks(plain, [45, 45])
        with anyio.fail_after(15):
            await plain.to_thread(15)


async def test_what_a_thread_awaits_in_the_event_loop_has_no_more_than_the_thread() -> None:
    @task
    async def there() -> None:
        assert is_about(30)
        with anyio.fail_after(10):
            assert is_about(10)
            await deeper.to_thread()

    @task
    def deeper() -> None:
        assert is_about(10)

    @task(timeout=30)
    def in_thread() -> None:
        there.from_thread()

    await in_thread.to_thread()


def test_in_place_a_deadline_is_known_too() -> None:
    @task(timeout=30)
    def timed() -> None:
        assert is_about(30)
        inner()

    @task(timeout=10)
    def inner() -> None:
        assert is_about(10)

    timed()


async def test_the_steps_of_streams_know_it() -> None:
    @task(item_timeout=30)
    async def pumped() -> AsyncIterator[bool]:
        yield is_about(30)
        yield is_about(30)

    @task
    async def stepped() -> AsyncIterator[bool]:
        yield is_about(40)

    @task(item_timeout=30)
    def in_thread() -> Iterator[bool]:
        yield is_about(30)
        yield is_about(10)
        yield is_about(30)

    async with pumped() as items:
        assert [item async for item in items] == [True, True]
    with anyio.fail_after(40):
        async with stepped() as items:
            assert [item async for item in items] == [True]
    async with in_thread.to_thread() as items:
        assert await items.__anext__()
        with anyio.fail_after(10):
            assert await items.__anext__()
        assert await items.__anext__()


def test_the_steps_of_a_stream_in_place_know_it() -> None:
    @task(item_timeout=30)
    def rows() -> Iterator[bool]:
        yield is_about(30)
        yield is_about(30)

    assert list(rows()) == [True, True]


async def test_in_a_thread_that_nobody_waits_for_nothing_is_left(gate: Gate) -> None:
    left: list[float] = []
    told = threading.Event()

    @task(timeout=0.05)
    def late() -> None:
        gate.hold()
        left.append(remaining())
        told.set()

    with pytest.raises(TaskTimeoutError):
        await late.to_thread()
    gate.opened.set()
    await anyio.to_thread.run_sync(told.wait)
    assert left == [0]


@pytest.mark.parametrize("whose", ["the session's", "the event loop's", "somebody else's", "a stream's"])
async def test_in_a_thread_whose_caller_was_cancelled_nothing_is_left(whose: str) -> None:
    begun = anyio.Event()
    left: list[float] = []

    loop = Loop()

    def ask_again() -> None:
        left.append(remaining())
        loop.run(begun.set)
        while left[-1] and len(left) < 10_000:
            left.append(remaining())
            time.sleep(0.001)

    def asking() -> Iterator[None]:
        ask_again()
        yield

    around = session() if whose == "the session's" else contextlib.nullcontext()
    async with around, anyio.create_task_group() as group:
        if whose == "somebody else's":
            group.start_soon(anyio.to_thread.run_sync, ask_again)
        elif whose == "a stream's":
            group.start_soon(task(asking).to_thread().__anext__)
        else:
            group.start_soon(task(ask_again).to_thread)
        await begun.wait()
        group.cancel_scope.cancel()
    assert left[0] == math.inf
    assert left[-1] == 0


async def test_a_thread_of_somebody_else_has_none() -> None:
    with anyio.fail_after(30):
        assert await anyio.to_thread.run_sync(remaining) == math.inf


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_what_the_event_loop_itself_calls_has_none() -> None:
    asked = asyncio.get_running_loop().create_future()
    with anyio.fail_after(30):
        asyncio.get_running_loop().call_soon(lambda: asked.set_result(remaining()))
        assert await asked == math.inf
