"""With aiometer."""

import asyncio
from functools import partial

import aiometer

from ._work import (
    FAN_OUT,
    LIMIT,
    MANY,
    SLEEPERS,
    THREAD_CALLS,
    THREADS,
    Work,
    add_one,
    all_together,
    cancelled,
    sleep_for_ever,
    wait_once,
)


async def in_thread(number: int) -> int:
    return await asyncio.to_thread(add_one, number)


async def results_one_by_one(count: int) -> None:
    async with aiometer.amap(wait_once, range(count), max_at_once=LIMIT) as results:
        async for _ in results:
            pass


WORK: Work = {
    "fan-out": {
        "aiometer, run_all": all_together(
            lambda: aiometer.run_all([partial(wait_once, number) for number in range(FAN_OUT)], max_at_once=LIMIT),
            FAN_OUT,
        ),
        "aiometer, amap": all_together(lambda: results_one_by_one(FAN_OUT), FAN_OUT),
    },
    "threads": {
        "aiometer": all_together(
            lambda: aiometer.run_on_each(in_thread, range(THREAD_CALLS), max_at_once=THREADS), THREAD_CALLS
        )
    },
    "cancellation": {
        "aiometer": cancelled(lambda: aiometer.run_on_each(sleep_for_ever, range(SLEEPERS), max_at_once=SLEEPERS))
    },
    "memory": {"aiometer, amap": all_together(lambda: results_one_by_one(MANY), MANY)},
}
