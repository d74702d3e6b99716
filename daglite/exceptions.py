"""What daglite raises.

    DagliteError
    ├── TaskError               a call failed; the user's error is its cause
    │   ├── TaskTimeoutError    … because its deadline passed (also a TimeoutError)
    │   └── TaskGroupError      calls of a fan-out or session failed (also an ExceptionGroup)
    ├── BackendError            a backend cannot run a call
    ├── CacheKeyError           no key can be made of a call that is to be cached
    ├── DatasetError            a value cannot be saved or loaded
    ├── LimitError              a call would wait for a limit that one around it holds (also a RuntimeError)
    ├── SessionError            a session was used when it is not open (also a RuntimeError)
    └── CallCancelledError      a call was cancelled that somebody waits for who was not

Cancellation, `KeyboardInterrupt`, `SystemExit` and `GeneratorExit` pass through as they are.

All of them can be pickled, whatever they hold. What cannot be, an argument of the call or the
user's own error, comes back as text: an error as a `DagliteError` that says what it was.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from typing_extensions import Self

if sys.version_info < (3, 11):
    from exceptiongroup import ExceptionGroup

if TYPE_CHECKING:
    from ._metadata import TaskMetadata

__all__ = [
    "BackendError",
    "CacheKeyError",
    "CallCancelledError",
    "DagliteError",
    "DatasetError",
    "LimitError",
    "SessionError",
    "TaskError",
    "TaskGroupError",
    "TaskTimeoutError",
]


class DagliteError(Exception):
    """The root of everything that daglite raises on its own account."""


class SessionError(DagliteError, RuntimeError):
    """A session, or what belongs to it, was used outside the time in which it is open, or where it cannot be used."""


class CallCancelledError(DagliteError):
    """A call that somebody waits for was cancelled, in the background or for a thread. The one who waits was not."""


class LimitError(DagliteError, RuntimeError):
    """A call needs a token of a limit of which a call around it holds one: both would wait for each other."""


class BackendError(DagliteError):
    """A backend cannot run a call: there is none of that name, or all its threads are stuck."""


class CacheKeyError(DagliteError):
    """No key can be made of a call whose result is to be kept: of its arguments, or of its function.

    It comes out as it is, before the call begins, and is never retried.
    """


class DatasetError(DagliteError):
    """A value cannot be saved or loaded: what has gone wrong is the `__cause__`. Or there is no store for it.

    From a call whose result is to be saved it comes out as it is; the function is not run again for it.
    """


class TaskError(DagliteError):
    """A call failed. The error that the task's function raised is the `__cause__`.

    Args:
        message: What happened, for a person.
        metadata: The call that failed.
        attempts: How often its function was run.
    """

    metadata: TaskMetadata | None
    attempts: int | None

    def __init__(
        self,
        message: str,
        *,
        metadata: TaskMetadata | None = None,
        attempts: int | None = None,
    ) -> None:
        super().__init__(message)
        self.metadata = metadata
        self.attempts = attempts

    @property
    def root_cause(self) -> BaseException:
        """The error at the bottom: what the innermost task's own function raised.

        Of a group with several errors it is the group itself.
        """
        error: BaseException = self
        while isinstance(error, TaskError):
            if isinstance(error, TaskGroupError):
                if len(error.exceptions) != 1:
                    return error
                error = error.exceptions[0]
            elif error.__cause__ is not None:
                error = error.__cause__
            else:
                return error
        return error

    def __reduce__(self) -> tuple[Any, ...]:
        from ._pickling import reduce_error  # for those who pickle

        return reduce_error(self, DagliteError)


class TaskTimeoutError(TaskError, TimeoutError):
    """A call did not finish in the time that it was given.

    Args:
        message: What happened, for a person.
        scope: Which deadline has passed: `"attempt"` for the task's `timeout`, `"total"` for its `total_timeout`, `"item"` for
            the `item_timeout` of a stream.
        limit: The time that was allowed, in seconds.
        metadata: The call that timed out.
        attempts: How often its function was run.
    """

    def __init__(
        self,
        message: str,
        *,
        scope: Literal["attempt", "total", "item"] = "attempt",
        limit: float | None = None,
        metadata: TaskMetadata | None = None,
        attempts: int | None = None,
    ) -> None:
        super().__init__(message, metadata=metadata, attempts=attempts)
        self.scope: Literal["attempt", "total", "item"] = scope
        self.limit = limit


class TaskGroupError(TaskError, ExceptionGroup[Exception]):
    """Calls of a fan-out, or background calls of a session, failed: one or more.

    `except TaskError` and `except* TaskError` both catch it. It holds the errors of the calls that
    failed by themselves, never of those that were cancelled because of them. Its `metadata` and
    `attempts` are `None`: those of each call are with its own error.

    Args:
        message: What happened, for a person.
        exceptions: The errors of the calls that failed.
    """

    def __new__(cls, message: str, exceptions: Sequence[Exception]) -> Self:
        """An exception group is made by `__new__`, which takes just these two."""
        return super().__new__(cls, message, exceptions)

    def __init__(self, message: str, exceptions: Sequence[Exception]) -> None:
        # The arguments of a group are fixed by `BaseExceptionGroup.__new__`.
        ExceptionGroup.__init__(self, message, exceptions)
        self.metadata: TaskMetadata | None = None
        self.attempts: int | None = None

    def derive(self, excs: Sequence[Exception]) -> TaskGroupError:  # type: ignore[override]
        """The group that `split`, `subgroup` and `except*` make of some of the errors."""
        return TaskGroupError(self.message, excs)
