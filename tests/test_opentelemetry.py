"""Calls as spans and metrics, with the real SDK of OpenTelemetry."""

import threading
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from typing import Any

import anyio
import pytest
from anyio.lowlevel import checkpoint
from fastapi import FastAPI
from opentelemetry import baggage, context, trace
from opentelemetry.instrumentation.fastapi import FastAPIInstrumentor
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SimpleSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF
from opentelemetry.trace import StatusCode

from daglite import TaskMetadata, current_session, gather_tasks, map_tasks, session, task
from daglite.asgi import DagliteMiddleware, StreamResponse
from daglite.events import TaskStarted
from daglite.exceptions import TaskError, TaskTimeoutError
from daglite.plugins import OpenTelemetryPlugin
from daglite.testing import EventRecorder

from .asgi_server import Request, serving
from .test_events import Mute


class Traces:
    """What has come of a program: its spans, and its metrics."""

    def __init__(self) -> None:
        self.exporter = InMemorySpanExporter()
        self.tracers = TracerProvider(shutdown_on_exit=False)
        self.tracers.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.tracer = self.tracers.get_tracer("tests")
        self.reader = InMemoryMetricReader()
        self.meters = MeterProvider([self.reader], shutdown_on_exit=False)
        self.plugin = OpenTelemetryPlugin(tracer_provider=self.tracers, meter_provider=self.meters)

    @property
    def spans(self) -> Sequence[ReadableSpan]:
        return self.exporter.get_finished_spans()

    def span(self, name: str) -> ReadableSpan:
        """The only one of that name."""
        [found] = [each for each in self.spans if each.name == name]
        return found

    def paths(self) -> list[str]:
        """The names of the spans, after those of their parents."""
        by_id = {each.context.span_id: each for each in self.spans}

        def path(span: ReadableSpan) -> str:
            return span.name if span.parent is None else f"{path(by_id[span.parent.span_id])}/{span.name}"

        return sorted(map(path, self.spans))

    def counted(self, metric: str) -> dict[tuple[Any, ...], Any]:
        """The points of a metric, by the values of their attributes, in the order of their names."""
        found: dict[tuple[Any, ...], Any] = {}
        data = self.reader.get_metrics_data()
        for resource in [] if data is None else data.resource_metrics:
            for scope in resource.scope_metrics:
                for each in scope.metrics:
                    if each.name == metric:
                        for point in each.data.data_points:
                            key = tuple(value for _, value in sorted(dict(point.attributes or {}).items()))
                            found[key] = point.count if hasattr(point, "count") else point.value
        return found


@pytest.fixture
def traces() -> Iterator[Traces]:
    made = Traces()
    yield made
    assert not made.plugin._open  # nothing is kept of calls that have ended
    made.tracers.shutdown()
    made.meters.shutdown()


def current() -> str:
    """The name of the span that is current."""
    return getattr(trace.get_current_span(), "name", "none")


@task
async def leaf() -> str:
    await checkpoint()
    return current()


@task
def sync_leaf() -> str:
    return current()


@task
async def rows(seen: list[str]) -> AsyncIterator[int]:
    for number in range(3):
        seen.append(current())
        await leaf()
        yield number


@task
def sync_rows(seen: list[str]) -> Iterator[int]:
    for number in range(3):
        seen.append(current())
        yield number


async def test_a_call_is_a_span(recorded_events: EventRecorder, traces: Traces) -> None:
    async with session(plugins=[traces.plugin]):
        assert await leaf() == "leaf"
    span = traces.span("leaf")
    [started] = [each for each in recorded_events.events if isinstance(each, TaskStarted)]
    assert dict(span.attributes or {}) == {"daglite.call.id": str(started.metadata.id), "daglite.backend": "inline"}
    assert span.parent is None
    assert span.status.status_code is StatusCode.UNSET
    assert span.instrumentation_scope is not None
    assert span.instrumentation_scope.name == "daglite"
    assert current() == "none"


async def test_calls_that_a_call_makes_are_its_children(traces: Traces) -> None:
    @task
    async def both() -> list[str]:
        here = [await leaf(), sync_leaf(), await sync_leaf.to_thread()]
        assert current() == "both"
        return here

    async with session(plugins=[traces.plugin]):
        with traces.tracer.start_as_current_span("request"):
            assert await both() == ["leaf", "sync_leaf", "sync_leaf"]
            assert current() == "request"
    assert traces.paths() == [
        "request",
        "request/both",
        "request/both/leaf",
        "request/both/sync_leaf",
        "request/both/sync_leaf",
    ]
    backends = [(each.attributes or {})["daglite.backend"] for each in traces.spans if each.name == "sync_leaf"]
    assert sorted(map(str, backends)) == ["inline", "thread"]


async def test_calls_of_a_fan_out_say_which_they_are(traces: Traces) -> None:
    @task(name="load {table}")
    async def load(table: str) -> str:
        return current()

    @task
    def whole() -> list[str]:
        return map_tasks(load, ["a", "b"])  # from a worker thread back into the event loop

    async with session(plugins=[traces.plugin]):
        assert await whole.to_thread() == ["load {table}"] * 2
    assert traces.paths() == ["whole", "whole/load {table}", "whole/load {table}"]
    about = [each.attributes or {} for each in traces.spans if each.name != "whole"]
    facts = [(each["daglite.map_index"], each["daglite.call.name"]) for each in about]
    assert sorted(facts, key=str) == [(0, "load a[0]"), (1, "load b[1]")]


async def test_a_stream_has_its_span_to_itself(traces: Traces) -> None:
    seen: list[str] = []
    async with session(plugins=[traces.plugin]):
        with traces.tracer.start_as_current_span("request"):
            async with rows(seen) as first:
                async for _ in first:
                    assert current() == "request"
                    await sync_leaf.to_thread()
            async with rows.with_options(pump=True, name="pumped")(seen) as second:
                async for _ in second:
                    assert current() == "request"
                    break
            async for _ in sync_rows.to_thread(seen):
                assert current() == "request"
            for _ in sync_rows.with_options(name="in place")(seen):
                assert current() == "request"
    assert seen == ["rows"] * 3 + ["pumped"] + ["sync_rows"] * 3 + ["in place"] * 3
    paths = traces.paths()
    assert paths.count("request/rows/leaf") == 3
    assert paths.count("request/pumped/leaf") == 1
    assert paths.count("request/sync_leaf") == 3
    for each in traces.spans:
        assert each.status.status_code is StatusCode.UNSET


async def test_a_thread_that_goes_back_takes_its_span_with_it(traces: Traces) -> None:
    @task
    def there_and_back() -> str:
        assert list(rows.from_thread([])) == [0, 1, 2]
        return leaf.from_thread()

    async with session(plugins=[traces.plugin]):
        assert await there_and_back.to_thread() == "leaf"
    assert set(traces.paths()) == {
        "there_and_back",
        "there_and_back/leaf",
        "there_and_back/rows",
        "there_and_back/rows/leaf",
    }


def test_a_sync_session_has_spans_too(traces: Traces) -> None:
    with session(plugins=[traces.plugin]) as s:
        with traces.tracer.start_as_current_span("script"):
            assert leaf.from_thread() == "leaf"
            assert s.start_soon(sync_leaf).result() == "sync_leaf"
    assert traces.paths() == ["script", "script/leaf", "sync_leaf"]
    [link] = traces.span("sync_leaf").links
    assert link.context == traces.span("script").context


async def test_a_background_call_is_linked_to_what_has_started_it(traces: Traces) -> None:
    @task
    async def starts() -> None:
        found = current_session()
        assert found is not None
        found.start_soon(background)

    @task
    async def background() -> None:
        assert baggage.get_baggage("user") == "ada"
        await leaf()

    async with session(plugins=[traces.plugin]) as s:
        token = context.attach(baggage.set_baggage("user", "ada"))
        await starts()
        context.detach(token)
        await s.start_soon(leaf.with_options(name="alone"))
    assert traces.paths() == ["alone", "background", "background/leaf", "starts"]
    [link] = traces.span("background").links
    assert link.context == traces.span("starts").context
    assert traces.span("background").context.trace_id != traces.span("starts").context.trace_id
    assert not traces.span("alone").links


async def test_retries_are_events_and_the_failure_is_the_status(traces: Traces) -> None:
    @task(retries=2)
    async def fail() -> None:
        raise ConnectionError(f"no answer, {current()}")

    async with session(plugins=[traces.plugin]):
        with pytest.raises(TaskError):
            await fail()
    span = traces.span("fail")
    assert [(each.name, dict(each.attributes or {})) for each in span.events[:2]] == [
        (
            "retry",
            {
                "daglite.retry": number,
                "exception.type": "ConnectionError",
                "exception.message": "no answer, fail",
            },
        )
        for number in (1, 2)
    ]
    assert [each.name for each in span.events] == ["retry", "retry", "exception"]
    assert "ConnectionError: no answer" in str((span.events[2].attributes or {})["exception.stacktrace"])
    assert (span.attributes or {})["daglite.retries"] == 2
    assert (span.attributes or {})["error.type"] == "ConnectionError"
    assert span.status.status_code is StatusCode.ERROR
    assert span.status.description == "ConnectionError: no answer, fail"
    assert traces.counted("daglite.retries") == {("fail",): 2}
    assert traces.counted("daglite.calls") == {("failed", "fail", "ConnectionError"): 1}


async def test_a_retry_that_succeeds_is_no_error(traces: Traces) -> None:
    calls = iter([OSError("once"), None])

    @task(retries=2)
    async def flaky() -> str:
        if error := next(calls):
            raise error
        return current()

    async with session(plugins=[traces.plugin]):
        assert await flaky() == "flaky"
    assert traces.span("flaky").status.status_code is StatusCode.UNSET
    assert (traces.span("flaky").attributes or {})["daglite.retries"] == 1


async def test_a_cancelled_call_is_no_error(traces: Traces) -> None:
    async with session(plugins=[traces.plugin]):
        with anyio.CancelScope() as scope:

            @task
            async def wait() -> None:
                scope.cancel()
                await anyio.sleep_forever()

            await wait()
    assert (traces.span("wait").attributes or {})["daglite.cancelled"] is True
    assert traces.span("wait").status.status_code is StatusCode.UNSET
    assert traces.counted("daglite.calls") == {("cancelled", "wait"): 1}
    assert traces.counted("daglite.call.duration") == {("cancelled", "wait"): 1}


async def test_a_thread_past_its_deadline_ends_its_span_once(traces: Traces) -> None:
    released = threading.Event()
    seen: list[str] = []

    @task(timeout=0.05, retries=1)
    def stuck() -> None:
        seen.append(current())
        released.wait()

    async with session(plugins=[traces.plugin]):
        try:
            with pytest.raises(TaskTimeoutError):
                await stuck.to_thread()
        finally:
            released.set()
    span = traces.span("stuck")
    assert seen == ["stuck", "stuck"]
    assert (span.attributes or {})["error.type"] == "daglite.exceptions.TaskTimeoutError"
    assert [each.name for each in span.events] == ["retry", "exception"]


async def test_hits_have_a_span_and_lookups_are_counted(traces: Traces) -> None:
    @task(cache=True)
    async def square(number: int) -> int:
        return number * number

    async with session(plugins=[traces.plugin], cache_store="memory://traced"):
        await gather_tasks(square, [2, 3, 3])
        with traces.tracer.start_as_current_span("request"):
            assert await square(2) == 4
        await square.invalidate(2)
        await square.invalidate(3)
    hits = [each for each in traces.spans if "daglite.cache.hit" in (each.attributes or {})]
    assert len(hits) == 2  # of which one has waited for another that computed the same
    assert hits[1].parent is not None
    assert hits[1].parent.span_id == traces.span("request").context.span_id
    assert traces.counted("daglite.cache.lookups") == {("hit", "square"): 2, ("miss", "square"): 2}
    assert traces.counted("daglite.calls") == {("succeeded", "square"): 2}


async def test_calls_are_counted_and_timed(traces: Traces) -> None:
    async with session(plugins=[traces.plugin]):
        await gather_tasks(*(leaf.call() for _ in range(3)))
        async for _ in rows([]):
            pass
    assert traces.counted("daglite.calls") == {("succeeded", "leaf"): 6, ("succeeded", "rows"): 1}
    assert traces.counted("daglite.call.duration") == {("succeeded", "leaf"): 6, ("succeeded", "rows"): 1}


async def test_more_attributes_can_be_given(traces: Traces, caplog: pytest.LogCaptureFixture) -> None:
    @task
    async def fetch(url: str) -> None:
        pass

    def attributes(call: TaskMetadata) -> dict[str, str]:
        return {"url": call.inputs["url"]}

    plugin = OpenTelemetryPlugin(tracer_provider=traces.tracers, attributes=attributes)
    async with session(plugins=[plugin]):
        await fetch("https://example.org")
        assert not caplog.records
        assert await leaf() == "leaf"  # which has no such parameter
    assert (traces.span("fetch").attributes or {})["url"] == "https://example.org"
    assert "attributes failed for task 'leaf'" in caplog.text
    assert set(traces.span("leaf").attributes or {}) == {"daglite.call.id", "daglite.backend"}


async def test_spans_that_are_not_sampled_are_current_all_the_same() -> None:
    tracers = TracerProvider(sampler=ALWAYS_OFF, shutdown_on_exit=False)

    @task
    async def look() -> trace.SpanContext:
        return trace.get_current_span().get_span_context()

    async with session(plugins=[OpenTelemetryPlugin(tracer_provider=tracers)]):
        found = await look()
    assert found.is_valid
    assert not found.trace_flags.sampled


async def test_without_an_sdk_nothing_happens() -> None:
    plugin = OpenTelemetryPlugin()
    async with session(plugins=[plugin]) as s:
        assert await leaf() == "none"
        await s.start_soon(leaf)
        with pytest.raises(TaskError):
            await task(retries=1)(fails)()
    assert not plugin._open


async def fails() -> None:
    raise ValueError("wrong")


async def test_a_coroutine_that_is_dropped_half_way_logs_nothing(
    traces: Traces, caplog: pytest.LogCaptureFixture
) -> None:
    @task
    async def wait() -> None:
        await anyio.sleep_forever()

    async with session(plugins=[traces.plugin]):
        coroutine = wait()
        try:
            context_of_its_own(coroutine.send)
        except BaseException:  # Trio's answer to a stranger; the call has begun
            pass
        coroutine.close()
        assert current() == "none"
    assert not caplog.records
    assert len(traces.spans) == 1


def context_of_its_own(func: Callable[[None], Any]) -> None:
    from contextvars import copy_context

    copy_context().run(func, None)


class RaisingExporter(SpanExporter):
    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        raise RuntimeError("no route to the collector")


class HangingExporter(SpanExporter):
    """Exports nothing until it is released."""

    def __init__(self) -> None:
        self.reached = threading.Event()
        self.released = threading.Event()
        self.count = 0

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        self.reached.set()
        self.released.wait()
        self.count += len(spans)
        return SpanExportResult.SUCCESS


async def do_all_kinds(traced: OpenTelemetryPlugin) -> None:
    """Calls that succeed, fail, retry and wait, none of which is to notice anything."""
    async with session(plugins=[traced]) as s:
        assert await gather_tasks(*(leaf.call() for _ in range(20)))
        assert await sync_leaf.to_thread()
        assert [each async for each in rows([])] == [0, 1, 2]
        with pytest.raises(TaskError, match="after 2 attempts with error: ValueError: wrong"):
            await task(retries=1)(fails)()
        await s.start_soon(leaf)
    assert s.stats().failed == 1
    assert not traced._open


@pytest.mark.parametrize("processor", [SimpleSpanProcessor, BatchSpanProcessor])
async def test_an_exporter_that_raises_harms_no_call(processor: Callable[[SpanExporter], SpanProcessor]) -> None:
    tracers = TracerProvider(shutdown_on_exit=False)
    tracers.add_span_processor(processor(RaisingExporter()))
    try:
        await do_all_kinds(OpenTelemetryPlugin(tracer_provider=tracers))
    finally:
        tracers.shutdown()


async def test_an_exporter_that_hangs_behind_a_batch_holds_up_no_call() -> None:
    exporter = HangingExporter()
    tracers = TracerProvider(shutdown_on_exit=False)
    tracers.add_span_processor(BatchSpanProcessor(exporter, max_queue_size=30, max_export_batch_size=1))
    try:
        await do_all_kinds(OpenTelemetryPlugin(tracer_provider=tracers))
        assert exporter.reached.wait(30)
        await do_all_kinds(OpenTelemetryPlugin(tracer_provider=tracers))  # more than its queue holds
    finally:
        exporter.released.set()
        tracers.shutdown()
    assert exporter.count


class RaisingProcessor(SpanProcessor):
    """Raises when spans begin, or when they end."""

    def __init__(self, when: str) -> None:
        self.when = when

    def on_start(self, span: Any, parent_context: Any = None) -> None:
        if self.when == "start":
            raise RuntimeError("a processor that fails")

    def on_end(self, span: Any) -> None:
        if self.when == "end":
            raise RuntimeError("a processor that fails")


@pytest.mark.parametrize("when", ["start", "end"])
async def test_a_processor_that_raises_harms_no_call(when: str, caplog: pytest.LogCaptureFixture) -> None:
    tracers = TracerProvider(shutdown_on_exit=False)
    tracers.add_span_processor(RaisingProcessor(when))
    await do_all_kinds(OpenTelemetryPlugin(tracer_provider=tracers))
    assert "plugin OpenTelemetryPlugin: its hook" in caplog.text
    tracers.shutdown()


async def test_an_error_without_a_text_ends_its_span(traces: Traces, caplog: pytest.LogCaptureFixture) -> None:
    @task(retries=1)
    async def fail() -> None:
        raise Mute

    async with session(plugins=[traces.plugin]):
        with pytest.raises(TaskError, match="after 2 attempts with error: Mute"):
            await fail()
    assert traces.span("fail").status.status_code is StatusCode.ERROR
    assert [each.name for each in traces.span("fail").events] == ["retry", "exception"]
    assert not caplog.records


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"tracer_provider": "x"}, "tracer_provider must be an opentelemetry.trace.TracerProvider, not 'x'"),
        ({"meter_provider": 3}, "meter_provider must be an opentelemetry.metrics.MeterProvider, not 3"),
        ({"attributes": {"a": 1}}, "attributes must be a function that takes a TaskMetadata, not {'a': 1}"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, Any], text: str) -> None:
    with pytest.raises(TypeError) as caught:
        OpenTelemetryPlugin(**options)
    assert str(caught.value) == f"OpenTelemetryPlugin: {text}"


def app_of(traces: Traces, **options: Any) -> FastAPI:
    """A web application that has tasks as endpoints, in endpoints, in the background and as responses."""
    app = FastAPI(**options)
    app.add_middleware(DagliteMiddleware, plugins=[traces.plugin])

    @app.get("/calls")
    async def calls() -> str:
        found = current_session()
        assert found is not None
        found.start_soon(sync_leaf)
        return await leaf()

    @app.get("/rows")
    async def streamed() -> StreamResponse:
        return StreamResponse(text_rows(), media_type="text/plain")

    app.get("/task")(leaf)
    app.get("/sync-task")(sync_leaf)
    return app


@task
async def text_rows() -> AsyncIterator[str]:
    yield f"{current()}, "
    yield await leaf()


async def answers(app: FastAPI) -> list[str]:
    async with serving(app):
        paths = ["/calls", "/task", "/sync-task", "/rows"]
        return [(await Request(path=path).run(app)).body.decode() for path in paths]


ANSWERS = ['"leaf"', '"leaf"', '"sync_leaf"', "text_rows, leaf"]


async def test_spans_are_children_of_those_of_fastapis_own_telemetry(traces: Traces) -> None:
    app = app_of(traces, telemetry={"tracer_provider": traces.tracers, "meter_provider": traces.meters})
    assert await answers(app) == ANSWERS
    paths = [each for each in traces.paths() if each.endswith(("leaf", "rows"))]
    assert [each for each in paths if "/rows" not in each] == [
        "GET /calls/fastapi.endpoint/leaf",
        "GET /sync-task/fastapi.endpoint/sync_leaf",
        "GET /task/fastapi.endpoint/leaf",
        "sync_leaf",
    ]
    assert "GET /rows/text_rows/leaf" in "".join(paths).replace("/fastapi.endpoint", "")
    background = [each for each in traces.spans if each.name == "sync_leaf" and each.parent is None]
    endpoints = {each.context.span_id for each in traces.spans if each.name == "fastapi.endpoint"}
    assert background[0].links[0].context.span_id in endpoints


async def test_spans_are_children_of_those_of_fastapis_instrumentation(traces: Traces) -> None:
    app = app_of(traces)
    FastAPIInstrumentor.instrument_app(app, tracer_provider=traces.tracers, meter_provider=traces.meters)
    try:
        assert await answers(app) == ANSWERS
    finally:
        FastAPIInstrumentor.uninstrument_app(app)
    assert [each for each in traces.paths() if each.endswith(("leaf", "text_rows"))] == [
        "GET /calls/leaf",
        "GET /rows/text_rows",
        "GET /rows/text_rows/leaf",
        "GET /sync-task/sync_leaf",
        "GET /task/leaf",
        "sync_leaf",
    ]
    [link] = next(each for each in traces.spans if each.name == "sync_leaf" and each.parent is None).links
    assert link.context == traces.span("GET /calls").context
