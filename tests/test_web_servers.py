"""Web applications under uvicorn and hypercorn, in processes of their own."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import httpx
import pytest
from websockets.sync.client import connect

ROOT = Path(__file__).parent.parent
SERVERS = {
    "uvicorn": ["uvicorn", "--port", "0", "--no-access-log", "--timeout-graceful-shutdown", "1"],
    "hypercorn-asyncio": ["hypercorn", "--bind", "127.0.0.1:0", "--graceful-timeout", "1"],
    "hypercorn-trio": ["hypercorn", "-k", "trio", "--bind", "127.0.0.1:0", "--graceful-timeout", "1"],
}


class Server:
    """A server with the app, from when it listens."""

    def __init__(self, kind: str, folder: Path, *options: str, app: str = "tests.web_app:app", **environ: str) -> None:
        self.kind = kind
        self._log = folder / f"{kind}.log"
        name, *rest = SERVERS[kind]
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-W", "always::ResourceWarning", "-m", name, *rest, *options, app],
                cwd=ROOT,
                env={**os.environ, **environ},
                start_new_session=True,  # hypercorn has a process of its own for each worker
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    @property
    def log(self) -> str:
        """What it has printed."""
        return self._log.read_text()

    @property
    def notes(self) -> list[str]:
        """What the app in it has."""
        return re.findall(r"^note: (.*)$", self.log, re.MULTILINE)

    def until(self, is_so: Callable[[], Any]) -> Any:
        """Wait until something is so while it runs."""
        deadline = time.monotonic() + 40
        while not (found := is_so()):
            assert time.monotonic() < deadline, self.log
            assert self.process.poll() is None, self.log
            time.sleep(0.01)
        return found

    def until_noted(self, text: str) -> None:
        """Wait until the app has noted something."""
        self.until(lambda: text in self.notes)

    @property
    def port(self) -> int:
        """What it listens on."""
        return int(self.until(lambda: re.search(r"unning on http://127.0.0.1:(\d+)", self.log))[1])

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def get(self, path: str) -> Any:
        with urlopen(
            self.url + path, timeout=40
        ) as response:  # which is made in no time, where 60 of httpx take two seconds
            return json.load(response)

    def post(self, path: str) -> None:
        urlopen(Request(self.url + path, method="POST"), timeout=40).close()

    def stop(self) -> int:
        """End it, as a process manager does."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(50)

    @contextmanager
    def request(self, path: str) -> Iterator[socket.socket]:
        """A client that has sent a request, and seen the beginning of the response; it reads no more, and leaves in the end."""
        with socket.create_connection(("127.0.0.1", self.port), 40) as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.sendall(f"GET {path} HTTP/1.1\r\nHost: test\r\n\r\n".encode())
            assert client.recv(12) == b"HTTP/1.1 200"
            yield client


@contextmanager
def running(kind: str, folder: Path, *options: str, **environ: str) -> Iterator[Server]:
    server = Server(kind, folder, *options, **environ)
    try:
        yield server
    finally:
        if server.process.poll() is None:
            os.killpg(server.process.pid, signal.SIGKILL)
        server.process.wait()


@pytest.fixture(scope="module", params=["uvicorn", "hypercorn-asyncio", "hypercorn-trio", "uvicorn-between"])
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server for all tests that leave it running, and that find nothing wrong with it in the end."""
    kind = request.param.removesuffix("-between")
    environ = {"WEB_APP_BETWEEN": "1"} if request.param.endswith("between") else {}
    with running(kind, tmp_path_factory.mktemp("server"), **environ) as server:
        yield server
        assert server.get("/running") == []
        assert server.stop() == (-signal.SIGTERM if kind == "uvicorn" else 0)
        check_quiet(server.log)
        assert server.notes[0] == "started in web"
        assert server.notes[-2:] == ["stopping", "stopped"]


def check_quiet(log: str) -> None:
    """Nothing was left to the event loop, or to the collector."""
    for word in ("ResourceWarning", "destroyed", "never awaited", "never retrieved"):
        assert word not in log, log


def test_concurrent_requests_are_in_one_session_and_so_is_a_mounted_app(server: Server) -> None:
    with ThreadPoolExecutor(20) as pool:
        ids = set(pool.map(server.get, ["/session", "/sub/session"] * 20))
    assert len(ids) == 1


def test_60_sync_endpoints_that_go_back_to_the_loop_and_into_threads(server: Server) -> None:
    with ThreadPoolExecutor(60) as pool:
        answers = list(pool.map(server.get, [f"/sync/{number}" for number in range(60)]))
    assert answers == [6 * number for number in range(60)]


def test_a_websocket_calls_tasks(server: Server) -> None:
    with connect(f"ws://127.0.0.1:{server.port}/double") as client:
        for number in ("1", "2"):
            client.send(number)
            assert client.recv(40) == str(6 * int(number))
    server.until_noted("socket left")


def test_a_websocket_that_waits_on_a_stream_and_receives_beside_it_learns_that_the_client_left(server: Server) -> None:
    with connect(f"ws://127.0.0.1:{server.port}/ticks/ticks") as client:
        assert client.recv(40) == b"first\n"
        server.until_noted("ticks waits")
    server.until_noted("ticks cancelled")


def test_a_client_that_leaves_while_the_generator_waits_cancels_it(server: Server) -> None:
    with server.request("/endless/waiting?waits=true"):
        server.until_noted("waiting waits")
    server.until_noted("waiting cancelled")


def test_a_client_that_leaves_while_send_waits_closes_the_stream(server: Server) -> None:
    with server.request("/endless/sending"):
        time.sleep(
            0.3
        )  # in which the server has filled what there is to be filled; if it has not, the stream is cancelled
    server.until(lambda: {"sending closed", "sending cancelled"} & set(server.notes))


def test_a_client_that_leaves_while_the_producer_waits_at_a_full_queue_ends_it(server: Server) -> None:
    with server.request("/produced/queue"):
        server.until(lambda: "produced" in server.get("/running"))
    server.until_noted("queue ended")


def test_an_upload_is_streamed_back(server: Server) -> None:
    parts = [bytes([97 + number % 26]) * 50_000 for number in range(40)]
    with httpx.stream("POST", server.url + "/upper", content=iter(parts), timeout=40) as response:
        assert b"".join(response.iter_bytes()) == b"".join(parts).upper()


def test_a_background_call_outlives_its_request_and_calls_on(server: Server) -> None:
    server.post("/work/0.1")
    server.until_noted("work of 0.1 s done")


def test_a_background_call_that_fails_is_logged_and_the_server_stays_up(server: Server) -> None:
    server.post("/fail")
    server.until(lambda: "the background call of task 'fail' failed" in server.log)
    assert server.get("/session")


def test_a_client_that_sends_garbage_harms_nobody(server: Server) -> None:
    for garbage in (
        b"\x00\xff" * 500,
        b"GET /session HTTP/1.1\r\nContent-Length: -3\r\n\r\n",
        b"POST /upper HTTP/1.1\r\n",
    ):
        with socket.create_connection(("127.0.0.1", server.port), 40) as client:
            client.sendall(garbage)
    with connect(f"ws://127.0.0.1:{server.port}/double") as client:
        client.send("no number")
        with pytest.raises(Exception, match="received 1011|no close frame"):
            client.recv(40)
    assert server.get("/session")


def test_sigterm_closes_streams_and_joins_background_calls_for_as_long_as_there_is_time(tmp_path: Path) -> None:
    with ExitStack() as stack, ExitStack() as clients:  # at once, for it takes its time
        servers = [stack.enter_context(running(kind, tmp_path, WEB_APP_SHUTDOWN="8")) for kind in SERVERS]
        for server in servers:
            # From Python 3.12 on asyncio's servers wait for their clients, and so hypercorn does before it looks at its timeout.
            waits = server.kind == "hypercorn-asyncio" and sys.version_info >= (3, 12)
            (clients if waits else stack).enter_context(server.request("/endless/open?waits=true"))
            server.until_noted("open waits")
            server.post("/work/3")
            server.post("/work/100")
        for server in servers:
            server.process.send_signal(signal.SIGTERM)
        clients.close()
        for server in servers:
            server.process.wait(50)
            ended = ["open cancelled", "work of 3 s done", "work of 100 s cancelled", "stopping", "stopped"]
            assert server.notes == ["started in web", "open waits", *ended], server.log
            assert "cancels what has not ended in time: 'work of 100.0 s'" in server.log
            check_quiet(server.log)


@pytest.mark.parametrize(
    ("environ", "message"),
    [
        ({"WEB_APP_FAILS": "1"}, "no database today"),
        ({"WEB_APP_SHUTDOWN": "-1"}, "DagliteMiddleware: shutdown_timeout must be at least 0, not -1"),
        ({"WEB_APP_TWICE": "1"}, "the app has a DagliteMiddleware already"),
    ],
)
def test_a_failing_start_ends_the_server(tmp_path: Path, environ: dict[str, str], message: str) -> None:
    with ExitStack() as stack:
        for server in [stack.enter_context(running(kind, tmp_path, **environ)) for kind in SERVERS]:
            code = server.process.wait(50)
            assert code != 0 or server.kind != "uvicorn"  # hypercorn's first process thinks nothing of it
            assert message in server.log
            assert not server.notes


def test_without_lifespan_every_request_has_a_session_of_its_own(tmp_path: Path) -> None:
    with running("uvicorn", tmp_path, "--lifespan", "off") as server:
        assert server.get("/session") != server.get("/session")
        server.post("/work/0")
        server.until_noted("work of 0 s done")
        assert server.log.count("nobody runs the lifespan of the app") == 1
        server.stop()
