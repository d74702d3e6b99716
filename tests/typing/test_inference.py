"""What type checkers infer in the code of users; and it is true at run time."""

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from typing import Any

from typing_extensions import assert_type

from daglite import (
    AsyncTaskStream,
    Backoff,
    Outcome,
    SyncTask,
    SyncTaskStream,
    TaskMetadata,
    current_session,
    current_task,
    gather_tasks,
    map_tasks,
    partition,
    race_tasks,
    remaining,
    session,
    stream_tasks,
    task,
)
from daglite.events import Event, LogRecorded
from daglite.plugins import LoggingPlugin, hook_impl
from daglite.sessions import CallFuture, CallHandle, Session, Subscription, SyncSession
from daglite.settings import Settings
from daglite.tasks import AsyncStream, SyncStream, TaskCall


@task
async def fetch(url: str, retries: int = 3) -> bytes:
    return url.encode()


@task(retries=2, timeout=3)
async def fetch_again(url: str) -> bytes:
    return url.encode()


@task
def load(path: str) -> int:
    return len(path)


@task(retry_delay=0.5)
def load_again(path: str) -> int:
    return len(path)


@task(retries=3, retry_delay=Backoff(initial=1), total_timeout=60)
async def fetch_patiently(url: str) -> bytes:
    return url.encode()


@task(retries=3, retry_delay=lambda retry: retry / 2, retry_on=lambda error: 3.0)
def load_patiently(path: str) -> int:
    return len(path)


@task(pump=True, item_timeout=3)
async def rows_in_time(table: str) -> AsyncIterator[int]:
    yield len(table)


@task(item_timeout=3)
def lines_in_time(path: str) -> Iterator[str]:
    yield path


@task
async def rows(table: str) -> AsyncIterator[int]:
    yield len(table)


@task
def lines(path: str) -> Iterator[str]:
    yield path


class Shop:
    @task
    async def sell(self, item: str) -> float:
        return 1.5

    @task(retries=1)
    def count(self, item: str) -> int:
        return 1

    @task
    async def goods(self) -> AsyncIterator[str]:
        yield "pen"

    @task
    def shelves(self) -> Iterator[int]:
        yield 1


async def test_the_decorator_keeps_parameters_and_results() -> None:
    assert_type(await fetch("x", retries=1), bytes)
    assert_type(await fetch_again("x"), bytes)
    assert_type(load("x"), int)
    assert_type(await load.to_thread("x"), int)
    assert_type(await load.run_on("inline", "x"), int)
    assert_type(await load_again.to_thread("x"), int)
    assert_type(rows("x"), AsyncStream[int])
    assert_type(lines("x"), SyncStream[str])
    assert_type(lines.to_thread("x"), AsyncStream[str])
    assert_type([row async for row in rows("x")], list[int])
    assert_type(list(lines("x")), list[str])
    assert_type([line async for line in lines.to_thread("x")], list[str])


async def test_options_change_no_types() -> None:
    assert_type(await fetch_patiently("x"), bytes)
    assert_type(await load_patiently.to_thread("x"), int)
    assert_type([line async for line in lines_in_time.to_thread("x")], list[str])
    async with rows_in_time("x") as items:
        assert_type(await items.__anext__(), int)
    with lines_in_time.with_options(item_timeout=None)("x") as in_place:
        assert_type(next(in_place), str)
    assert_type(remaining(), float)
    assert_type(Backoff()(1), float)
    assert_type(rows_in_time.pump, bool)


async def test_copies_keep_their_type() -> None:
    assert_type(await fetch.with_options(retries=5)("x"), bytes)
    assert_type(await fetch.partial(retries=5)("x"), bytes)
    assert_type(load.partial("x"), SyncTask[..., int])
    assert_type(rows.partial("x"), AsyncTaskStream[..., int])
    assert_type(lines.partial("x"), SyncTaskStream[..., str])


async def test_methods_take_no_self() -> None:
    shop = Shop()
    assert_type(await shop.sell("pen"), float)
    assert_type(await Shop.sell(shop, "pen"), float)
    assert_type(shop.count("pen"), int)
    assert_type(await shop.count.to_thread("pen"), int)
    assert_type([item async for item in shop.goods()], list[str])
    assert_type(list(shop.shelves()), list[int])


async def test_fan_outs() -> None:
    assert_type(await gather_tasks(fetch_again, ["x"]), list[bytes])
    assert_type(await gather_tasks(load, ["x"], limit=2), list[int])
    assert_type(await gather_tasks(rows, ["x"]), list[list[int]])
    assert_type(await gather_tasks(lines, ["x"]), list[list[str]])
    assert_type(await gather_tasks(fetch, ["x"], [1]), list[bytes])
    assert_type(await gather_tasks(fetch_again, rows_of_text()), list[bytes])
    outcomes = await gather_tasks(load, ["x"], errors="collect")
    assert_type(outcomes, list[Outcome[int]])
    assert_type(partition(outcomes), tuple[list[int], list[Exception]])
    async with stream_tasks(fetch_again, ["x"]) as results:
        assert_type([result async for result in results], list[bytes])
    async with stream_tasks(load, ["x"], errors="collect", ordered=True) as collected:
        assert_type([outcome async for outcome in collected], list[Outcome[int]])


async def test_calls() -> None:
    assert_type(fetch.call("x", retries=1), TaskCall[bytes])
    assert_type(load.call("x"), TaskCall[int])
    assert_type(rows.call("x"), TaskCall[list[int]])
    assert_type(lines.call("x"), TaskCall[list[str]])
    assert_type(load.partial("x").call(), TaskCall[int])
    assert_type(await gather_tasks(load.call("x")), tuple[int])
    assert_type(await gather_tasks(fetch.call("x"), load.call("x")), tuple[bytes, int])
    three = await gather_tasks(fetch.call("x"), load.call("x"), lines.call("x"), limit=2)
    assert_type(three, tuple[bytes, int, list[str]])
    four = await gather_tasks(load.call("x"), load.call("x"), fetch.call("x"), load.call("x"))
    assert_type(four, tuple[int, int, bytes, int])
    assert_type(await gather_tasks(*[load.call("x")] * 9), tuple[int, ...])
    two = await gather_tasks(fetch.call("x"), load.call("x"), errors="collect")
    assert_type(two, tuple[Outcome[bytes], Outcome[int]])
    assert_type(await gather_tasks(*[load.call("x")] * 9, errors="collect"), tuple[Outcome[int], ...])
    assert_type(await race_tasks(fetch.call("x"), load.call("x")), bytes | int)
    assert_type(await race_tasks(*[load.call("x")] * 9), int)


def test_calls_from_sync_code() -> None:
    assert_type(map_tasks(fetch.call("x"), load.call("x")), tuple[bytes, int])
    assert_type(map_tasks(*[load.call("x")] * 9, errors="collect"), tuple[Outcome[int], ...])


async def rows_of_text() -> AsyncIterator[str]:
    yield "x"


async def test_sessions() -> None:
    async with session(name="x") as s:
        assert_type(s, Session)
        assert_type(current_session(), Session | None)
        assert_type(s.start_soon(fetch_again, "x"), CallHandle[bytes])
        assert_type(await s.start_soon(load, "x"), int)
        assert_type(await s.start_soon(rows, "x"), list[int])
        assert_type(s.stats().failed, int)
        assert_type(s.cancel(under=s.id), bool)
        assert_type([call.metadata for call in s.tree()], list[TaskMetadata])
        async with s.events(max_buffer=10, under=s.id) as events:
            assert_type(events.dropped, int)
            assert_type(events, Subscription)


def test_sync_code() -> None:
    with session(event_loop="asyncio") as s:
        assert_type(s, SyncSession)
        assert_type(fetch_again.from_thread("x"), bytes)
        assert_type(rows.from_thread("x"), SyncStream[int])
        assert_type(list(rows.from_thread("x")), list[int])
        assert_type(Shop().sell.from_thread("pen"), float)
        assert_type(s.start_soon(fetch_again, "x"), CallFuture[bytes])
        assert_type(s.start_soon(load, "x").result(), int)
        assert_type(s.start_soon(rows, "x").result(), list[int])
        assert_type(s.start_service(lines, "x"), CallFuture[list[str]])
        with s.events() as events:
            assert_type(fetch_again.from_thread("x"), bytes)
            assert_type(next(events), Event)
        with s.bind() as bound:
            assert_type(bound, SyncSession)
    assert_type(map_tasks(fetch_again, ["x"]), list[bytes])
    assert_type(map_tasks(load, ["x"], limit=2), list[int])
    assert_type(map_tasks(rows, ["x"]), list[list[int]])
    assert_type(map_tasks(lines, ["x"]), list[list[str]])
    assert_type(map_tasks(fetch, ["x"], [1]), list[bytes])
    assert_type(map_tasks(load, ["x"], errors="collect"), list[Outcome[int]])
    assert_type(returned_from_a_session(), int)


def returned_from_a_session() -> int:
    with session():
        return 1  # type checkers know that no error is swallowed


async def test_plugins() -> None:
    class Plugin:
        @hook_impl
        def after_node_execute(self, metadata: TaskMetadata, result: object) -> None: ...

        @hook_impl
        @contextmanager
        def activate(self, metadata: TaskMetadata) -> Iterator[None]:
            yield

        async def consume(self, events: Subscription) -> None:
            async for event in events:
                assert_type(event, Event)
                if isinstance(event, LogRecorded):
                    assert_type(event.metadata, TaskMetadata | None)

    marked: Callable[[TaskMetadata, object], None] = Plugin().after_node_execute  # the mark changes nothing
    assert callable(marked)
    session(plugins=[Plugin(), LoggingPlugin(), "by-name"], settings=Settings(redact=lambda inputs: inputs))
    metadata = current_task()
    assert metadata is None


def test_wrong_uses_are_errors() -> None:
    def never() -> Any:
        load(3)  # type: ignore[arg-type]
        load()  # type: ignore[call-arg]
        _ = fetch(url="x", retry=1)  # type: ignore[call-arg]
        task(retries="3")  # type: ignore[call-overload]
        load.with_options(limit="3")  # type: ignore[arg-type]
        load.with_options(rate=3)  # type: ignore[arg-type]
        load.call(3)  # type: ignore[arg-type]
        gather_tasks(load.call("x"), load)  # type: ignore[call-overload]
        stream_tasks(load.call("x"))  # type: ignore[call-overload]
        race_tasks(load)  # type: ignore[call-overload]
        rows.to_thread("x")  # type: ignore[attr-defined]
        task(retry_delay="1")  # type: ignore[call-overload]
        Backoff(jitter="x")  # type: ignore[arg-type]
        session(plugins=3)  # type: ignore[arg-type]

    assert callable(never)
