"""Responses whose bodies are streams."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from time import perf_counter
from typing import Any

import anyio
from anyio.lowlevel import checkpoint
from starlette.background import BackgroundTask
from starlette.responses import StreamingResponse

from .._context import whereabouts
from .._failures import without_cancellation
from .._open_streams import Closing
from .._streams import AsyncStream, SyncStream
from ..exceptions import SessionError
from ..tasks import AsyncTaskStream, SyncTaskStream
from ._requests import Message, Receive, Scope, Send, until_left

__all__ = ["StreamResponse"]

SLICE = 0.001  # seconds for which a generator that waits for nothing may have the event loop to itself


class StreamResponse(StreamingResponse):
    """A response whose body is a stream of `bytes` or `str`.

    ```python
    from collections.abc import AsyncIterator

    from fastapi import FastAPI

    from daglite import task
    from daglite.asgi import DagliteMiddleware, StreamResponse

    app = FastAPI()
    app.add_middleware(DagliteMiddleware)


    @task
    async def squares(count: int) -> AsyncIterator[str]:
        for number in range(count):
            yield f"{number**2} "


    @app.get("/squares")
    async def squares_up_to(count: int = 10) -> StreamResponse:
        return StreamResponse(squares(count), media_type="text/plain")
    ```

    When the client leaves while the generator runs, that is cancelled; if it is at a `yield`, since the client takes nothing more for
    now, it is closed, and its `finally` blocks have the session's `grace` seconds. Behind a `DagliteMiddleware` nothing of the request's
    body is lost to the listening: an upload may be streamed back. An error of the stream is the request's, of which the client has
    the beginning already: it sees a body that breaks off.

    Args:
        content: A call of an async task stream, or of a sync one with `to_thread`, an async generator, or what `stream_tasks` gives.
        status_code: The response's status.
        headers: Its headers.
        media_type: Its media type; none by default.
        background: What Starlette runs when the response has been sent, or the client has left.

    Raises:
        TypeError: The content is no async stream.
    """

    body_iterator: AsyncIterable[Any]

    def __init__(
        self,
        content: AsyncIterable[str | bytes | memoryview],
        status_code: int = 200,
        headers: Mapping[str, str] | None = None,
        media_type: str | None = None,
        background: BackgroundTask | None = None,
    ) -> None:
        check_content(content)
        super().__init__(content, status_code, headers, media_type, background)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the response, and close the stream."""
        is_denial = scope["type"] == "websocket"
        async with opened(self.body_iterator) as self.body_iterator:
            if is_denial:
                await self.stream_response(self._wrap_websocket_denial_send(send))
            else:
                await self._stream_until_left(scope, receive, send)
        if self.background is not None:
            await self.background()

    async def _stream_until_left(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the response, until the client leaves."""
        errors: list[BaseException] = []

        async def listen() -> None:
            try:
                await until_left(scope, receive)
            except Exception as exc:  # of a middleware in between
                errors.append(exc)
            group.cancel_scope.cancel()

        async with anyio.create_task_group() as group:
            group.start_soon(listen)
            try:
                await self.stream_response(send)
            except ClientLeft:
                pass
            except BaseException as exc:
                # Kept by itself, instead of in the group that a task group makes of it.
                failure, cancellation = without_cancellation(exc)
                if failure is not None:
                    errors.append(failure)
                if cancellation is not None:
                    raise cancellation
            group.cancel_scope.cancel()
        if errors:
            try:
                raise errors[-1]
            finally:
                errors.clear()  # else its traceback, which holds this frame, would hold itself

    async def stream_response(self, send: Send) -> None:
        """Send the response, whether or not the client is there.

        Raises:
            TypeError: The stream gives what no body can have.
        """
        await hand_over(send, {"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        pause_at = 0.0
        async for item in self.body_iterator:
            if isinstance(item, str):
                item = item.encode(self.charset)
            elif not isinstance(item, (bytes, bytearray, memoryview)):
                raise TypeError(
                    f"the stream of a StreamResponse gave a {type(item).__name__}, and a body has bytes or str: {item!r:.80}"
                )
            await hand_over(send, {"type": "http.response.body", "body": item, "more_body": True})
            # Servers take everything at once from then on that the client has left: without this, a generator that waits for nothing would
            # keep the event loop from noticing. Not for every item, for which it would be most of the cost.
            if perf_counter() > pause_at:
                await checkpoint()
                pause_at = perf_counter() + SLICE
        await hand_over(send, {"type": "http.response.body", "body": b"", "more_body": False})


StreamResponse.__module__ = "daglite.asgi"  # where people find it


async def hand_over(send: Send, message: Message) -> None:
    """Send something, and tell a client that has left from an error of the stream's that is an `OSError`, such as a timeout.

    Raises:
        ClientLeft: The server says so, as it may by ASGI 2.4.
    """
    try:
        await send(message)
    except OSError as exc:
        raise ClientLeft from exc


def check_content(content: object) -> None:
    """Raise if something is no async stream.

    Raises:
        TypeError: It is not, with what to do about it.
    """
    remedy = None
    if isinstance(content, (AsyncTaskStream, SyncTaskStream)):
        remedy = f"call it: StreamResponse({content.__name__}(...))"
    elif isinstance(content, SyncStream):
        remedy = "a stream that blocks the event loop; StreamResponse(t.to_thread(...)) has it in a thread"
    elif not isinstance(content, AsyncIterable):
        remedy = "a call of an async task stream, or of a sync one with to_thread(), is one"
    if remedy is not None:
        raise TypeError(f"StreamResponse takes an async stream, not {content!r:.80}: {remedy}")


@asynccontextmanager
async def opened(content: AsyncIterable[Any]) -> AsyncIterator[AsyncIterable[Any]]:
    """An async stream, which is closed whatever happens, and has `grace` seconds for that.

    Raises:
        SessionError: It was closed, or the session that it is to run in has ended.
    """
    if isinstance(content, AsyncStream):
        if content._steps.ended:  # an empty response would look as if there were nothing
            raise SessionError(
                f"StreamResponse: stream {content._steps.call.spec.label!r} ended before its response began; if it was closed with a "
                f"session of the endpoint's, or its `async with`, return the stream without having opened it there"
            )
        async with content:
            try:
                yield content
            finally:
                await close(content)
    elif isinstance(content, AbstractAsyncContextManager):
        async with content as entered:
            yield entered
    else:
        try:
            yield content
        finally:
            if isinstance(content, AsyncGenerator):
                with anyio.CancelScope(shield=True, deadline=anyio.current_time() + whereabouts().home.settings.grace):
                    await content.aclose()


async def close(stream: AsyncStream[Any]) -> None:
    grace = whereabouts().home.settings.grace
    closing = Closing("StreamResponse", grace)
    if not stream._steps.ended:
        await closing.close_all([stream._steps], anyio.current_time() + grace)
    if (error := closing.fatal or closing.cancellation) is not None:
        raise error


class ClientLeft(Exception):
    """The server takes no more of a response."""
