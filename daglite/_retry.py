"""Whether to try again, and when."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

from . import _checks
from ._checks import finite
from .exceptions import TaskError

__all__ = ["Backoff", "RetryDelay", "RetryOn", "delay_before"]


@dataclass(frozen=True, slots=True)
class Backoff:
    """Waits before retries that grow, each `factor` times as long as the one before.

    ```python
    from daglite import Backoff, task


    @task(retries=5, retry_delay=Backoff(initial=0.2, maximum=10))
    async def fetch(url: str) -> bytes: ...


    assert [Backoff(jitter=False)(retry) for retry in (1, 2, 3)] == [0.1, 0.2, 0.4]
    ```

    With `jitter` a wait is a random part of that, between half of it and all, so that clients that have failed together do
    not come back together.

    Args:
        initial: Seconds before the first retry; 0.1 by default.
        maximum: Seconds that no wait exceeds; 5 by default.
        factor: How much longer each wait is than the one before; 2 by default, at least 1.
        jitter: Whether waits are random; they are by default.

    Raises:
        TypeError: One of them is no number, or `jitter` no bool.
        ValueError: One of them is out of range.
    """

    initial: float = 0.1
    maximum: float = 5.0
    factor: float = 2.0
    jitter: bool = True

    def __post_init__(self) -> None:
        finite("Backoff: initial", self.initial, least=0)
        finite("Backoff: maximum", self.maximum, least=self.initial)
        finite("Backoff: factor", self.factor, least=1)
        _checks.flag("Backoff: jitter", self.jitter)

    def __call__(self, retry: int) -> float:
        """Seconds to wait before a retry.

        Args:
            retry: Its number: 1, 2, …
        """
        try:
            delay = float(min(self.initial * float(self.factor) ** (retry - 1), self.maximum))
        except OverflowError:  # after so many that only the maximum is left
            delay = float(self.maximum) if self.initial else 0.0
        if not self.jitter:
            return delay
        import random  # for those who wait

        return delay * random.uniform(0.5, 1)


RetryOn: TypeAlias = type[Exception] | tuple[type[Exception], ...] | Callable[[Exception], bool | float]
RetryDelay: TypeAlias = float | Callable[[int], float]


def delay_before(name: str, retry_on: RetryOn, retry_delay: RetryDelay, retry: int, error: Exception) -> float | None:
    """Seconds to wait before the next attempt, or `None` if this error is not to be retried.

    Args:
        name: The task's, for messages.
        retry_on: Exception types, or a predicate that says whether, or after how many seconds.
        retry_delay: Seconds to wait, or what says how many before which retry, unless the predicate says.
        retry: The retry's number.
        error: What went wrong.

    Raises:
        TypeError: The predicate returned neither a bool nor a number, or `retry_delay` no number.
        ValueError: Either returned seconds that are negative or not finite.
    """
    if isinstance(retry_on, (type, tuple)):
        # A nested task wraps what its function raised: both are what went wrong.
        nested = isinstance(error, TaskError) and isinstance(error.root_cause, retry_on)
        answer: Any = nested or isinstance(error, retry_on)
    else:
        answer = retry_on(error)
    if not isinstance(answer, bool):
        if not isinstance(answer, (int, float)):
            raise TypeError(f"task {name!r}: retry_on must return a bool or the seconds to wait, not {answer!r}")
        return finite(f"task {name!r}: the result of retry_on", answer, least=0)
    if not answer:
        return None
    if callable(retry_delay):
        return finite(f"task {name!r}: the result of retry_delay", retry_delay(retry), least=0)
    return retry_delay
