"""Every public operation, cancelled once at each of its checkpoints: what has begun has ended, once, and nothing is left.

In a session and outside, by a cancel scope at the checkpoints of the task itself, from another task between them, and by asyncio's
own `Task.cancel`.
"""

import logging
from collections.abc import AsyncIterator, Iterator
from typing import Any

import anyio
import pytest
from anyio import to_thread
from anyio.lowlevel import checkpoint

from daglite import (
    Limit,
    Rate,
    aload_dataset,
    asave_dataset,
    check_cancelled,
    current_session,
    gather_tasks,
    map_tasks,
    race_tasks,
    report,
    session,
    stream_tasks,
    task,
)
from daglite.cache import MemoryCacheStore
from daglite.exceptions import TaskError, TaskGroupError
from daglite.sessions import Session, Subscription
from tests import sweep
from tests.test_cache import Shelf
from tests.test_datasets import Drawer

LIMIT = Limit("sweep", 1)
RATE = Rate(1_000_000)


@task
async def plain(number: int = 1) -> int:
    await checkpoint()
    report("half", number)
    await checkpoint()
    return number


@task
async def failing(number: int = 1) -> int:
    await checkpoint()
    raise ValueError(number)


@task
async def nested(number: int = 1) -> int:
    return await plain(number) + sum(await gather_tasks(plain, [1, 2]))


@task
async def shielded() -> None:
    try:
        await checkpoint()
    finally:
        with anyio.CancelScope(shield=True):
            await plain.func()


@task
def square(number: int = 3) -> int:
    check_cancelled()
    return number * number


@task
def back(number: int = 3) -> int:
    """Goes back to the event loop."""
    return plain.from_thread(number) + square(number)


@task
async def rows(to: int = 3) -> AsyncIterator[int]:
    try:
        for number in range(to):
            await checkpoint()
            yield number
    finally:
        with anyio.CancelScope(shield=True):
            await checkpoint()


@task
def rows_sync(to: int = 3) -> Iterator[int]:
    for number in range(to):
        check_cancelled()
        yield number


@task
def rows_back(to: int = 2) -> int:
    with rows.from_thread(to) as items:
        return sum(items)


class Mapper:
    @task(limit=LIMIT)
    async def method(self, number: int) -> int:
        return await plain(number)


async def calls_of(each: Any, *args: Any, fails: bool = False) -> None:
    """Await a call, of which nothing but its own failure comes out."""
    try:
        await each(*args)
    except TaskError:
        assert fails


async def source(to: int = 3) -> AsyncIterator[int]:
    for number in range(to):
        await checkpoint()
        yield number


# Calls, with each option.


async def call() -> None:
    await plain()


async def call_with_a_parent() -> None:
    await nested()


async def call_that_fails() -> None:
    await calls_of(failing, fails=True)


async def call_that_fails_bare() -> None:
    with pytest.raises(ValueError):
        await failing.with_options(wrap_errors=False)()


async def call_with_retries() -> None:
    await calls_of(failing.with_options(retries=2), fails=True)


async def call_with_delays() -> None:
    await calls_of(failing.with_options(retries=2, retry_delay=0.0001), fails=True)


async def call_with_a_timeout() -> None:
    await plain.with_options(timeout=60)()


async def call_with_a_total_timeout() -> None:
    await calls_of(failing.with_options(retries=1, total_timeout=60), fails=True)


async def call_with_every_option() -> None:
    options: Any = {"retries": 1, "timeout": 30, "total_timeout": 60, "limit": LIMIT, "rate": RATE}
    await plain.with_options(**options)()
    await calls_of(failing.with_options(**options), fails=True)


async def call_with_a_shield() -> None:
    await shielded()


async def calls_that_wait_for_a_limit() -> None:
    limited = plain.with_options(limit=LIMIT)
    async with anyio.create_task_group() as group:
        group.start_soon(limited, 1)
        group.start_soon(limited, 2)
        await limited(3)


async def calls_that_wait_for_a_rate() -> None:
    paced = plain.with_options(rate=Rate(1000))
    async with anyio.create_task_group() as group:
        group.start_soon(paced, 1)
        await paced(2)


async def call_of_a_method() -> None:
    await Mapper().method(1)


async def call_of_a_partial() -> None:
    await plain.partial(number=2)()


async def call_in_a_thread() -> None:
    await square.to_thread()


async def call_in_a_thread_with_a_timeout() -> None:
    await square.with_options(timeout=60).to_thread()


async def call_in_a_thread_with_retries() -> None:
    broken = task(retries=1, limit=LIMIT)(_raise)
    await calls_of(broken.to_thread, fails=True)


def _raise() -> None:
    raise ValueError


async def call_in_place() -> None:
    await checkpoint()
    square()
    await square.run_on("inline")


async def call_from_a_thread() -> None:
    await back.to_thread()


async def call_from_another_thread() -> None:
    await to_thread.run_sync(plain.from_thread, 1) if current_session() else await back.to_thread()


async def cached_calls() -> None:
    cached = plain.with_options(cache=MemoryCacheStore(), version=1)
    assert [await cached(2), await cached(2)] == [2, 2]
    await cached.invalidate(2)


async def cached_calls_of_a_store_that_blocks() -> None:
    shelf = Shelf()
    cached = plain.with_options(cache=shelf, version=1, total_timeout=60)
    assert [await cached(2), await cached(2)] == [2, 2]
    await cached.invalidate(2)
    assert not shelf.kept


async def calls_that_are_saved() -> None:
    drawer = Drawer()
    saved: Any = {"dataset": "{name}.json", "dataset_store": drawer}
    assert await plain.with_options(retries=1, total_timeout=60, **saved)(2) == 2
    shelf = Shelf()
    kept = square.with_options(cache=shelf, version=1, limit=LIMIT, **saved)
    assert [await kept.to_thread(2), await kept.to_thread(2)] == [4, 4]
    await asave_dataset("a.json", 3, store=drawer)
    assert await aload_dataset("a.json", store=drawer) == 3
    assert drawer.kept == {"plain.json": 2, "square.json": 4, "a.json": 3}


async def streams_that_are_saved() -> None:
    drawer = Drawer()
    saved: Any = {"dataset": "{name}/{iter_index}.json", "dataset_store": drawer}
    async with rows.with_options(**saved)(2) as items:
        assert [item async for item in items] == [0, 1]
    async with rows.with_options(pump=True, **saved)(3) as items:
        async for _ in items:
            break
    async with rows_sync.with_options(**saved).to_thread(2) as items:
        assert [item async for item in items] == [0, 1]
    assert drawer.kept == {f"{name}/{number}.json": number for name in ("rows", "rows_sync") for number in (0, 1)}


async def calls_that_share_a_computation() -> None:
    shared = nested.with_options(cache=MemoryCacheStore(), version=1)
    async with anyio.create_task_group() as group:
        group.start_soon(shared, 1)
        group.start_soon(shared, 1)
        assert await shared(1) == 4


async def calls_that_share_a_failure() -> None:
    shared = failing.with_options(cache=Shelf(), version=1)
    async with anyio.create_task_group() as group:
        group.start_soon(lambda: calls_of(shared, fails=True))
        await calls_of(shared, fails=True)


# Streams.


async def stream_to_its_end() -> None:
    assert [item async for item in rows()] == [0, 1, 2]


async def stream_that_is_left_early() -> None:
    async with rows() as items:
        async for item in items:
            if item == 1:
                break


async def stream_that_is_dropped() -> None:
    async with session():
        async for _ in rows():
            break


async def stream_that_is_sent_to() -> None:
    async with rows() as items:
        await items.asend(None)
        await items.asend(None)
        with pytest.raises(KeyError):
            await items.athrow(KeyError())


async def stream_that_is_pumped() -> None:
    async with rows.with_options(pump=True)() as items:
        assert [item async for item in items] == [0, 1, 2]


async def stream_with_deadlines() -> None:
    async with rows.with_options(item_timeout=60)() as items:
        async for item in items:
            if item == 1:
                break


async def stream_with_a_limit() -> None:
    limited = rows.with_options(limit=LIMIT)
    async with anyio.create_task_group() as group:
        group.start_soon(_take, limited)
        await _take(limited)


async def _take(kind: Any) -> None:
    async with kind(2) as items:
        assert [item async for item in items] == [0, 1]


async def stream_in_a_thread() -> None:
    async with rows_sync.to_thread() as items:
        async for item in items:
            if item == 1:
                break


async def stream_in_a_thread_with_deadlines() -> None:
    async with rows_sync.with_options(item_timeout=60).to_thread() as items:
        assert [item async for item in items] == [0, 1, 2]


async def stream_from_a_thread() -> None:
    await rows_back.to_thread()


async def stream_in_place() -> None:
    for _ in rows_sync():
        await checkpoint()


# Fan-outs.


async def gather() -> None:
    assert await gather_tasks(plain, range(4), limit=2) == [0, 1, 2, 3]


async def gather_of_a_source() -> None:
    assert await gather_tasks(plain, source(), limit=2) == [0, 1, 2]


async def gather_of_streams() -> None:
    assert await gather_tasks(rows, [1, 2]) == [[0], [0, 1]]


async def gather_of_calls() -> None:
    assert await gather_tasks(plain.call(1), square.call(2), rows.call(1)) == (1, 4, [0])


async def gather_in_threads() -> None:
    assert await gather_tasks(square, range(3), limit=2) == [0, 1, 4]


async def gather_that_fails() -> None:
    with pytest.raises(TaskGroupError):
        await gather_tasks(failing, range(3))


async def gather_that_collects() -> None:
    outcomes = await gather_tasks(failing, range(3), errors="collect")
    assert len(outcomes) == 3


async def gather_under_a_limit() -> None:
    assert await gather_tasks(plain.with_options(limit=LIMIT), range(3)) == [0, 1, 2]


async def race() -> None:
    assert await race_tasks(plain.call(1), plain.call(1), failing.call(3)) == 1


async def stream_of_results() -> None:
    async with stream_tasks(plain, range(4), limit=2) as results:
        assert sorted([result async for result in results]) == [0, 1, 2, 3]


async def stream_of_results_in_order() -> None:
    async with stream_tasks(plain, source(4), limit=2, ordered=True, buffer=1) as results:
        assert [result async for result in results] == [0, 1, 2, 3]


async def stream_of_results_that_is_left_early() -> None:
    async with stream_tasks(rows, rows(4), limit=2) as results:
        async for _ in results:
            break


async def stream_of_results_that_fails() -> None:
    with pytest.raises(TaskGroupError):
        async with stream_tasks(failing, range(4), limit=2) as results:
            async for _ in results:
                pass


async def map_in_a_thread() -> None:
    await task(_map).to_thread()


def _map() -> None:
    assert map_tasks(plain, range(3), limit=2) == [0, 1, 2]


# Sessions, and what they have.


async def enter_and_leave() -> None:
    async with session():
        await checkpoint()


async def enter_and_leave_inside() -> None:
    async with session(), session(plugins=[sweep.Balance()]):
        await plain()


async def background_calls() -> None:
    async with session() as s:
        s.start_soon(plain, 1)
        s.start_soon(rows)
        s.start_soon(square)
        handle = s.start_soon(nested)
        assert await handle == 4


async def background_call_that_fails() -> None:
    with pytest.raises(TaskGroupError):
        async with session() as s:
            s.start_soon(failing)
            s.start_soon(nested)


async def background_call_that_is_cancelled() -> None:
    async with session() as s:
        handle = s.start_soon(plain)
        await checkpoint()
        s.cancel(under=handle.id)
        handle.cancel()


async def body_that_fails() -> None:
    with pytest.raises(KeyError):
        async with session() as s:
            s.start_soon(nested)
            await checkpoint()
            raise KeyError


async def session_that_is_cancelled() -> None:
    async with session() as s:
        s.start_soon(nested)
        await checkpoint()
        s.cancel()
        await checkpoint()


async def service() -> None:
    async with session() as s:
        s.start_service(_serve)
        await plain()


async def _serve() -> None:
    await anyio.sleep_forever()


async def bind() -> None:
    async with session() as s:
        async with anyio.create_task_group() as group:
            group.start_soon(_bound, s)
            await checkpoint()


async def _bound(s: Session) -> None:
    async with s.bind():
        await plain()
        async for _ in rows():
            break


async def with_session_in_a_thread() -> None:
    await to_thread.run_sync(_with_session)


def _with_session() -> None:
    with session() as s:
        future = s.start_soon(plain, 2)
        assert plain.from_thread(1) == 1
        assert future.result() == 2


# Subscriptions.


async def subscription() -> None:
    async with session() as s:
        s.start_soon(nested)
        async with s.events() as events:
            async for event in events:
                if getattr(event, "metadata", None) is not None and event.metadata.name == "plain":  # type: ignore[attr-defined]
                    break


async def subscription_to_a_part() -> None:
    async with session() as s:
        handle = s.start_soon(nested)
        async with s.events(under=handle.id, max_buffer=1) as events:
            async for _ in events:
                await checkpoint()
                if handle._done.is_set():
                    break


async def watcher() -> None:
    async with session() as s:
        s.watch(_follow)
        await nested()


async def _follow(events: Subscription) -> None:
    async for _ in events:
        await checkpoint()


async def program_of_which_something_fails() -> None:
    """Several of these at once."""
    async with session() as s:
        s.watch(_follow)
        s.start_soon(plain, 3)
        async for number in rows(5):
            if number == 2:
                break
        await gather_tasks(square, range(3), limit=2)
        with pytest.raises(TaskGroupError):  # also if it is cancelled, once a call has failed
            async with stream_tasks(failing, rows_sync.to_thread(9), limit=2, ordered=True) as results:
                async for _ in results:
                    await checkpoint()
        async with stream_tasks(rows, range(4), limit=3) as lists:
            async for _ in lists:
                break


OPERATIONS = [
    call, call_with_a_parent, call_that_fails, call_that_fails_bare, call_with_retries, call_with_delays,
    call_with_a_timeout, call_with_a_total_timeout, call_with_every_option, call_with_a_shield,
    calls_that_wait_for_a_limit, calls_that_wait_for_a_rate, call_of_a_method, call_of_a_partial, call_in_a_thread,
    call_in_a_thread_with_a_timeout, call_in_a_thread_with_retries, call_in_place, call_from_a_thread,
    call_from_another_thread, cached_calls, cached_calls_of_a_store_that_blocks, calls_that_are_saved,
    streams_that_are_saved, calls_that_share_a_computation,
    calls_that_share_a_failure, stream_to_its_end, stream_that_is_left_early, stream_that_is_dropped,
    stream_that_is_sent_to, stream_that_is_pumped, stream_with_deadlines, stream_with_a_limit, stream_in_a_thread,
    stream_in_a_thread_with_deadlines, stream_from_a_thread, stream_in_place, gather, gather_of_a_source,
    gather_of_streams, gather_of_calls, gather_in_threads, gather_that_fails, gather_that_collects,
    gather_under_a_limit, race, stream_of_results, stream_of_results_in_order, stream_of_results_that_is_left_early,
    stream_of_results_that_fails, map_in_a_thread, enter_and_leave, enter_and_leave_inside, background_calls,
    background_call_that_fails, background_call_that_is_cancelled, body_that_fails, session_that_is_cancelled, service,
    bind, with_session_in_a_thread, subscription, subscription_to_a_part, watcher,
    program_of_which_something_fails,
]  # fmt: skip


async def sweep_through(operation: sweep.Scenario, cancelled: sweep.Cancelled, where: str) -> None:
    before = sweep.running_tasks()
    for number in sweep.moments():
        watch = sweep.Watch(LIMIT, RATE)
        try:
            run = watch.in_session if where == "session" else watch.outside
            was_cancelled = await run(lambda number=number: cancelled(number, operation))  # type: ignore[misc]
            await sweep.assert_scopes_are_whole(before)
        except BaseException as exc:
            raise AssertionError(f"cancelled at {number}") from exc
        if not was_cancelled:
            break
    assert number > 0
    assert not was_cancelled


@pytest.mark.parametrize("where", ["session", "outside"])
@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize(
    ("anyio_backend", "cancelled"),
    [
        ("asyncio", sweep.by_scope),
        ("trio", sweep.by_scope),
        ("asyncio", sweep.from_outside),
        ("trio", sweep.from_outside),
        ("asyncio", sweep.natively),
    ],
)
async def test_it_ends_whenever_it_is_cancelled(
    cancelled: sweep.Cancelled, operation: sweep.Scenario, where: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    await sweep_through(operation, cancelled, where)
    assert caplog.records == []
