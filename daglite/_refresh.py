"""The scope in which results are computed anew, whatever is kept."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

__all__ = ["Refresh", "current_refresh", "refresh_cache"]


class Refresh:
    """One `with refresh_cache()`: calls in it may share what one of them computes."""

    __slots__ = ()


_refresh: ContextVar[Refresh | None] = ContextVar("daglite_refresh", default=None)

current_refresh = _refresh.get


@contextmanager
def refresh_cache() -> Iterator[None]:
    """Compute anew what is called inside, and keep that in place of what was kept.

    ```python
    from daglite import task
    from daglite.cache import refresh_cache


    @task(cache="memory://rates")
    def rate(currency: str) -> float: ...


    rate("EUR")
    with refresh_cache():
        rate("EUR")  # runs again
    ```

    It holds for everything that the code inside calls, in other tasks and threads too. Calls with the same key that run at
    the same time inside share one computation; one that had begun before is not waited for, and its result not kept.
    """
    token = _refresh.set(Refresh())
    try:
        yield
    finally:
        _refresh.reset(token)
