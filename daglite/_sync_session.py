"""What a session is to threads."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, overload
from uuid import UUID

from typing_extensions import ParamSpec

if TYPE_CHECKING:
    from ._books import SessionStats
    from ._bus import Subscription
    from ._futures import CallFuture
    from ._tree import CallTree
    from .settings import Settings

__all__ = ["Starter", "SyncSession"]

P = ParamSpec("P")
R = TypeVar("R")


class Starter(Protocol):
    """Starts a call in the background of a session, from a thread."""

    @overload
    def __call__(
        self, func: Callable[P, Coroutine[Any, Any, R]], /, *args: P.args, **kwargs: P.kwargs
    ) -> CallFuture[R]: ...
    @overload
    def __call__(
        self, func: Callable[P, AsyncIterator[R]], /, *args: P.args, **kwargs: P.kwargs
    ) -> CallFuture[list[R]]: ...
    @overload
    def __call__(self, func: Callable[P, Iterator[R]], /, *args: P.args, **kwargs: P.kwargs) -> CallFuture[list[R]]: ...
    @overload
    def __call__(self, func: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> CallFuture[R]: ...


class SyncSession(Protocol):
    """A session as `with session()`, or `with s.bind()` in a thread, gives it.

    It is the same `Session`, whose methods may be called from any thread: each is taken to the event loop, and what would
    be awaited there is waited for here.

    Attributes:
        id: The session's, as in its events.
        name: What events and errors call it.
    """

    id: UUID
    name: str

    @property
    def settings(self) -> Settings:
        """As `Session.settings`."""
        ...

    @property
    def start_soon(self) -> Starter:
        """As `Session.start_soon`, with a `CallFuture` to wait for the result with."""
        ...

    @property
    def start_service(self) -> Starter:
        """As `Session.start_service`, with a `CallFuture`."""
        ...

    def bind(self) -> AbstractContextManager[SyncSession]:
        """As `Session.bind`, for another thread: `with s.bind()`."""
        ...

    def events(self, *, max_buffer: int | None = None, under: UUID | None = None) -> Subscription:
        """As `Session.events`, for `with`, then `for`: it waits for the next event."""
        ...

    def stats(self) -> SessionStats:
        """As `Session.stats`."""
        ...

    def tree(self) -> CallTree:
        """As `Session.tree`."""
        ...

    def cancel(self, *, under: UUID | None = None) -> bool:
        """As `Session.cancel`. The code of `with session()` hears of it when it next waits for the event loop."""
        ...

    def watch(self, consumer: Callable[[Subscription], Awaitable[Any]], /) -> None:
        """As `Session.watch`: the consumer is a coroutine function all the same."""
        ...
