"""By hand, with asyncio alone."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from ._work import (
    CALLS,
    FAN_OUT,
    ITEMS,
    LIMIT,
    MANY,
    RETRIED,
    SLEEPERS,
    THREAD_CALLS,
    THREADS,
    Flaky,
    Work,
    add_one,
    all_together,
    answer,
    cancelled,
    count_up,
    one_by_one,
    sleep_for_ever,
    wait_once,
)

flaky = Flaky()


async def retried(_: int) -> int:
    for attempt in range(3):
        try:
            return await flaky()
        except OSError:
            if attempt == 2:
                raise
    raise AssertionError


async def fan_out(call: Callable[[int], Coroutine[Any, Any, int]], count: int, limit: int) -> list[int]:
    results = [0] * count
    places = asyncio.Semaphore(limit)

    async def one(number: int) -> None:
        try:
            results[number] = await call(number)
        finally:
            places.release()

    running: set[asyncio.Task[None]] = set()
    try:
        for number in range(count):
            await places.acquire()
            running.add(started := asyncio.create_task(one(number)))
            started.add_done_callback(running.discard)
        await asyncio.gather(*running)
    finally:
        for left in running:
            left.cancel()
        await asyncio.gather(*running, return_exceptions=True)
    return results


async def stream() -> None:
    async for _ in count_up():
        pass


async def in_thread(number: int) -> int:
    return await asyncio.to_thread(add_one, number)


WORK: Work = {
    "call": {"asyncio": one_by_one(answer, CALLS)},
    "retry": {"asyncio": one_by_one(retried, RETRIED)},
    "fan-out": {"asyncio": all_together(lambda: fan_out(wait_once, FAN_OUT, LIMIT), FAN_OUT)},
    "stream": {"asyncio": all_together(stream, ITEMS)},
    "threads": {"asyncio": all_together(lambda: fan_out(in_thread, THREAD_CALLS, THREADS), THREAD_CALLS)},
    "cancellation": {"asyncio": cancelled(lambda: fan_out(sleep_for_ever, SLEEPERS, SLEEPERS))},
    "memory": {"asyncio": all_together(lambda: fan_out(wait_once, MANY, LIMIT), MANY)},
}
