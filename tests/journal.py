"""What becomes of the generators of tests."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
from anyio import get_cancelled_exc_class
from anyio.lowlevel import checkpoint


@asynccontextmanager
async def told_of(said: list[str]) -> AsyncIterator[None]:
    """Note whether the code inside is cancelled, and that it has cleaned up, which takes a moment."""
    try:
        yield
    except get_cancelled_exc_class():
        said.append("cancelled")
        raise
    finally:
        with anyio.CancelScope(shield=True):
            await checkpoint()
        said.append("cleaned up")
