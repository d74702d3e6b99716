"""Whether to try again, and when."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

from ._checks import finite
from .exceptions import TaskError

__all__ = ["RetryOn", "delay_before"]

RetryOn: TypeAlias = type[Exception] | tuple[type[Exception], ...] | Callable[[Exception], bool | float]


def delay_before(name: str, retry_on: RetryOn, retry_delay: float, error: Exception) -> float | None:
    """Seconds to wait before the next attempt, or `None` if this error is not to be retried.

    Args:
        name: The task's, for messages.
        retry_on: Exception types, or a predicate that says whether, or after how many seconds.
        retry_delay: Seconds to wait, unless the predicate says.
        error: What went wrong.

    Raises:
        TypeError: The predicate returned neither a bool nor a number.
        ValueError: It returned seconds that are negative or not finite.
    """
    if isinstance(retry_on, (type, tuple)):
        # A nested task wraps what its function raised: both are what went wrong.
        nested = isinstance(error, TaskError) and isinstance(error.root_cause, retry_on)
        return retry_delay if nested or isinstance(error, retry_on) else None
    answer: Any = retry_on(error)
    if isinstance(answer, bool):
        return retry_delay if answer else None
    if not isinstance(answer, (int, float)):
        raise TypeError(f"task {name!r}: retry_on must return a bool or the seconds to wait, not {answer!r}")
    return finite(f"task {name!r}: the result of retry_on", answer, least=0)
