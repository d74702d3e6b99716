"""Calls for the items of iterables: so many at once, each in a task of the event loop of its own."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Callable, Iterator
from functools import partial
from typing import Any

import anyio
from anyio import TaskHandle
from anyio.abc import TaskGroup
from anyio.lowlevel import checkpoint

from . import _checks
from ._context import whereabouts
from ._failures import Failures, without_cancellation
from ._protocols import Backend
from .tasks import AsyncStream, Task, as_task

__all__ = ["FanOut"]

_STRIDE = 64  # calls that are started in a row, before the event loop gets its turn


class Sources:
    """Arguments for calls: one from each iterable, until the shortest is exhausted."""

    def __init__(self, where: str, iterables: tuple[Any, ...]) -> None:
        if not iterables:
            raise TypeError(f"{where}: there is no iterable to take arguments from")
        self._iterators = [_iterator(where, number, each) for number, each in enumerate(iterables, start=1)]

    async def take(self) -> tuple[Any, ...] | None:
        """The arguments of the next call; `None` if there are no more."""
        taken: list[Any] = []
        try:
            for iterator in self._iterators:
                if isinstance(iterator, AsyncIterator):
                    taken.append(await iterator.__anext__())
                else:
                    taken.append(next(iterator))
        except (StopIteration, StopAsyncIteration):
            return None
        return tuple(taken)

    async def aclose(self, grace: float) -> None:
        """Close the async generators among them, which would else be left to the event loop to end."""
        deadline = anyio.current_time() + grace
        failure: Exception | None = None
        for iterator in self._iterators:
            if isinstance(iterator, AsyncIterator) and hasattr(iterator, "aclose"):
                # A scope for each: one that takes too long, or fails, does not keep the next from being closed.
                with anyio.CancelScope(deadline=deadline, shield=True):
                    try:
                        await iterator.aclose()
                    except Exception as exc:
                        failure = failure or exc
        if failure is not None:
            raise failure


def _iterator(where: str, number: int, iterable: Any) -> Iterator[Any] | AsyncIterator[Any]:
    if hasattr(iterable, "__aiter__"):
        asynchronous: AsyncIterator[Any] = iterable.__aiter__()
        if isinstance(asynchronous, AsyncStream):
            asynchronous._steps.is_owned = True  # it is closed here
        return asynchronous
    try:
        synchronous: Iterator[Any] = iter(iterable)
        return synchronous
    except TypeError:
        raise TypeError(f"{where}: iterable {number} is {iterable!r}, which cannot be iterated over") from None


class FanOut:
    """A call of a task for each item, started as fast as there is room.

    Args:
        what: The public function, for messages.
        target: The task, or a function.
        iterables: Where the arguments come from.
        limit: How many calls run at once; `None` for any number.
        backend: Where sync functions run; `None` for where they or the session say.
        errors: `"collect"` if a failed call is a result like others, and does not end the rest; else `"raise"`.

    Raises:
        TypeError: The task or an iterable is none, or `limit` no whole number.
        ValueError: `limit` is less than 1, or `errors` neither of the two.
        SessionError: The session has begun to end.
    """

    def __init__(
        self, what: str, target: Any, iterables: tuple[Any, ...], *, limit: Any, backend: Any, errors: Any
    ) -> None:
        position = whereabouts()
        self.task: Task[Any, Any] = as_task(target)
        self.where: str = f"{what} of task {self.task.name!r}"
        self._sources = Sources(self.where, iterables)
        self._places: anyio.Semaphore | None = None
        if limit is not None:
            _checks.whole(f"{self.where}: limit", limit, least=1)
            self._places = anyio.Semaphore(limit, fast_acquire=True)
        self.collect: bool = _checks.one_of(f"{self.where}: errors", errors, ("raise", "collect")) == "collect"
        self._backend: Backend | None = None
        if not self.task.is_async:
            self._backend = self.task._backend(backend, position.home)
        elif backend is not None:
            raise ValueError(f"{self.where}: backend={backend!r} is for sync functions; this one is async")
        self.window: anyio.Semaphore | None = None  # if set, a place in it is taken for each call, and never given back
        self.started: int = 0  # calls
        self._running: dict[int, TaskHandle[None]] = {}
        self._failures = Failures()
        self._grace = position.home.settings.grace
        if position.home.leaving:
            position.home.refuse(f"task {self.task.name!r} was called", position)

    async def run(self, keep: Callable[[int, Any, Exception | None], None]) -> None:
        """Make the calls, from the first item to the last, and wait for them.

        Args:
            keep: Given the index of a call that has ended, its value, and its error if errors are collected.

        Raises:
            TaskGroupError: Calls failed.
            Exception: A source failed.
        """
        own: BaseException | None = None
        try:
            async with anyio.create_task_group() as group:
                self._failures.scope = group.cancel_scope
                try:
                    await self._start(group, keep)
                except BaseException as exc:
                    own, cancellation = without_cancellation(exc)
                    if cancellation is not None:
                        raise cancellation
                    group.cancel_scope.cancel()
        except BaseException as exc:
            own = own or exc
        error = self._failures.concluded(own, f"Calls of task {self.task.name!r} failed")
        try:
            if error is not None:
                raise error
        finally:
            del error, own  # else its traceback, which holds this frame, would hold itself

    async def _start(self, group: TaskGroup, keep: Callable[[int, Any, Exception | None], None]) -> None:
        try:
            for index in itertools.count():
                if self.window is not None:
                    await self.window.acquire()
                if self._places is not None:
                    await self._places.acquire()
                elif index % _STRIDE == _STRIDE - 1:
                    await checkpoint()
                # Only now: what is not taken yet is not lost when a call fails.
                args = await self._sources.take()
                if args is None:
                    return
                self.started += 1
                self._running[index] = group.create_task(self._one(index, args, keep), name=self.task.name)
        finally:
            await self._sources.aclose(self._grace)

    async def _one(self, index: int, args: tuple[Any, ...], keep: Callable[[int, Any, Exception | None], None]) -> None:
        try:
            if self._failures.scope.cancel_called:
                return
            cancel = partial(self._cancel, index)
            value = await self.task._run_one(args, index, self._backend, cancel)
        except BaseException as exc:
            if self.collect and isinstance(exc, Exception):
                keep(index, None, exc)
                return
            cancellation = self._failures.add(exc)
            if cancellation is not None:
                raise cancellation
        else:
            keep(index, value, None)
        finally:
            self._running.pop(index, None)
            if self._places is not None:
                self._places.release()

    def _cancel(self, index: int) -> None:
        """Cancel one call by itself."""
        if index in self._running:
            self._running[index].cancel()
