"""`RedisCacheStore`, with real servers: what is read is what was written, or nothing, whatever becomes of the server."""

import logging
import os
import pickle
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from daglite import _opening, gather_tasks, session, task
from daglite.cache import CACHE_MISS, FileCacheStore, RedisCacheStore
from daglite.events import CacheFailed, CacheHit, CacheMissed
from daglite.settings import Settings
from daglite.testing import EventRecorder, VirtualClock

from . import test_store_model
from .redis_servers import NEEDED, Server, client_of, free_port, names_of
from .test_file_store import warnings_of
from .test_tree import until

Make = Callable[..., RedisCacheStore]

CALLED: list[str] = []


def call_me() -> str:
    """What a pickle of `Trap` calls when it is loaded."""
    CALLED.append("called")
    return "trapped"


class Trap:
    def __reduce__(self) -> Any:
        return call_me, ()


@pytest.fixture(autouse=True)
def nothing_was_called() -> None:
    CALLED.clear()


@pytest.fixture(scope="module")
def shared_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server for all tests that do it no harm."""
    if NEEDED in os.environ:
        yield os.environ[NEEDED]
        return
    server = Server(tmp_path_factory.mktemp("redis"))
    try:
        server.start()
        yield server.url
    finally:
        server.stop()


@pytest.fixture
def make(shared_url: str) -> Iterator[Make]:
    """Makes stores, whose entries are removed, and whose connections are closed."""
    made: list[RedisCacheStore] = []
    prefix = f"daglite-test-{os.urandom(8).hex()}"

    def make(url: str = shared_url, signing_key: Any = None, **options: Any) -> RedisCacheStore:
        made.append(RedisCacheStore(url, signing_key, **{"prefix": prefix, "timeout": 20, **options}))
        return made[-1]

    yield make
    for each in made:
        if each.url == shared_url:
            each.clear()
        each.close()


@pytest.fixture
def store(make: Make) -> RedisCacheStore:
    return make()


@pytest.fixture
def servers(tmp_path: Path) -> Iterator[Callable[..., Server]]:
    """Starts servers of a test's own."""
    started: list[Server] = []

    def start(*options: str) -> Server:
        started.append(Server(tmp_path, *options))
        started[-1].start()
        return started[-1]

    yield start
    for each in started:
        each.stop()


class Square:
    """A cached task, which counts how often its function runs."""

    def __init__(self, store: Any, **options: Any) -> None:
        self.runs: list[int] = []
        self.task = task(name="square", cache=store, version=1, **options)(self._square)

    def __cache_key__(self) -> None: ...

    async def _square(self, number: int) -> int:
        self.runs.append(number)
        return number * number


# What is kept.


@pytest.mark.parametrize("value", [None, 0, "ü", {"a": [1, 2]}, b"\0" * 100_000, CACHE_MISS.__class__])
def test_a_value_comes_back_as_another_object_of_that_value(store: RedisCacheStore, value: Any) -> None:
    assert store.get("a") is CACHE_MISS
    store.put("a", value)
    store.put("b", "other")
    assert store.get("a") == value
    store.put("a", "new")
    assert store.get("a") == "new"
    store.delete("a")
    store.delete("a")
    assert (store.get("a"), store.get("b")) == (CACHE_MISS, "other")
    store.clear()
    assert store.get("b") is CACHE_MISS
    store.clear()


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(key=st.text(st.characters(), max_size=30), other=st.text(max_size=30))
def test_any_text_is_a_key(store: RedisCacheStore, key: str, other: str) -> None:
    store.put(key, key)
    if other != key:
        store.delete(other)
        assert store.get(other) is CACHE_MISS
    assert store.get(key) == key


@pytest.mark.parametrize("signing_key", [None, "secret"])
def test_a_server_does_what_a_dictionary_does(make: Make, signing_key: str | None) -> None:
    opened = {"opened": lambda self: make(signing_key=signing_key)}
    # Of its own time, which nobody turns forward, no test takes that much.
    test_store_model.run(type("Model", (test_store_model.StoreModel,), {"kind": "redis", "scale": 1000, **opened}))


def test_each_value_is_one_key_of_the_server(store: RedisCacheStore, make: Make) -> None:
    for each in (store, make(signing_key="a"), make(signing_key=b"b")):
        each.put("secret argument", 1)
    names = names_of(store)
    assert len(names) == 3
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    assert sum(name.startswith(f"{store.prefix}:v1-{version}-unsigned:".encode()) for name in names) == 1
    assert not any(b"secret" in name for name in names)


def test_clearing_removes_only_what_this_store_could_read(make: Make, shared_url: str) -> None:
    prefix = f"daglite-test-[*]?\\{os.urandom(8).hex()}"
    store, signed = make(prefix=prefix), make(prefix=prefix, signing_key="a")
    other = make(prefix=prefix.replace("[*]", "*"))
    for number in range(2500):
        store.put(str(number), number)
    for each in (signed, other):
        each.put("a", 1)
    store.clear()
    assert [store.get(str(number)) for number in (0, 1000, 2499)] == [CACHE_MISS] * 3
    assert (signed.get("a"), other.get("a")) == (1, 1)


def test_the_server_forgets_a_value_by_itself(store: RedisCacheStore) -> None:
    store.put("a", 1, ttl=0.02)
    store.put("b", 2, ttl=1000)
    store.put("c", 3)
    store.put("d", 4, ttl=1e300)
    lives = {client_of(store).pttl(name) for name in names_of(store)}
    assert -1 in lives  # the one that stays
    assert any(990_000 < left <= 1_000_000 for left in lives)
    while len(names_of(store)) == 4:
        time.sleep(0.01)
    assert (store.get("a"), store.get("b"), store.get("c"), store.get("d")) == (CACHE_MISS, 2, 3, 4)


async def test_a_value_that_somebody_made_stay_holds_no_longer(
    store: RedisCacheStore, virtual_clock: VirtualClock
) -> None:
    store.put("a", 1, ttl=1000)
    for name in names_of(store):
        assert client_of(store).persist(name)
    assert store.get("a") == 1
    await anyio.sleep(1001)
    assert store.get("a") is CACHE_MISS


@pytest.mark.parametrize("ttl", [0, -1, float("nan"), float("inf"), True, "1"])
def test_a_time_that_is_none_is_refused(store: RedisCacheStore, ttl: Any) -> None:
    with pytest.raises((ValueError, TypeError), match="RedisCacheStore.put: ttl must be"):
        store.put("a", 1, ttl=ttl)
    assert store.get("a") is CACHE_MISS


def test_a_value_that_does_not_pickle_keeps_what_was_there(store: RedisCacheStore) -> None:
    store.put("a", 1)
    with pytest.raises(Exception, match="pickle|local object"):
        store.put("a", lambda: 0)
    assert store.get("a") == 1


def test_a_store_pickles_and_shows_no_secret(make: Make, shared_url: str) -> None:
    store = make(signing_key="top secret")
    copy = pickle.loads(pickle.dumps(store))
    try:
        store.put("a", 1)
        assert copy.get("a") == 1
        assert (copy.location, copy.timeout) == (store.location, 20)
    finally:
        copy.close()
    hidden = make("redis://ada:secret@127.0.0.1:1/3?password=secret", "secret", prefix="p", timeout=2)
    assert repr(hidden) == "RedisCacheStore('redis://...@127.0.0.1:1/3', signing_key=..., prefix='p', timeout=2)"
    assert "secret" not in repr(hidden.location)
    assert "secret" not in repr(Settings(cache_store="redis://ada:secret@127.0.0.1/0"))


# What was changed by somebody else.


CHANGES: dict[str, Callable[[bytes], bytes]] = {
    "truncated": lambda data: data[:-1],
    "cut in the header": lambda data: data[:20],
    "empty": lambda data: b"",
    "longer": lambda data: data + b"\0",
    "a bit": lambda data: data[:-1] + bytes([data[-1] ^ 1]),
    "a bit of the time": lambda data: data[:9] + bytes([data[9] ^ 1]) + data[10:],
    "another's": lambda data: b"OK",
    "a pickle": lambda data: pickle.dumps(Trap()),
}


@pytest.mark.parametrize("signing_key", [None, "secret"])
@pytest.mark.parametrize("change", CHANGES)
def test_an_entry_that_was_changed_is_a_miss_and_is_removed(
    make: Make, signing_key: str | None, change: str, caplog: pytest.LogCaptureFixture
) -> None:
    store = make(signing_key=signing_key)
    store.put("a", "value")
    (name,) = names_of(store)
    client_of(store).set(name, CHANGES[change](client_of(store).get(name)))
    with caplog.at_level(logging.WARNING, "daglite"):
        assert store.get("a") is CACHE_MISS
        assert store.get("a") is CACHE_MISS
    (warning,) = warnings_of(caplog)
    assert f"the entry {name.decode()} cannot be read, and is removed: it " in warning
    assert names_of(store) == []
    assert CALLED == []


def test_an_entry_that_was_copied_to_another_key_is_a_miss(store: RedisCacheStore) -> None:
    store.put("a", "value")
    (first,) = names_of(store)
    store.put("b", "other")
    (second,) = set(names_of(store)) - {first}
    client_of(store).copy(first, second, replace=True)
    assert (store.get("a"), store.get("b")) == ("value", CACHE_MISS)


def test_a_signed_store_unpickles_nothing_that_others_have_written(make: Make, tmp_path: Path) -> None:
    signed, unsigned = make(signing_key="secret"), make()
    unsigned.put("a", Trap())
    (name,) = names_of(unsigned)
    assert signed.get("a") is CACHE_MISS  # it has keys of its own
    signed.put("a", 1)
    (own,) = set(names_of(signed)) - {name}
    client_of(signed).copy(name, own, replace=True)
    assert signed.get("a") is CACHE_MISS
    assert CALLED == []
    assert unsigned.get("a") == "trapped"  # as whoever can write there could have done


def test_a_key_of_another_kind_is_an_error_of_the_server(store: RedisCacheStore) -> None:
    store.put("a", 1)
    (name,) = names_of(store)
    client_of(store).delete(name)
    client_of(store).lpush(name, "a")
    with pytest.raises(Exception, match="WRONGTYPE"):
        store.get("a")
    client_of(store).delete(name)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.binary(max_size=200), keep=st.integers(0, 80))
def test_whatever_is_in_an_entry_it_is_a_miss(store: RedisCacheStore, data: bytes, keep: int) -> None:
    store.put("a", "value")
    (name,) = names_of(store)
    client_of(store).set(name, client_of(store).get(name)[:keep] + data)
    assert store.get("a") in (CACHE_MISS, "value")


# Tasks.


async def test_tasks_share_a_server_by_its_url(shared_url: str, recorded_events: EventRecorder) -> None:
    number = int.from_bytes(os.urandom(4), "big")
    square = Square(True)
    async with session(settings=Settings(cache_store=shared_url, cache_key="secret")):
        assert await square.task(number) == number**2
        assert await square.task(number) == number**2
        await square.task.invalidate(number)
        assert await square.task(number) == number**2
        await square.task.invalidate(number)
    assert square.runs == [number, number]
    assert [type(event) for event in recorded_events.of(CacheHit, CacheMissed, CacheFailed)] == [
        CacheMissed,
        CacheHit,
        CacheMissed,
    ]
    opened = _opening.opened(shared_url, "secret")
    assert isinstance(opened, RedisCacheStore)
    assert opened is _opening.opened(shared_url, "secret")
    assert opened is not _opening.opened(shared_url, None)
    opened.close()


async def test_the_event_loop_goes_on_and_concurrent_calls_compute_once(
    store: RedisCacheStore, recorded_events: EventRecorder
) -> None:
    square = Square(store)
    assert RedisCacheStore.blocking
    async with session():
        assert await gather_tasks(square.task, [3, 3, 3, 4]) == [9, 9, 9, 16]
    assert sorted(square.runs) == [3, 4]


SHARING = """
import sys
import anyio
from daglite import session, task
from daglite.cache import RedisCacheStore
from daglite.events import CacheHit

@task(cache=True, version=1)
async def square(number: int) -> int:
    return number * number

async def main() -> None:
    store = RedisCacheStore(sys.argv[1], prefix=sys.argv[2], timeout=20)
    async with session(cache_store=store) as s:
        hits = 0
        async def count(events):
            nonlocal hits
            async for event in events:
                hits += isinstance(event, CacheHit)
        s.watch(count)
        assert [await square(number) for number in range(50)] == [number**2 for number in range(50)]
    store.close()
    print(hits)

anyio.run(main, backend=sys.argv[3])
"""


def test_processes_share_what_one_of_them_has_computed(shared_url: str, store: RedisCacheStore) -> None:
    command = [sys.executable, "-W", "error", "-c", SHARING, shared_url, store.prefix]
    hits = [
        int(subprocess.run([*command, event_loop], capture_output=True, text=True, check=True, timeout=50).stdout)
        for event_loop in ("asyncio", "trio")
    ]
    assert hits == [0, 50]
    assert len(names_of(store)) == 50


# Servers in trouble.


async def computed(square: Square, recorded_events: EventRecorder, error: str) -> None:
    """Let a task compute whose cache fails, which is told once for each of what it asks."""
    async with session():
        assert await square.task(3) == 9
    assert square.runs == [3]
    failures = recorded_events.of(CacheFailed)
    assert [failure.operation for failure in failures] == ["get", "put"]
    assert all(error in failure.error for failure in failures)


async def test_a_server_that_is_not_there_costs_the_result_nothing(
    make: Make, recorded_events: EventRecorder, caplog: pytest.LogCaptureFixture
) -> None:
    square = Square(make(f"redis://127.0.0.1:{free_port()}"))
    await computed(square, recorded_events, "ConnectionError: Error 111 connecting to 127.0.0.1")
    assert len(warnings_of(caplog)) == 2
    assert "task 'square': its cache could not be read: ConnectionError" in caplog.text


async def test_a_server_that_does_not_answer_counts_as_failed_after_its_time(
    make: Make, recorded_events: EventRecorder
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:  # it accepts connections, and says nothing
        store = make(f"redis://127.0.0.1:{silent.getsockname()[1]}", timeout=0.1)
        await computed(Square(store), recorded_events, "TimeoutError: Timeout")


async def test_a_slow_server_is_not_waited_for(
    make: Make, servers: Callable[..., Server], recorded_events: EventRecorder
) -> None:
    server = servers()
    store = make(server.url, timeout=0.2)
    store.put("a", 1)
    client_of(make(server.url)).client_pause(600_000, all=True)
    await computed(Square(store), recorded_events, "TimeoutError: Timeout")


async def test_a_call_that_is_cancelled_does_not_wait_for_its_lookup(
    make: Make, servers: Callable[..., Server], monkeypatch: pytest.MonkeyPatch
) -> None:
    server = servers()
    store = make(server.url, timeout=30)
    store.put("a", 1)
    client_of(make(server.url)).client_pause(600_000, all=True)
    get, asked, ended = store.get, threading.Event(), threading.Event()

    def noted(key: str) -> Any:
        asked.set()
        try:
            return get(key)
        finally:
            ended.set()

    monkeypatch.setattr(store, "get", noted)
    async with anyio.create_task_group() as group:
        group.start_soon(Square(store).task, 3)
        await until(asked.is_set)
        group.cancel_scope.cancel()
    assert not ended.is_set()
    server.stop()  # and the thread that still asks has its answer
    await until(ended.is_set)


async def test_a_server_that_was_started_anew_is_empty_and_used_again(
    make: Make, servers: Callable[..., Server], recorded_events: EventRecorder
) -> None:
    server = servers()
    store = make(server.url)
    square = Square(store)
    async with session():
        for _ in range(2):
            assert await square.task(3) == 9
        server.stop()
        server.start()
        for _ in range(2):
            assert await square.task(3) == 9
    assert square.runs == [3, 3]
    assert recorded_events.of(CacheFailed) == []
    assert len(recorded_events.of(CacheHit)) == 2


async def test_a_server_that_goes_away_and_comes_back(
    make: Make, servers: Callable[..., Server], recorded_events: EventRecorder
) -> None:
    server = servers()
    square = Square(make(server.url))
    async with session():
        await square.task(3)
        server.stop()
        await square.task(3)
        server.start()
        await square.task(3)
        await square.task(3)
    assert square.runs == [3, 3, 3]
    assert [event.operation for event in recorded_events.of(CacheFailed)] == ["get", "put"]


def test_a_server_that_evicts_forgets_and_mixes_nothing_up(make: Make, servers: Callable[..., Server]) -> None:
    store = make(servers("--maxmemory", "8mb", "--maxmemory-policy", "allkeys-lru").url)
    for number in range(200):
        store.put(str(number), bytes([number]) * 100_000)
    found = [store.get(str(number)) for number in range(200)]
    kept = [number for number in range(200) if found[number] is not CACHE_MISS]
    assert 0 < len(kept) < 100
    assert all(found[number] == bytes([number]) * 100_000 for number in kept)


async def test_a_server_without_room_refuses_and_the_result_is_there(
    make: Make, servers: Callable[..., Server], recorded_events: EventRecorder, caplog: pytest.LogCaptureFixture
) -> None:
    store = make(servers("--maxmemory", "1", "--maxmemory-policy", "noeviction").url)
    async with session():
        assert await Square(store).task(3) == 9
    (failure,) = recorded_events.of(CacheFailed)
    assert failure.operation == "put"
    assert "OutOfMemoryError: command not allowed when used memory > 'maxmemory'" in failure.error


async def test_a_server_that_wants_a_password(
    make: Make, servers: Callable[..., Server], recorded_events: EventRecorder
) -> None:
    server = servers("--requirepass", "open sesame")
    with_it = server.url.replace("//", "//:open%20sesame@")
    async with session():
        assert await Square(make(server.url)).task(3) == 9
        assert {event.operation for event in recorded_events.of(CacheFailed)} == {"get", "put"}
        assert "AuthenticationError" in recorded_events.of(CacheFailed)[0].error
        recorded_events.clear()
        square = Square(make(with_it))
        assert [await square.task(3), await square.task(3)] == [9, 9]
        assert recorded_events.of(CacheFailed) == []
    assert square.runs == [3]


# What is no store.


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"url": 3}, "RedisCacheStore: url must be a str, not 3"),
        ({"url": "localhost"}, "RedisCacheStore: 'localhost' is no URL of a Redis server: "),
        ({"url": "http://:secret@localhost"}, "RedisCacheStore: 'http://...@localhost' is no URL of a Redis server: "),
        ({"url": "redis://localhost:port"}, "is no URL of a Redis server: "),
        ({"signing_key": 3}, "RedisCacheStore: signing_key must be a str or bytes"),
        ({"signing_key": ""}, "RedisCacheStore: signing_key must not be empty"),
        ({"prefix": ""}, "RedisCacheStore: prefix must not be empty"),
        ({"prefix": 3}, "RedisCacheStore: prefix must be a str, not 3"),
        ({"timeout": 0}, "RedisCacheStore: timeout must be more than 0"),
        ({"timeout": None}, "RedisCacheStore: timeout must be a number, not None"),
    ],
)
def test_bad_arguments_are_refused(arguments: dict[str, Any], error: str) -> None:
    with pytest.raises((ValueError, TypeError)) as caught:
        RedisCacheStore(**{"url": "redis://localhost", **arguments})
    assert error in str(caught.value)
    assert "secret@" not in str(caught.value)


@pytest.mark.parametrize(
    "where",
    [lambda url: task(cache=url)(len), lambda url: session(cache_store=url), lambda url: Settings(cache_store=url)],
)
def test_a_bad_url_is_refused_where_it_is_given(where: Callable[[str], Any]) -> None:
    with pytest.raises(ValueError, match="'redis://localhost:port' is no URL of a Redis server"):
        where("redis://localhost:port")
    with pytest.raises(
        ValueError, match="there is no store for 'http://...@host'; there are paths of folders, 'memory://name'"
    ):
        where("http://ada:secret@host")
    where("unix:///run/redis.sock")
    where("rediss://host:6380/1")


def test_without_redis_the_error_says_what_to_install() -> None:
    program = """
import sys
sys.modules["redis"] = None
from daglite import session
from daglite.cache import RedisCacheStore
for make in (RedisCacheStore, lambda url: session(cache_store=url)):
    try:
        make("redis://ada:secret@localhost")
    except ImportError as exc:
        print(exc)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=50)
    said = "RedisCacheStore: 'redis://...@localhost' needs redis: pip install 'daglite[redis]'\n"
    assert done.stdout == 2 * said


def test_redis_is_not_imported_before_there_is_a_store() -> None:
    program = "import sys, daglite, daglite.cache; print('redis' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=50)
    assert done.stdout == "False\n"


def test_files_and_servers_name_their_parts_alike(tmp_path: Path, make: Make) -> None:
    store = make(signing_key="secret")
    assert FileCacheStore(tmp_path, "secret").location.endswith(store.location[1].split(":")[1])
