"""What comes of the calls of a fan-out, one by one."""

from __future__ import annotations

import sys
from collections import deque
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Generic, Literal, TypeVar

import anyio
from anyio.abc import TaskGroup
from typing_extensions import Self

from ._failures import is_cancellation
from ._fan_out import FanOut
from ._typing import NOT_GIVEN
from .exceptions import CallCancelledError, TaskGroupError

if sys.version_info < (3, 11):
    from exceptiongroup import BaseExceptionGroup

__all__ = ["Outcome", "Race", "TaskResults", "refuse_missing"]

R = TypeVar("R")


@dataclass(frozen=True)
class Outcome(Generic[R]):
    """How one call of a fan-out has ended, with `errors="collect"`.

    Args:
        index: The position of its arguments among the items, from 0.
        value: What it returned; `None` if it failed.
        error: What it raised; `None` if it succeeded.
    """

    index: int
    value: R | None = None
    error: Exception | None = None


class TaskResults(Generic[R]):
    """The results of `stream_tasks`: enter it with `async with`, then iterate over it with `async for`.

    Leaving it early cancels the calls that still run, and waits for them.
    """

    def __init__(self, fan_out: FanOut, window: int, *, ordered: bool) -> None:
        fan_out.window = anyio.Semaphore(window, fast_acquire=True)
        self._window = fan_out.window
        self._fan_out = fan_out
        self._ready: _Arrived | _InOrder = _InOrder() if ordered else _Arrived()
        self._ended = 0  # calls
        self._state: Literal["new", "running", "finished", "left"] = "new"
        self._error: BaseException | None = None  # to be raised once all results are handed out
        self._wake: anyio.Event | None = None
        self._group: TaskGroup

    def __aiter__(self) -> Self:
        return self

    async def __aenter__(self) -> Self:
        if self._state != "new":
            raise RuntimeError(f"{self._fan_out.where}: its results can be entered once; call it again")
        self._state = "running"
        self._group = anyio.create_task_group()
        await self._group.__aenter__()
        # The calls are in a group of their own inside that task: their failure does not cancel the consumer.
        self._group.start_soon(self._work, name=self._fan_out.where)
        return self

    async def __anext__(self) -> R:
        if self._state == "new":
            raise RuntimeError(f"{self._fan_out.where}: its results have to be entered, with `async with`")
        while True:
            if self._ready.has_next(finished=self._state != "running"):
                self._window.release()
                return self._ready.take()  # type: ignore[no-any-return]
            if self._state != "running":
                self._raise_error()
                raise StopAsyncIteration
            if self._wake is None or self._wake.is_set():
                self._wake = anyio.Event()  # for all that wait, should several tasks share the results
            await self._wake.wait()

    def _raise_error(self) -> None:
        error, self._error = self._error, None
        try:
            if error is not None:
                raise error
        finally:
            del error  # else its traceback, which holds this frame, would hold itself

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._group.cancel_scope.cancel()
        interrupted: BaseException | None = None
        try:
            await self._group.__aexit__(None, None, None)
        except BaseException as caught:
            interrupted = caught
        self._state = "left"
        if self._error is None and exc is None:
            self._error = interrupted
        elif isinstance(self._error, Exception) and exc is not None and not is_cancellation(exc):
            text = f"{self._fan_out.where}: what used the results failed, and calls did"
            self._error = BaseExceptionGroup(text, [exc, self._error])
        self._raise_error()

    async def _work(self) -> None:
        try:
            await self._fan_out.run(self._keep)
            if not self._group.cancel_scope.cancel_called:
                refuse_missing(self._fan_out, self._ended)
        except BaseException as exc:
            if is_cancellation(exc):
                raise
            self._error = exc
        finally:
            if self._state == "running":
                self._state = "finished"
            self._rouse()

    def _keep(self, index: int, value: Any, error: Exception | None) -> None:
        self._ended += 1
        self._ready.put(index, Outcome(index, value, error) if self._fan_out.collect else value)
        self._rouse()

    def _rouse(self) -> None:
        if self._wake is not None:
            self._wake.set()


class _Arrived:
    """Results as they come."""

    def __init__(self) -> None:
        self._waiting: deque[Any] = deque()

    def put(self, index: int, result: Any) -> None:
        self._waiting.append(result)

    def has_next(self, *, finished: bool) -> bool:
        return bool(self._waiting)

    def take(self) -> Any:
        return self._waiting.popleft()


class _InOrder:
    """Results in the order of their items; once all calls have ended, also past one that failed."""

    def __init__(self) -> None:
        self._waiting: dict[int, Any] = {}
        self._next = 0

    def put(self, index: int, result: Any) -> None:
        self._waiting[index] = result

    def has_next(self, *, finished: bool) -> bool:
        if finished and self._waiting:
            self._next = min(self._waiting)
        return self._next in self._waiting

    def take(self) -> Any:
        self._next += 1
        return self._waiting.pop(self._next - 1)


class Race:
    """The first success of some calls, which ends the others.

    Args:
        fan_out: The calls.
    """

    def __init__(self, fan_out: FanOut) -> None:
        self._fan_out = fan_out
        self._value: Any = NOT_GIVEN
        self._errors: list[Exception] = []

    async def run(self) -> Any:
        """Make the calls, and return what the first has returned.

        Raises:
            TaskGroupError: None has succeeded.
        """
        await self._fan_out.run(self._keep)
        errors, self._errors = self._errors, []
        try:
            if self._value is NOT_GIVEN:
                if errors:
                    raise TaskGroupError(f"All calls of {self._fan_out.jobs.subject} failed", errors)
                refuse_missing(self._fan_out, 0)
            return self._value
        finally:
            del errors  # else the traceback of each, which holds this frame, would hold itself

    def _keep(self, index: int, value: Any, error: Exception | None) -> None:
        if error is not None:
            self._errors.append(error)
        elif self._value is NOT_GIVEN:
            self._value = value
            self._fan_out.stop()


def refuse_missing(fan_out: FanOut, ended: int) -> None:
    """Raise if somebody cancelled calls, each by itself, with the event loop's own means.

    Args:
        fan_out: The calls, none of which has failed.
        ended: How many of them gave a result.

    Raises:
        TaskGroupError: Some did not.
    """
    subject, missing = fan_out.jobs.subject, fan_out.started - ended
    if missing:
        error = CallCancelledError(f"{missing} of {fan_out.started} calls of {subject} were cancelled")
        raise TaskGroupError(f"Calls of {subject} were cancelled", [error])
