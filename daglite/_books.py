"""What a session keeps of its calls: those that run, its open streams, and how many calls have ended in which way."""

from __future__ import annotations

import itertools
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from . import _clock

if TYPE_CHECKING:
    from uuid import UUID

    from ._eventloop import Loop
    from ._protocols import Watched
    from ._threads import Stuck

__all__ = ["Books", "SessionStats"]


@dataclass(frozen=True, slots=True)
class SessionStats:
    """How many calls a session has made, by state, streams and the calls of inner sessions included.

    A call whose result was in its cache has not begun, and does not count.

    Args:
        running: Those that have begun and not ended.
        succeeded: Those that have given their result, and streams that came to their end or were closed.
        failed: Those that have raised, for good.
        cancelled: Those that were cancelled, or ended by an interrupt or exit.
    """

    running: int
    succeeded: int
    failed: int
    cancelled: int

    @property
    def started(self) -> int:
        """All of them."""
        return self.running + self.succeeded + self.failed + self.cancelled


class Books:
    """What a session keeps of its calls: every one adds to it, so it is little.

    Args:
        name: What the session is called.
        session_id: The session.
        stuck: Those of its threads that are past their deadlines.
        loop: The event loop of this thread.
        outer: The books of the enclosing session, which has the calls of this one as well.
    """

    def __init__(self, name: str, session_id: UUID, stuck: Stuck, loop: Loop, outer: Books | None) -> None:
        self.name: str = name
        self.session_id: UUID = session_id
        self.stuck: Stuck = stuck
        self.loop: Loop = loop
        self.thread: int = threading.get_ident()  # which every call compares with its own
        self.outer: Books | None = outer
        self.opened: float = _clock.monotonic()
        self.live: dict[Watched, None] = {}  # oldest first
        self.streams: dict[Any, None] = {}  # the open ones, oldest first, which the session closes when it ends
        # Drawn from once for each call: threads cannot come between.
        self.begun: itertools.count[int] = itertools.count()
        self.inner: dict[Books, None] = {}  # those of open sessions inside
        self._drawn = 0  # what of `begun` was drawn for other things than calls
        self._past = SessionStats(0, 0, 0, 0)  # of sessions inside that have ended
        self._failed = 0
        self._cancelled = 0
        self._lock = threading.Lock()
        if outer is not None:
            outer.inner[self] = None

    def end(self, call: Watched, error: BaseException | None) -> None:
        """A call has ended, unless it has before: when its thread was given up."""
        if error is None:
            self.live.pop(call, None)
            return
        with self._lock:
            if self.live.pop(call, False) is not None:
                return
            if isinstance(error, Exception):
                self._failed += 1
            else:
                self._cancelled += 1

    def forget(self, call: Watched) -> None:
        """A call that had just begun is none: it is in a thread that was given up."""
        with self._lock:
            self.live.pop(call, None)
            self._drawn += 1

    def close(self) -> None:
        """The session has ended: the enclosing one keeps its counts."""
        if self.outer is not None:
            stats = self.stats()
            with self.outer._lock:
                del self.outer.inner[self]
                self.outer._past = _sum(self.outer._past, stats)

    def stats(self) -> SessionStats:
        """The counts, as they are now."""
        with self._lock:
            begun = next(self.begun) - self._drawn
            self._drawn += 1
            running = min(len(self.live), begun)  # a thread may be between the two
            own = SessionStats(running, begun - running - self._failed - self._cancelled, self._failed, self._cancelled)
            total = _sum(own, self._past)
            inner = list(self.inner)
        for books in inner:
            total = _sum(total, books.stats())
        return total


def _sum(one: SessionStats, other: SessionStats) -> SessionStats:
    return SessionStats(
        one.running + other.running,
        one.succeeded + other.succeeded,
        one.failed + other.failed,
        one.cancelled + other.cancelled,
    )
