"""What a call with a span costs, as a multiple of the same span opened by hand, with the SDK of OpenTelemetry and no exporter.

    python benchmarks/tracing.py
    python benchmarks/tracing.py --rounds 5 --event-loop trio

Every round measures everything once, and each ratio is to the bare thing of the same round; what is printed are the medians
over the rounds. So what else the machine does meets all alike. By hand the attributes are the same, but for the id, which is a
constant there, and has to be made for each call here. `metrics` has the same counter and histogram too. In `of a call in a task` both
spans are in a span that is current, as a client's is in that of a request.
"""

import time
from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager
from typing import Any

import anyio
from opentelemetry.metrics import MeterProvider, NoOpMeterProvider
from opentelemetry.sdk.metrics import MeterProvider as SDKMeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from rounds import arguments, measure, show

from daglite import session, task
from daglite.plugins import OpenTelemetryPlugin

CALLS = 2_000
ATTRIBUTES = {"daglite.call.id": "adc36b06-d0ac-8000-9f23-000000000001", "daglite.backend": "inline"}
METRIC = {"daglite.outcome": "succeeded", "daglite.task.name": "work"}

tracers = TracerProvider()
tracer = tracers.get_tracer("by hand")
meters = SDKMeterProvider([InMemoryMetricReader()])
meter = meters.get_meter("by hand")
calls = meter.create_counter("calls")
durations = meter.create_histogram("duration", "s")


async def work(number: int) -> int:
    return number


work_task = task(work)


async def by_hand(number: int) -> int:
    with tracer.start_as_current_span("work", attributes=ATTRIBUTES):
        return await work(number)


async def by_hand_with_metrics(number: int) -> int:
    began = time.perf_counter()
    with tracer.start_as_current_span("work", attributes=ATTRIBUTES):
        result = await work(number)
    calls.add(1, METRIC)
    durations.record(time.perf_counter() - began, METRIC)
    return result


async def seconds_of(function: Callable[[int], Awaitable[Any]]) -> float:
    """Seconds that one call takes, on average."""
    began = time.perf_counter()
    for number in range(CALLS):
        await function(number)
    return (time.perf_counter() - began) / CALLS


def traced(meter_provider: MeterProvider) -> AbstractContextManager[Any]:
    return session(plugins=[OpenTelemetryPlugin(tracer_provider=tracers, meter_provider=meter_provider)])  # type: ignore[return-value]


async def one_round() -> dict[str, float]:
    """Seconds of everything, measured once."""
    took = {"by hand": await seconds_of(by_hand), "by hand, metrics": await seconds_of(by_hand_with_metrics)}
    async with session(plugins=[OpenTelemetryPlugin(tracer_provider=tracers, meter_provider=NoOpMeterProvider())]):
        took["a task"] = await seconds_of(work_task)
    async with session(plugins=[OpenTelemetryPlugin(tracer_provider=tracers, meter_provider=meters)]):
        took["a task, metrics"] = await seconds_of(work_task)
    async with session(plugins=[OpenTelemetryPlugin()]):
        took["a task, without an SDK"] = await seconds_of(work_task)
    async with session():
        took["a task, without the plugin"] = await seconds_of(work_task)
    return took


BARE = {"by hand, metrics": "by hand, metrics", "a task, metrics": "by hand, metrics"}


def main() -> None:
    event_loops, rounds = arguments("Measure what a call with a span costs.")
    for event_loop in event_loops:
        show(event_loop, anyio.run(measure, one_round, rounds, backend=event_loop), BARE, "by hand")


if __name__ == "__main__":
    main()
