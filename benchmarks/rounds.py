"""What benchmarks have in common: rounds in which everything is measured once, and the medians of what came of them."""

import argparse
import statistics
from collections.abc import Awaitable, Callable, Mapping
from typing import Literal

EventLoop = Literal["asyncio", "trio"]


def arguments(description: str) -> tuple[list[EventLoop], int]:
    """What is asked for: on which event loops, and in how many rounds."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--event-loop", choices=["asyncio", "trio"], help="only this one")
    parser.add_argument("--rounds", type=int, default=15)
    given = parser.parse_args()
    loops: list[EventLoop] = ["asyncio", "trio"]
    return [given.event_loop] if given.event_loop else loops, given.rounds


async def measure(one_round: Callable[[], Awaitable[dict[str, float]]], rounds: int) -> list[dict[str, float]]:
    """Seconds of everything in so many rounds, after one that warms up."""
    await one_round()
    return [await one_round() for _ in range(rounds)]


def show(title: str, rounds: list[dict[str, float]], bare: Mapping[str, str], default: str) -> None:
    """Print the medians.

    Args:
        title: What was measured.
        rounds: Seconds of everything, for each round.
        bare: What each is compared with, by name.
        default: What those are compared with that are not in there.
    """
    print(f"\n{title}")
    for name in rounds[0]:
        bare_name = bare.get(name, default)
        microseconds = statistics.median(each[name] for each in rounds) * 1e6
        ratio = statistics.median(each[name] / each[bare_name] for each in rounds)
        print(f"  {name:32}{microseconds:12.2f} µs{ratio:9.2f}x {bare_name}")
