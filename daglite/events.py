"""What happened: immutable records, delivered to whoever subscribes with `session.events()` or `session.watch()`.

They carry the text of errors and never the errors themselves, whose tracebacks would keep everything alive that the
failed code has seen.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from uuid import UUID

from ._metadata import TaskMetadata

__all__ = [
    "CacheFailed",
    "CacheHit",
    "CacheMissed",
    "DatasetLoaded",
    "DatasetSaved",
    "Event",
    "ItemYielded",
    "LogRecorded",
    "SessionEnded",
    "SessionStarted",
    "TaskCancelled",
    "TaskEvent",
    "TaskFailed",
    "TaskReported",
    "TaskRetrying",
    "TaskStarted",
    "TaskSucceeded",
    "TaskWaiting",
]


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened in a session.

    Args:
        session_id: The session.
        time: When, in seconds of the wall clock, as `time.time` tells it.
    """

    session_id: UUID
    time: float


@dataclass(frozen=True, slots=True)
class SessionStarted(Event):
    """A session was entered.

    Args:
        name: What the session is called.
    """

    name: str


@dataclass(frozen=True, slots=True)
class SessionEnded(Event):
    """A session has ended: all its calls have.

    Args:
        name: What the session is called.
        duration: Seconds since it was entered.
    """

    name: str
    duration: float


@dataclass(frozen=True, slots=True)
class TaskEvent(Event):
    """Something that happened to a call.

    Args:
        metadata: The call.
    """

    metadata: TaskMetadata


@dataclass(frozen=True, slots=True)
class TaskStarted(TaskEvent):
    """A call has begun. Exactly one of `TaskSucceeded`, `TaskFailed` and `TaskCancelled` follows."""


@dataclass(frozen=True, slots=True)
class TaskWaiting(TaskEvent):
    """An attempt, or the first step of a stream, cannot begin at once: it waits for its task's limit or rate.

    Args:
        limit: What the limit or rate is called.
    """

    limit: str


@dataclass(frozen=True, slots=True)
class CacheHit(TaskEvent):
    """The result of a call was in its cache: it does not begin, and nothing else is told of it.

    Args:
        key: What the result is kept under.
        shared: Whether it was computed meanwhile, by another call with the same key that ran already.
    """

    key: str
    shared: bool = False


@dataclass(frozen=True, slots=True)
class CacheMissed(TaskEvent):
    """The result of a call is not in its cache. `TaskStarted` follows.

    Args:
        key: What the result is to be kept under.
    """

    key: str


@dataclass(frozen=True, slots=True)
class CacheFailed(TaskEvent):
    """A cache could not be read or written. The call goes on without it.

    Args:
        operation: `"get"` or `"put"`; `"cache_ttl"` if the function of that name gave no answer.
        error: The text of what went wrong: the error's type and message.
    """

    operation: str
    error: str


@dataclass(frozen=True, slots=True)
class TaskRetrying(TaskEvent):
    """An attempt has failed, and there will be another.

    Args:
        attempt: The retry's number, from 1.
        delay: Seconds until it begins.
        error: The text of what went wrong: the error's type and message.
    """

    attempt: int
    delay: float
    error: str


@dataclass(frozen=True, slots=True)
class TaskSucceeded(TaskEvent):
    """A call has given its result.

    Args:
        duration: Seconds since it began, retries and waits included.
        attempts: How often its function was run.
        items: Of a stream, how many it gave; `None` of other calls.
        closed: Whether it is a stream that was closed before it was exhausted.
    """

    duration: float
    attempts: int
    items: int | None = None
    closed: bool = False


@dataclass(frozen=True, slots=True)
class TaskFailed(TaskEvent):
    """A call has failed for good.

    Args:
        duration: Seconds since it began, retries and waits included.
        attempts: How often its function was run.
        error: The text of what went wrong: the error's type and message.
    """

    duration: float
    attempts: int
    error: str


@dataclass(frozen=True, slots=True)
class TaskCancelled(TaskEvent):
    """A call was cancelled, or ended by an interrupt or exit.

    Args:
        duration: Seconds since it began, retries and waits included.
        attempts: How often its function was run.
    """

    duration: float
    attempts: int


@dataclass(frozen=True, slots=True)
class ItemYielded(TaskEvent):
    """A stream has given an item.

    Args:
        index: The item's number, from 0.
    """

    index: int


@dataclass(frozen=True, slots=True)
class DatasetSaved(Event):
    """A dataset was saved: the result of a call, an item of a stream, or a value that `save_dataset` was given.

    Args:
        metadata: The call that has saved it; `None` if it was none.
        key: Where to, below the root of the store.
        format: The format that was asked for; `None` if the key's extension says it.
        duration: Seconds that it took.
    """

    metadata: TaskMetadata | None
    key: str
    format: str | None
    duration: float


@dataclass(frozen=True, slots=True)
class DatasetLoaded(Event):
    """A dataset was loaded by `load_dataset`.

    Args:
        metadata: The call that has loaded it; `None` if it was none.
        key: What it was saved under.
        format: The format that was asked for; `None` if the key's extension says it.
        duration: Seconds that it took.
    """

    metadata: TaskMetadata | None
    key: str
    format: str | None
    duration: float


@dataclass(frozen=True, slots=True)
class TaskReported(TaskEvent):
    """What a call says of itself, with `report(type, data)`.

    Args:
        type: What kind of thing is reported.
        data: The thing, as it was given.
    """

    type: str
    data: Any


@dataclass(frozen=True, slots=True)
class LogRecorded(Event):
    """Something was logged in the session, which has a `LoggingPlugin`.

    Args:
        metadata: The call that it was logged in; `None` if it was in none.
        logger: The name of the logger.
        level: The level, as a number of the `logging` module.
        message: The message, its arguments filled in.
        error: The text of the error that was logged with it, its type and message; `None` if there was none.
    """

    metadata: TaskMetadata | None
    logger: str
    level: int
    message: str
    error: str | None = None
