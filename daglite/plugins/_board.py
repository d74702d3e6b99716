"""How far the calls of a session are, counted by task."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from daglite._metadata import TaskMetadata, label_of, number_of, parent_number_of
from daglite.events import (
    CacheHit,
    Event,
    ItemYielded,
    SessionStarted,
    TaskCancelled,
    TaskFailed,
    TaskRetrying,
    TaskStarted,
    TaskSucceeded,
)

__all__ = ["Board", "Row"]


class Row:
    """The calls of one task that calls of the row above it have made.

    Args:
        label: What the task is called.
        above: The row of the calls that make them.

    Attributes:
        running: How many run.
        succeeded: How many have succeeded.
        failed: How many have failed.
        cancelled: How many were cancelled.
        retries: How often one was tried again.
        hits: How many were in their cache.
        items: How many items streams have given.
        first: When the first began, by the clock of events.
        last: When something was last heard of them.
    """

    __slots__ = (
        "above",
        "below",
        "cancelled",
        "failed",
        "first",
        "hits",
        "items",
        "label",
        "last",
        "retries",
        "running",
        "succeeded",
    )

    def __init__(self, label: str, above: Row | None) -> None:
        self.label: str = label
        self.above: Row | None = above
        self.below: dict[str, Row] = {}
        self.running = self.succeeded = self.failed = self.cancelled = 0
        self.retries = self.hits = self.items = 0
        self.first = self.last = 0.0

    @property
    def done(self) -> int:
        """How many have their result, computed or from a cache."""
        return self.succeeded + self.hits

    def path(self) -> list[str]:
        """The names of the tasks above it, and its own."""
        return [] if self.above is None else [*self.above.path(), self.label]

    def around(self, label: str) -> Row | None:
        """This row, or the nearest above it, if its task is called that."""
        row: Row | None = self
        while row is not None and row.label != label:
            row = row.above
        return row

    def seconds(self, now: float) -> float:
        """How long its calls take, or took, as a whole."""
        return max((now if self.running else self.last) - self.first, 0.0)

    def rate(self, now: float) -> float | None:
        """How many calls a second are done, or items given if they are streams; `None` if that is not known yet."""
        seconds = self.seconds(now)
        done = self.items or self.done
        return done / seconds if seconds > 0 and done else None

    def walk(self, depth: int = 0) -> Iterator[tuple[int, Row]]:
        """The rows below it, each with how deep it is, as they are shown."""
        for row in list(self.below.values()):
            yield depth, row
            yield from row.walk(depth + 1)


class Board:
    """Counts the events of a session.

    Attributes:
        name: What the session is called.
        root: Above all rows.
        changed: Whether anything was counted; whoever shows it says so.
        first: When the first event was.
    """

    def __init__(self) -> None:
        self.name: str = ""
        self.root: Row = Row("", None)
        self.changed: bool = False
        self.first: float | None = None
        self._rows: dict[int, Row] = {}  # of the calls that run, by number

    def count(self, event: Event) -> None:
        """Count an event."""
        count = COUNTS.get(type(event))
        if count is not None:
            count(self, event)
            self.changed = True
        if self.first is None:
            self.first = event.time

    def rows(self) -> Iterator[tuple[int, Row]]:
        """The rows as they are shown, each with how deep it is."""
        return self.root.walk()

    def _session_started(self, event: SessionStarted) -> None:
        self.name = self.name or event.name

    def _started(self, event: TaskStarted) -> None:
        row = self._rows[number_of(event.metadata)] = self._row(event.metadata, event.time)
        row.running += 1

    def _hit(self, event: CacheHit) -> None:
        self._row(event.metadata, event.time).hits += 1

    def _retrying(self, event: TaskRetrying) -> None:
        row = self._rows.get(number_of(event.metadata))
        if row is not None:
            row.retries += 1
            row.last = event.time

    def _yielded(self, event: ItemYielded) -> None:
        row = self._rows.get(number_of(event.metadata))
        if row is not None:
            row.items += 1
            row.last = event.time

    def _ended(self, event: TaskSucceeded | TaskFailed | TaskCancelled) -> None:
        row = self._rows.pop(number_of(event.metadata), None)
        if row is None:  # it had begun before the session
            return
        row.running -= 1
        row.last = event.time
        if isinstance(event, TaskSucceeded):
            row.succeeded += 1
        elif isinstance(event, TaskFailed):
            row.failed += 1
        else:
            row.cancelled += 1

    def _row(self, metadata: TaskMetadata, time: float) -> Row:
        """The row of a call that begins, or was in its cache."""
        parent = parent_number_of(metadata)
        # Of a background call, what has started it may have ended.
        above = self.root if parent is None else self._rows.get(parent, self.root)
        label = label_of(metadata)
        row = above.below.get(label)
        if row is None:
            # If a task calls itself, the rows would have no end.
            row = above.around(label) or above.below.setdefault(label, Row(label, above))
        if not row.first:
            row.first = time
        row.last = time
        return row


COUNTS: Mapping[type[Event], Callable[[Board, Any], None]] = {
    SessionStarted: Board._session_started,
    TaskStarted: Board._started,
    CacheHit: Board._hit,
    TaskRetrying: Board._retrying,
    ItemYielded: Board._yielded,
    TaskSucceeded: Board._ended,
    TaskFailed: Board._ended,
    TaskCancelled: Board._ended,
}
