"""What it costs to get into a thread and back to the event loop, as a multiple of anyio's own way.

    python benchmarks/threads.py
    python benchmarks/threads.py --rounds 5 --event-loop trio

Every round measures everything once, and each ratio is to anyio's way of the same round; what is printed are the medians over
the rounds. So what else the machine does meets all alike.
"""

import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Literal

import anyio
from anyio import from_thread, to_thread
from anyio.from_thread import BlockingPortal, start_blocking_portal
from anyio.lowlevel import checkpoint
from rounds import arguments, show

from daglite import SyncTask, session, task

CALLS = 400


def in_thread(number: int) -> int:
    return number


async def in_loop(number: int) -> int:
    await checkpoint()
    return number


in_thread_task = task(in_thread)
timed_task = task(timeout=30)(in_thread)
in_loop_task = task(in_loop)


@task
async def items(count: int) -> AsyncIterator[int]:
    for number in range(count):
        await checkpoint()
        yield number


async def seconds_of(func: Callable[[int], Awaitable[int]]) -> float:
    """Seconds that one call takes, on average, from the event loop into a thread."""
    began = time.perf_counter()
    for number in range(CALLS):
        await func(number)
    return (time.perf_counter() - began) / CALLS


def seconds_of_sync(func: Callable[[int], int]) -> float:
    """The same from a thread into the event loop."""
    began = time.perf_counter()
    for number in range(CALLS):
        func(number)
    return (time.perf_counter() - began) / CALLS


def seconds_of_items() -> float:
    """Seconds that a thread waits for the item of a stream."""
    began = time.perf_counter()
    for _ in items.from_thread(CALLS):
        pass
    return (time.perf_counter() - began) / CALLS


async def measured_in(thread: SyncTask[..., float]) -> list[float]:
    """What a thread measures that goes back to the event loop."""
    return [await thread.to_thread(in_loop_task.from_thread), await thread.to_thread(run_in_loop)]


def run_in_loop(number: int) -> int:
    return from_thread.run(in_loop, number)


async def from_the_loop() -> dict[str, float]:
    """Seconds of everything that begins in the event loop, measured once."""

    async def bare(number: int) -> int:
        return await to_thread.run_sync(in_thread, number)

    took = {"anyio.to_thread.run_sync": await seconds_of(bare)}
    took["to_thread"] = await seconds_of(in_thread_task.to_thread)
    took["to_thread, timeout=30"] = await seconds_of(timed_task.to_thread)
    there = task(seconds_of_sync)
    took["from_thread"], took["anyio.from_thread.run"] = await measured_in(there)
    async with session():
        took["to_thread, session"] = await seconds_of(in_thread_task.to_thread)
        took["to_thread, timeout=30, session"] = await seconds_of(timed_task.to_thread)
        took["from_thread, session"] = (await measured_in(there))[0]
    return took


def from_sync_code(portal: BlockingPortal) -> dict[str, float]:
    """The same of what begins in a plain thread; the session is open."""

    def bare(number: int) -> int:
        return portal.call(in_loop, number)

    return {
        "portal.call": seconds_of_sync(bare),
        "from_thread, with session()": seconds_of_sync(in_loop_task.from_thread),
        "item of a stream": seconds_of_items(),
    }


BARE = {
    "from_thread": "anyio.from_thread.run",
    "from_thread, session": "anyio.from_thread.run",
    "anyio.from_thread.run": "anyio.from_thread.run",
    "portal.call": "portal.call",
    "from_thread, with session()": "portal.call",
    "item of a stream": "portal.call",
}


def measure(event_loop: Literal["asyncio", "trio"], rounds: int) -> list[dict[str, float]]:
    """So many rounds, after one that warms up."""

    async def once(many: int) -> list[dict[str, float]]:
        return [await from_the_loop() for _ in range(many)]

    took = anyio.run(once, rounds + 1, backend=event_loop)
    with session(event_loop=event_loop), start_blocking_portal(event_loop) as portal:
        for each in took:
            each.update(from_sync_code(portal))
    return took[1:]


def main() -> None:
    event_loops, rounds = arguments("Measure what it costs to get into a thread and back.")
    for event_loop in event_loops:
        show(event_loop, measure(event_loop, rounds), BARE, "anyio.to_thread.run_sync")


if __name__ == "__main__":
    main()
