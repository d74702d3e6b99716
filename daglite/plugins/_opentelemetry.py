"""Spans and metrics of calls, by the API of OpenTelemetry."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from contextvars import Token
from typing import TYPE_CHECKING, Any
from uuid import UUID

from opentelemetry import context, metrics, trace
from opentelemetry.trace import Link, Span, StatusCode

from daglite._hookspecs import hook_impl
from daglite._log import described, logger
from daglite._metadata import facts_of, label_of, number_of

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from opentelemetry.context import Context
    from opentelemetry.util.types import AttributeValue

    from daglite._metadata import TaskMetadata

__all__ = ["OpenTelemetryPlugin"]

# Seconds, as OpenTelemetry's conventions for HTTP advise: the SDK's own buckets are made for milliseconds.
BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0)


class OpenTelemetryPlugin:
    """Makes a span of each call, which is current in the task's function, and counts and times calls.

    ```python
    import os

    import anyio
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import ConsoleSpanExporter, SimpleSpanProcessor

    from daglite import session, task
    from daglite.plugins import OpenTelemetryPlugin

    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(ConsoleSpanExporter(formatter=lambda span: span.name + os.linesep)))


    @task
    async def fetch(url: str) -> str:
        return url.upper()


    async def main() -> None:
        async with session(plugins=[OpenTelemetryPlugin(tracer_provider=provider)]):
            await fetch("a")  # prints "fetch"


    anyio.run(main)
    ```

    A span has the name of its task, its placeholders not filled in, so that calls of one task belong together, and is a child
    of the span that is current where the call is made: also in threads, and in fan-outs. It lasts from the beginning of the call to
    its end, retries and waits included. Its attributes are:

    - `daglite.call.id`: the id of the call, as in events, log records and the tree of calls.
    - `daglite.backend`: where the function runs, `"inline"` or `"thread"`.
    - `daglite.call.name`: the name with its placeholders filled in, if the task's name has any.
    - `daglite.map_index`: the position in a fan-out.
    - `daglite.retries`: how many retries there were, if any. Each is an event, `retry`, with its number and the error before it.
    - `daglite.cancelled`: true if the call was cancelled. That is no error, and the span's status stays as it is.
    - `daglite.cache.hit`: true if the result was in the cache. Such a span is as short as nothing.
    - `error.type`: the class of the error that the call failed with. It is recorded as an exception, and is the status.

    A background call may last longer than what has started it: its span begins a trace of its own, with a link to the span
    that was current there. The span of a stream is current in its generator, and never where the items are used.

    The metrics have the attribute `daglite.task.name`:

    - `daglite.calls`: calls that have ended, by `daglite.outcome`: `succeeded`, `failed`, with an `error.type`, or `cancelled`.
    - `daglite.call.duration`: their seconds, as a histogram, with the same attributes.
    - `daglite.retries`: retries.
    - `daglite.cache.lookups`: calls whose result was looked for in a cache, by `daglite.cache.result`: `hit` or `miss`.

    Nothing is exported, or costs much, before the program has set up an SDK. An exporter that fails or hangs harms no call, as
    long as it is behind a `BatchSpanProcessor`, which hands spans over in a thread of its own.

    Args:
        tracer_provider: What makes the spans; the one of the process by default, also if that is set later.
        meter_provider: What takes the metrics; the one of the process by default.
        attributes: Called with each call as it begins, for more attributes of its span, such as some of the call's `inputs`. One
            that fails is logged, and the span goes without.

    Raises:
        TypeError: An argument has the wrong type.
    """

    def __init__(
        self,
        *,
        tracer_provider: trace.TracerProvider | None = None,
        meter_provider: metrics.MeterProvider | None = None,
        attributes: Callable[[TaskMetadata], Mapping[str, AttributeValue]] | None = None,
    ) -> None:
        checked("tracer_provider", tracer_provider, trace.TracerProvider, "opentelemetry.trace.TracerProvider")
        checked("meter_provider", meter_provider, metrics.MeterProvider, "opentelemetry.metrics.MeterProvider")
        if attributes is not None and not callable(attributes):
            raise TypeError(
                f"OpenTelemetryPlugin: attributes must be a function that takes a TaskMetadata, not {attributes!r:.80}"
            )
        self._attributes = attributes
        self._tracer = trace.get_tracer("daglite", tracer_provider=tracer_provider)
        meter = metrics.get_meter("daglite", meter_provider=meter_provider)
        self._ended = meter.create_counter("daglite.calls", "{call}", "Calls that have ended.")
        self._durations = meter.create_histogram(
            "daglite.call.duration", "s", "Seconds that calls took.", explicit_bucket_boundaries_advisory=BUCKETS
        )
        self._retried = meter.create_counter("daglite.retries", "{retry}", "Retries of calls.")
        self._looked_up = meter.create_counter(
            "daglite.cache.lookups", "{lookup}", "Calls whose result was looked for in a cache."
        )
        self._open: dict[int, Current] = {}  # of the calls that run, by number
        self._ids = Ids()
        self._succeeded = Succeeded()

    @hook_impl
    def before_node_execute(self, metadata: TaskMetadata) -> None:
        """Begin the span of a call."""
        self._open[number_of(metadata)] = Current(self._begun(metadata))

    @hook_impl
    def activate(self, metadata: TaskMetadata) -> AbstractContextManager[Any]:
        """Make the span current."""
        current = self._open.get(number_of(metadata))
        if current is None:  # its span could not be made
            return nullcontext()
        # An attempt whose thread was abandoned may still be inside when the next begins.
        return Current(current.span) if current.retries else current

    @hook_impl
    def before_node_retry(self, metadata: TaskMetadata, attempt: int, error: Exception) -> None:
        """Note a retry."""
        self._retried.add(1, {"daglite.task.name": label_of(metadata)})
        current = self._open.get(number_of(metadata))
        if current is not None:
            current.retries = attempt
            about: dict[str, AttributeValue] = {
                "daglite.retry": attempt,
                "exception.type": type_of(error),
                "exception.message": message_of(error),
            }
            current.span.add_event("retry", about)

    @hook_impl
    def after_node_execute(self, metadata: TaskMetadata, duration: float) -> None:
        """End the span of a call that has succeeded."""
        self._measure(duration, self._succeeded[label_of(metadata)])
        span = self._last(metadata)
        if span is not None:
            span.end()

    @hook_impl
    def on_node_error(self, metadata: TaskMetadata, error: Exception, duration: float) -> None:
        """End the span of a call that has failed."""
        kind = type_of(error)
        self._measure(duration, {**ended(label_of(metadata), "failed"), "error.type": kind})
        span = self._last(metadata)
        if span is not None:
            span.set_status(StatusCode.ERROR, described(error))
            span.set_attribute("error.type", kind)
            try:
                span.record_exception(error)
            except Exception:  # the user's own __str__
                span.add_event("exception", {"exception.type": kind})
            span.end()

    @hook_impl
    def on_node_cancelled(self, metadata: TaskMetadata, duration: float) -> None:
        """End the span of a call that was cancelled."""
        self._measure(duration, ended(label_of(metadata), "cancelled"))
        span = self._last(metadata)
        if span is not None:
            span.set_attribute("daglite.cancelled", True)
            span.end()

    @hook_impl
    def on_cache_hit(self, metadata: TaskMetadata) -> None:
        """Make the span of a call that did not begin."""
        self._looked_up.add(1, {"daglite.task.name": label_of(metadata), "daglite.cache.result": "hit"})
        span = self._begun(metadata)
        span.set_attribute("daglite.cache.hit", True)
        span.end()

    @hook_impl
    def on_cache_miss(self, metadata: TaskMetadata) -> None:
        """Count that a result was not in its cache."""
        self._looked_up.add(1, {"daglite.task.name": label_of(metadata), "daglite.cache.result": "miss"})

    def _begun(self, metadata: TaskMetadata) -> Span:
        facts = facts_of(metadata)
        label = label_of(metadata)
        attributes: dict[str, AttributeValue] = {
            "daglite.call.id": self._ids.text_of(number_of(metadata)),
            "daglite.backend": facts.backend,
        }
        if facts.map_index is not None:
            attributes["daglite.map_index"] = facts.map_index
        if "{" in label:
            attributes["daglite.call.name"] = metadata.name
        if self._attributes is not None:
            attributes.update(self._asked_for(metadata))
        if not facts.is_background:
            return self._tracer.start_span(label, attributes=attributes)
        starter = trace.get_current_span().get_span_context()
        alone = trace.set_span_in_context(trace.INVALID_SPAN)  # with what else is there, such as baggage
        links = [Link(starter)] if starter.is_valid else []
        return self._tracer.start_span(label, alone, attributes=attributes, links=links)

    def _asked_for(self, metadata: TaskMetadata) -> Mapping[str, AttributeValue]:
        assert self._attributes is not None
        try:
            return dict(self._attributes(metadata))
        except Exception:
            logger().exception("OpenTelemetryPlugin: attributes failed for task %r", label_of(metadata))
            return {}

    def _last(self, metadata: TaskMetadata) -> Span | None:
        """The span of a call that has ended; `None` if it could not be made."""
        current = self._open.pop(number_of(metadata), None)
        if current is None:
            return None
        if current.retries:
            current.span.set_attribute("daglite.retries", current.retries)
        return current.span

    def _measure(self, duration: float, attributes: Mapping[str, str]) -> None:
        self._ended.add(1, attributes)
        self._durations.record(duration, attributes)


class Current:
    """Makes a span current, for an attempt or for the life of a stream. A class, which costs a third of a generator.

    Args:
        span: The span.

    Attributes:
        retries: How many retries of its call there were.
    """

    __slots__ = ("_token", "retries", "span")

    def __init__(self, span: Span) -> None:
        self.span: Span = span
        self.retries: int = 0

    def __enter__(self) -> None:
        self._token: Token[Context] = context.attach(trace.set_span_in_context(self.span))

    def __exit__(self, *exc_info: object) -> None:
        token = self._token
        del self._token
        try:
            token.var.reset(token)
        except ValueError:
            # A coroutine that is dropped half-way is closed in another context, where there is nothing to be undone.
            # `context.detach` would log that.
            pass


class Succeeded(dict[str, dict[str, str]]):
    """What metrics say of a call that has succeeded, by the name of its task: made once for each."""

    def __missing__(self, label: str) -> dict[str, str]:
        made = self[label] = ended(label, "succeeded")
        return made


def ended(label: str, outcome: str) -> dict[str, str]:
    """What metrics say of a call that has ended."""
    return {"daglite.task.name": label, "daglite.outcome": outcome}


def checked(option: str, provider: object, kind: type, name: str) -> None:
    """Raise a `TypeError` if something is no provider."""
    if provider is not None and not isinstance(provider, kind):
        raise TypeError(f"OpenTelemetryPlugin: {option} must be an {name}, not {provider!r:.80}")


class Ids:
    """The ids of calls as text, without making a `UUID` of each: those of a process begin alike, and end in a count."""

    def __init__(self) -> None:
        self._high = -1
        self._begin = ""

    def text_of(self, number: int) -> str:
        """The text of the id with that number."""
        high = number >> 48
        if high != self._high:  # in several threads at once it comes to the same
            self._begin = str(UUID(int=number))[:-12]
            self._high = high
        return f"{self._begin}{number & 0xFFFFFFFFFFFF:012x}"


def type_of(error: BaseException) -> str:
    """The class of an error, as OpenTelemetry writes it."""
    kind = type(error)
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


def message_of(error: BaseException) -> str:
    """The text of an error."""
    try:
        return str(error)
    except Exception:  # the user's own __str__
        return ""
