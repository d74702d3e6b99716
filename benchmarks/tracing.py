"""What a call with a span costs, as a multiple of the same span opened by hand, with the SDK of OpenTelemetry and no exporter.

    python benchmarks/tracing.py
    python benchmarks/tracing.py --rounds 5 --event-loop trio

Every round measures everything once, a call by hand and a task in turn, and each ratio is to the bare thing of the same round;
what is printed are the medians over the rounds. So what else the machine does meets all alike. The attributes are the same on both
sides: an id of each call, by hand a `uuid4`, and where it runs. With `metrics` there are a counter and a histogram on both sides as well.
"""

import time
from collections.abc import Awaitable, Callable
from typing import Any
from uuid import uuid4

import anyio
from opentelemetry.metrics import NoOpMeterProvider
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from rounds import arguments, measure, show

from daglite import session, task
from daglite.plugins import OpenTelemetryPlugin

CALLS = 2_000
METRIC = {"daglite.outcome": "succeeded", "daglite.task.name": "work"}

tracers = TracerProvider()
tracer = tracers.get_tracer("by hand")
meters = MeterProvider([InMemoryMetricReader()])
meter = meters.get_meter("by hand")
calls = meter.create_counter("calls")
durations = meter.create_histogram("duration", "s")


async def work(number: int) -> int:
    return number


work_task = task(work)


def attributes() -> dict[str, str]:
    """The same as a task's: which call it is, and where it runs."""
    return {"daglite.call.id": str(uuid4()), "daglite.backend": "inline"}


async def by_hand(number: int) -> int:
    with tracer.start_as_current_span("work", attributes=attributes()):
        return await work(number)


async def by_hand_with_metrics(number: int) -> int:
    began = time.perf_counter()
    with tracer.start_as_current_span("work", attributes=attributes()):
        result = await work(number)
    calls.add(1, METRIC)
    durations.record(time.perf_counter() - began, METRIC)
    return result


async def seconds_of(functions: dict[str, Callable[[int], Awaitable[Any]]]) -> dict[str, float]:
    """Seconds that a call of each takes, on average. They take turns: alone in a loop each would have the processor's caches to itself."""
    took = dict.fromkeys(functions, 0.0)
    for number in range(CALLS):
        for name, function in functions.items():
            began = time.perf_counter()
            await function(number)
            took[name] += time.perf_counter() - began
    return {name: seconds / CALLS for name, seconds in took.items()}


async def one_round() -> dict[str, float]:
    """Seconds of everything, measured once."""
    took: dict[str, float] = {}
    async with session(plugins=[OpenTelemetryPlugin(tracer_provider=tracers, meter_provider=NoOpMeterProvider())]):
        took |= await seconds_of({"by hand": by_hand, "a task": work_task})
    async with session(plugins=[OpenTelemetryPlugin(tracer_provider=tracers, meter_provider=meters)]):
        took |= await seconds_of({"by hand, metrics": by_hand_with_metrics, "a task, metrics": work_task})
    async with session(plugins=[OpenTelemetryPlugin()]):
        took |= await seconds_of({"a task, without an SDK": work_task})
    async with session():
        took |= await seconds_of({"a task, without the plugin": work_task})
    return took


BARE = {"by hand, metrics": "by hand, metrics", "a task, metrics": "by hand, metrics"}


def main() -> None:
    event_loops, rounds = arguments("Measure what a call with a span costs.")
    for event_loop in event_loops:
        show(event_loop, anyio.run(measure, one_round, rounds, backend=event_loop), BARE, "by hand")


if __name__ == "__main__":
    main()
