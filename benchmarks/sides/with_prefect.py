"""With Prefect 3, which keeps a record of every run in a server: in an ephemeral one, started before anything is measured.

Far fewer calls than with the others: one takes milliseconds.
"""

import asyncio
import importlib
import time
from typing import Any

from ._work import Flaky, Work, add_one, answer

prefect: Any = importlib.import_module("prefect")  # it is installed in an environment of its own alone
FEW = 20

flaky = Flaky()


async def retry() -> int:
    return await flaky()


answer_task: Any = prefect.task(answer)
retried: Any = prefect.task(retries=2, retry_delay_seconds=0)(retry)
thread_task: Any = prefect.task(add_one)


@prefect.flow  # type: ignore[untyped-decorator]
async def calls() -> float:
    await answer_task(0)
    began = time.perf_counter()
    for number in range(FEW):
        await answer_task(number)
    return (time.perf_counter() - began) / FEW


@prefect.flow  # type: ignore[untyped-decorator]
async def retries() -> float:
    began = time.perf_counter()
    for _ in range(FEW):
        await retried()
    return (time.perf_counter() - began) / FEW


@prefect.flow  # type: ignore[untyped-decorator]
def in_threads() -> float:
    began = time.perf_counter()
    thread_task.map(range(FEW)).result()
    return (time.perf_counter() - began) / FEW


def awaited(flow: Any) -> float:
    seconds: float = asyncio.run(flow())
    return seconds


WORK: Work = {
    "call": {"Prefect, in a flow": lambda: awaited(calls)},
    "retry": {"Prefect, in a flow": lambda: awaited(retries)},
    "threads": {"Prefect, in a flow": lambda: float(in_threads())},
}
