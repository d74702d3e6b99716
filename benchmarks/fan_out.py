"""What a fan-out costs, as a multiple of a task group with a semaphore by hand; what a limit costs; what memory an item takes.

    python benchmarks/fan_out.py
    python benchmarks/fan_out.py --rounds 5 --event-loop trio

Every round measures everything once, and each ratio is to the bare thing of the same round; what is printed are the medians
over the rounds. So what else the machine does meets all alike.
"""

import gc
import time
import tracemalloc
from collections.abc import Awaitable, Callable

import anyio
from anyio.lowlevel import checkpoint
from rounds import arguments, measure, show

from daglite import Limit, Rate, gather_tasks, session, stream_tasks, task

CALLS = 10_000
LIMIT = 100
ITEMS = 100_000  # of which the memory is measured


async def fetch(number: int) -> int:
    await checkpoint()
    return number


async def sleep(number: int) -> None:
    await anyio.sleep_forever()


async def answer(number: int) -> int:
    return number


fetch_task, sleep_task = task(fetch), task(sleep)
plain, limited, paced = task(answer), task(limit=Limit("bench", 8))(answer), task(rate=Rate(1e9))(answer)


async def by_hand(count: int = CALLS, *, fast_acquire: bool = False) -> list[int]:
    """The same calls in a task group, as many at once as a semaphore lets."""
    results = [0] * count
    places = anyio.Semaphore(LIMIT, fast_acquire=fast_acquire)

    async def one(number: int) -> None:
        try:
            results[number] = await fetch(number)
        finally:
            places.release()

    async with anyio.create_task_group() as group:
        for number in range(count):
            await places.acquire()
            group.start_soon(one, number)
    return results


async def gathered(count: int = CALLS) -> list[int]:
    return await gather_tasks(fetch_task, range(count), limit=LIMIT)


async def streamed(*, ordered: bool = False) -> None:
    async with stream_tasks(fetch_task, range(CALLS), limit=LIMIT, ordered=ordered) as results:
        async for _ in results:
            pass


async def seconds_of(func: Callable[[], Awaitable[object]]) -> float:
    """Seconds that one of the calls takes, on average."""
    gc.collect()  # what another has left is not to be paid for here
    began = time.perf_counter()
    await func()
    return (time.perf_counter() - began) / CALLS


async def seconds_of_calls(func: Callable[[int], Awaitable[int]]) -> float:
    """Seconds that one call takes, on average, one after another."""
    began = time.perf_counter()
    for number in range(CALLS):
        await func(number)
    return (time.perf_counter() - began) / CALLS


async def seconds_to_cancel(start: Callable[[anyio.abc.TaskGroup], object]) -> float:
    """Seconds from the cancellation of so many sleeping calls to the end of the last, for each."""
    # Cancelled tasks of asyncio are in cycles, also those of a bare task group: whether the collector comes while they end or
    # after that is chance.
    gc.collect()
    gc.disable()
    try:
        async with anyio.create_task_group() as group:
            start(group)
            await anyio.wait_all_tasks_blocked()
            began = time.perf_counter()
            group.cancel_scope.cancel()
        return (time.perf_counter() - began) / CALLS
    finally:
        gc.enable()


def start_by_hand(group: anyio.abc.TaskGroup) -> None:
    for number in range(CALLS):
        group.start_soon(sleep, number)


def start_gathered(group: anyio.abc.TaskGroup) -> None:
    group.start_soon(gather_tasks, sleep_task, range(CALLS))


async def one_round() -> dict[str, float]:
    """Seconds of everything, measured once."""
    took = {"task group and semaphore": await seconds_of(by_hand)}
    took["the same, fast_acquire=True"] = await seconds_of(lambda: by_hand(fast_acquire=True))
    took["gather_tasks"] = await seconds_of(gathered)
    took["stream_tasks"] = await seconds_of(streamed)
    took["stream_tasks, ordered"] = await seconds_of(lambda: streamed(ordered=True))
    async with session():
        took["gather_tasks in a session"] = await seconds_of(gathered)
    took["cancelled task group"] = await seconds_to_cancel(start_by_hand)
    took["cancelled gather_tasks"] = await seconds_to_cancel(start_gathered)
    took["task"] = await seconds_of_calls(plain)
    took["task, limit=8"] = await seconds_of_calls(limited)
    took["task, a rate"] = await seconds_of_calls(paced)
    return took


BARE = {
    **dict.fromkeys(("cancelled task group", "cancelled gather_tasks"), "cancelled task group"),
    **dict.fromkeys(("task", "task, limit=8", "task, a rate"), "task"),
}


async def bytes_of(func: Callable[[int], Awaitable[list[int]]]) -> float:
    """What an item takes at most of memory, the results and what they are in not counted."""
    await func(1_000)
    tracemalloc.start()
    try:
        results = await func(ITEMS)
        now, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(results) == ITEMS
    return (most - now) / ITEMS


def main() -> None:
    event_loops, rounds = arguments("Measure what a fan-out costs.")
    for event_loop in event_loops:
        show(event_loop, anyio.run(measure, one_round, rounds, backend=event_loop), BARE, "task group and semaphore")
        print(
            f"  gather_tasks beyond its results {anyio.run(bytes_of, gathered, backend=event_loop):13.1f} bytes an item"
        )


if __name__ == "__main__":
    main()
