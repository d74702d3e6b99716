"""With daglite 0.9, the predecessor, which has the same name: so it is imported without type checkers looking."""

import importlib
import time
from typing import Any

from ._work import (
    CALLS,
    FAN_OUT,
    ITEMS,
    MANY,
    RETRIED,
    SLEEPERS,
    THREAD_CALLS,
    Flaky,
    Way,
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

daglite: Any = importlib.import_module("daglite")
task: Any = daglite.task

flaky = Flaky()


async def retry() -> int:
    return await flaky()


answer_task, retried = task(retries=2)(answer), task(retries=2)(retry)
wait_task, sleep_task, thread_task, stream_task = task(wait_once), task(sleep_for_ever), task(add_one), task(count_up)


def in_session(run: Any, count: int) -> Way:
    async def main() -> None:
        async with daglite.async_session():
            await run()

    return all_together(main, count)


async def many_calls() -> None:
    for number in range(CALLS):
        await answer_task(number)


async def stream() -> None:
    async for _ in stream_task():
        pass


def in_threads() -> float:
    with daglite.session(backend="thread"):
        began = time.perf_counter()
        daglite.map_tasks(thread_task, range(THREAD_CALLS))
        return (time.perf_counter() - began) / THREAD_CALLS


WORK: Work = {
    "call": {"daglite 0.9": one_by_one(answer_task, CALLS), "daglite 0.9, in a session": in_session(many_calls, CALLS)},
    "retry": {"daglite 0.9": one_by_one(lambda _: retried(), RETRIED)},
    "fan-out": {  # it cannot bound how many
        "daglite 0.9, unbounded": all_together(lambda: daglite.gather_tasks(wait_task, range(FAN_OUT)), FAN_OUT)
    },
    "stream": {"daglite 0.9": all_together(stream, ITEMS)},
    "threads": {"daglite 0.9": in_threads},
    "cancellation": {"daglite 0.9": cancelled(lambda: daglite.gather_tasks(sleep_task, range(SLEEPERS)))},
    "memory": {"daglite 0.9, unbounded": all_together(lambda: daglite.gather_tasks(wait_task, range(MANY)), MANY)},
}
