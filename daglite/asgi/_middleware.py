"""A session for the life of an app, which is current in its requests."""

from __future__ import annotations

from functools import partial
from typing import Any

from typing_extensions import Unpack

from .. import _checks
from .._log import logger
from .._session_options import CommonOptions
from ..exceptions import SessionError
from ..sessions import Session, session
from ._lifespan import Lifespan
from ._requests import KEY, ASGIApp, Body, Receive, Scope, Send

__all__ = ["DagliteMiddleware", "SessionOptions"]


class SessionOptions(CommonOptions, total=False):
    """The options of `session()` that a middleware takes; what is not given is as it is there."""


REFUSED = {
    "event_loop": "it is the server that chooses the event loop",
    "on_background_error": (
        'it is always "log" here, for a background call that fails must not end the app; an endpoint that wants to fail with '
        "what it starts opens a session of its own"
    ),
}


class DagliteMiddleware:
    """Gives an ASGI app a session, from its startup to its shutdown, that is current in every request and websocket.

    ```python
    from fastapi import FastAPI

    from daglite import current_session, task
    from daglite.asgi import DagliteMiddleware

    app = FastAPI()
    app.add_middleware(DagliteMiddleware, cache_store="memory://pages")


    @task(retries=3)
    async def notify(address: str) -> None: ...


    @app.post("/orders")
    async def order(address: str) -> dict[str, bool]:
        session = current_session()
        assert session is not None
        session.start_soon(notify, address)  # goes on when the request has ended
        return {"accepted": True}
    ```

    The session is the app's: it is entered before the app's own lifespan, in which it is current as well, and left after it. A
    background call that fails is logged, and harms nobody. When the server stops, the app's lifespan goes on until the background
    calls have ended; those that take longer than `shutdown_timeout` are cancelled, and named in the log. What a request opens and
    does not close, such as a stream, is closed when it ends.

    Wrong options, and a second middleware of the same app, are errors of the startup: the server does not start. In an app that is
    mounted in one with a middleware, its own does nothing. Where nobody runs the app's lifespan, as in some tests, every request
    has a session of its own, which waits for its background calls before the request ends; that is logged once.

    Args:
        app: The app.
        shutdown_timeout: Seconds that background calls have to end in when the server stops.
        session_options: Options of `session()`, but for `event_loop` and `on_background_error`.
    """

    def __init__(
        self, app: ASGIApp, *, shutdown_timeout: float = 20.0, **session_options: Unpack[SessionOptions]
    ) -> None:
        self.app: ASGIApp = app
        # They are checked in the lifespan, where an error keeps the server from starting. Frameworks call this in there too, and
        # take what it raises for an app that has no lifespan.
        self._shutdown_timeout = shutdown_timeout
        self._options: dict[str, Any] = dict(session_options)
        self._session: Session | None = None  # of the app, while it runs
        self._has_warned = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run the app: for a request, for a websocket, or for its lifespan."""
        if scope["type"] == "lifespan":
            await self._live(scope, receive, send)
        elif KEY in scope:  # this is a part of an app that has a session
            await self.app(scope, receive, send)
        else:
            scope[KEY] = None
            if scope["type"] == "http" and scope["method"] != "GET":  # of which a body means nothing, says RFC 9110
                body = scope[KEY] = Body(receive)
                receive = body.receive
            session = self._session
            try:
                if session is None:
                    await self._alone(scope, receive, send)
                    return
                # As by `async with`, without its two coroutines: every request pays for this.
                binding = session.bind()
                binding.enter()
                try:
                    await self.app(scope, receive, send)
                finally:
                    if not binding.leave():
                        await binding.close()
            finally:
                scope.pop(KEY, None)  # else the scope, which the server's `receive` holds, would hold itself

    async def _live(self, scope: Scope, receive: Receive, send: Send) -> None:
        is_second = KEY in scope
        scope[KEY] = self

        def make() -> Session:
            if is_second:
                raise SessionError("the app has a DagliteMiddleware already, and needs one: take this, or that, out")
            _checks.finite("DagliteMiddleware: shutdown_timeout", self._shutdown_timeout, least=0)
            return self._new_session()

        try:
            lifespan = Lifespan(self.app, scope, receive, send, self._shutdown_timeout)
            await lifespan.run(make, partial(setattr, self, "_session"))
        finally:
            self._session = None

    async def _alone(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run a request of an app that has no session, for nobody runs its lifespan."""
        if not self._has_warned:
            self._has_warned = True
            logger().warning(
                "DagliteMiddleware: nobody runs the lifespan of the app, so every request has a session of its own"
            )
        async with self._new_session() as session, session.bind():
            await self.app(scope, receive, send)

    def _new_session(self) -> Session:
        """A session, which is not entered.

        Raises:
            TypeError: An option has the wrong type, or there is none of that name.
            ValueError: An option is out of range.
        """
        options = self._options
        for name in options:
            if name in REFUSED:
                raise TypeError(f"DagliteMiddleware does not take {name}=: {REFUSED[name]}")
            if name not in SessionOptions.__annotations__:
                taken = ", ".join(["shutdown_timeout", *SessionOptions.__annotations__])
                raise TypeError(f"DagliteMiddleware has no option {name!r}; it takes {taken}")
        return session(on_background_error="log", **options)
