"""`StreamResponse` under a server in this process."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import anyio
import pytest
from anyio.lowlevel import checkpoint
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.requests import Request as StarletteRequest
from starlette.routing import Route

from daglite import current_session, session, stream_tasks, task
from daglite.asgi import DagliteMiddleware, StreamResponse
from daglite.events import TaskCancelled, TaskEvent, TaskStarted, TaskSucceeded
from daglite.exceptions import SessionError, TaskTimeoutError
from daglite.testing import EventRecorder, VirtualClock

from .asgi_server import Request, serving


def app_of(endpoint: Callable[[StarletteRequest], Any], *inner: Any, **options: Any) -> Starlette:
    """An app with one endpoint, and middlewares inside of ours."""

    async def answer(request: StarletteRequest) -> Any:
        return endpoint(request)

    middlewares = [Middleware(DagliteMiddleware, **options), *inner]
    return Starlette(routes=[Route("/", answer, methods=["GET", "POST"])], middleware=middlewares)


class Numbers:
    """A stream of two numbers that waits where a test says, and notes how its generator ends."""

    def __init__(self, *, waits_at: int | None = None, **options: Any) -> None:
        self.journal: list[str] = []
        self.waiting = anyio.Event()

        @task(name="numbers", **options)
        async def numbers(count: int = 2) -> AsyncIterator[str]:
            try:
                for number in range(count):
                    if number == waits_at:
                        self.waiting.set()
                        await anyio.sleep_forever()
                    await checkpoint()
                    yield f"{number} "
            except GeneratorExit:
                self.journal.append("closed")
                await checkpoint()
                self.journal.append("cleaned up")
                raise
            except anyio.get_cancelled_exc_class():
                self.journal.append("cancelled")
                raise

        self.task = numbers


def kinds(recorder: EventRecorder) -> list[str]:
    return [type(event).__name__ for event in recorder.of(TaskEvent)]


class Full(Request):
    """A client that takes nothing any more once the server has begun to send something."""

    def __init__(self, until: str = "http.response.body") -> None:
        super().__init__()
        self.until = until
        self.is_full = anyio.Event()

    async def _send(self, message: Any) -> None:
        if message["type"] == self.until:
            self.is_full.set()
            await anyio.sleep_forever()
        await super()._send(message)


async def test_the_items_are_the_body(recorded_events: EventRecorder) -> None:
    def endpoint(request: StarletteRequest) -> StreamResponse:
        headers = {"X-Mark": "yes"}
        return StreamResponse(Numbers().task(), status_code=201, headers=headers, media_type="text/plain")

    app = app_of(endpoint)
    async with serving(app):
        request = await Request().run(app)
    assert (request.status, request.body, request.is_complete) == (201, b"0 1 ", True)
    headers = dict(request.sent[0]["headers"])
    assert (headers[b"content-type"], headers[b"x-mark"]) == (b"text/plain; charset=utf-8", b"yes")
    assert kinds(recorded_events)[0::4] == ["TaskStarted"]
    assert kinds(recorded_events)[-1] == "TaskSucceeded"


@task
def lines(*parts: Any) -> Iterator[Any]:
    yield from parts


@task
async def upper(text: str) -> str:
    await checkpoint()
    return text.upper()


async def plain() -> AsyncIterator[bytes]:
    yield b"a"
    yield b"b"


@pytest.mark.parametrize(
    ("make", "body"),
    [
        (lambda: lines.to_thread("ä", b"b", bytearray(b"c"), memoryview(b"d")), "äbcd".encode()),
        (lambda: stream_tasks(upper, ["a", "b"], ordered=True), b"AB"),
        (plain, b"ab"),
        (lambda: lines.to_thread(), b""),
    ],
)
async def test_other_streams_are_bodies_too(make: Callable[[], Any], body: bytes) -> None:
    app = app_of(lambda request: StreamResponse(make()))
    async with serving(app):
        request = await Request().run(app)
    assert (request.body, request.is_complete) == (body, True)


@pytest.mark.parametrize("pump", [False, True])
@pytest.mark.parametrize("spec_version", ["2.1", "2.3", "2.4"])
async def test_a_client_that_leaves_while_the_generator_waits_cancels_it(
    pump: bool, spec_version: str, recorded_events: EventRecorder, caplog: pytest.LogCaptureFixture
) -> None:
    numbers = Numbers(waits_at=1, pump=pump)
    app = app_of(lambda request: StreamResponse(numbers.task()))
    request = Request(spec_version=spec_version)
    async with serving(app), anyio.create_task_group() as group:
        group.start_soon(request.run, app)
        await numbers.waiting.wait()
        request.left.set()
    assert numbers.journal == ["cancelled"]
    assert kinds(recorded_events) == ["TaskStarted", "ItemYielded", "TaskCancelled"]
    assert (request.body, request.is_complete) == (b"0 ", False)
    assert not caplog.text


@pytest.mark.parametrize("pump", [False, True])
async def test_a_client_that_leaves_before_the_head_was_sent_closes_the_stream(
    pump: bool, recorded_events: EventRecorder, caplog: pytest.LogCaptureFixture
) -> None:
    numbers = Numbers(pump=pump)
    app = app_of(lambda request: StreamResponse(numbers.task()))
    request = Full("http.response.start")
    async with serving(app), anyio.create_task_group() as group:
        group.start_soon(request.run, app)
        await request.is_full.wait()
        request.left.set()
    assert kinds(recorded_events) == ["TaskStarted", "TaskSucceeded"]
    assert numbers.journal == []
    assert not caplog.text


@pytest.mark.parametrize("pump", [False, True])
async def test_a_client_that_leaves_while_send_waits_closes_the_stream(
    pump: bool, recorded_events: EventRecorder, caplog: pytest.LogCaptureFixture
) -> None:
    numbers = Numbers(pump=pump)

    app = app_of(lambda request: StreamResponse(numbers.task()))
    request = Full()
    async with serving(app), anyio.create_task_group() as group:
        group.start_soon(request.run, app)
        await request.is_full.wait()
        request.left.set()
    assert numbers.journal == ["closed", "cleaned up"]
    assert kinds(recorded_events) == ["TaskStarted", "ItemYielded", "TaskSucceeded"]
    (ended,) = recorded_events.of(TaskSucceeded)
    assert ended.closed
    assert not caplog.text


async def test_a_client_that_leaves_while_the_producer_waits_at_a_full_queue_ends_it(
    recorded_events: EventRecorder, caplog: pytest.LogCaptureFixture
) -> None:
    produced: list[int] = []

    @task
    async def produce(number: int) -> str:
        produced.append(number)
        return f"{number} "

    @task(pump=True)
    async def results() -> AsyncIterator[str]:
        numbers = iter(range(1_000_000))
        async with stream_tasks(produce, numbers, limit=2, buffer=2) as made:
            async for each in made:
                yield each

    app = app_of(lambda request: StreamResponse(results()))
    request = Full()
    async with serving(app), anyio.create_task_group() as group:
        group.start_soon(request.run, app)
        await request.is_full.wait()
        await anyio.wait_all_tasks_blocked()
        assert 0 < len(produced) < 10
        request.left.set()
    assert len(produced) < 10
    started, ended = recorded_events.of(TaskStarted), recorded_events.of(TaskSucceeded, TaskCancelled)
    assert len(started) == len(ended)
    assert not caplog.text


async def test_a_generator_that_waits_for_nothing_lets_the_server_notice_that_the_client_has_left() -> None:
    journal: list[str] = []

    class AtOnce(Request):
        async def _send(self, message: Any) -> None:
            if message["type"] == "http.response.body":
                self.left.set()

    @task
    async def endless() -> AsyncIterator[str]:
        try:
            while True:
                yield "a"
        finally:
            journal.append("closed")

    app = app_of(lambda request: StreamResponse(endless()))
    async with serving(app):
        await AtOnce().run(app)
    assert journal == ["closed"]


async def test_a_server_that_says_by_an_error_that_the_client_has_left_closes_the_stream(
    caplog: pytest.LogCaptureFixture,
) -> None:
    numbers = Numbers()
    background: list[str] = []

    class Gone(Request):
        async def _send(self, message: Any) -> None:
            if message["type"] == "http.response.body":
                raise OSError("the client has left")

    def endpoint(request: StarletteRequest) -> StreamResponse:
        return StreamResponse(numbers.task(), background=BackgroundTask(background.append, "ran"))

    app = app_of(endpoint)
    async with serving(app):
        await Gone(spec_version="2.4").run(app)
    assert numbers.journal == ["closed", "cleaned up"]
    assert background == ["ran"]
    assert not caplog.text


async def test_a_cleanup_that_takes_longer_than_grace_is_cancelled(
    virtual_clock: VirtualClock, caplog: pytest.LogCaptureFixture
) -> None:
    @task
    async def slow_to_close() -> AsyncIterator[str]:
        try:
            yield "a"
        finally:
            await anyio.sleep(1000)

    app = app_of(lambda request: StreamResponse(slow_to_close()), grace=2)
    request = Full()
    async with serving(app), anyio.create_task_group() as group:
        group.start_soon(request.run, app)
        await request.is_full.wait()
        request.left.set()
    assert virtual_clock.time() == 2
    assert "stream 'slow_to_close' had not closed after 2 s" in caplog.text


# Errors.


async def fails() -> AsyncIterator[str]:
    yield "a"
    raise LookupError("no more rows")


@pytest.mark.parametrize("spec_version", ["2.3", "2.4"])
async def test_an_error_half_way_is_the_requests_and_the_body_breaks_off(spec_version: str) -> None:
    failing = task(wrap_errors=False)(fails)
    app = app_of(lambda request: StreamResponse(failing()))
    request = Request(spec_version=spec_version)
    async with serving(app):
        with pytest.raises(LookupError, match="no more rows"):
            await request.run(app)
    assert (request.body, request.is_complete) == (b"a", False)


@pytest.mark.parametrize("spec_version", ["2.3", "2.4"])
async def test_a_timeout_of_an_item_is_no_client_that_has_left(spec_version: str, virtual_clock: VirtualClock) -> None:
    numbers = Numbers(waits_at=1, item_timeout=5)
    app = app_of(lambda request: StreamResponse(numbers.task()))
    request = Request(spec_version=spec_version)
    async with serving(app):
        with pytest.raises(TaskTimeoutError):
            await request.run(app)
    assert not request.is_complete


async def test_items_that_no_body_can_have_are_an_error() -> None:
    app = app_of(lambda request: StreamResponse(lines.to_thread({"a": 1})))
    async with serving(app):
        with pytest.raises(TypeError, match=r"gave a dict, and a body has bytes or str: \{'a': 1\}"):
            await Request().run(app)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (lambda: lines("a"), r"to_thread\(\.\.\.\)\) has it in a thread"),
        (lambda: lines, r"call it: StreamResponse\(lines\(\.\.\.\)\)"),
        (lambda: ["a"], "takes an async stream, not \\['a'\\]"),
        (lambda: None, "takes an async stream, not None"),
    ],
)
def test_what_is_no_async_stream_is_refused(content: Callable[[], Any], message: str) -> None:
    with pytest.raises(TypeError, match=message):
        StreamResponse(content())


async def test_a_stream_that_was_closed_with_its_session_is_an_error_before_the_head() -> None:
    async def endpoint(request: StarletteRequest) -> StreamResponse:
        async with session():
            items = Numbers().task()
            assert await anext(items) == "0 "
            return StreamResponse(items)

    app = Starlette(routes=[Route("/", endpoint)], middleware=[Middleware(DagliteMiddleware)])
    request = Request()
    async with serving(app):
        with pytest.raises(SessionError, match="stream 'numbers' ended before its response began"):
            await request.run(app)
    assert request.status == 500


async def test_a_stream_of_a_session_that_has_ended_and_that_nobody_has_opened_runs_in_the_request() -> None:
    async def endpoint(request: StarletteRequest) -> StreamResponse:
        async with session():
            return StreamResponse(Numbers().task())

    app = Starlette(routes=[Route("/", endpoint)], middleware=[Middleware(DagliteMiddleware)])
    async with serving(app):
        assert (await Request().run(app)).body == b"0 1 "


# What the request has sent.


@pytest.mark.parametrize("spec_version", ["2.3", "2.4"])
async def test_an_upload_may_be_streamed_back(spec_version: str) -> None:
    @task
    async def echo(request: StarletteRequest) -> AsyncIterator[bytes]:
        async for part in request.stream():
            await anyio.wait_all_tasks_blocked()  # whoever listens has all the time
            yield part.upper()

    app = app_of(lambda request: StreamResponse(echo(request)))
    parts = [b"a", b"b", b"c", b""]
    request = Request(parts, method="POST", headers=[(b"transfer-encoding", b"chunked")], spec_version=spec_version)
    async with serving(app):
        await request.run(app)
    assert (request.body, request.is_complete) == (b"ABC", True)


async def test_a_client_that_leaves_after_its_upload_is_noticed() -> None:
    journal: list[str] = []
    read = anyio.Event()

    @task
    async def think(request: StarletteRequest) -> AsyncIterator[bytes]:
        body = await request.body()
        yield body
        read.set()
        try:
            await anyio.sleep_forever()
        finally:
            journal.append("cancelled")

    app = app_of(lambda request: StreamResponse(think(request)))
    request = Request([b"a", b"b"], method="POST", headers=[(b"content-length", b"2")])
    async with serving(app), anyio.create_task_group() as group:
        group.start_soon(request.run, app)
        await read.wait()
        request.left.set()
    assert (request.body, journal) == (b"ab", ["cancelled"])


# Between other middlewares.


async def pass_on(request: StarletteRequest, call_next: Any) -> Any:
    return await call_next(request)


# The middleware's stream of the request's body, which older releases of Starlette leave to the collector.
@pytest.mark.filterwarnings("ignore:Exception ignored in. .async_generator object Request.stream")
@pytest.mark.parametrize("inside", [True, False])
async def test_with_a_middleware_of_functions_a_client_that_leaves_is_noticed(
    inside: bool, caplog: pytest.LogCaptureFixture
) -> None:
    numbers = Numbers(waits_at=1)
    other = Middleware(BaseHTTPMiddleware, dispatch=pass_on)
    app = app_of(lambda request: StreamResponse(numbers.task()), *([other] if inside else []))
    if not inside:
        app.add_middleware(BaseHTTPMiddleware, dispatch=pass_on)
    request = Request()
    async with serving(app), anyio.create_task_group() as group:
        group.start_soon(request.run, app)
        await numbers.waiting.wait()
        request.left.set()
    assert numbers.journal == ["cancelled"]
    assert not caplog.text


async def test_without_a_middleware_it_is_closed_all_the_same() -> None:
    numbers = Numbers(waits_at=1)

    async def endpoint(request: StarletteRequest) -> StreamResponse:
        assert current_session() is None
        return StreamResponse(numbers.task())

    app = Starlette(routes=[Route("/", endpoint)])
    request = Request()
    async with anyio.create_task_group() as group:
        group.start_soon(request.run, app)
        await numbers.waiting.wait()
        request.left.set()
    assert numbers.journal == ["cancelled"]
