"""With aiostream."""

import asyncio
from typing import Any

from aiostream import pipe, stream

from ._work import (
    FAN_OUT,
    ITEMS,
    LIMIT,
    MANY,
    SLEEPERS,
    THREAD_CALLS,
    THREADS,
    Work,
    add_one,
    all_together,
    cancelled,
    count_up,
    sleep_for_ever,
    wait_once,
)


async def wait(number: int, *_: object) -> int:
    return await wait_once(number)


async def sleep(number: int, *_: object) -> int:
    return await sleep_for_ever(number)


async def in_thread(number: int, *_: object) -> int:
    return await asyncio.to_thread(add_one, number)


async def fan_out(call: Any, count: int, limit: int, *, ordered: bool) -> None:
    results = stream.iterate(range(count)) | pipe.map(call, ordered=ordered, task_limit=limit)
    async with results.stream() as items:
        async for _ in items:
            pass


async def plain() -> None:
    async with stream.iterate(count_up()).stream() as items:
        async for _ in items:
            pass


WORK: Work = {
    "fan-out": {
        "aiostream, ordered": all_together(lambda: fan_out(wait, FAN_OUT, LIMIT, ordered=True), FAN_OUT),
        "aiostream": all_together(lambda: fan_out(wait, FAN_OUT, LIMIT, ordered=False), FAN_OUT),
    },
    "stream": {"aiostream": all_together(plain, ITEMS)},
    "threads": {
        "aiostream": all_together(lambda: fan_out(in_thread, THREAD_CALLS, THREADS, ordered=False), THREAD_CALLS)
    },
    "cancellation": {"aiostream": cancelled(lambda: fan_out(sleep, SLEEPERS, SLEEPERS, ordered=False))},
    "memory": {"aiostream": all_together(lambda: fan_out(wait, MANY, LIMIT, ordered=False), MANY)},
}
