"""The life of an app under its server, in the session that the app has for so long."""

from __future__ import annotations

from collections.abc import Callable
from traceback import format_exception
from typing import Literal

import anyio

from .._log import described, logger
from ..sessions import Session
from ._requests import ASGIApp, Message, Receive, Scope, Send

__all__ = ["Lifespan"]


class Lifespan:
    """Runs the lifespan of an app, and answers the server.

    An exception would mean to servers that the app has no lifespan, and they would go on: what goes wrong is sent to them instead. What
    the app says of its end is held back until the session has been left.

    Args:
        app: The app.
        scope: As the server calls it.
        receive: Likewise.
        send: Likewise.
        shutdown_timeout: Seconds that background calls have to end in.
    """

    def __init__(self, app: ASGIApp, scope: Scope, receive: Receive, send: Send, shutdown_timeout: float) -> None:
        self._app = app
        self._scope = scope
        self._receive = receive
        self._send = send
        self._shutdown_timeout = shutdown_timeout
        self._phase: Literal["startup", "shutdown"] = "startup"
        self._session: Session
        self._startup: Message | None = None  # for the app to receive
        self._is_over = False  # the server has sent all that it sends
        self._last: Message | None = None  # what the app has sent, to be handed on at the end
        self._error: Exception | None = None  # the app's own

    async def run(self, make: Callable[[], Session], tell: Callable[[Session], None]) -> None:
        """Run the app, in a session.

        Args:
            make: Makes the session, or raises what is wrong with its options.
            tell: Called with the session when it is open.
        """
        self._startup = await self._receive()
        try:
            session = self._session = make()
        except Exception as exc:
            await self._send({"type": "lifespan.startup.failed", "message": described(exc)})
            return
        try:
            async with session:
                tell(session)
                await self._run_app()
        except Exception as exc:
            if exc is not self._error:
                self._last = None  # the app may have said that all is well
            failed = {"type": f"lifespan.{self._phase}.failed", "message": "".join(format_exception(exc))}
            await self._send(self._last or failed)
            if exc is self._error:
                raise
        else:
            await self._send(self._last or {"type": "lifespan.shutdown.complete"})

    async def _run_app(self) -> None:
        try:
            await self._app(self._scope, self._receive_for_app, self._send_of_app)
        except Exception as exc:
            if not self._is_silent():
                self._error = exc
                raise
            logger().info("DagliteMiddleware: the app seems to have no lifespan: %s", described(exc))
        if self._is_silent():
            await self._send_of_app({"type": "lifespan.startup.complete"})
        if self._phase == "startup":  # it has said that it failed
            self._session.cancel()
            return
        while not self._is_over:  # it does not wait for the end itself
            await self._receive_for_app()

    def _is_silent(self) -> bool:
        """Whether the app has not said whether it has started: Django's says nothing of lifespans."""
        return self._phase == "startup" and self._last is None

    async def _receive_for_app(self) -> Message:
        if self._startup is not None:
            message, self._startup = self._startup, None
            return message
        message = await self._receive()
        if message["type"] == "lifespan.shutdown":
            self._is_over = True
            # What the app's lifespan holds, such as a pool of connections, is there until nobody needs it any more.
            await self._session._finish(anyio.current_time() + self._shutdown_timeout)
        return message

    async def _send_of_app(self, message: Message) -> None:
        if message["type"] == "lifespan.startup.complete":
            self._phase = "shutdown"
            await self._send(message)
        else:
            self._last = message
