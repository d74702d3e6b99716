"""The seams: who watches a call, and where an attempt of it runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from ._metadata import TaskMetadata

__all__ = ["Attempt", "Backend", "Watched", "Watcher"]


class Watched(Protocol):
    """What a watcher is told of a call."""

    attempts: int
    began: float
    items: int | None

    @property
    def metadata(self) -> TaskMetadata:
        """Who the call is."""
        ...


class Watcher(Protocol):
    """Who watches calls. Nothing it is told may fail or wait."""

    def is_listening(self) -> bool:
        """Whether there is any use in telling it anything."""
        ...

    def started(self, call: Watched) -> None:
        """A call has begun."""
        ...

    def retrying(self, call: Watched, error: BaseException, delay: float) -> None:
        """An attempt has failed, and another follows after so many seconds."""
        ...

    def yielded(self, call: Watched, index: int) -> None:
        """A stream has given an item."""
        ...

    def ended(self, call: Watched, error: BaseException | None, *, closed: bool) -> None:
        """A call has ended with what its function raised, if it did, or a stream was closed."""
        ...

    def reported(self, metadata: TaskMetadata, type: str, data: Any) -> None:
        """A call says something of itself."""
        ...


@dataclass(frozen=True, slots=True)
class Attempt:
    """One execution of a task's function, for a backend to run.

    Args:
        name: What messages call it.
        func: The function.
        args: Its positional arguments.
        kwargs: Its keyword arguments.
    """

    name: str
    func: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]


class Backend(Protocol):
    """Where the attempts of sync functions run."""

    @property
    def name(self) -> str:
        """What it is called in options and metadata."""
        ...

    async def run(self, attempt: Attempt) -> Any:
        """Run an attempt and return what its function returns, or raise what it raises."""
        ...
