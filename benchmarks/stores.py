"""What it costs to save a dataset, and what a hit costs in a Redis server, beside the bare thing of the same round.

python benchmarks/stores.py
python -m pip install redis cashews  # and Debian's redis-server, for their lines
"""

import functools
import json
import os
import pickle
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack, contextmanager
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import anyio
from anyio import to_thread
from rounds import arguments, measure, show

from daglite import task
from daglite.cache import RedisCacheStore
from daglite.datasets import DatasetStore

CALLS = 200
VALUE = {"id": 1, "name": "ada", "tags": ["a", "b"]}


def small(number: int) -> dict[str, Any]:
    return dict(VALUE)


async def small_async(number: int) -> dict[str, Any]:
    return dict(VALUE)


def write(path: str) -> None:
    """Save a value by hand, as safely."""
    folder, temporary = os.path.dirname(path), f"{path}.tmp"
    with open(temporary, "wb") as file:
        file.write(json.dumps(VALUE).encode())
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
    number = os.open(folder, os.O_RDONLY)
    os.fsync(number)
    os.close(number)


@contextmanager
def server() -> Iterator[str | None]:
    """The URL of a server for the time of a benchmark; `None` if there is no program for that."""
    program = shutil.which("redis-server")
    if program is None or find_spec("redis") is None:
        yield None
        return
    with socket.create_server(("127.0.0.1", 0)) as found:
        port = found.getsockname()[1]
    command = [program, "--bind", "127.0.0.1", "--port", str(port), "--save", ""]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as running:
        try:
            time.sleep(1)
            yield f"redis://127.0.0.1:{port}/0"
        finally:
            running.kill()


async def seconds_of(func: Callable[[], Awaitable[object]]) -> float:
    """Seconds that a call takes, on average."""
    began = time.perf_counter()
    for _ in range(CALLS):
        await func()
    return (time.perf_counter() - began) / CALLS


def here(func: Callable[[], object]) -> Callable[[], Awaitable[object]]:
    """A function in place, for `seconds_of`."""

    async def call() -> object:
        return func()

    return call


async def saving(folder: Path) -> dict[str, float]:
    store, path = DatasetStore(folder), str(folder / "bare.json")
    saved = {"dataset": "{number}.json", "dataset_store": store}
    in_place, awaited = task(**saved)(small), task(**saved)(small_async)  # type: ignore[call-overload]
    return {
        "by hand": await seconds_of(here(lambda: write(path))),
        "by hand, in to_thread": await seconds_of(lambda: to_thread.run_sync(write, path)),
        "a store, in place": await seconds_of(here(lambda: store.save("a.json", VALUE))),
        "a task, in place": await seconds_of(here(lambda: in_place(1))),
        "a task, awaited": await seconds_of(lambda: awaited(1)),
    }


async def hits(url: str, event_loop: str) -> dict[str, float]:
    store = RedisCacheStore(url)
    client = import_module("redis").Redis.from_url(url)
    client.set("bare", pickle.dumps(VALUE))
    in_place, awaited = task(cache=store)(small), task(cache=store)(small_async)

    def read() -> Any:
        return pickle.loads(client.get("bare"))

    seconds = {
        "get() and unpickling": await seconds_of(here(read)),
        "the same in to_thread": await seconds_of(lambda: to_thread.run_sync(read)),
        "a task, in place": await seconds_of(here(lambda: in_place(1))),
        "a task, awaited": await seconds_of(lambda: awaited(1)),
    }
    if event_loop == "asyncio" and find_spec("cashews"):
        cache = import_module("cashews").Cache()
        cache.setup(url)
        cached = cache(ttl="1h")(small_async)
        seconds["cashews, awaited"] = await seconds_of(lambda: cached(1))
        await cache.close()
    client.close()
    store.close()
    return seconds


async def main(event_loop: str, rounds: int, folder: Path, url: str | None) -> None:
    saved = await measure(functools.partial(saving, folder), rounds)
    show(f"saving a dataset, {event_loop}", saved, {"a task, awaited": "by hand, in to_thread"}, "by hand")
    if url is not None:
        found = await measure(functools.partial(hits, url, event_loop), rounds)
        bare = dict.fromkeys(("a task, awaited", "cashews, awaited"), "the same in to_thread")
        show(f"a hit in a Redis server, {event_loop}", found, bare, "get() and unpickling")


if __name__ == "__main__":
    loops, rounds = arguments(__doc__ or "")
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        url = stack.enter_context(server())
        for event_loop in loops:
            anyio.run(main, event_loop, rounds, folder, url, backend=event_loop)
