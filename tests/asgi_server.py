"""A server of ASGI apps in this process, for tests: it has an app's lifespan, and one request at a time for each caller."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, MutableMapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import anyio
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream

Message = MutableMapping[str, Any]


class StartupFailed(Exception):
    """The app has said that it failed to start."""


@dataclass
class Request:
    """A request, for a test that plays its client.

    Args:
        parts: Of its body: what `receive` gives.
        spec_version: Which version of ASGI the server says it has.
    """

    parts: list[bytes] = field(default_factory=lambda: [b""])
    spec_version: str = "2.3"
    path: str = "/"
    method: str = "GET"
    headers: list[tuple[bytes, bytes]] = field(default_factory=list)
    sent: list[Message] = field(default_factory=list)  # by the app
    received: list[str] = field(default_factory=list)  # types of the messages that it took
    left: anyio.Event = field(default_factory=anyio.Event)  # set when the client leaves

    async def run(self, app: Any) -> Request:
        """Let the app answer."""
        scope: Message = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": self.spec_version},
            "http_version": "1.1",
            "method": self.method,
            "scheme": "http",
            "path": self.path,
            "raw_path": self.path.encode(),
            "query_string": b"",
            "root_path": "",
            "headers": [(b"host", b"test"), *self.headers],
            "client": ("127.0.0.1", 1),
            "server": ("127.0.0.1", 80),
        }
        await app(scope, self._receive, self._send)
        return self

    async def _receive(self) -> Message:
        message: Message
        if self.parts:
            body = self.parts.pop(0)
            message = {"type": "http.request", "body": body, "more_body": bool(self.parts)}
        else:
            await self.left.wait()
            message = {"type": "http.disconnect"}
        self.received.append(message["type"])
        return message

    async def _send(self, message: Message) -> None:
        self.sent.append(message)
        await anyio.lowlevel.checkpoint()

    @property
    def status(self) -> int:
        """Of the response."""
        status: int = self.sent[0]["status"]
        return status

    @property
    def body(self) -> bytes:
        """Of the response, as far as it was sent."""
        return b"".join(message.get("body", b"") for message in self.sent[1:])

    @property
    def is_complete(self) -> bool:
        """Whether the response was sent to its end."""
        return bool(self.sent) and not self.sent[-1].get("more_body", True)


class Life:
    """The lifespan of an app, for a test that plays its server."""

    def __init__(self, app: Any) -> None:
        self.app = app
        self.sent: list[Message] = []
        self.error: Exception | None = None  # with which the app's lifespan has ended
        self._to_app: MemoryObjectSendStream[Message]
        self._from_server: MemoryObjectReceiveStream[Message]
        self._to_app, self._from_server = anyio.create_memory_object_stream[Message](math.inf)
        self._told = anyio.Event()

    @property
    def said(self) -> list[str]:
        """The types of what the app has sent, without their first word."""
        return [message["type"].removeprefix("lifespan.") for message in self.sent]

    async def run(self) -> None:
        """Run the lifespan to its end."""
        try:
            await self.app(
                {"type": "lifespan", "asgi": {"version": "3.0"}, "state": {}}, self._from_server.receive, self._send
            )
        except Exception as exc:
            self.error = exc
        finally:
            self._told.set()
            self._to_app.close()
            self._from_server.close()

    async def start(self) -> None:
        """Start the app, and wait until it has answered."""
        self._to_app.send_nowait({"type": "lifespan.startup"})
        await self._told.wait()

    def stop(self) -> None:
        """Let the app stop."""
        self._to_app.send_nowait({"type": "lifespan.shutdown"})

    async def _send(self, message: Message) -> None:
        self.sent.append(message)
        self._told.set()


@asynccontextmanager
async def serving(app: Any) -> AsyncIterator[Life]:
    """Start an app, and in the end stop it and wait for that."""
    life = Life(app)
    async with anyio.create_task_group() as group:
        group.start_soon(life.run)
        await life.start()
        if life.said != ["startup.complete"]:
            raise StartupFailed(life.sent)
        yield life
        life.stop()
