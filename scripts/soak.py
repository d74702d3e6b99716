"""Very many calls of all kinds, which fail, are retried, time out and are cancelled at random; nothing of them may be left.

    python scripts/soak.py [--calls 100000] [--seed 0] [--event-loop asyncio|trio|both]

It ends with an error if a task, a thread, a file descriptor or an object of daglite's is there afterwards that was not there
after a first round, if a call has not exactly one end among the events, or if a limit has not all of its tokens.
"""

from __future__ import annotations

import argparse
import gc
import logging
import os
import random
import sys
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from tempfile import TemporaryDirectory
from typing import Any

import anyio
from anyio.lowlevel import checkpoint

from daglite import Limit, Rate, aload_dataset, check_cancelled, gather_tasks, race_tasks, session, stream_tasks, task
from daglite.cache import MemoryCacheStore, refresh_cache
from daglite.events import TaskCancelled, TaskFailed, TaskRetrying, TaskStarted, TaskSucceeded
from daglite.exceptions import BackendError, CallCancelledError, TaskError
from daglite.sessions import Session, Subscription

if sys.version_info < (3, 11):
    from exceptiongroup import BaseExceptionGroup

CLIENTS = 50  # at once
ROUND = 5_000  # calls in a session
LIMIT = Limit("soak", 10)
MEMORY = MemoryCacheStore()
RATE = Rate(1_000_000)
dice = random.Random()


class Unlucky(Exception):
    """What happens now and then."""


def maybe_fail() -> None:
    if dice.random() < 0.2:
        raise Unlucky


@task(retries=2, retry_on=Unlucky)
async def fetch(number: int = 0) -> int:
    await anyio.sleep(dice.random() / 2000)
    maybe_fail()
    return number


@task(timeout=0.002, retries=1, retry_on=TimeoutError, limit=LIMIT, rate=RATE)
async def late(number: int = 0) -> int:
    await anyio.sleep(dice.random() / 300)
    return number


@task(total_timeout=0.003, retries=9, retry_delay=0.001)
async def hopeless() -> None:
    raise Unlucky


@task
async def nested(number: int = 0) -> int:
    return await fetch(number) + await late(number)


@task(limit=LIMIT)
def block(number: int = 0) -> int:
    time.sleep(dice.random() / 2000)
    check_cancelled()
    maybe_fail()
    return number


@task(timeout=0.002)
def block_too_long() -> None:
    time.sleep(dice.random() / 300)


@task
def back(number: int = 0) -> int:
    return fetch.from_thread(number)


@task
async def rows(to: int = 5) -> AsyncIterator[int]:
    try:
        for number in range(to):
            await checkpoint()
            if dice.random() < 0.05:
                raise Unlucky
            yield number
    finally:
        await checkpoint()


@task(pump=True)
async def grouped(to: int = 5) -> AsyncIterator[int]:
    async with anyio.create_task_group() as group:
        group.start_soon(fetch.with_options(wrap_errors=False))
        for number in range(to):
            yield number


@task
def rows_sync(to: int = 5) -> Iterator[int]:
    for number in range(to):
        if dice.random() < 0.05:
            raise Unlucky
        yield number


@task(cache=MEMORY, version=1, cache_ttl=0.01)
async def cached(number: int) -> list[int]:
    await anyio.sleep(dice.random() / 2000)
    maybe_fail()
    return [number]


@task(cache=True, version=1, cache_ttl=0.01, total_timeout=0.05)
def cached_in_a_folder(number: int) -> list[int]:
    time.sleep(dice.random() / 2000)
    return [number]


@task(dataset="saved/{number}.json", cache=MEMORY, version=1, cache_ttl=0.005, retries=1)
async def saved(number: int) -> list[int]:
    await anyio.sleep(dice.random() / 2000)
    maybe_fail()
    return [number]


@task(dataset="rows/{iter_index}.json")
async def rows_saved() -> AsyncIterator[int]:
    for number in range(3):
        await checkpoint()
        yield number


async def load() -> None:
    """What is there is whole, whoever saves meanwhile."""
    try:
        (number,) = await aload_dataset("saved/1.json", list)
    except FileNotFoundError:
        return
    if number != 1:
        raise RuntimeError(f"it was saved by half: {number}")


@task(cache=MEMORY, version=1, cache_ttl=0.005)
async def tangled(number: int) -> int:
    """Calls others of its kind, crosswise, of which some need what those hold who wait for them."""
    await anyio.sleep(dice.random() / 2000)
    if dice.random() < 0.5:
        await tangled(dice.randrange(5))
    return await late(number) if dice.random() < 0.3 else number


@task(limit=LIMIT)
async def holder() -> int:
    return await tangled(dice.randrange(5))


async def forget() -> None:
    await cached.invalidate(dice.randrange(3))
    with refresh_cache():
        await cached(dice.randrange(3))


async def read(stream: Any) -> None:
    async with stream:
        async for _ in stream:
            if dice.random() < 0.2:
                break


async def drop() -> None:
    async for _ in rows():
        break


async def hand_out() -> None:
    async with stream_tasks(fetch, rows(), limit=2, ordered=dice.random() < 0.5) as results:
        async for _ in results:
            if dice.random() < 0.2:
                break


async def inner_session() -> None:
    async with session(name="inner") as s:
        handle = s.start_soon(fetch)
        s.start_soon(rows)
        if dice.random() < 0.3:
            handle.cancel()
        await late()


async def wait_for_background(s: Session) -> None:
    handle = s.start_soon(nested)
    if dice.random() < 0.2:
        s.cancel(under=handle.id)
    await handle


ACTIONS: list[Callable[[Session], Awaitable[Any]]] = [
    *[lambda s: fetch()] * 8,
    *[lambda s: late()] * 4,
    lambda s: hopeless(),
    *[lambda s: nested()] * 4,
    lambda s: block.to_thread(),
    lambda s: block_too_long.to_thread(),
    lambda s: back.to_thread(),
    *[lambda s: cached(dice.randrange(3))] * 6,
    *[lambda s: cached_in_a_folder.to_thread(dice.randrange(3))] * 2,
    *[lambda s: saved(dice.randrange(3))] * 2,
    lambda s: read(rows_saved()),
    lambda s: load(),
    *[lambda s: tangled(dice.randrange(5))] * 4,
    lambda s: holder(),
    lambda s: forget(),
    lambda s: gather_tasks(cached, [1, 2, 1, 2]),
    *[lambda s: read(rows())] * 3,
    lambda s: read(grouped()),
    lambda s: read(rows.with_options(item_timeout=0.01)()),
    lambda s: read(rows_sync.to_thread()),
    lambda s: drop(),
    lambda s: gather_tasks(fetch, range(5), limit=2),
    lambda s: gather_tasks(fetch, rows(), errors="collect"),
    lambda s: gather_tasks(block, range(3)),
    lambda s: race_tasks(fetch.call(), late.call(), nested.call()),
    lambda s: hand_out(),
    lambda s: inner_session(),
    lambda s: wait_for_background(s),
]


async def client(s: Session, is_done: Callable[[], bool]) -> None:
    while not is_done():
        is_hasty = dice.random() < 0.3
        with anyio.move_on_after(dice.random() / 200 if is_hasty else 60) as scope:
            try:
                await dice.choice(ACTIONS)(s)
            except Exception as exc:
                if not is_meant(exc):
                    raise
        if scope.cancelled_caught and not is_hasty:
            raise RuntimeError(f"something hangs:\n{s.tree()}")


def is_meant(error: BaseException) -> bool:
    """Whether an error is one of ours, or a group of nothing else."""
    if isinstance(error, BaseExceptionGroup) and not isinstance(error, TaskError):
        return all(map(is_meant, error.exceptions))
    if isinstance(error, RuntimeError):
        return "would wait for" in str(error)  # itself, or each other
    return isinstance(error, (TaskError, CallCancelledError, BackendError, Unlucky))


class Log(logging.Handler):
    """Keeps what is logged, but that background calls have failed, and that values came late: so they are to."""

    def __init__(self) -> None:
        super().__init__()
        self.unexpected: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        error = record.exc_info and record.exc_info[1]
        if not ("a value came" in record.msg or (error and is_meant(error))):
            self.unexpected.append(f"logged: {record.getMessage()}")


class Reader:
    """Sees to it that each call has one end, and keeps no more than the calls that run."""

    def __init__(self) -> None:
        self.kinds: Counter[str] = Counter()
        self.running: set[Any] = set()
        self.wrong: list[str] = []

    async def consume(self, events: Subscription) -> None:
        async for event in events:
            self.kinds[type(event).__name__] += 1
            if isinstance(event, TaskStarted):
                if event.metadata.id in self.running:
                    self.wrong.append(f"{event.metadata.name} has begun twice")
                self.running.add(event.metadata.id)
            elif isinstance(event, (TaskSucceeded, TaskFailed, TaskCancelled)):
                if event.metadata.id not in self.running:
                    self.wrong.append(f"{event.metadata.name} has ended twice, or has not begun")
                self.running.discard(event.metadata.id)


async def soak(folder: str, calls: int, kinds: Counter[str]) -> list[str]:
    """Make so many calls in one session; what is wrong with what it told of them."""
    reader = Reader()
    async with session(
        on_background_error="log", name="soak", cache_store=folder, dataset_store=f"{folder}/datasets"
    ) as s:
        s.watch(reader.consume)
        async with anyio.create_task_group() as group:
            for _ in range(CLIENTS):
                group.start_soon(client, s, lambda: s.stats().started >= calls)
    stats = s.stats()
    kinds.update(reader.kinds)
    wrong = reader.wrong + [f"a call has no end: {id}" for id in reader.running]
    for name, told, counted in (
        ("started", reader.kinds["TaskStarted"], stats.started),
        ("succeeded", reader.kinds["TaskSucceeded"], stats.succeeded),
        ("failed", reader.kinds["TaskFailed"], stats.failed),
        ("cancelled", reader.kinds["TaskCancelled"], stats.cancelled),
    ):
        if told != counted:
            wrong.append(f"{name}: {told} events for {counted} calls")
    if (LIMIT.available_tokens, LIMIT.tasks_waiting) != (LIMIT.total_tokens, 0):
        wrong.append(f"{LIMIT} has {LIMIT.available_tokens} tokens, and {LIMIT.tasks_waiting} wait")
    return wrong


async def counts() -> dict[str, int]:
    """How many there are of what might be left; what is about to end has a moment for that."""
    await anyio.sleep(0.2)
    gc.collect()
    found = {
        "tasks": len(anyio.get_running_tasks()),
        "file descriptors": len(os.listdir("/proc/self/fd")) if os.path.exists("/proc/self/fd") else 0,  # noqa: ASYNC240
        "threads": sum(not is_parked(thread) for thread in threading.enumerate()),
    }
    kinds = Counter(type(each) for each in gc.get_objects() if type(each).__module__.startswith("daglite"))
    return found | {f"objects: {kind.__qualname__}": number for kind, number in sorted(kinds.items(), key=str)}


def is_parked(thread: threading.Thread) -> bool:
    return thread.name.startswith(("AnyIO worker thread", "Trio thread "))


async def main(calls: int) -> int:
    with TemporaryDirectory() as folder:
        return await soak_round_by_round(folder, calls)


async def soak_round_by_round(folder: str, calls: int) -> int:
    """Make so many calls; how many things are wrong then."""
    kinds: Counter[str] = Counter()
    log = Log()
    logging.getLogger("daglite").addHandler(log)
    wrong = await soak(folder, min(ROUND, calls), Counter())
    before, began, made = await counts(), time.perf_counter(), 0
    while made < calls and not wrong:
        wrong = await soak(folder, min(ROUND, calls - made), kinds)
        made += min(ROUND, calls - made)
    seconds, after = time.perf_counter() - began, await counts()
    wrong += [
        f"{name}: {before.get(name, 0)} before, {number} afterwards"
        for name, number in after.items()
        if number > before.get(name, 0)
    ]
    wrong += log.unexpected
    logging.getLogger("daglite").removeHandler(log)
    shown = (TaskStarted, TaskSucceeded, TaskFailed, TaskCancelled, TaskRetrying)
    print(*(f"{kind.__name__} {kinds[kind.__name__]:,}" for kind in shown), f"in {seconds:.0f} s", sep=", ")
    print(*(f"{name} {after[name]}" for name in ("tasks", "threads", "file descriptors")), sep=", ")
    print(*wrong[:20] or ["nothing is left"], sep="\n")
    return len(wrong)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calls", type=int, default=100_000, help="how many for each event loop, at least")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--event-loop", choices=["asyncio", "trio", "both"], default="both")
    given = parser.parse_args()
    failures = 0
    for loop in ("asyncio", "trio") if given.event_loop == "both" else (given.event_loop,):
        dice.seed(given.seed)
        print(f"{loop}, seed {given.seed}:")
        failures += anyio.run(main, given.calls, backend=loop)
    sys.exit(failures > 0)
