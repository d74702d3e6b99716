"""Retries without their delays."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from .. import _lifecycle
from .._call import Call

__all__ = ["no_waits"]


@contextmanager
def no_waits() -> Iterator[None]:
    """Let retries follow at once, for as long as its `with` lasts: of all tasks, in all threads.

    ```python
    import anyio
    from daglite import Backoff, task
    from daglite.testing import no_waits


    @task(retries=5, retry_delay=Backoff(initial=60, maximum=3600))
    async def fetch() -> str:
        attempts.append("again")
        if len(attempts) < 5:
            raise ConnectionError
        return "here"


    attempts: list[str] = []

    with no_waits():
        assert anyio.run(fetch) == "here"
    ```

    `TaskRetrying` and the hooks still tell of the delay that there would have been. Where a delay is refused it still is: in a
    sync function that is called in place on an event loop's thread. `total_timeout` goes by the time that really passes;
    `VirtualClock` lets delays pass as well, and sees to it that they count.

    With pytest, `@pytest.mark.usefixtures("no_waits")` does so for a test, a class or a module.
    """
    pause, pause_sync = _lifecycle.pause, _lifecycle.pause_sync

    async def go_on(delay: float) -> None:
        await pause(0)

    def go_on_sync(call: Call, delay: float) -> None:
        if delay:
            call.refuse_to_block(delay)
        pause_sync(call, 0)

    _lifecycle.pause, _lifecycle.pause_sync = go_on, go_on_sync
    try:
        yield
    finally:
        _lifecycle.pause, _lifecycle.pause_sync = pause, pause_sync
