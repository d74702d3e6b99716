"""The work, and the clock. Nothing but the standard library: it is imported in every environment."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from typing import Any

CALLS = 2_000
RETRIED = 400
FAN_OUT = 2_000
LIMIT = 100
ITEMS = 5_000
THREAD_CALLS = 400
THREADS = 8
SLEEPERS = 1_000
MANY = 1_000_000

Way = Callable[[], float]
Work = dict[str, dict[str, Way]]


async def answer(number: int) -> int:
    return number


async def wait_once(number: int) -> int:
    await asyncio.sleep(0)
    return number


asleep = 0


async def sleep_for_ever(number: int) -> int:
    global asleep
    asleep += 1
    try:
        await asyncio.Event().wait()
    finally:
        asleep -= 1
    return number


def add_one(number: int) -> int:
    return number + 1


async def count_up() -> AsyncIterator[int]:
    for number in range(ITEMS):
        yield number


class Flaky:
    """Fails twice, then succeeds, then fails twice again."""

    def __init__(self) -> None:
        self.runs = 0

    async def __call__(self) -> int:
        self.runs += 1
        if self.runs % 3:
            raise ConnectionError("no answer")
        return self.runs


def one_by_one(call: Callable[[int], Awaitable[Any]], count: int = CALLS) -> Way:
    """Seconds for one of so many calls, which are awaited one after the other."""

    async def main() -> float:
        await call(0)
        began = time.perf_counter()
        for number in range(count):
            await call(number)
        return (time.perf_counter() - began) / count

    return lambda: asyncio.run(main())


def all_together(run: Callable[[], Awaitable[Any]], count: int) -> Way:
    """Seconds for each of so many that are done by one call."""

    async def main() -> float:
        began = time.perf_counter()
        await run()
        return (time.perf_counter() - began) / count

    return lambda: asyncio.run(main())


def cancelled(run: Callable[[], Coroutine[Any, Any, Any]], count: int = SLEEPERS) -> Way:
    """Seconds for each of so many calls that sleep, from the cancellation until all of them have ended."""

    async def main() -> float:
        fan_out = asyncio.ensure_future(run())
        while asleep < count:  # noqa: ASYNC110 - what counts is the work of the library, not a wake-up
            await asyncio.sleep(0.001)
        began = time.perf_counter()
        fan_out.cancel()
        try:
            await fan_out
        except asyncio.CancelledError:
            took = time.perf_counter() - began
            assert not asleep, "some of them still sleep"
            return took / count
        raise AssertionError("it was not cancelled")

    return lambda: asyncio.run(main())
