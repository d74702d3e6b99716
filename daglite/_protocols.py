"""The seams: who watches a call, and where an attempt of it runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from ._metadata import TaskMetadata

__all__ = ["Attempt", "AttemptRefused", "AttemptTimeout", "Backend", "Thread", "Watched", "Watcher"]


class Watched(Protocol):
    """What a watcher is told of a call."""

    attempts: int
    began: float
    items: int | None

    @property
    def metadata(self) -> TaskMetadata:
        """Who the call is."""
        ...

    def give_up(self) -> None:
        """The thread that runs it was given up: it has ended as cancelled."""
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


class Thread(Protocol):
    """A worker thread, which may be given up: it goes on, and nobody is to hear of it."""

    given_up: bool

    def begin(self, call: Watched, started: Callable[[], None]) -> bool:
        """Note a call that begins in it, and tell of it; false if nobody is to hear of the call."""
        ...

    def end(self, call: Watched, ended: Callable[[], None]) -> None:
        """Note that a call has ended, and tell of it, unless the thread was given up before."""
        ...

    def tell(self, report: Callable[[], None]) -> None:
        """Tell of something, unless the thread was given up."""
        ...


@dataclass(frozen=True, slots=True)
class Attempt:
    """One execution of a task's function, for a backend to run.

    Args:
        name: What messages call it.
        func: The function.
        args: Its positional arguments.
        kwargs: Its keyword arguments.
        timeout: Seconds that it may take; `None` if there is no limit.
    """

    name: str
    func: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    timeout: float | None = None


class AttemptTimeout(Exception):
    """The time of an attempt is up: what a backend tells the call, which raises an error of its own.

    Args:
        deadline: When that was, by the event loop's clock.
    """

    def __init__(self, deadline: float) -> None:
        super().__init__(deadline)
        self.deadline: float = deadline


class AttemptRefused(Exception):
    """A backend does not run an attempt: what it tells the call, which raises the error, and does not try again.

    Args:
        error: Why not.
    """

    def __init__(self, error: Exception) -> None:
        super().__init__(error)
        self.error: Exception = error


class Backend(Protocol):
    """Where the attempts of sync functions run."""

    @property
    def name(self) -> str:
        """What it is called in options and metadata."""
        ...

    async def run(self, attempt: Attempt) -> Any:
        """Run an attempt and return what its function returns, or raise what it raises.

        Raises:
            AttemptTimeout: Its time was up.
            AttemptRefused: It cannot run there.
        """
        ...
