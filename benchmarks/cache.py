"""What a key costs, and what a hit costs in memory and in a folder, beside peers where they are installed.

    python benchmarks/cache.py
    python -m pip install cashews diskcache joblib numpy  # for their lines
    python benchmarks/cache.py --rounds 5 --event-loop trio

Every round measures everything once, and each ratio is to the bare thing of the same round; what is printed are the medians over
the rounds. So what else the machine does meets all alike.
"""

import functools
import os
import pickle
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import anyio
from anyio import to_thread
from rounds import arguments, show

from daglite import task
from daglite._places import key_of
from daglite.cache import FileCacheStore, MemoryCacheStore, default_cache_hash

CALLS = 2_000
THREADED_CALLS = 300
VALUE = {"id": 1, "name": "ada", "tags": ["a", "b"]}
NESTED = [{"id": number, "point": (number / 7, str(number)), "tags": ["a", "b"]} for number in range(143)]


def small(number: int) -> dict[str, Any]:
    return dict(VALUE)


def two(number: int, name: str) -> None:
    """A function of two arguments."""


async def small_async(number: int) -> dict[str, Any]:
    return dict(VALUE)


def seconds_of(func: Callable[[], object], calls: int = CALLS) -> float:
    """Seconds that a call takes, on average."""
    began = time.perf_counter()
    for _ in range(calls):
        func()
    return (time.perf_counter() - began) / calls


async def seconds_of_async(func: Callable[[], Awaitable[object]], calls: int = CALLS) -> float:
    """The same, of what is awaited."""
    began = time.perf_counter()
    for _ in range(calls):
        await func()
    return (time.perf_counter() - began) / calls


def read(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()


class Hits:
    """Everything of which a hit is measured, with one entry in each."""

    def __init__(self, folder: Path, event_loop: str) -> None:
        self.event_loop = event_loop
        self.lru = functools.lru_cache(small)
        memory, files = MemoryCacheStore(), FileCacheStore(folder / "daglite")
        self.memory = task(cache=memory)(small)
        self.memory_async = task(cache=memory)(small_async)
        self.files = task(cache=files)(small)
        self.files_async = task(cache=files)(small_async)
        self.path = str(folder / "bare")
        Path(self.path).write_bytes(pickle.dumps(VALUE))
        self.cashews: Any = None
        self.cashews_disk: Any = None
        self.joblib: Any = None
        if find_spec("joblib"):
            self.joblib = import_module("joblib").Memory(str(folder / "joblib"), verbose=0).cache(small)
        if event_loop == "asyncio" and find_spec("cashews"):
            cashews = import_module("cashews")
            memory_cache, disk = cashews.Cache(), cashews.Cache()
            memory_cache.setup("mem://")
            disk.setup(f"disk://?directory={folder / 'cashews'}")
            self.cashews = memory_cache(ttl="1h")(small_async)
            self.cashews_disk = disk(ttl="1h")(small_async) if find_spec("diskcache") else None

    async def in_memory(self) -> dict[str, float]:
        seconds = {
            "lru_cache": seconds_of(lambda: self.lru(1)),
            "a task, in place": seconds_of(lambda: self.memory(1)),
            "a task, awaited": await seconds_of_async(lambda: self.memory_async(1)),
        }
        if self.cashews is not None:
            seconds["cashews, awaited"] = await seconds_of_async(lambda: self.cashews(1))
        return seconds

    async def from_async_code(self) -> dict[str, float]:
        calls = THREADED_CALLS
        seconds = {
            "open().read() in to_thread": await seconds_of_async(lambda: to_thread.run_sync(read, self.path), calls),
            "a task": await seconds_of_async(lambda: self.files_async(1), calls),
        }
        if self.cashews_disk is not None:
            seconds["cashews"] = await seconds_of_async(lambda: self.cashews_disk(1), calls)
        if self.joblib is not None:
            seconds["joblib in to_thread"] = await seconds_of_async(lambda: to_thread.run_sync(self.joblib, 1), calls)
        return seconds

    async def from_sync_code(self) -> dict[str, float]:
        seconds = {
            "open().read() and unpickling": seconds_of(lambda: pickle.loads(read(self.path))),
            "a task": seconds_of(lambda: self.files(1)),
        }
        if self.joblib is not None:
            seconds["joblib"] = seconds_of(lambda: self.joblib(1), THREADED_CALLS)
        return seconds


async def keys() -> dict[str, float]:
    spec = task(cache=True)(two)._spec
    seconds = {
        "1,000 elements": seconds_of(lambda: default_cache_hash(two, {"value": NESTED}), 20),
        "two small arguments, bound": seconds_of(lambda: key_of(spec, (1, "ada"), {})),
        "two small arguments, by name": seconds_of(lambda: key_of(spec, (1,), {"name": "ada"})),
    }
    if find_spec("joblib"):
        joblib = import_module("joblib")
        seconds["joblib.hash of 1,000 elements"] = seconds_of(lambda: joblib.hash(NESTED), 20)
        seconds["joblib.hash of two arguments"] = seconds_of(lambda: joblib.hash((1, "ada")), 200)
    return seconds


def megabytes() -> None:
    """Print how quickly much of one piece becomes a key."""
    large: dict[str, Any] = {"bytes": os.urandom(1 << 20), "str": "é" * (1 << 19)}
    if find_spec("numpy"):
        np = import_module("numpy")
        large["a numpy array"] = np.random.default_rng(1).random(1 << 17)
        large["a transposed numpy array"] = np.random.default_rng(1).random((256, 512)).T
    print("\nthe key of 1 MB")
    for name, value in large.items():
        rounds = [seconds_of(lambda value=value: default_cache_hash(two, {"value": value}), 20) for _ in range(9)]  # type: ignore[misc]
        print(f"  {name:32}{1.048576 / statistics.median(rounds):12.0f} MB/s")


def how_many_files(counts: tuple[int, ...] = (100, 100_000), times: int = 1_000) -> None:
    """Print what a store of many files costs beside one of few."""
    print(f"\na store of files, medians of {times:,}")
    medians: dict[tuple[str, int], float] = {}
    with tempfile.TemporaryDirectory() as folder:
        stores = {count: FileCacheStore(Path(folder) / str(count)) for count in counts}
        for count, store in stores.items():
            for number in range(count):
                store.put(str(number), VALUE)
        taken: dict[tuple[str, int], list[float]] = {(what, count): [] for what in ("get", "put") for count in counts}
        for time_ in range(times):  # in turns: what else the machine does meets both
            for count, store in stores.items():
                key = str(time_ * 7919 % count)
                operations: dict[str, Callable[[], object]] = {
                    "get": functools.partial(store.get, key),
                    "put": functools.partial(store.put, f"new {time_}", VALUE),
                }
                for what, operation in operations.items():
                    taken[what, count].append(seconds_of(operation, 1))
        for each, seconds in taken.items():
            medians[each] = statistics.median(seconds)
        for what in ("get", "put"):
            for count in counts:
                ratio = medians[what, count] / medians[what, counts[0]]
                print(f"  {what} of {count:<26,}{medians[what, count] * 1e6:12.2f} µs{ratio:9.2f}x {counts[0]:,} files")


async def main(event_loop: str, rounds: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        hits = Hits(Path(folder), event_loop)
        parts: dict[str, tuple[Callable[[], Awaitable[dict[str, float]]], str]] = {
            "a hit in memory, of a small dictionary": (hits.in_memory, "lru_cache"),
            "a hit in a folder, from async code": (hits.from_async_code, "open().read() in to_thread"),
            "a hit in a folder, from sync code": (hits.from_sync_code, "open().read() and unpickling"),
            "keys": (keys, "1,000 elements"),
        }
        measured: dict[str, list[dict[str, float]]] = {title: [] for title in parts}
        for number in range(rounds + 1):
            for title, (part, _) in parts.items():
                seconds = await part()
                if number:  # the first warms up
                    measured[title].append(seconds)
        for title, (_, bare) in parts.items():
            show(f"{event_loop}: {title}", measured[title], {}, bare)


if __name__ == "__main__":
    loops, rounds = arguments(__doc__ or "")
    for loop in loops:
        anyio.run(main, loop, rounds, backend=loop)
    megabytes()
    how_many_files()
