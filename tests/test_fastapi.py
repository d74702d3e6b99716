"""FastAPI takes tasks as they are: as endpoints, as dependencies, and streams as endpoints and as dependencies that yield."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Annotated, Any

import httpx
import pytest
from anyio.lowlevel import checkpoint
from fastapi import Depends, FastAPI, File, HTTPException, Query, UploadFile
from fastapi.sse import EventSourceResponse
from pydantic import BaseModel
from starlette.applications import Starlette
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from daglite import current_session, current_task, gather_tasks, task
from daglite.asgi import DagliteMiddleware, StreamResponse
from daglite.events import TaskEvent, TaskSucceeded
from daglite.exceptions import TaskError, TaskGroupError
from daglite.testing import EventRecorder

from . import asgi_server
from .asgi_server import serving

journal: list[Any] = []


@pytest.fixture(autouse=True)
def _empty_journal() -> Iterator[None]:
    yield
    journal.clear()


class Item(BaseModel):
    number: int


@task
async def settings() -> dict[str, int]:
    await checkpoint()
    return {"factor": 3}


@task
def limit(most: Annotated[int, Query(ge=1)] = 100) -> int:
    return most


@task
async def connection() -> AsyncIterator[str]:
    journal.append("opened")
    try:
        yield "a connection"
    except LookupError as exc:
        journal.append(f"rolled back: {exc}")
        raise
    finally:
        await checkpoint()
        journal.append("closed")


@task
def sync_connection() -> Iterator[str]:
    journal.append("opened")
    try:
        yield "a connection"
    except LookupError as exc:
        journal.append(f"rolled back: {exc}")
        raise
    finally:
        journal.append("closed")


app = FastAPI()
app.add_middleware(DagliteMiddleware)


@app.get("/times/{number}")
@task
async def times(number: int, found: Annotated[dict[str, int], Depends(settings)]) -> int:
    assert current_task() is not None
    return number * found["factor"]


@app.get("/sync/{number}")
@task
def sync_times(number: int, most: Annotated[int, Depends(limit)]) -> int:
    assert current_session() is not None
    return min(number, most)


@app.post("/items")
@task(retries=2)
async def double_item(item: Item) -> Item:
    journal.append(item.number)
    if len(journal) < 3:
        raise ConnectionError("try again")
    return Item(number=2 * item.number)


@app.get("/missing")
@task(wrap_errors=False)
async def missing() -> None:
    raise HTTPException(404, "no such thing")


@app.get("/wrapped")
@task
async def wrapped() -> None:
    raise HTTPException(404, "no such thing")


def used(connection: str, fails: bool) -> str:
    journal.append("used")
    if fails:
        raise LookupError("no rows")
    return connection


@app.get("/connection")
async def use_connection(connection: Annotated[str, Depends(connection)], fails: bool = False) -> str:
    return used(connection, fails)


@app.get("/sync-connection")
async def use_sync_connection(connection: Annotated[str, Depends(sync_connection)], fails: bool = False) -> str:
    return used(connection, fails)


@app.get("/lines")
@task
async def lines(count: int = 3) -> AsyncIterator[Item]:
    for number in range(count):
        yield Item(number=number)


@app.get("/sync-lines")
@task
def sync_lines(count: int = 3) -> Iterator[Item]:
    for number in range(count):
        yield Item(number=number)


@app.get("/events", response_class=EventSourceResponse)
@task(pump=True)
async def events(count: int = 2) -> AsyncIterator[Item]:
    for number in await gather_tasks(times.func, range(count), [{"factor": 2}] * count):
        yield Item(number=number)


@app.post("/words")
@task
async def words(file: Annotated[UploadFile, File()]) -> int:
    return len((await file.read()).split())


@task(wrap_errors=False)
async def refuse(number: int) -> None:
    raise HTTPException(404, "no such thing")


@app.get("/group")
async def group() -> None:
    await gather_tasks(refuse, [1])


@app.exception_handler(TaskGroupError)
async def on_group(request: Any, exc: TaskGroupError) -> PlainTextResponse:
    assert current_session() is not None  # as it is in every handler of a type
    (error,) = exc.exceptions
    assert isinstance(error, HTTPException)
    return PlainTextResponse(error.detail, error.status_code)


@asynccontextmanager
async def client_of(served: Any = app, *, raises: bool = True) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(served, raise_app_exceptions=raises)
    async with serving(served), httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        yield client


async def test_tasks_are_endpoints_and_dependencies(recorded_events: EventRecorder) -> None:
    async with client_of() as client:
        assert (await client.get("/times/4")).json() == 12
        assert (await client.get("/sync/40?most=7")).json() == 7
    ended = {event.metadata.name: event.metadata.parent_id for event in recorded_events.of(TaskSucceeded)}
    assert ended == {"settings": None, "times": None, "limit": None, "sync_times": None}


async def test_their_arguments_are_validated_and_documented() -> None:
    async with client_of() as client:
        assert (await client.get("/times/four")).status_code == 422
        assert (await client.get("/sync/1?most=0")).status_code == 422
        assert (await client.post("/items", content=b"{")).status_code == 422
        schema = (await client.get("/openapi.json")).json()
    names = [parameter["name"] for parameter in schema["paths"]["/sync/{number}"]["get"]["parameters"]]
    assert names == ["number", "most"]


async def test_an_endpoint_is_retried() -> None:
    async with client_of() as client:
        assert (await client.post("/items", json={"number": 4})).json() == {"number": 8}
    assert journal == [4, 4, 4]


async def test_an_http_error_is_one_if_it_is_not_wrapped() -> None:
    async with client_of() as client:
        response = await client.get("/missing")
        assert (response.status_code, response.json()) == (404, {"detail": "no such thing"})
        with pytest.raises(TaskError, match="Task 'wrapped' failed"):
            await client.get("/wrapped")
        response = await client.get("/group")
        assert (response.status_code, response.text) == (404, "no such thing")


@pytest.mark.parametrize("path", ["/connection", "/sync-connection"])
async def test_a_stream_is_a_dependency_that_yields(path: str, recorded_events: EventRecorder) -> None:
    async with client_of() as client:
        assert (await client.get(path)).json() == "a connection"
    assert journal == ["opened", "used", "closed"]
    assert [type(event).__name__ for event in recorded_events.of(TaskEvent)] == [
        "TaskStarted",
        "ItemYielded",
        "TaskSucceeded",
    ]


@pytest.mark.parametrize("path", ["/connection", "/sync-connection"])
async def test_the_endpoints_error_is_thrown_into_it(path: str) -> None:
    async with client_of() as client:
        with pytest.raises(LookupError, match="no rows"):
            await client.get(f"{path}?fails=true")
    assert journal == ["opened", "used", "rolled back: no rows", "closed"]


@pytest.mark.parametrize("path", ["/lines", "/sync-lines"])
async def test_a_stream_is_an_endpoint_of_json_lines(path: str, recorded_events: EventRecorder) -> None:
    async with client_of() as client:
        response = await client.get(f"{path}?count=2")
    assert [json.loads(line) for line in response.text.splitlines()] == [{"number": 0}, {"number": 1}]
    assert response.headers["content-type"].startswith("application/jsonl")
    (ended,) = recorded_events.of(TaskSucceeded)
    assert ended.items == 2


async def test_a_stream_is_an_endpoint_of_server_sent_events() -> None:
    async with client_of() as client:
        response = await client.get("/events")
    assert [json.loads(line[6:]) for line in response.text.splitlines() if line.startswith("data: ")] == [
        {"number": 0},
        {"number": 2},
    ]


async def test_an_upload_is_an_argument() -> None:
    async with client_of() as client:
        response = await client.post("/words", files={"file": ("a.txt", b"three little words")})
    assert response.json() == 3


async def test_a_starlette_route_takes_what_a_task_is_called_with() -> None:
    @task
    async def answer(request: Any) -> PlainTextResponse:
        return PlainTextResponse(request.url.path)

    served = DagliteMiddleware(Starlette(routes=[Route("/a", answer.__call__)]))
    async with client_of(served) as client:
        assert (await client.get("/a")).text == "/a"


# What is not visible where.


async def test_the_session_is_current_where_the_documentation_says() -> None:
    seen: dict[str, bool] = {}

    def middleware(name: str) -> Any:
        async def dispatch(request: Any, call_next: Any) -> Any:
            seen[name] = current_session() is not None
            return await call_next(request)

        return dispatch

    served = FastAPI()
    served.add_middleware(BaseHTTPMiddleware, dispatch=middleware("inside"))
    served.add_middleware(DagliteMiddleware)
    served.add_middleware(BaseHTTPMiddleware, dispatch=middleware("outside"))

    @served.get("/{what}")
    async def fail(what: str) -> None:
        raise LookupError if what == "typed" else RuntimeError

    @served.exception_handler(LookupError)
    async def on_lookup(request: Any, exc: LookupError) -> PlainTextResponse:
        seen["handler of a type"] = current_session() is not None
        return PlainTextResponse("")

    @served.exception_handler(Exception)
    async def on_all(request: Any, exc: Exception) -> PlainTextResponse:
        seen["handler of all"] = current_session() is not None
        return PlainTextResponse("")

    async with client_of(served, raises=False) as client:
        await client.get("/typed")
        await client.get("/other")
    assert seen == {"outside": False, "inside": True, "handler of a type": True, "handler of all": False}


# The middleware's stream of the request's body, which older releases of Starlette leave to the collector.
@pytest.mark.filterwarnings("ignore:Exception ignored in. .async_generator object Request.stream")
async def test_behind_a_middleware_of_functions_a_stream_that_fails_looks_complete() -> None:
    async def pass_on(request: Any, call_next: Any) -> Any:
        return await call_next(request)

    @task
    async def failing() -> AsyncIterator[str]:
        yield "a"
        raise LookupError

    for between in (False, True):
        served = FastAPI()
        served.add_middleware(DagliteMiddleware)
        if between:
            served.add_middleware(BaseHTTPMiddleware, dispatch=pass_on)

        @served.get("/")
        async def stream() -> StreamResponse:
            return StreamResponse(failing())

        request = asgi_server.Request()
        async with serving(served):
            with pytest.raises(TaskError):
                await request.run(served)
        assert (request.body, request.is_complete) == (b"a", between)
