"""What the children of a task group have failed with, and what their owner raises then."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from anyio import get_cancelled_exc_class

from .exceptions import TaskGroupError

if TYPE_CHECKING:
    from anyio import CancelScope

if sys.version_info < (3, 11):
    from exceptiongroup import BaseExceptionGroup

__all__ = ["Failures", "is_cancellation", "without_cancellation"]


class Failures:
    """The failures of children, kept by themselves instead of in the group that a task group makes of them.

    The first cancels the siblings. What ends a program, such as `KeyboardInterrupt`, is kept as well and raised again
    by the owner: raised in a child it would stop asyncio's event loop in the middle of everything.

    Attributes:
        scope: What the siblings run in; set when their task group is entered.
    """

    scope: CancelScope

    def __init__(self) -> None:
        self.errors: list[Exception] = []
        self.fatal: BaseException | None = None

    def add(self, exc: BaseException) -> BaseException | None:
        """Keep what a child has raised, and cancel its siblings.

        Returns:
            The cancellation in it, which has to go on.
        """
        failure, cancellation = without_cancellation(exc)
        # A call that failed while it was cancelled says so by a group of its error and the cancellation.
        mixed = cancellation is not None and isinstance(failure, BaseExceptionGroup)
        for each in failure.exceptions if mixed and isinstance(failure, BaseExceptionGroup) else (failure,):
            if isinstance(each, Exception):
                self.errors.append(each)
            elif each is not None:
                self.fatal = self.fatal or each
        if failure is not None:
            self.scope.cancel()
        return cancellation

    def concluded(self, own: BaseException | None, message: str) -> BaseException | None:
        """What the owner raises, the gravest first.

        Args:
            own: What it has itself come to: an error of its body, or a cancellation from outside.
            message: What to say of the children's failures.

        Returns:
            What ends the program; else the failures, with the body's own error before them; else what `own` is.
        """
        # Not kept: the traceback of each holds the frame of a child, which holds this.
        fatal, self.fatal = self.fatal, None
        errors, self.errors = self.errors, []
        try:
            if fatal is not None:
                return fatal
            if not errors:
                return own
            if own is None or own in errors or is_cancellation(own):
                return TaskGroupError(message, errors)
            return BaseExceptionGroup(message, [own, *errors])
        finally:
            del fatal, errors, own


def is_cancellation(exc: BaseException | None) -> bool:
    """Whether it is the event loop's cancellation, or a group with one in it."""
    return exc is not None and without_cancellation(exc)[1] is not None


def without_cancellation(exc: BaseException) -> tuple[BaseException | None, BaseException | None]:
    """What an exception is but for the event loop's cancellation in it, and that cancellation."""
    cancelled = get_cancelled_exc_class()
    if isinstance(exc, cancelled):
        return None, exc
    if isinstance(exc, BaseExceptionGroup):
        cancellation, failure = exc.split(cancelled)
        return (failure, cancellation) if cancellation is not None else (exc, None)
    return exc, None
