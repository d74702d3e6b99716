"""Calls of tasks: so many at once, each in a task of the event loop of its own."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import anyio
from anyio import TaskHandle, get_cancelled_exc_class
from anyio.abc import TaskGroup
from anyio.lowlevel import checkpoint

from . import _checks
from ._context import Home, whereabouts
from ._eventloop import comes_from_scope
from ._failures import Failures, without_cancellation
from ._jobs import Job, Jobs
from ._protocols import Backend

__all__ = ["FanOut"]

_STRIDE = 64  # calls that are started in a row, before the event loop gets its turn


class FanOut:
    """Calls, started as fast as there is room.

    Args:
        jobs: What is called.
        limit: How many calls run at once; `None` for any number.
        backend: Where sync functions run; `None` for where they or the session say.
        errors: `"collect"` if a failed call is a result like others, and does not end the rest; else `"raise"`.

    Raises:
        TypeError: `limit` is no whole number.
        ValueError: `limit` is less than 1, `errors` neither of the two, or `backend` for nothing.
        SessionError: The session has begun to end.
    """

    def __init__(self, jobs: Jobs, *, limit: Any, backend: Any, errors: Any) -> None:
        position = whereabouts()
        self.jobs: Jobs = jobs
        self.where: str = jobs.where
        self._places: anyio.Semaphore | None = None
        if limit is not None:
            _checks.whole(f"{self.where}: limit", limit, least=1)
            self._places = anyio.Semaphore(limit, fast_acquire=True)
        self.collect: bool = _checks.one_of(f"{self.where}: errors", errors, ("raise", "collect")) == "collect"
        self._backends: Mapping[Any, Backend | None] = backends_of(jobs, backend, position.home)
        self.window: anyio.Semaphore | None = None  # if set, a place in it is taken for each call, and never given back
        self.started: int = 0  # calls
        self._is_known: bool = position.home.books is not None  # so that calls can be found, and cancelled alone
        self._running: dict[int, TaskHandle[None]] = {}
        self._failures = Failures()
        self._cancelled: type[BaseException]  # by the event loop, from when that runs
        self._is_over: bool = False
        self._grace = position.home.settings.grace
        if position.home.leaving:
            position.home.refuse(f"{jobs.subject} {'was' if len(jobs.tasks) == 1 else 'were'} called", position)

    async def run(self, keep: Callable[[int, Any, Exception | None], None]) -> None:
        """Make the calls, from the first to the last, and wait for them.

        Args:
            keep: Given the index of a call that has ended, its value, and its error if errors are collected.

        Raises:
            TaskGroupError: Calls failed.
            Exception: A source failed.
        """
        own: BaseException | None = None
        self._cancelled = get_cancelled_exc_class()
        try:
            async with anyio.create_task_group() as group:
                self._failures.scope = group.cancel_scope
                try:
                    await self.jobs.while_open(partial(self._start, group, keep), self._grace)
                except BaseException as exc:
                    own, cancellation = without_cancellation(exc)
                    if cancellation is not None:
                        raise cancellation
                    group.cancel_scope.cancel()
        except BaseException as exc:
            own = own or exc
        if self._is_over:
            self._failures.errors.clear()
        error = self._failures.concluded(own, f"Calls of {self.jobs.subject} failed")
        try:
            if error is not None:
                raise error
        finally:
            del error, own  # else its traceback, which holds this frame, would hold itself

    def stop(self) -> None:
        """Cancel what runs, and start nothing more: nobody needs it, nor what it fails with."""
        self._is_over = True
        self._failures.scope.cancel()

    async def _start(self, group: TaskGroup, keep: Callable[[int, Any, Exception | None], None]) -> None:
        for index in itertools.count():
            while True:
                try:
                    await self._room_for(index)
                    break
                except self._cancelled as exc:
                    if not await self.jobs.absorb(exc):
                        raise
            # Only now: what is not taken yet is not lost when a call fails.
            job = await self.jobs.take()
            if job is None:
                return
            self.started += 1
            handle = group.create_task(self._one(index, job, keep), name=job[0].name)
            if self._is_known:
                self._running[index] = handle

    async def _room_for(self, index: int) -> None:
        """Wait until another call may begin."""
        if self.window is not None:
            await self.window.acquire()
        if self._places is not None:
            try:
                await self._places.acquire()
            except BaseException:
                if self.window is not None:
                    self.window.release()
                raise
        elif index % _STRIDE == _STRIDE - 1:
            await checkpoint()

    async def _one(self, index: int, job: Job, keep: Callable[[int, Any, Exception | None], None]) -> None:
        try:
            if self._failures.scope.cancel_called:
                return
            task, args, kwargs = job
            del job
            value = await task._run_one(args, kwargs, index, self._backends[task], self._cancel)
        except self._cancelled:  # a clause of its own: ten thousand of them may be cancelled at once
            if comes_from_scope():
                raise
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
            del keep  # else an error that it has kept, and of which the traceback holds this frame, would hold itself
            if self._is_known:
                self._running.pop(index, None)
            if self._places is not None:
                self._places.release()

    def _cancel(self, index: int) -> None:
        """Cancel one call by itself."""
        if index in self._running:
            self._running[index].cancel()


def backends_of(jobs: Jobs, name: Any, home: Home) -> dict[Any, Backend | None]:
    """Where the calls of each task run; `None` if in the event loop.

    Raises:
        TypeError: It is no name.
        ValueError: There is no such backend, or it is not for these tasks.
    """
    if name is not None and jobs.tasks and all(task.is_async for task in jobs.tasks):
        kind = "this one is" if len(jobs.tasks) == 1 else "these are"
        raise ValueError(f"{jobs.where}: backend={name!r} is for sync functions; {kind} async")
    return {task: None if task.is_async else task._backend(name, home) for task in jobs.tasks}
