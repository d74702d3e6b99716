"""`cache=`: a result is looked up before the call begins, and kept after its last attempt."""

import asyncio
import logging
import math
import os
import pickle
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextvars import copy_context
from pathlib import Path
from typing import Any

import anyio
import pytest
from anyio.lowlevel import checkpoint

from daglite import current_task, gather_tasks, session, task
from daglite.cache import CACHE_MISS, MemoryCacheStore, refresh_cache
from daglite.events import CacheFailed, CacheHit, CacheMissed, TaskEvent, TaskStarted, TaskSucceeded
from daglite.exceptions import CacheKeyError, SessionError, TaskError, TaskTimeoutError
from daglite.plugins import hook_impl
from daglite.settings import Settings, get_settings, set_settings
from daglite.testing import EventRecorder, VirtualClock

from . import tasks_for_pickle
from .test_events import Recorder
from .test_tree import until


class Shelf:
    """A store as anybody may write one, which can be told to fail, or to let others wait."""

    def __init__(self, *, blocking: bool = True) -> None:
        self.blocking = blocking
        self.kept: dict[str, Any] = {}
        self.told: list[str] = []
        self.ttls: list[float | None] = []
        self.error: Exception | None = None
        self.gate: threading.Event | None = None  # which whoever asks waits for
        self.threads: set[int] = set()

    def _come(self, what: str) -> None:
        self.told.append(what)
        self.threads.add(threading.get_ident())
        if self.gate is not None:
            assert self.gate.wait(30)
        if self.error is not None:
            raise self.error

    def get(self, key: str) -> Any:
        self._come("get")
        return self.kept.get(key, CACHE_MISS)

    def put(self, key: str, value: Any, ttl: float | None = None) -> None:
        self._come("put")
        self.ttls.append(ttl)
        self.kept[key] = value

    def delete(self, key: str) -> None:
        self._come("delete")
        self.kept.pop(key, None)

    def clear(self) -> None:
        self.kept.clear()


class Square:
    """A task of each kind that has results, which counts how often its function runs."""

    def __init__(self, store: Any, **options: Any) -> None:
        self.runs: list[int] = []
        self.task = task(cache=store, version=1, **options)(self._square)
        self.sync = task(cache=store, version=2, **options)(self._square_here)

    def __cache_key__(self) -> None: ...

    async def _square(self, number: int) -> list[int]:
        self.runs.append(number)
        return [number * number]

    def _square_here(self, number: int) -> list[int]:
        self.runs.append(number)
        return [number * number]

    async def call(self, kind: str, number: int) -> list[int]:
        if kind == "async":
            return await self.task(number)
        return self.sync(number) if kind == "sync" else await self.sync.to_thread(number)


def fresh() -> str:
    """The name of a store that nobody has used."""
    return f"memory://{os.urandom(8).hex()}"


KINDS = ["async", "sync", "thread"]


@pytest.fixture(params=["memory", "blocking", "never blocking"])
def store(request: pytest.FixtureRequest) -> Any:
    return MemoryCacheStore() if request.param == "memory" else Shelf(blocking=request.param == "blocking")


@pytest.fixture
def settings() -> Iterator[None]:
    yield
    set_settings(None)


# Hits and misses.


@pytest.mark.parametrize("kind", KINDS)
async def test_a_result_is_computed_once_and_then_kept(kind: str, store: Any) -> None:
    square = Square(store)
    assert [await square.call(kind, number) for number in (2, 3, 2, 3, 2)] == [[4], [9], [4], [9], [4]]
    assert square.runs == [2, 3]


@pytest.mark.parametrize("kind", KINDS)
async def test_what_a_caller_does_with_a_result_is_not_seen_by_the_next(kind: str) -> None:
    square = Square(MemoryCacheStore())
    for _ in range(3):
        result = await square.call(kind, 2)
        assert result == [4]
        result.append(5)
    assert square.runs == [2]


async def test_none_is_a_value_and_a_failure_is_not_kept() -> None:
    runs: list[str] = []

    @task(cache=fresh())
    async def nothing() -> None:
        runs.append("nothing")

    @task(cache=fresh())
    async def fail() -> None:
        runs.append("fail")
        raise ValueError("no")

    for _ in range(2):
        assert await gather_tasks(nothing.call()) == (None,)
        with pytest.raises(TaskError, match="ValueError: no"):
            await fail()
    assert runs == ["nothing", "fail", "fail"]


@pytest.mark.parametrize("kind", KINDS)
async def test_a_call_is_retried_behind_its_cache(kind: str, store: Any) -> None:
    failures = iter([OSError(), OSError()])

    def work(number: int) -> int:
        for error in failures:
            raise error
        return number

    async def work_async(number: int) -> int:
        return work(number)

    if kind == "async":
        made = task(cache=store, version=1, retries=2)(work_async)
        assert [await made(5), await made(5)] == [5, 5]
    else:
        here = task(cache=store, version=1, retries=2)(work)
        for _ in range(2):
            assert (here(5) if kind == "sync" else await here.to_thread(5)) == 5


async def test_a_store_that_blocks_is_asked_off_the_event_loop_and_another_in_it() -> None:
    here = threading.get_ident()
    for blocking in (True, False):
        shelf = Shelf(blocking=blocking)
        square = Square(shelf)
        await square.call("async", 2)
        await square.call("thread", 2)
        assert (here in shelf.threads) == (not blocking)
        assert len(shelf.threads) >= 1
        assert shelf.told == ["get", "put"] * 2
    shelf = Shelf()
    await Square(shelf).call("sync", 2)
    assert shelf.threads == {here}


async def test_calls_of_a_fan_out_share_a_cache(store: Any) -> None:
    square = Square(store)
    assert await gather_tasks(square.task, range(4)) == await gather_tasks(square.task, range(4))
    assert sorted(square.runs) == [0, 1, 2, 3]


async def test_a_copy_with_other_options_shares_what_is_kept(store: Any) -> None:
    square = Square(store)
    await square.task(2)
    assert await square.task.with_options(retries=3, name="other")(2) == [4]
    assert square.runs == [2]


async def test_a_store_need_not_be_hashable() -> None:
    class Unhashable(Shelf):
        __hash__ = None  # type: ignore[assignment]

    square = Square(Unhashable())
    assert [await square.task(2), await square.task(2), square.sync(2)] == [[4]] * 3
    assert square.runs == [2, 2]


# Which store.


async def test_the_nearest_store_is_used(settings: None) -> None:
    own, of_session, of_settings = Shelf(), Shelf(), Shelf()
    runs: list[None] = []

    @task(cache=True)
    async def work() -> int:
        runs.append(None)
        return len(runs)

    assert [await work(), await work()] == [1, 2]  # there is none
    set_settings(Settings(cache_store=of_settings))
    assert [await work(), await work()] == [3, 3]
    async with session(cache_store=of_session):
        assert [await work(), await work()] == [4, 4]
        async with session():
            assert await work() == 4
        async with session(cache_store=None):
            assert [await work(), await work()] == [5, 6]
        named = work.with_options(cache_store=own)
        assert [await named(), await named()] == [7, 7]
        assert await work.with_options(cache=own)() == 7
    assert [len(each.kept) for each in (own, of_session, of_settings)] == [1, 1, 1]
    assert named.with_options(cache=of_session).cache_store is None


async def test_without_a_store_nothing_is_encoded(
    caplog: pytest.LogCaptureFixture, recorded_events: EventRecorder
) -> None:
    results = []

    class Plugin:
        @hook_impl
        def after_node_execute(self, result: Any) -> None:
            results.append(result)

    @task(cache=True)
    async def work(client: object) -> int:
        return 1

    @task(cache=True)
    def here(client: object) -> int:
        return 2

    async with session(plugins=[Plugin()]):
        assert (await work(object()), here(object()), await here.to_thread(object())) == (1, 2, 2)
    assert results == [1, 2, 2]
    assert not recorded_events.of(CacheMissed, CacheFailed)
    assert not caplog.records
    await work.invalidate(object())
    here.invalidate(object())
    with pytest.raises(CacheKeyError):
        work.cache_key(object())


async def test_a_store_of_a_name_is_one_for_all_who_name_it() -> None:
    def work(number: int) -> int:
        runs.append(number)
        return number

    runs: list[int] = []
    names = [fresh(), fresh()]
    names.insert(1, names[0])
    one, same, other = (task(cache=name, version=1)(work) for name in names)
    assert [each(3) for each in (one, same, other)] == [3, 3, 3]
    assert runs == [3, 3]


def test_settings_name_a_store_and_do_not_show_their_key() -> None:
    found = Settings.from_env({"DAGLITE_CACHE_STORE": "memory://env", "DAGLITE_CACHE_KEY": "hunter2"})
    assert found == Settings(cache_store="memory://env", cache_key="hunter2")
    assert "hunter2" not in repr(found)
    assert Settings(cache_store=Path("a")).cache_store == "a"
    assert get_settings().cache_store is None
    for value, error in [("http://x", ValueError), ("", ValueError), (3, TypeError), (Shelf, TypeError)]:
        with pytest.raises(error, match="Settings: cache_store"):
            Settings(cache_store=value)  # type: ignore[arg-type]
        with pytest.raises(error, match="session: cache_store"):
            session(cache_store=value)  # type: ignore[arg-type]
    for key in (b"", 7):
        with pytest.raises(TypeError, match="Settings: cache_key must be a str or bytes, and not empty$"):
            Settings(cache_key=key)  # type: ignore[arg-type]
    with pytest.raises(
        ValueError, match="DAGLITE_CACHE_STORE is 'ftp://x': cache_store: there is no store for 'ftp://x'"
    ):
        Settings.from_env({"DAGLITE_CACHE_STORE": "ftp://x"})


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"cache": 1}, TypeError, "cache must be a path or a store with the methods get, put, delete and clear"),
        ({"cache": None}, TypeError, "cache must be a path or a store"),
        ({"cache": Shelf}, TypeError, "cache must be a path or a store"),
        ({"cache": ""}, ValueError, "cache must not be empty"),
        ({"cache": "memory://"}, ValueError, "cache must not be empty"),
        ({"cache": "http://host"}, ValueError, "cache: there is no store for 'http://host'"),
        ({"cache": "a\0b"}, ValueError, "cache must be a path of text, without a NUL"),
        ({"cache_store": 3}, TypeError, "cache_store must be a path or a store"),
        ({"cache": "a", "cache_store": "b"}, ValueError, "cache='a' and cache_store='b' name two stores"),
        ({"cache_ttl": 0}, ValueError, "cache_ttl must be more than 0, not 0"),
        ({"cache_ttl": -1}, ValueError, "cache_ttl must be more than 0, not -1"),
        ({"cache_ttl": math.nan}, ValueError, "cache_ttl must be finite, not nan"),
        ({"cache_ttl": math.inf}, ValueError, "cache_ttl must be finite, not inf"),
        ({"cache_ttl": True}, TypeError, "cache_ttl must be a number, not True"),
        ({"cache_ttl": "60"}, TypeError, "cache_ttl must be a number, not '60'"),
        ({"cache_ttl": anyio.sleep}, TypeError, "cache_ttl must be seconds or a plain function of the result"),
        ({"cache_hash": "x"}, TypeError, "cache_hash must be a plain function"),
        ({"cache_hash": anyio.sleep}, TypeError, "cache_hash must be a plain function"),
        ({"version": 1.5}, TypeError, "version must be a str or an int, not 1.5"),
        ({"version": True}, TypeError, "version must be a str or an int, not True"),
    ],
)
def test_wrong_options_are_errors_at_decoration(options: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"task 'work': {message}"):

        @task(**options)
        def work() -> None: ...


@pytest.mark.parametrize(
    "option", [{"cache": True}, {"cache": "a"}, {"cache_store": "a"}, {"cache_ttl": 3}, {"cache_hash": lambda f, i: ""}]
)
def test_streams_are_not_cached(option: Any) -> None:
    (name,) = option
    with pytest.raises(
        ValueError, match=f"task 'rows' is a generator: {name}=.* does not apply to streams; a stream is not kept"
    ):

        @task(**option)
        async def rows() -> AsyncIterator[int]:
            yield 1

    assert task(version=3, cache=False)(lambda: None).version == 3


def test_the_options_can_be_read_and_a_path_is_text() -> None:
    def ttl(result: Any) -> float:
        return 3.0

    made = task(cache=Path("a") / "b", cache_ttl=ttl, version="1")(lambda: None)
    assert (made.cache, made.cache_ttl, made.version, made.cache_hash) == (os.path.join("a", "b"), ttl, "1", None)
    plain = task(lambda: None)
    assert (plain.cache, plain.cache_store, plain.cache_ttl, plain.version) == (False, None, None, None)


def test_a_cached_task_is_pickled_by_reference() -> None:
    changed = tasks_for_pickle.double.with_options(cache="memory://pickled", cache_ttl=3)
    copy = pickle.loads(pickle.dumps(changed))
    assert (copy.cache, copy.cache_ttl) == ("memory://pickled", 3.0)
    store = MemoryCacheStore(max_items=5)
    copy = pickle.loads(pickle.dumps(tasks_for_pickle.double.with_options(cache=store)))
    assert copy.cache is store


# What is told.


@pytest.mark.parametrize("kind", KINDS)
async def test_a_hit_is_told_and_nothing_else_of_it(kind: str, store: Any, recorded_events: EventRecorder) -> None:
    hits, misses = [], []

    class Plugin:
        @hook_impl
        def on_cache_miss(self, metadata: Any, key: str) -> None:
            misses.append((metadata.name, key))

        @hook_impl
        def on_cache_hit(self, metadata: Any, key: str, value: Any, reporter: Any) -> None:
            hits.append((metadata.name, key, value))
            reporter.report("hit")

    square = Square(store)

    @task(name="outer")
    async def outer() -> None:
        await square.call(kind, 2)
        await square.call(kind, 2)

    async with session(plugins=[Plugin()]) as s:
        await outer()
        assert s.stats().succeeded == 2
    name = "_square" if kind == "async" else "_square_here"
    key = (square.task if kind == "async" else square.sync).cache_key(2)
    assert hits == [(name, key, [4])]
    assert misses == [(name, key)]
    told = [event for event in recorded_events.of(TaskEvent) if event.metadata.name == name]
    assert [type(event).__name__ for event in told] == [
        "CacheMissed", "TaskStarted", "TaskSucceeded", "TaskReported", "CacheHit",
    ]  # fmt: skip
    missed, hit = told[0], told[-1]
    assert isinstance(missed, CacheMissed)
    assert isinstance(hit, CacheHit)
    assert (missed.key, hit.key, hit.shared) == (key, key, False)
    assert missed.metadata.id == told[1].metadata.id != hit.metadata.id
    assert {each.metadata.parent_id for each in told} == {recorded_events.of(TaskStarted)[0].metadata.id}
    assert hit.metadata.inputs == {"number": 2}


async def test_a_lookup_and_the_keeping_show_in_the_tree() -> None:
    shelf = Shelf()
    shelf.gate = threading.Event()
    square = Square(shelf)
    async with session() as s:
        call = s.start_soon(square.task, 2)
        await until(lambda: shelf.told == ["get"])
        assert [each.state for each in s.tree()] == ["looking in its cache"]
        assert s.stats().running == 1
        shelf.gate.set()
        shelf.gate = gate = threading.Event()
        await until(lambda: shelf.told == ["get", "put"])
        assert [each.state for each in s.tree()] == ["keeping its result"]
        gate.set()
        await call
        assert [*s.tree()] == []
        await square.task(2)
        assert s.stats().started == 1


async def test_hits_outside_of_sessions_and_in_a_sync_session() -> None:
    square = Square(MemoryCacheStore())

    def program() -> list[str]:
        with session() as s:
            recorder = Recorder()
            s.watch(recorder)
            assert square.sync(2) == square.sync(2) == [4]
            assert square.task.from_thread(3) == square.task.from_thread(3) == [9]
        return [each for each in recorder.told if not each.startswith("Session")]

    told = await anyio.to_thread.run_sync(program)
    assert [each.split()[0] for each in told] == ["CacheMissed", "TaskStarted", "TaskSucceeded", "CacheHit"] * 2


async def test_a_session_that_has_ended_gives_no_hits() -> None:
    square = Square(MemoryCacheStore())
    async with session(name="over"):
        assert square.sync(2) == [4]
        inside = copy_context()
    with pytest.raises(SessionError, match="task '_square_here' was called in session 'over', which has ended"):
        inside.run(square.sync, 2)


# How long.


async def test_a_result_is_kept_for_its_ttl(virtual_clock: VirtualClock) -> None:
    square = Square(MemoryCacheStore(), cache_ttl=60)
    for pause in (0, 59, 2, 59):
        await anyio.sleep(pause)
        assert await square.task(2) == [4]
    assert square.runs == [2, 2]


async def test_a_function_of_the_result_says_for_how_long() -> None:
    def ttl(result: list[int]) -> float | None:
        return None if result[0] < 5 else float(result[0])

    shelf = Shelf()
    square = Square(shelf, cache_ttl=ttl)
    await square.call("async", 2)
    await square.call("sync", 3)
    assert shelf.ttls == [None, 9.0]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (lambda result: math.nan, "ValueError: its answer must be finite, not nan"),
        (lambda result: -1, "ValueError: its answer must be more than 0, not -1"),
        (lambda result: "soon", "TypeError: its answer must be a number, not 'soon'"),
        (lambda result: 1 / 0, "ZeroDivisionError: .*"),
    ],
)
async def test_a_bad_answer_keeps_nothing_and_gives_the_result(
    kind: str, answer: Any, error: str, caplog: pytest.LogCaptureFixture, recorded_events: EventRecorder
) -> None:
    shelf = Shelf()
    square = Square(shelf, cache_ttl=answer)
    async with session():
        assert await square.call(kind, 2) == [4]
    assert shelf.kept == {}
    (failed,) = recorded_events.of(CacheFailed)
    assert failed.operation == "cache_ttl"
    check_warning(caplog, f"its cache could not be told by cache_ttl how long to keep it: {error}")


def check_warning(caplog: pytest.LogCaptureFixture, message: str) -> None:
    import re

    (record,) = caplog.records
    assert (record.name, record.levelno) == ("daglite", logging.WARNING)
    assert re.search(message, record.getMessage())


# A cache that fails.


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("blocking", [True, False])
async def test_a_store_that_raises_is_a_miss_or_a_result_that_is_not_kept(
    kind: str, blocking: bool, caplog: pytest.LogCaptureFixture, recorded_events: EventRecorder
) -> None:
    shelf = Shelf(blocking=blocking)
    shelf.error = OSError("the disk is gone")
    square = Square(shelf)
    async with session():
        assert await square.call(kind, 2) == [4]
    name = "_square" if kind == "async" else "_square_here"
    assert [record.getMessage() for record in caplog.records] == [
        f"task {name!r}: its cache could not be read: OSError: the disk is gone",
        f"task {name!r}: its cache could not keep its result: OSError: the disk is gone",
    ]
    told = recorded_events.of(TaskEvent)
    assert [type(event).__name__ for event in told] == [
        "CacheFailed", "CacheMissed", "TaskStarted", "CacheFailed", "TaskSucceeded",
    ]  # fmt: skip
    failures = recorded_events.of(CacheFailed)
    assert [(each.operation, each.error) for each in failures] == [
        ("get", "OSError: the disk is gone"), ("put", "OSError: the disk is gone"),
    ]  # fmt: skip
    assert {each.metadata.name for each in failures} == {name}
    with pytest.raises(OSError, match="the disk is gone"):
        await square.task.invalidate(2)
    with pytest.raises(OSError, match="the disk is gone"):
        square.sync.invalidate(2)


@pytest.mark.parametrize("kind", KINDS)
async def test_a_value_that_does_not_pickle_is_returned_and_not_kept(
    kind: str, caplog: pytest.LogCaptureFixture, recorded_events: EventRecorder
) -> None:
    store = MemoryCacheStore()

    def work() -> Callable[[], int]:
        return lambda: 1

    async def work_async() -> Callable[[], int]:
        return lambda: 1

    async with session():
        if kind == "async":
            result = await task(cache=store)(work_async)()
        else:
            made = task(cache=store)(work)
            result = made() if kind == "sync" else await made.to_thread()
        assert result() == 1
    assert len(store) == 0
    (failed,) = recorded_events.of(CacheFailed)
    assert failed.operation == "put"
    check_warning(caplog, "its cache could not keep its result: .*lambda")


async def test_a_key_that_cannot_be_made_is_an_error_before_the_call_begins(recorded_events: EventRecorder) -> None:
    runs = []

    @task(cache=fresh(), retries=3, wrap_errors=True)
    async def work(client: object) -> None:
        runs.append(client)

    @task(retries=1)
    async def outer() -> None:
        await work(object())

    async with session():
        with pytest.raises(CacheKeyError, match="task 'work': no key can be made of the argument 'client'"):
            await work(object())
        assert [type(event).__name__ for event in recorded_events.events] == ["SessionStarted"]
        with pytest.raises(TaskError) as caught:
            await outer()
    assert isinstance(caught.value.root_cause, CacheKeyError)
    assert caught.value.attempts == 2
    assert not runs
    copy = pickle.loads(pickle.dumps(caught.value.root_cause))
    assert str(copy) == str(caught.value.root_cause)


@pytest.mark.parametrize("kind", KINDS)
async def test_wrong_arguments_are_the_functions_own_type_error(kind: str) -> None:
    square = Square(MemoryCacheStore())
    with pytest.raises(TypeError, match="number"):
        if kind == "async":
            await square.task()  # type: ignore[call-arg]
        elif kind == "sync":
            square.sync()  # type: ignore[call-arg]
        else:
            await square.sync.to_thread()  # type: ignore[call-arg]


# Deadlines and cancellation.


async def test_the_time_for_the_whole_call_begins_with_the_lookup(recorded_events: EventRecorder) -> None:
    shelf = Shelf()
    shelf.gate = threading.Event()
    square = Square(shelf, total_timeout=0.2)
    async with session():
        with pytest.raises(TaskTimeoutError, match="no result within its total_timeout of 0.2 s") as caught:
            await square.task(2)
    shelf.gate.set()
    assert caught.value.scope == "total"
    assert square.runs == []
    told = [type(event).__name__ for event in recorded_events.of(TaskEvent)]
    assert told == ["TaskStarted", "TaskFailed"]


async def test_what_the_lookup_takes_is_not_there_for_the_function(virtual_clock: VirtualClock) -> None:
    class Slow(Shelf):
        def get(self, key: str) -> Any:
            anyio.from_thread.run(anyio.sleep, 6)
            return super().get(key)

    @task(cache=Slow(), total_timeout=10)
    async def work() -> int:
        await anyio.sleep(5)
        return 1

    began = anyio.current_time()
    with pytest.raises(TaskTimeoutError, match="total_timeout of 10 s"):
        await work()
    assert anyio.current_time() - began == pytest.approx(10)
    assert await work.with_options(total_timeout=12)() == 1


async def test_a_lookup_is_abandoned_when_the_call_is_cancelled(recorded_events: EventRecorder) -> None:
    shelf = Shelf()
    shelf.gate = threading.Event()
    square = Square(shelf)
    async with session() as s:
        async with anyio.create_task_group() as group:
            group.start_soon(square.task, 2)
            await until(lambda: shelf.told == ["get"])
            group.cancel_scope.cancel()
        assert [*s.tree()] == []
        assert s.stats().cancelled == 1
    shelf.gate.set()
    told = [type(event).__name__ for event in recorded_events.of(TaskEvent)]
    assert told == ["TaskStarted", "TaskCancelled"]


async def test_cancellation_is_looked_for_before_a_hit(store: Any) -> None:
    square = Square(store)
    await square.task(2)
    with anyio.CancelScope() as scope:
        scope.cancel()
        await square.task(2)
        raise AssertionError("it was cancelled")
    assert scope.cancelled_caught


@pytest.mark.parametrize("kind", ["async", "thread"])
async def test_a_scope_cancelled_between_result_and_keeping_loses_nothing(kind: str, store: Any) -> None:
    square = Square(store)
    with anyio.CancelScope() as scope:

        def cancel(result: Any) -> None:
            scope.cancel()

        square = Square(store, cache_ttl=cancel)
        result = await square.call(kind, 2)
        assert result == [4]
        await checkpoint()
        raise AssertionError("it was cancelled")
    assert await square.call(kind, 2) == [4]
    assert square.runs == [2]


async def test_no_more_than_twenty_threads_ask_stores_at_once() -> None:
    shelf = Shelf()
    shelf.gate = threading.Event()
    square = Square(shelf)
    async with anyio.create_task_group() as group:
        for number in range(25):
            group.start_soon(square.task, number)
        await until(lambda: len(shelf.told) == 20)
        for _ in range(20):
            await anyio.sleep(0.001)
        assert len(shelf.told) == 20
        shelf.gate.set()
    assert len(shelf.kept) == 25


async def test_keeping_is_waited_for_when_it_is_cancelled(caplog: pytest.LogCaptureFixture) -> None:
    shelf = Shelf()
    shelf.gate = threading.Event()
    square = Square(shelf)
    result = []

    async def call() -> None:
        with refresh_cache():
            result.append(await square.task(2))
        await checkpoint()
        raise AssertionError("it was cancelled")

    async with anyio.create_task_group() as group:
        group.start_soon(call)
        await until(lambda: shelf.told == ["put"])
        group.cancel_scope.cancel()
        for _ in range(3):
            with anyio.CancelScope(shield=True):
                await checkpoint()
        assert not result
        shelf.gate.set()
    assert result == [[4]]
    assert len(shelf.kept) == 1
    assert not caplog.records


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_keeping_is_waited_for_when_it_is_cancelled_by_asyncios_own_means() -> None:
    shelf = Shelf()
    shelf.gate = threading.Event()
    square = Square(shelf)
    with refresh_cache():
        call = asyncio.ensure_future(square.task(2))
        await until(lambda: shelf.told == ["put"])
        call.cancel()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert not call.done()
        shelf.gate.set()
        with pytest.raises(asyncio.CancelledError):
            await call
    assert len(shelf.kept) == 1


async def test_what_ends_a_program_comes_out_of_a_keeping_that_is_cancelled() -> None:
    class Stop(BaseException):
        pass

    class Stopping(Shelf):
        def put(self, key: str, value: Any, ttl: float | None = None) -> None:
            anyio.from_thread.run_sync(scope.cancel)
            raise Stop

    with pytest.raises(Stop):
        with anyio.CancelScope() as scope:
            await Square(Stopping()).task(2)


async def test_a_store_that_never_ends_keeps_a_cancelled_call_for_no_longer_than_grace(
    caplog: pytest.LogCaptureFixture,
) -> None:
    shelf = Shelf()
    shelf.gate = threading.Event()
    square = Square(shelf)
    async with session(grace=0.1):
        with refresh_cache():
            async with anyio.create_task_group() as group:
                group.start_soon(square.task, 2)
                await until(lambda: shelf.told == ["put"])
                group.cancel_scope.cancel()
    shelf.gate.set()
    check_warning(caplog, "could not keep its result: Unfinished: it has taken longer than the 0.1 s")


async def test_keeping_is_outside_of_the_deadlines(virtual_clock: VirtualClock) -> None:
    class Slow(Shelf):
        def put(self, key: str, value: Any, ttl: float | None = None) -> None:
            anyio.from_thread.run(anyio.sleep, 60)
            super().put(key, value, ttl)

    shelf = Slow()
    square = Square(shelf, timeout=5, total_timeout=5)
    assert await square.task(2) == [4]
    assert len(shelf.kept) == 1


async def test_a_task_that_would_block_the_event_loop_says_so_hit_or_not() -> None:
    square = Square(MemoryCacheStore(), timeout=5)
    for _ in range(2):
        with pytest.raises(RuntimeError, match="would block the event loop for its timeout of 5 s"):
            square.sync(2)
        assert await square.sync.to_thread(2) == [4]


# Anew.


@pytest.mark.parametrize("kind", KINDS)
async def test_an_invalidated_result_is_computed_anew(kind: str, store: Any) -> None:
    square = Square(store)
    await square.call(kind, 2)
    await square.call(kind, 3)
    if kind == "async":
        await square.task.invalidate(2)
    else:
        square.sync.invalidate(2)
    await square.call(kind, 2)
    await square.call(kind, 3)
    assert square.runs == [2, 3, 2]


async def test_invalidating_what_is_not_cached_does_nothing_and_checks_the_arguments() -> None:
    tasks_for_pickle.triple.invalidate(3)
    with pytest.raises(TypeError, match="task 'triple': missing a required argument"):
        tasks_for_pickle.triple.invalidate()  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="task '_square': too many positional arguments"):
        await Square(MemoryCacheStore()).task.invalidate(3, 4)  # type: ignore[call-arg]


@pytest.mark.parametrize("kind", KINDS)
async def test_refreshing_computes_anew_and_keeps_that(kind: str, store: Any) -> None:
    square = Square(store)
    await square.call(kind, 2)
    with refresh_cache():
        await square.call(kind, 2)
    await square.call(kind, 2)
    assert square.runs == [2, 2]


async def test_refreshing_holds_for_what_is_called_inside_in_other_tasks_and_threads(store: Any) -> None:
    square = Square(store)

    @task
    def in_thread() -> Any:
        return square.sync(2)

    for _ in range(2):
        with refresh_cache():
            await gather_tasks(square.task, [2, 3])
            await in_thread.to_thread()
    await gather_tasks(square.task, [2, 3])
    assert sorted(square.runs) == [2, 2, 2, 2, 3, 3]


async def test_the_running_call_is_the_same_with_a_cache() -> None:
    @task(cache=fresh(), name="who {x}")
    async def who(x: int) -> str:
        metadata = current_task()
        assert metadata is not None
        return metadata.name

    assert await who(1) == "who 1"
    assert current_task() is None
    assert await gather_tasks(who, [1, 2]) == ["who 1", "who 2[1]"]


async def test_a_succeeded_call_tells_its_result_after_it_was_kept(recorded_events: EventRecorder) -> None:
    results = []

    class Plugin:
        @hook_impl
        def after_node_execute(self, result: Any) -> None:
            results.append((result, len(shelf.kept)))
            states.extend(call.state for call in s.tree())

    shelf = Shelf()
    square = Square(shelf)
    states: list[str] = []
    async with session(plugins=[Plugin()]) as s:
        await square.call("async", 2)
        await square.call("sync", 2)
        await square.call("thread", 3)
    assert results == [([4], 1), ([4], 2), ([9], 3)]
    assert states == ["running", "running", "running"]  # and no more "keeping its result"
    assert len(recorded_events.of(TaskSucceeded)) == 3
