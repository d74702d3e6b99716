"""The seams: who watches a call, and where an attempt of it runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

if TYPE_CHECKING:
    from logging import LogRecord

    from ._metadata import TaskMetadata

__all__ = [
    "Attempt",
    "AttemptRefused",
    "AttemptTimeout",
    "Backend",
    "Surroundings",
    "Thread",
    "Wait",
    "Watched",
    "Watcher",
]


class Wait(Protocol):
    """What a call waits for before its function runs, or runs again."""

    @property
    def state(self) -> str:
        """What the tree of calls says of the call."""
        ...

    @property
    def name(self) -> str | None:
        """What that is called which it waits for, if it has a name."""
        ...


class Watched(Protocol):
    """What a watcher is told of a call."""

    attempts: int
    began: float
    items: int | None
    result: Any
    retries_told: int
    cancel: Callable[[], None] | None
    work: Thread | None
    held: Any
    leads: Any
    waits_for: Wait | None
    deadline: float | None
    total_deadline: float | None
    backing_off: tuple[int, float]

    @property
    def slot(self) -> Thread | None:
        """The worker thread that it runs in, or that waits for it."""
        ...

    @property
    def spec(self) -> Any:
        """The task."""
        ...

    @property
    def metadata(self) -> TaskMetadata:
        """Who the call is."""
        ...

    @property
    def root(self) -> Any:
        """The position where the outermost call around it was made."""
        ...

    @property
    def caller(self) -> Watched | None:
        """The call that makes it."""
        ...

    def is_background(self) -> bool:
        """Whether nobody waits for it in line."""
        ...

    def give_up(self, *, told: bool) -> Callable[[], None] | None:
        """The thread that runs it was given up: it has ended as cancelled.

        Args:
            told: Whether plugins hear of its own end already.

        Returns:
            What is to be called when the thread's state is no longer locked: plugins may do anything.
        """
        ...


class Surroundings(Protocol):
    """What plugins put around the code of a stream: context managers that are entered once, and left once."""

    begun: bool

    def around(self, func: Callable[..., Any], *, is_async: bool, is_last: bool) -> Callable[..., Any]:
        """A step inside them: they are entered by the first, and left by one that raises, or that is the last."""
        ...


class Watcher(Protocol):
    """Who watches calls. Nothing it is told may fail or wait."""

    def started(self, call: Watched) -> bool:
        """A call has begun; false if nobody is to hear of it any more."""
        ...

    def waiting(self, call: Watched, limit: str) -> None:
        """An attempt, or a stream, waits for a limit or a rate of that name before it begins."""
        ...

    def cache_hit(self, call: Watched, key: str, value: Any, *, shared: bool) -> None:
        """The result of a call, which does not begin, was in its cache, or was computed by another that ran."""
        ...

    def cache_missed(self, call: Watched, key: str) -> None:
        """The result of a call is not in its cache."""
        ...

    def cache_failed(self, call: Watched, operation: str, error: Exception) -> None:
        """A cache could not be read or written, or for how long to keep a result could not be found out."""
        ...

    def accessing(
        self, operation: Literal["save", "load"], call: Watched | None, slot: Thread | None, facts: Mapping[str, Any]
    ) -> None:
        """The code of a call, or of the session outside of calls, is about to save or to load a dataset.

        Args:
            operation: What it is about to do.
            call: The call.
            slot: The worker thread that it runs in.
            facts: The arguments of the hook, but for the call.
        """
        ...

    def accessed(
        self,
        operation: Literal["save", "load"],
        call: Watched | None,
        slot: Thread | None,
        facts: Mapping[str, Any],
        result: Any,
        duration: float,
    ) -> None:
        """It has done so, in so many seconds, with what was loaded."""
        ...

    def retrying(self, call: Watched, error: Exception, delay: float) -> None:
        """An attempt has failed, and another follows after so many seconds."""
        ...

    def yielded(self, call: Watched, index: int) -> None:
        """A stream has given an item."""
        ...

    def ended(self, call: Watched, error: BaseException | None, *, closed: bool) -> None:
        """A call has ended with what its function raised, if it did, or a stream was closed."""
        ...

    def reported(self, call: Watched, slot: Thread | None, type: str, data: Any) -> None:
        """The code of a call, in a worker thread or not, says something of the call."""
        ...

    def logged(self, call: Watched | None, slot: Thread | None, record: LogRecord) -> None:
        """The code of a call, or of the session outside of calls, has logged something."""
        ...

    def given_up(self, call: Watched, error: BaseException) -> Callable[[], None]:
        """The thread of a call was given up, and its state is locked; what is returned tells plugins of it later."""
        ...

    def activation(self, call: Watched) -> Surroundings | None:
        """What surrounds the function's code; `None` if nothing does."""
        ...

    def surrounded(self, call: Watched, func: Callable[..., Any], *, is_async: bool) -> Callable[..., Any]:
        """The function of an attempt, with what surrounds its code."""
        ...


class Thread(Protocol):
    """A worker thread, which may be given up: it goes on, and nobody is to hear of it."""

    given_up: bool
    cancelled: bool
    deadline: float | None

    def give_up(self) -> None:
        """Let nobody hear of it any more."""
        ...

    @property
    def state(self) -> str | None:
        """What it does, as the tree of calls says it; `None` if it has done it."""
        ...

    def begin(self, call: Watched, started: Callable[[], None]) -> bool:
        """Note a call that begins in it, and tell of it; false if nobody is to hear of the call."""
        ...

    def ending(self, call: Watched) -> bool:
        """Note that a call is about to end; false if nobody is to hear of it."""
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
