"""Tasks in web applications: a session for the life of an app, that is current in its requests, and responses made of streams.

`DagliteMiddleware` is for every ASGI app, under servers that run on asyncio or on Trio. FastAPI and Starlette take tasks as
endpoints, and FastAPI as dependencies too, as they are. The responses are Starlette's: `pip install daglite[asgi]`.
"""

from typing import TYPE_CHECKING, Any

from ._middleware import DagliteMiddleware, SessionOptions

if TYPE_CHECKING:
    from ._event_streams import EventStream
    from ._responses import StreamResponse

__all__ = ["DagliteMiddleware", "EventStream", "SessionOptions", "StreamResponse"]

for _public in (DagliteMiddleware, SessionOptions):
    _public.__module__ = __name__  # where people find them
del _public


def __getattr__(name: str) -> Any:
    if name in __all__:  # the middleware does without Starlette
        try:
            from . import _event_streams, _responses
        except ModuleNotFoundError as exc:
            if (exc.name or "").partition(".")[0] != "starlette":
                raise
            raise ImportError(
                f"daglite.asgi.{name} needs Starlette: pip install 'daglite[asgi]'", name="starlette"
            ) from exc
        return getattr(_event_streams if name == "EventStream" else _responses, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
