"""Responses that tell a browser what happens: server-sent events."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any
from uuid import UUID

import anyio

from .. import _checks
from .._bindings import binding_around, is_begun_under
from .._bus import is_under
from .._context import whereabouts
from .._json import as_json, fields_of
from ..events import CacheHit, Event, TaskCancelled, TaskFailed, TaskSucceeded
from ..exceptions import SessionError
from ._requests import Receive, Scope, Send
from ._responses import StreamResponse

if TYPE_CHECKING:
    from ..sessions import CallFuture, CallHandle

__all__ = ["EventStream"]

# Each call has one of these, after which there is nothing more of it.
LAST = (TaskSucceeded, TaskFailed, TaskCancelled, CacheHit)


class EventStream(StreamResponse):
    """A response of server-sent events: what happens to one call and to what it started.

    ```python
    from uuid import UUID

    from fastapi import FastAPI

    from daglite import current_session, task
    from daglite.asgi import DagliteMiddleware, EventStream

    app = FastAPI()
    app.add_middleware(DagliteMiddleware)


    @task
    async def build(name: str) -> str:
        return f"{name} is built"


    @app.post("/builds")
    async def start(name: str) -> UUID:
        session = current_session()
        assert session is not None
        return session.start_soon(build, name).id


    @app.get("/builds/{id}/events")
    async def follow(id: UUID) -> EventStream:
        return EventStream(under=id)  # to whom? ids can be guessed: an app with users checks who asks
    ```

    Every event has its class as its `event`, such as `TaskStarted`, and its fields as `data`, in JSON. It subscribes when it is made,
    and ends after the last event of the call; if that does not run any more, its status is 204, so that a browser does not connect
    again. Without `under` it has the calls that are made in this request and by no other call, background calls included, and what
    they start, until none of them runs. Calls of other requests are never among them. What is in a request's session alone may be
    told: the arguments of calls are not, unless `inputs=True`, but an error's text may hold some.

    A client that takes events too slowly misses the oldest, of which a `dropped` event tells: `{"count": 3}` so far. While nothing
    happens a comment is sent now and then, so that nobody in between closes the connection.

    Args:
        under: A background call, or the id of any call; by default the calls of this request.
        inputs: Whether the arguments of calls are told, as the redaction of the settings leaves them.
        max_buffer: How many events may wait for the client; 1,000 by default.
        ping: Seconds between comments while nothing happens; 15 by default.
        headers: More headers.

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: An argument is out of range.
        SessionError: It is made outside of a request, or of its session.
    """

    media_type = "text/event-stream"

    def __init__(
        self,
        *,
        under: CallHandle[Any] | CallFuture[Any] | UUID | None = None,
        inputs: bool = False,
        max_buffer: int = 1000,
        ping: float = 15.0,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        self._under: UUID | None = None if under is None else checked_id(under)
        self._inputs = _checks.flag("EventStream: inputs", inputs)
        self._ping = _checks.finite("EventStream: ping", ping, least=0, above=True)
        _checks.whole("EventStream: max_buffer", max_buffer, least=1)
        binding = binding_around(whereabouts())
        if binding is None:
            raise SessionError(
                "EventStream: it is for a request in a session, and this is none: is there a DagliteMiddleware? Or is this a "
                "background call?"
            )
        self._session = binding._session
        if self._under is None:
            self._belongs = partial(is_begun_under, binding=binding)
        else:
            self._belongs = partial(is_under, id=self._under)
        self._events = self._session._follow(self._belongs, max_buffer, binding)
        status_code = 204 if self._events is None else 200
        own = {"cache-control": "no-store", "x-accel-buffering": "no"}
        super().__init__(self._lines(), status_code, {**own, **(headers or {})})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the events."""
        if self._events is not None:
            await super().__call__(scope, receive, send)
        else:
            await send({"type": "http.response.start", "status": 204, "headers": self.raw_headers})
            await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _lines(self) -> AsyncIterator[bytes]:
        events = self._events
        assert events is not None
        dropped = 0
        while True:
            event: Event | None = None
            with anyio.move_on_after(self._ping):
                event = await anext(events, None)
                if event is None:  # the session ends
                    return
            if events.dropped > dropped:
                dropped = events.dropped
                yield message("dropped", {"count": dropped})
            yield b": nothing new\n\n" if event is None else self._message(event)
            if self._is_last(event):
                return

    def _message(self, event: Event) -> bytes:
        return message(type(event).__name__, fields_of(event, inputs=self._inputs))

    def _is_last(self, event: Event | None) -> bool:
        """Whether an event is the last; or a silence, of what has ended without anybody being told: cancelled before it began, say."""
        if isinstance(event, LAST) and event.metadata.id == self._under:
            return True
        if event is None or (isinstance(event, LAST) and self._under is None):
            return not self._events._waiting and not self._session._runs(self._belongs)
        return False


EventStream.__module__ = "daglite.asgi"  # where people find it


def checked_id(under: object) -> UUID:
    """The id of a call.

    Raises:
        TypeError: It is none.
    """
    id = getattr(under, "id", under)
    if not isinstance(id, UUID):
        raise TypeError(f"EventStream: under must be a background call or the id of a call, a UUID, not {under!r:.80}")
    return id


def message(event: str, data: Mapping[str, Any]) -> bytes:
    """A server-sent event."""
    return f"event: {event}\ndata: {as_json(data)}\n\n".encode()
