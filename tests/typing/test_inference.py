"""What type checkers infer in the code of users; and it is true at run time."""

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Generator, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

from typing_extensions import assert_type

from daglite import (
    AsyncTask,
    AsyncTaskStream,
    Backoff,
    Limit,
    Outcome,
    Rate,
    SyncTask,
    SyncTaskStream,
    TaskMetadata,
    aload_dataset,
    asave_dataset,
    current_session,
    current_task,
    gather_tasks,
    load_dataset,
    map_tasks,
    partition,
    race_tasks,
    remaining,
    save_dataset,
    session,
    stream_tasks,
    task,
    workflow,
)
from daglite.cache import CACHE_MISS, CacheStore, FileCacheStore, MemoryCacheStore, default_cache_hash
from daglite.datasets import DatasetFormat, DatasetStore, register_format
from daglite.events import Event, LogRecorded
from daglite.plugins import LoggingPlugin, hook_impl
from daglite.sessions import CallFuture, CallHandle, Session, Subscription, SyncSession
from daglite.settings import Settings
from daglite.tasks import AsyncStream, SyncStream, TaskCall
from daglite.workflows import AsyncWorkflow, SyncWorkflow


@task
async def fetch(url: str, retries: int = 3) -> bytes:
    return url.encode()


@task(retries=2, timeout=3)
async def fetch_again(url: str) -> bytes:
    return url.encode()


@task
def load(path: str) -> int:
    return len(path)


@workflow
async def publish(path: str, times: int = 1) -> bytes:
    return path.encode() * times


@workflow(grace=3, cache_store=None, event_loop="trio", plugins=[], description="x")
def count(path: str) -> int:
    return len(path)


class Shelf:
    """A store, by what it does."""

    def get(self, key: str) -> object:
        return CACHE_MISS

    def put(self, key: str, value: object, ttl: float | None = None) -> None: ...

    def delete(self, key: str) -> None: ...

    def clear(self) -> None: ...


@task(cache=Shelf(), cache_ttl=lambda result: 60, cache_hash=default_cache_hash, version="2")
async def fetch_once(url: str, retries: int = 3) -> bytes:
    return url.encode()


@task(cache=Path("folder"), cache_ttl=60)
def load_once(path: str) -> int:
    return len(path)


async def test_cached_tasks() -> None:
    assert_type(await fetch_once("x"), bytes)
    assert_type(fetch_once.cache_key("x", retries=1), str)
    assert_type(await fetch_once.invalidate("x"), None)
    assert_type(load_once.cache_key("x"), str)
    assert_type(load_once.invalidate("x"), None)
    assert_type(load_once.with_options(cache="memory://x", cache_store=None, cache_ttl=None)("x"), int)
    assert_type(MemoryCacheStore().get("x"), Any)
    store: CacheStore = FileCacheStore("folder")
    session(cache_store=store)
    Settings(cache_store=store)


class Lines:
    """A format, by what it does."""

    name = "lines"
    extensions = ("lines",)

    def dump(self, value: list[str], file: BinaryIO, *, end: str = "\n") -> None:
        file.write(end.join(value).encode())

    def load(self, file: BinaryIO, type: object, *, end: str = "\n") -> list[str]:
        return file.read().decode().split(end)


@task(dataset="{name}-{path}.json", dataset_store=Path("folder"), dataset_format="json")
def save_once(path: str) -> int:
    return len(path)


async def test_datasets(tmp_path: Path) -> None:
    store = DatasetStore(tmp_path)
    assert_type(save_once.with_options(dataset_store=store)("x"), int)
    assert_type(await save_once.with_options(dataset_store=str(tmp_path)).to_thread("x"), int)
    assert_type(save_dataset("a.json", {"b": 1}, store=store), None)
    assert_type(await asave_dataset("a.json", {"b": 1}, format="json", options={"indent": 1}, store=tmp_path), None)
    assert_type(load_dataset("a.json", store=store), Any)
    assert_type(load_dataset("a.json", dict, store=store), dict[Any, Any])
    assert_type(await aload_dataset("a.json", store=store), Any)
    assert_type(await aload_dataset("save_once-x.json", int, store=store), int)
    assert_type(store.load("save_once-x.json", int), int)
    assert_type(store.load("a.json"), Any)
    assert_type(store.list_keys(), list[str])
    known: DatasetFormat = Lines()
    assert_type(register_format(known), None)
    session(dataset_store=store)
    Settings(dataset_store=tmp_path)


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


@task()
async def multiply(factor: int, text: str = "", times: float = 1.0) -> str:
    return text * int(factor * times)


@task
async def cells(row: int, column: str = "", scale: float = 1.0) -> AsyncGenerator[bytes, None]:
    yield column.encode() * int(row * scale)


@task
def words(row: int, column: str = "", scale: float = 1.0) -> Generator[str, int, bool]:
    yield column * int(row * scale)
    return True


def join(left: int, right: str) -> str:
    return f"{left}{right}"


class Prefix:
    async def __call__(self, text: str) -> bytes:
        return text.encode()

    async def method(self, text: str) -> bytes:
        return text.encode()


class Shop:
    @task
    @classmethod
    async def open(cls, name: str) -> str:
        return name

    @task
    @staticmethod
    def price(item: str) -> int:
        return len(item)

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


async def test_every_form_of_the_decorator() -> None:
    assert_type(await multiply(2, "x"), str)
    assert_type([cell async for cell in cells(1)], list[bytes])
    assert_type(list(words(1)), list[str])
    assert_type(task(join)(1, "x"), str)
    assert_type(await task(retries=2, limit=Limit("x", 2), rate=Rate(60, per=60))(join).to_thread(1, "x"), str)
    assert_type(task(backend="thread", limit=3, wrap_errors=False)(join).call(1, "x"), TaskCall[str])
    assert_type(task(lambda: 3)(), int)
    assert_type(task(partial(join, 1))("x"), str)
    assert_type(await task(Prefix())("x"), bytes)
    assert_type(await task(Prefix().method)("x"), bytes)
    assert_type(Shop.price("pen"), int)
    assert_type(await Shop().open("x"), str)


async def test_the_kinds_of_task() -> None:
    def of_async(t: AsyncTask[..., bytes]) -> Coroutine[Any, Any, bytes]:
        return t("x")

    def of_sync(t: SyncTask[..., int]) -> int:
        return t("x")

    def of_async_streams(t: AsyncTaskStream[..., int]) -> AsyncStream[int]:
        return t("x")

    def of_sync_streams(t: SyncTaskStream[..., str]) -> SyncStream[str]:
        return t("x")

    assert_type(await of_async(fetch_again), bytes)
    assert_type(of_sync(load), int)
    assert_type([row async for row in of_async_streams(rows)], list[int])
    assert_type(list(of_sync_streams(lines)), list[str])
    assert_type(load.retries, int)
    assert_type(load.timeout, float | None)
    assert_type(load.limit, Limit | None)


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
    assert_type(fetch.partial("x"), AsyncTask[..., bytes])
    assert_type(await load.partial("x").with_options(timeout=9).to_thread(), int)
    assert_type(load_again.with_options(name=None, limit=None)("x"), int)
    async with cells.with_options(pump=True).partial(1)() as pumped:
        assert_type([cell async for cell in pumped], list[bytes])


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


async def test_fan_outs_over_several_iterables() -> None:
    assert_type(await gather_tasks(multiply, [1], ["x"]), list[str])
    assert_type(await gather_tasks(multiply, [1], ["x"], [2.0], limit=2), list[str])
    assert_type(await gather_tasks(cells, [1], ["x"]), list[list[bytes]])
    assert_type(await gather_tasks(words, [1], ["x"], [2.0]), list[list[str]])
    assert_type(await gather_tasks(join, [1], ["x"]), list[str])
    assert_type(await gather_tasks(join, [1], rows_of_text(), errors="collect"), list[Outcome[str]])
    assert_type(await gather_tasks(words, [1], ["x"], errors="collect"), list[Outcome[list[str]]])
    async with stream_tasks(multiply, [1], ["x"], ordered=True) as results:
        assert_type([result async for result in results], list[str])
    async with stream_tasks(cells, [1], ["x"], [2.0], limit=2, buffer=1) as collected_cells:
        assert_type([result async for result in collected_cells], list[list[bytes]])
    async with stream_tasks(words, [1], ["x"], errors="collect") as outcomes:
        assert_type([outcome async for outcome in outcomes], list[Outcome[list[str]]])


async def test_fan_outs_of_partials() -> None:
    # With arguments fixed nobody knows which are left: mypy takes the results for `Any`, and so what they are said to be.
    texts: list[str] = await gather_tasks(multiply.partial(text="x"), [1])
    cells_of_rows: list[list[bytes]] = await gather_tasks(cells.partial(column="x"), [1])
    assert (texts, cells_of_rows) == (["x"], [[b"x"]])
    assert_type(await gather_tasks(load.partial(), ["x"]), list[int])


async def test_outcomes() -> None:
    [outcome] = await gather_tasks(load, ["x"], errors="collect")
    assert_type(outcome.index, int)
    assert_type(outcome.value, int | None)
    assert_type(outcome.error, Exception | None)


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
    assert_type(map_tasks(words, [1], ["x"]), list[list[str]])
    assert_type(map_tasks(cells, [1], ["x"], [2.0], errors="collect"), list[Outcome[list[bytes]]])
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
        def activate(self, metadata: TaskMetadata) -> Generator[None]:
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


async def test_workflows() -> None:
    class Desk:
        @workflow
        async def sort(self, letters: int) -> list[int]:
            return list(range(letters))

        @workflow(name="clean")
        def clean(self, how: str) -> bool:
            return bool(how)

    assert_type(await publish("x", times=2), bytes)
    assert_type(await Desk().sort(2), list[int])


def test_workflows_from_sync_code() -> None:
    assert_type(publish.run("x"), bytes)
    assert_type(publish.run("x", event_loop="trio"), bytes)
    assert_type(count("x"), int)
    assert_type(count.run("x", event_loop="asyncio"), int)
    assert isinstance(publish, AsyncWorkflow)
    assert isinstance(count, SyncWorkflow)
    assert_type(count.name, str)
