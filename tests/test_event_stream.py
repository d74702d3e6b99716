"""`EventStream` under a server in this process."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from typing import Any
from uuid import UUID, uuid4

import anyio
import pytest
from anyio.lowlevel import checkpoint
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request as StarletteRequest
from starlette.routing import Route

from daglite import current_session, gather_tasks, report, session, task
from daglite.asgi import DagliteMiddleware, EventStream
from daglite.exceptions import SessionError
from daglite.sessions import Session
from daglite.settings import Settings, hide
from daglite.testing import VirtualClock

from .asgi_server import Request, serving


def app_of(endpoint: Callable[..., Any], **options: Any) -> Starlette:
    async def answer(request: StarletteRequest) -> Any:
        return await endpoint(request)

    return Starlette(routes=[Route("/", answer)], middleware=[Middleware(DagliteMiddleware, **options)])


def events_of(request: Request) -> list[dict[str, Any]]:
    """What a browser would have of a response."""
    assert (request.status, request.is_complete) == (200, True)
    assert dict(request.sent[0]["headers"])[b"content-type"] == b"text/event-stream; charset=utf-8"
    found = []
    for message in request.body.decode().split("\n\n"):
        fields = dict(line.split(": ", 1) for line in message.splitlines() if not line.startswith(":"))
        if fields:
            data = json.loads(fields["data"], parse_constant=pytest.fail)
            assert data.get("event", "dropped") == fields["event"]
            found.append({"event": fields["event"], **data})
    return found


def told(request: Request) -> list[tuple[str, str]]:
    return [(event["event"], event["metadata"]["name"]) for event in events_of(request)]


def here() -> Session:
    found = current_session()
    assert found is not None
    return found


@task
async def step(number: int) -> int:
    await checkpoint()
    report("progress", number)
    return number


@task
async def work(count: int = 1) -> list[int]:
    return await gather_tasks(step, range(count))


@task
async def other() -> None:
    await checkpoint()


async def test_one_call_and_what_it_starts_until_it_has_ended() -> None:
    async def endpoint(request: StarletteRequest) -> EventStream:
        handle = here().start_soon(work)
        here().start_soon(other)
        return EventStream(under=handle)

    app = app_of(endpoint)
    async with serving(app):
        request = await Request().run(app)
    assert told(request) == [
        ("TaskStarted", "work"),
        ("TaskStarted", "step[0]"),
        ("TaskReported", "step[0]"),
        ("TaskSucceeded", "step[0]"),
        ("TaskSucceeded", "work"),
    ]
    first, second, reported, *_ = events_of(request)
    assert (reported["type"], reported["data"]) == ("progress", 0)
    assert second["metadata"]["parent_id"] == first["metadata"]["id"]
    assert "inputs" not in second["metadata"]


async def test_a_call_of_another_request_is_followed_by_its_id() -> None:
    ids: list[UUID] = []
    go_on, waiting = anyio.Event(), anyio.Event()

    @task
    async def waits() -> None:
        waiting.set()
        await go_on.wait()
        await step(1)

    @task
    async def outer() -> None:
        await waits()

    async def endpoint(request: StarletteRequest) -> Any:
        if not ids:
            ids.append(here().start_soon(outer).id)
            return EventStream(under=uuid4())
        (inner,) = [call.metadata.id for call in here().tree() if call.metadata.name == "waits"]
        go_on.set()
        return EventStream(under=inner)

    app = app_of(endpoint)
    async with serving(app):
        await Request().run(app)
        await waiting.wait()
        request = await Request().run(app)
    assert told(request)[0] == ("TaskStarted", "step")
    assert told(request)[-1] == ("TaskSucceeded", "waits")


async def test_what_does_not_run_has_no_content() -> None:
    async def endpoint(request: StarletteRequest) -> EventStream:
        handle = here().start_soon(other)
        await handle
        await anyio.wait_all_tasks_blocked()
        return EventStream(under=handle.id)

    app = app_of(endpoint)
    async with serving(app):
        request = await Request().run(app)
    assert (request.status, request.body, request.is_complete) == (204, b"", True)


async def test_without_under_it_is_what_the_request_has_begun_until_none_of_it_runs() -> None:
    async def endpoint(request: StarletteRequest) -> EventStream:
        here().start_soon(work)
        here().start_soon(other)
        return EventStream()

    async def noise() -> None:
        while True:
            await other.with_options(name="noise")()

    app = app_of(endpoint)
    async with serving(app), anyio.create_task_group() as group:
        group.start_soon(noise)
        request = await Request().run(app)
        group.cancel_scope.cancel()
    names = [name for _, name in told(request)]
    assert sorted(set(names)) == ["other", "step[0]", "work"]
    assert sum(event == "TaskSucceeded" for event, _ in told(request)) == 3


async def test_the_calls_of_another_request_are_not_among_them() -> None:
    both = anyio.Event()
    begun: list[str] = []

    async def endpoint(request: StarletteRequest) -> EventStream:
        name = request.url.path.strip("/") or "root"
        begun.append(name)
        here().start_soon(work.with_options(name=name), 3)
        if len(begun) == 2:
            both.set()
        await both.wait()
        return EventStream()

    routes = [Route(path, endpoint) for path in ("/a", "/b")]
    app = Starlette(routes=routes, middleware=[Middleware(DagliteMiddleware)])
    a, b = Request(path="/a"), Request(path="/b")
    async with serving(app), anyio.create_task_group() as group:
        group.start_soon(a.run, app)
        group.start_soon(b.run, app)
    for request, name in ((a, "a"), (b, "b")):
        roots = {event["metadata"]["name"] for event in events_of(request) if event["metadata"]["parent_id"] is None}
        assert roots == {name}


async def test_calls_of_a_session_of_the_endpoint_are_the_requests_too() -> None:
    journal: list[str] = []

    @task
    async def in_session() -> None:
        async with session():
            await step(7)
        journal.append("done")

    async def endpoint(request: StarletteRequest) -> EventStream:
        here().start_soon(in_session)
        async with session():
            return EventStream()

    app = app_of(endpoint)
    async with serving(app):
        request = await Request().run(app)
    assert told(request)[0] == ("TaskStarted", "in_session")
    assert ("TaskSucceeded", "step") in told(request)


async def test_a_request_that_has_begun_nothing_has_no_content() -> None:
    async def endpoint(request: StarletteRequest) -> EventStream:
        return EventStream()

    app = app_of(endpoint)
    async with serving(app):
        assert (await Request().run(app)).status == 204


async def test_an_endpoint_that_is_a_task_is_followed_to_its_end() -> None:
    @task
    async def endpoint(request: StarletteRequest) -> EventStream:
        return EventStream()

    app = app_of(endpoint)
    async with serving(app):
        request = await Request().run(app)
    assert told(request) == [("TaskSucceeded", "endpoint")]


async def test_inputs_are_told_if_they_are_asked_for_and_as_the_redaction_leaves_them() -> None:
    @task
    async def login(user: str, password: str, way: Any) -> None: ...

    async def endpoint(request: StarletteRequest) -> EventStream:
        return EventStream(under=here().start_soon(login, "ada", "secret", {1: float("nan")}), inputs=True)

    app = app_of(endpoint, settings=Settings(redact=hide("password")))
    async with serving(app):
        request = await Request().run(app)
    inputs = events_of(request)[0]["metadata"]["inputs"]
    assert (inputs["user"], inputs["way"]) == ("ada", {"1": "nan"})
    assert "secret" not in request.body.decode()


CIRCLE: dict[str, Any] = {"a": 1}
CIRCLE["circle"] = CIRCLE


class Unspeakable:
    def __repr__(self) -> str:
        raise ValueError("no")


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (float("inf"), "inf"),
        ({1}, "{1}"),
        (b"\xff", "b'\\xff'"),
        (Unspeakable(), "<Unspeakable>"),
        ({(1, 2): {1}}, {"(1, 2)": "{1}"}),
        pytest.param(10**5000, "<int>", id="a large number"),
        ("a\nb\r\n\n", "a\nb\r\n\n"),
        ({"a": [1, None]}, {"a": [1, None]}),
    ],
)
async def test_what_json_has_no_word_for_is_told_as_text(data: Any, text: Any) -> None:
    @task
    async def reports() -> None:
        report("thing", data)

    async def endpoint(request: StarletteRequest) -> EventStream:
        return EventStream(under=here().start_soon(reports))

    app = app_of(endpoint)
    async with serving(app):
        request = await Request().run(app)
    assert events_of(request)[1]["data"] == text


async def test_what_holds_itself_is_told_up_to_some_depth() -> None:
    @task
    async def reports() -> None:
        report("thing", CIRCLE)

    async def endpoint(request: StarletteRequest) -> EventStream:
        return EventStream(under=here().start_soon(reports))

    app = app_of(endpoint)
    async with serving(app):
        request = await Request().run(app)
    assert events_of(request)[1]["data"]["circle"]["circle"]["a"] == 1


async def test_a_client_that_is_too_slow_misses_the_oldest_and_is_told(virtual_clock: VirtualClock) -> None:
    async def endpoint(request: StarletteRequest) -> EventStream:
        handle = here().start_soon(work, 100)
        events = EventStream(under=handle, max_buffer=3)
        await handle
        return events

    app = app_of(endpoint)
    async with serving(app):
        request = await Request().run(app)
    events = events_of(request)
    assert (events[0]["event"], events[0]["count"]) == ("dropped", 299)
    assert events[-1]["event"] == "TaskSucceeded"
    assert events[-1]["metadata"]["name"] == "work"
    assert len(events) == 4


async def test_while_nothing_happens_a_comment_is_sent_now_and_then(virtual_clock: VirtualClock) -> None:
    @task
    async def wait() -> None:
        await anyio.sleep(35)

    async def endpoint(request: StarletteRequest) -> EventStream:
        return EventStream(under=here().start_soon(wait), ping=10)

    app = app_of(endpoint)
    async with serving(app):
        request = await Request().run(app)
    assert request.body.count(b": nothing new\n\n") == 3
    assert [event for event, _ in told(request)] == ["TaskStarted", "TaskSucceeded"]


async def test_a_call_that_was_cancelled_before_it_began_is_not_followed_for_ever(virtual_clock: VirtualClock) -> None:
    async def endpoint(request: StarletteRequest) -> EventStream:
        handle = here().start_soon(other)
        events = EventStream(under=handle)
        handle.cancel()
        return events

    app = app_of(endpoint)
    async with serving(app):
        request = await Request().run(app)
    assert events_of(request) == []
    assert virtual_clock.time() == 15


async def test_a_hit_is_the_last_event_of_its_call() -> None:
    cached = task(cache="memory://event-stream-hits", version=1)(step.func)

    async def endpoint(request: StarletteRequest) -> EventStream:
        await cached(1)
        return EventStream(under=here().start_soon(cached, 1))

    app = app_of(endpoint)
    async with serving(app):
        assert [event for event, _ in told(await Request().run(app))] == ["CacheHit"]


async def test_a_client_that_leaves_ends_it_and_not_the_call() -> None:
    go_on, waiting = anyio.Event(), anyio.Event()
    journal: list[str] = []

    @task
    async def wait() -> None:
        waiting.set()
        await go_on.wait()
        journal.append("done")

    async def endpoint(request: StarletteRequest) -> EventStream:
        return EventStream(under=here().start_soon(wait))

    app = app_of(endpoint)
    request = Request()
    async with serving(app):
        async with anyio.create_task_group() as group:
            group.start_soon(request.run, app)
            await waiting.wait()
            request.left.set()
        assert not request.is_complete
        go_on.set()
    assert journal == ["done"]


async def test_one_that_is_never_sent_is_closed_with_its_request() -> None:
    sessions: list[Session] = []

    async def endpoint(request: StarletteRequest) -> Any:
        sessions.append(here())
        EventStream(under=here().start_soon(other))
        raise LookupError("changed its mind")

    app = app_of(endpoint)
    async with serving(app):
        with pytest.raises(LookupError):
            await Request().run(app)
        assert not sessions[0]._bus.listeners


async def test_a_sync_endpoint_makes_one_too() -> None:
    threads: list[int] = []
    sent = anyio.Event()

    class Client(Request):
        async def _send(self, message: Any) -> None:
            sent.set()
            await super()._send(message)

    @task(name="work")
    async def wait() -> None:
        await sent.wait()

    def endpoint(request: StarletteRequest) -> EventStream:
        threads.append(threading.get_ident())
        return EventStream(under=here().start_soon(wait))

    app = Starlette(routes=[Route("/", endpoint)], middleware=[Middleware(DagliteMiddleware)])
    async with serving(app):
        request = await Client().run(app)
    assert threads != [threading.get_ident()]
    assert told(request)[-1] == ("TaskSucceeded", "work")


async def test_it_ends_when_the_session_does() -> None:
    started = anyio.Event()

    @task
    async def serve() -> None:
        started.set()
        await anyio.sleep_forever()

    async def endpoint(request: StarletteRequest) -> EventStream:
        return EventStream(under=here().start_service(serve))

    app = app_of(endpoint)
    request = Request()
    async with anyio.create_task_group() as group:
        async with serving(app):
            group.start_soon(request.run, app)
            await started.wait()
    assert request.is_complete


async def test_without_lifespan_it_has_its_own_session() -> None:
    async def endpoint(request: StarletteRequest) -> EventStream:
        here().start_soon(work)
        return EventStream()

    request = await Request().run(app_of(endpoint))
    assert told(request)[-1] == ("TaskSucceeded", "work")


async def test_outside_of_requests_there_is_none() -> None:
    with pytest.raises(SessionError, match="is there a DagliteMiddleware"):
        EventStream()
    async with session():
        with pytest.raises(SessionError, match="is there a DagliteMiddleware"):
            EventStream(under=uuid4())


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"under": "work"}, TypeError, "under must be a background call or the id of a call, a UUID, not 'work'"),
        ({"inputs": 1}, TypeError, "EventStream: inputs must be a bool, not 1"),
        ({"max_buffer": 0}, ValueError, "EventStream: max_buffer must be at least 1, not 0"),
        ({"ping": 0}, ValueError, "EventStream: ping must be more than 0, not 0"),
    ],
)
def test_wrong_arguments_are_refused(options: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        EventStream(**options)
