"""With daglite, as it is in this checkout."""

from typing import Any

from daglite import gather_tasks, session, stream_tasks, task

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

flaky = Flaky()
answer_task = task(retries=2)(answer)
retried = task(retries=2, retry_on=OSError)(flaky.__call__)
wait_task, sleep_task, thread_task = task(wait_once), task(sleep_for_ever), task(add_one)
stepped, pumped = task(count_up), task(pump=True)(count_up)


def in_session(run: Any, count: int) -> Way:
    async def main() -> None:
        async with session():
            await run()

    return all_together(main, count)


async def many_calls() -> None:
    for number in range(CALLS):
        await answer_task(number)


async def stream(stream_task: Any) -> None:
    async with stream_task() as items:
        async for _ in items:
            pass


async def results_one_by_one(count: int, limit: int) -> None:
    async with stream_tasks(wait_task, range(count), limit=limit) as results:
        async for _ in results:
            pass


WORK: Work = {
    "call": {"daglite": one_by_one(answer_task, CALLS), "daglite, in a session": in_session(many_calls, CALLS)},
    "retry": {"daglite": one_by_one(lambda _: retried(), RETRIED)},
    "fan-out": {
        "daglite, gather_tasks": all_together(lambda: gather_tasks(wait_task, range(FAN_OUT), limit=LIMIT), FAN_OUT),
        "daglite, stream_tasks": all_together(lambda: results_one_by_one(FAN_OUT, LIMIT), FAN_OUT),
    },
    "stream": {
        "daglite": all_together(lambda: stream(stepped), ITEMS),
        "daglite, pumped": all_together(lambda: stream(pumped), ITEMS),
    },
    "threads": {
        "daglite": all_together(lambda: gather_tasks(thread_task, range(THREAD_CALLS), limit=THREADS), THREAD_CALLS)
    },
    "cancellation": {"daglite": cancelled(lambda: gather_tasks(sleep_task, range(SLEEPERS)))},
    "memory": {
        "daglite, gather_tasks": all_together(lambda: gather_tasks(wait_task, range(MANY), limit=LIMIT), MANY),
        "daglite, stream_tasks": all_together(lambda: results_one_by_one(MANY, LIMIT), MANY),
    },
}
