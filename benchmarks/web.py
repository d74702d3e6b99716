"""What the middleware costs a request, and a stream its items, beside an app without.

python benchmarks/web.py
python -m pip install uvicorn httptools uvloop  # for requests a second, under a real server
"""

import importlib.util
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from pathlib import Path
from typing import Any

import anyio
from anyio.abc import ByteStream
from rounds import arguments, measure, show
from starlette.responses import StreamingResponse

from daglite import task
from daglite.asgi import DagliteMiddleware, StreamResponse

REQUESTS = 10_000  # in this process
ITEMS = 5_000
CONNECTIONS = 20
SECONDS = 2.0  # under load

Message = MutableMapping[str, Any]


async def app(scope: Message, receive: Callable[[], Awaitable[Message]], send: Callable[[Message], Any]) -> None:
    """As little as an app can do."""
    if scope["type"] == "lifespan":
        await receive()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await send({"type": "lifespan.shutdown.complete"})
        return
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"ok", "more_body": False})


wrapped = DagliteMiddleware(app)


async def plain_items() -> AsyncIterator[bytes]:
    for _ in range(ITEMS):
        yield b"item\n"


items = task(plain_items)


def scope_of_request() -> Message:
    return {"type": "http", "http_version": "1.1", "method": "GET", "path": "/", "headers": [], "asgi": {}}


async def receive() -> Message:
    await anyio.sleep_forever()
    raise AssertionError


async def send(message: Message) -> None: ...


async def run_requests(served: Any) -> float:
    began = time.perf_counter()
    for _ in range(REQUESTS):
        await served(scope_of_request(), receive, send)
    return (time.perf_counter() - began) / REQUESTS


async def one_round() -> dict[str, float]:
    seconds = {"bare app": await run_requests(app), "with the middleware": await run_requests(wrapped)}
    responses = {
        "StreamingResponse, an item": StreamingResponse(plain_items()),
        "StreamResponse, an item": StreamResponse(items()),
    }
    for name, response in responses.items():
        began = time.perf_counter()
        await response(scope_of_request(), receive, send)
        seconds[name] = (time.perf_counter() - began) / ITEMS
    return seconds


async def in_process(rounds: int) -> list[dict[str, float]]:
    """Everything, while the app has its session."""
    to_app, from_server = anyio.create_memory_object_stream[Message](2)
    async with anyio.create_task_group() as group, to_app, from_server:
        started = anyio.Event()

        async def tell(message: Message) -> None:
            started.set()

        group.start_soon(wrapped, {"type": "lifespan"}, from_server.receive, tell)
        to_app.send_nowait({"type": "lifespan.startup"})
        await started.wait()
        found = await measure(one_round, rounds)
        to_app.send_nowait({"type": "lifespan.shutdown"})
        await anyio.wait_all_tasks_blocked()
    return found


async def load(port: int) -> float:
    """Requests a second, of some connections at once."""
    counts = [0] * CONNECTIONS

    async def one(connection: ByteStream, index: int, until: float) -> None:
        while time.perf_counter() < until:
            await connection.send(b"GET / HTTP/1.1\r\nHost: test\r\n\r\n")
            answer = b""
            while not answer.endswith(b"\r\n\r\nok"):
                answer += await connection.receive()
            counts[index] += 1

    until = time.perf_counter() + SECONDS
    async with anyio.create_task_group() as group:
        for index in range(CONNECTIONS):
            group.start_soon(one, await anyio.connect_tcp("127.0.0.1", port), index, until)
    return sum(counts) / SECONDS


def requests_a_second(name: str) -> float:
    """Those of an app of this file under uvicorn, on the other core."""
    with tempfile.TemporaryFile("w+") as log:
        command = [
            sys.executable,
            "-m",
            "uvicorn",
            "--port",
            "0",
            "--no-access-log",
            "--app-dir",
            str(Path(__file__).parent),
        ]
        with subprocess.Popen([*command, f"web:{name}"], stderr=log, env=dict(os.environ)) as server:
            try:
                found = None
                while found is None:
                    assert server.poll() is None, "uvicorn has ended"
                    time.sleep(0.1)
                    log.seek(0)
                    found = re.search(r"http://127.0.0.1:(\d+)", log.read())
                return anyio.run(load, int(found[1]))
            finally:
                server.terminate()


def main() -> None:
    loops, rounds = arguments("what the middleware costs a request, and a stream its items")
    for event_loop in loops:
        found = anyio.run(in_process, rounds, backend=event_loop)
        bare = {"StreamResponse, an item": "StreamingResponse, an item"}
        show(f"{event_loop}: in this process, each", found, bare, "bare app")
        print(f"  the middleware: {added(found):.2f} µs a request, the least of {rounds} rounds each")
    if importlib.util.find_spec("uvicorn") is not None:
        found_by_name: dict[str, list[float]] = {"app": [], "wrapped": []}
        for name in ("app", "wrapped", "wrapped", "app") * 3:  # neither always comes second
            found_by_name[name].append(requests_a_second(name))
        bare_app, with_middleware = map(statistics.median, found_by_name.values())
        print(
            f"\nuvicorn, {CONNECTIONS} connections: bare app {bare_app:,.0f} requests a second, with the middleware "
            f"{with_middleware:,.0f} ({with_middleware / bare_app:.2f}x), the medians of 6 each"
        )


def added(rounds: list[dict[str, float]]) -> float:
    """Microseconds that the middleware adds to a request."""
    return (min(each["with the middleware"] for each in rounds) - min(each["bare app"] for each in rounds)) * 1e6


if __name__ == "__main__":
    main()
