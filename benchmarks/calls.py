"""What a call costs, as a multiple of the bare coroutine call of the same run.

    python benchmarks/calls.py
    python benchmarks/calls.py --event-loop trio

The rounds of all kinds are interleaved, and the fastest of each counts: what else the machine does only ever adds.
"""

import argparse
import time
from collections.abc import Awaitable, Callable

import anyio

from daglite import session, task

CALLS = 4_000  # a subscriber that has 10,000 events waiting is warned about
ROUNDS = 30


async def bare(number: int) -> int:
    return number


plain = task(bare)
retried = task(retries=3)(bare)
timed = task(timeout=30)(bare)


async def scope_by_hand(number: int) -> int:
    with anyio.fail_after(30):
        return await bare(number)


async def seconds_of(func: Callable[[int], Awaitable[int]]) -> float:
    """Seconds that one call takes, on average."""
    began = time.perf_counter()
    for number in range(CALLS):
        await func(number)
    return (time.perf_counter() - began) / CALLS


async def measure() -> dict[str, float]:
    best: dict[str, float] = {}

    async def one(name: str, func: Callable[[int], Awaitable[int]]) -> None:
        best[name] = min(best.get(name, 1e9), await seconds_of(func))

    for _ in range(ROUNDS):
        await one("bare coroutine", bare)
        await one("task", plain)
        await one("task, retries=3", retried)
        await one("anyio.fail_after by hand", scope_by_hand)
        await one("task, timeout=30", timed)
        async with session() as s:
            await one("task, in a session", plain)
            async with s.events() as events:
                await one("task, in a session that is watched", plain)
                for _ in range(2 * CALLS):
                    await events.__anext__()
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure what a call costs.")
    parser.add_argument("--event-loop", choices=["asyncio", "trio"], default="asyncio")
    best = anyio.run(measure, backend=parser.parse_args().event_loop)
    for name, seconds in best.items():
        ratio = seconds / best["bare coroutine"]
        print(f"{name:36}{seconds * 1e6:8.2f} µs{ratio:8.1f}x")


if __name__ == "__main__":
    main()
