"""Tasks in web applications: a session for the life of an app, that is current in its requests, and responses made of streams.

`DagliteMiddleware` is for every ASGI app, under servers that run on asyncio or on Trio. FastAPI and Starlette take tasks as
endpoints, and FastAPI as dependencies too, as they are.
"""

from ._middleware import DagliteMiddleware, SessionOptions

__all__ = ["DagliteMiddleware", "SessionOptions"]

for _public in (DagliteMiddleware, SessionOptions):
    _public.__module__ = __name__  # where people find them
del _public
