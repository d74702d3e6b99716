"""The app that `test_web_servers` runs under real servers. What happens in it is printed, for the test to read."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
from fastapi import FastAPI, Request, WebSocket, WebSocketDisconnect
from starlette.middleware.base import BaseHTTPMiddleware

from daglite import current_session, gather_tasks, stream_tasks, task
from daglite.asgi import DagliteMiddleware, StreamResponse
from daglite.sessions import Session


def note(text: str) -> None:
    print(f"note: {text}", flush=True)


def here() -> Session:
    session = current_session()
    assert session is not None
    return session


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    if os.environ.get("WEB_APP_FAILS"):
        raise ConnectionError("no database today")
    note(f"started in {here().name}")
    yield
    note("stopping")
    await anyio.lowlevel.checkpoint()
    note("stopped")


async def pass_on(request: Request, call_next: Any) -> Any:
    return await call_next(request)


app = FastAPI(lifespan=lifespan)
if os.environ.get("WEB_APP_BETWEEN"):
    app.add_middleware(BaseHTTPMiddleware, dispatch=pass_on)
app.add_middleware(
    DagliteMiddleware, name="web", shutdown_timeout=float(os.environ.get("WEB_APP_SHUTDOWN", "20")), grace=5
)
if os.environ.get("WEB_APP_BETWEEN"):
    app.add_middleware(BaseHTTPMiddleware, dispatch=pass_on)
if os.environ.get("WEB_APP_TWICE"):
    app.add_middleware(DagliteMiddleware)


@app.get("/session")
async def which_session() -> str:
    return str(here().id)


@task
def in_thread(number: int) -> int:
    return 2 * number


@task
async def in_loop(number: int) -> int:
    first = await in_thread.to_thread(number)
    rest = await gather_tasks(in_thread, [number, number])
    return first + sum(rest)


arrived = 0


@app.get("/sync/{number}")
def sync_endpoint(number: int) -> int:
    return in_loop.from_thread(number)


@task
async def endless(name: str, waits: bool) -> AsyncIterator[bytes]:
    try:
        yield b"first\n"
        while True:
            if waits:
                note(f"{name} waits")
                await anyio.sleep_forever()
            yield b"x" * 65_536
    except anyio.get_cancelled_exc_class():
        note(f"{name} cancelled")
        raise
    except GeneratorExit:
        await anyio.lowlevel.checkpoint()
        note(f"{name} closed")
        raise


@app.get("/endless/{name}")
async def endless_endpoint(name: str, waits: bool = False) -> StreamResponse:
    return StreamResponse(endless(name, waits))


@task
async def produce(number: int) -> bytes:
    return b"x" * 65_536


@task(pump=True)
async def produced(name: str) -> AsyncIterator[bytes]:
    try:
        async with stream_tasks(produce, iter(range(10**9)), limit=2, buffer=2) as results:
            async for each in results:
                yield each
    finally:
        note(f"{name} ended")


@app.get("/produced/{name}")
async def produced_endpoint(name: str) -> StreamResponse:
    return StreamResponse(produced(name))


@task
async def upper(request: Request) -> AsyncIterator[bytes]:
    async for part in request.stream():
        yield part.upper()


@app.post("/upper")
async def upper_endpoint(request: Request) -> StreamResponse:
    return StreamResponse(upper(request))


@task(name="work of {seconds} s")
async def work(seconds: float) -> None:
    try:
        await anyio.sleep(seconds)
    except anyio.get_cancelled_exc_class():
        note(f"work of {seconds:g} s cancelled")
        raise
    here().start_soon(in_thread, 1)
    assert await in_loop(1) == 6
    note(f"work of {seconds:g} s done")


@task
async def fail() -> None:
    raise ConnectionError("no mail today")


@app.post("/work/{seconds}")
async def work_endpoint(seconds: float) -> None:
    here().start_soon(work, seconds)


@app.post("/fail")
async def fail_endpoint() -> None:
    here().start_soon(fail)


@app.get("/running")
async def running() -> list[str]:
    return [call.metadata.name for call in here().tree()]


@app.websocket("/double")
async def double(socket: WebSocket) -> None:
    await socket.accept()
    try:
        while True:
            number = int(await socket.receive_text())
            await socket.send_text(str(await in_loop(number)))
    except WebSocketDisconnect:
        note("socket left")


@app.websocket("/ticks/{name}")
async def ticks(socket: WebSocket, name: str) -> None:
    """A stream that waits does not learn that the client has left: somebody receives beside it."""
    await socket.accept()
    async with anyio.create_task_group() as group:

        async def receive() -> None:
            async for _ in socket.iter_text():
                pass
            group.cancel_scope.cancel()

        group.start_soon(receive)
        async for part in endless(name, waits=True):
            await socket.send_bytes(part)


sub = FastAPI()
sub.add_middleware(DagliteMiddleware, name="sub")
app.mount("/sub", sub)


@sub.get("/session")
async def which_session_of_sub() -> str:
    return str(here().id)
