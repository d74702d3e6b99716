"""What a call costs, as a multiple of the bare thing: a coroutine call, a function call, an event on a bare stream, an import.

    python benchmarks/calls.py
    python benchmarks/calls.py --rounds 5 --event-loop trio

Every round measures everything once, and each ratio is to the bare thing of the same round; what is printed are the
medians over the rounds. So what else the machine does meets all alike.
"""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from typing import Any

import anyio
from rounds import arguments, measure, show

from daglite import report, session, task
from daglite.plugins import hook_impl

CALLS = 4_000  # a subscriber that has 10,000 events waiting is warned about
EVENTS = 4_000


async def bare(number: int) -> int:
    return number


def bare_sync(number: int) -> int:
    return number


plain = task(bare)
retried = task(retries=3)(bare)
timed = task(timeout=30)(bare)
plain_sync = task(bare_sync)


async def scope_by_hand(number: int) -> int:
    with anyio.fail_after(30):
        return await bare(number)


class Plugin:
    """Hooks as a metrics plugin has them."""

    @hook_impl
    def before_node_execute(self, metadata: Any) -> None:
        pass

    @hook_impl
    def after_node_execute(self, metadata: Any, duration: float) -> None:
        pass


@task
async def tell(count: int) -> float:
    """Seconds that it takes to publish so many events."""
    began = time.perf_counter()
    for number in range(count):
        report("number", number)
    return time.perf_counter() - began


async def seconds_of(func: Callable[[int], Awaitable[int]]) -> float:
    """Seconds that one call takes, on average."""
    began = time.perf_counter()
    for number in range(CALLS):
        await func(number)
    return (time.perf_counter() - began) / CALLS


def seconds_of_sync(func: Callable[[int], int]) -> float:
    """The same of a function that is called in place."""
    began = time.perf_counter()
    for number in range(CALLS):
        func(number)
    return (time.perf_counter() - began) / CALLS


async def seconds_of_bare_event() -> float:
    """Seconds that an item takes from `send_nowait` to `async for`."""
    send, receive = anyio.create_memory_object_stream[int](EVENTS)
    with send, receive:
        began = time.perf_counter()
        for number in range(EVENTS):
            send.send_nowait(number)
        send.close()
        async for _ in receive:
            pass
        return (time.perf_counter() - began) / EVENTS


async def seconds_of_event() -> float:
    """Seconds that an event takes from `report` to `async for`."""
    async with session() as s, s.events() as events:
        spent = await tell(EVENTS)
        began = time.perf_counter()
        left = EVENTS
        async for _ in events:
            left -= 1
            if not left:
                break
        return (spent + time.perf_counter() - began) / EVENTS


async def one_round() -> dict[str, float]:
    """Seconds of everything, measured once."""
    took = {"bare coroutine": await seconds_of(bare)}
    took["task"] = await seconds_of(plain)
    took["task, retries=3"] = await seconds_of(retried)
    took["anyio.fail_after by hand"] = await seconds_of(scope_by_hand)
    took["task, timeout=30"] = await seconds_of(timed)
    took["bare function"] = seconds_of_sync(bare_sync)
    took["sync task"] = seconds_of_sync(plain_sync)
    async with session() as s:
        took["task in a session"] = await seconds_of(plain)
        took["sync task in a session"] = seconds_of_sync(plain_sync)
        async with s.events():
            took["task, one subscriber"] = await seconds_of(plain)
    async with session(plugins=[Plugin()]):
        took["task, one hook plugin"] = await seconds_of(plain)
    took["bare stream"] = await seconds_of_bare_event()
    took["event, one subscriber"] = await seconds_of_event()
    return took


BARE = {
    **dict.fromkeys(("bare function", "sync task", "sync task in a session"), "bare function"),
    **dict.fromkeys(("bare stream", "event, one subscriber"), "bare stream"),
    **dict.fromkeys(("import anyio", "import daglite"), "import anyio"),
}


def measure_imports(rounds: int) -> list[dict[str, float]]:
    """Seconds of imports in new processes, with their bytecode written."""
    program = "import time; began = time.perf_counter(); import {}; print(time.perf_counter() - began)"
    with tempfile.TemporaryDirectory() as cache:
        environment = {**os.environ, "PYTHONPYCACHEPREFIX": cache}
        environment.pop("PYTHONDONTWRITEBYTECODE", None)

        def once(name: str) -> float:
            command = [sys.executable, "-c", program.format(name)]
            return float(subprocess.run(command, env=environment, capture_output=True, check=True, text=True).stdout)

        def one() -> dict[str, float]:
            return {f"import {name}": once(name) for name in ("anyio", "daglite")}

        one()
        return [one() for _ in range(rounds)]


def main() -> None:
    event_loops, rounds = arguments("Measure what a call costs.")
    for event_loop in event_loops:
        show(event_loop, anyio.run(measure, one_round, rounds, backend=event_loop), BARE, "bare coroutine")
    show("imports", measure_imports(rounds), BARE, "bare coroutine")


if __name__ == "__main__":
    main()
