"""What is known of a request: that a middleware has a session for it, and whether its body was read to the end."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any, TypeAlias

import anyio

__all__ = ["KEY", "ASGIApp", "Body", "Message", "Receive", "Scope", "Send", "until_left"]

Scope: TypeAlias = MutableMapping[str, Any]
Message: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]
ASGIApp: TypeAlias = Callable[[Scope, Receive, Send], Awaitable[None]]

KEY = "daglite"  # in the scope, which a request's apps and middlewares hand on, if a middleware of ours is among them

BODILESS = {"GET", "HEAD", "DELETE", "OPTIONS"}


class Body:
    """The body of a request, whose reader is told when it is at the end.

    Args:
        receive: What it comes from.
    """

    __slots__ = ("_at_end", "_receive", "is_at_end")

    def __init__(self, receive: Receive) -> None:
        self.is_at_end: bool = False
        self._receive = receive
        self._at_end: anyio.Event | None = None  # for who waits for that

    async def receive(self) -> Message:
        """The next message of the server."""
        message = await self._receive()
        if not message.get("more_body"):  # the last part, or the client has left
            self.is_at_end = True
            if self._at_end is not None:
                self._at_end.set()
        return message

    async def until_end(self) -> None:
        """Wait until it was read to its end."""
        if not self.is_at_end:
            self._at_end = self._at_end or anyio.Event()
            await self._at_end.wait()


async def until_left(scope: Scope, receive: Receive) -> None:
    """Wait until the client of a request has left.

    It takes no part of a body that somebody may yet want to read, if a middleware of ours is there to tell; else whatever comes, as
    Starlette does.

    Args:
        scope: The request.
        receive: The messages of the server.
    """
    body = scope.get(KEY)
    if isinstance(body, Body) and may_have_body(scope):
        await body.until_end()
    while (await receive())["type"] != "http.disconnect":
        pass


def may_have_body(scope: Scope) -> bool:
    """Whether a request may have a body, by what its head says."""
    headers: Iterable[tuple[bytes, bytes]] = scope["headers"]
    for name, value in headers:
        if name == b"transfer-encoding" or (name == b"content-length" and value.strip() != b"0"):
            return True
    # Since HTTP/2 the head need not say so.
    return not scope.get("http_version", "1.1").startswith("1") and scope["method"] not in BODILESS
