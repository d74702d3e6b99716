"""Which threads an event loop waits for, and whether they work or wait for it in turn."""

from __future__ import annotations

import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import anyio._core._eventloop

from .._eventloop import Loop, threads_of_trio
from .._thread_streams import ThreadSteps
from .._threads import Patience, Stuck
from .._trips import Trip

__all__ = ["ThreadsAtWork"]


class Work:
    """What a thread does that a task waits for.

    Attributes:
        away: For how many things the thread waits in the event loop, one inside the other.
    """

    __slots__ = ("away",)

    def __init__(self) -> None:
        self.away: int = 0


class ThreadsAtWork:
    """The threads that the tasks of an event loop wait for.

    All is counted in the event loop: a thread has worked until a task of it goes on, and waits for the event loop from when
    that has begun what it waits for. So there is no moment in which a thread that is about to be heard of is not counted.

    Args:
        loop: The event loop.
        native: What asyncio or Trio know it by.
    """

    def __init__(self, loop: Loop, native: Any) -> None:
        self._loop = loop
        self._native = native
        self._waited_for: set[Work] = set()
        self._of_thread: dict[int, Work] = {}
        self._undo: list[Callable[[], None]] = []

    def are_at_work(self) -> bool:
        """Whether a task waits for a thread that does not wait for the event loop."""
        return any(not work.away for work in self._waited_for)

    def watch(self) -> None:
        """Begin to count."""
        backend = anyio._core._eventloop.get_async_backend()
        in_thread = self._in_thread(backend.run_sync_in_worker_thread)
        from_thread = self._from_thread(backend.run_async_from_thread)
        await_step, begin, hold = ThreadSteps._await, Trip._set_out, Trip._hold
        wait, until_none = Patience.wait, Stuck.until_none

        async def await_in_thread(steps: Any, make: Any, limit: Any) -> Any:
            with self._waiting() as work:
                return await await_step(steps, self._known(work, make), limit)

        async def wait_patiently(patience: Any, ended: Any) -> bool:
            with self._waiting():
                return await wait(patience, ended)

        async def wait_for_abandoned(stuck: Any) -> None:
            with self._waiting():
                await until_none(stuck)

        def set_out(trip: Any) -> None:
            trip.work = self._here()
            begin(trip)

        async def hold_trip(trip: Any) -> None:
            await self._while_away(trip.work, hold, trip)

        self._replace(backend, "run_sync_in_worker_thread", staticmethod(in_thread))
        self._replace(backend, "run_async_from_thread", staticmethod(from_thread))
        self._replace(ThreadSteps, "_await", await_in_thread)
        self._replace(Patience, "wait", wait_patiently)
        self._replace(Stuck, "until_none", wait_for_abandoned)
        self._replace(Trip, "_set_out", set_out)
        self._replace(Trip, "_hold", hold_trip)
        if self._loop.name == "asyncio":
            self._watch_executors()
        else:
            self._watch_trio()

    def unwatch(self) -> None:
        """Count no more."""
        while self._undo:
            self._undo.pop()()

    def _watch_executors(self) -> None:
        run = self._native.run_in_executor

        def run_in_executor(executor: Any, func: Any, *args: Any) -> Any:
            work = Work()
            future = run(executor, self._known(work, func), *args)
            self._waited_for.add(work)
            future.add_done_callback(lambda _: self._waited_for.discard(work))
            return future

        self._replace(self._native, "run_in_executor", run_in_executor)

    def _watch_trio(self) -> None:
        """What programs do without anyio, which has the first function by a name of its own."""
        to_thread, from_thread = threads_of_trio()
        self._replace(to_thread, "run_sync", self._in_thread(to_thread.run_sync))
        self._replace(from_thread, "run", self._from_thread(from_thread.run))

    def _in_thread(self, run: Callable[..., Any]) -> Callable[..., Any]:
        """A function like this, which has a thread run something and waits for it."""

        async def run_in_thread(func: Any, *args: Any, **options: Any) -> Any:
            with self._waiting() as work:
                return await run(self._known(work, func), *args, **options)

        return run_in_thread

    def _from_thread(self, run: Callable[..., Any]) -> Callable[..., Any]:
        """A function like this, by which a thread has the event loop await something."""

        def run_from_thread(func: Any, *args: Any, **options: Any) -> Any:
            return run(partial(self._while_away, self._here(), func), *args, **options)

        return run_from_thread

    def _replace(self, owner: Any, name: str, value: Any) -> None:
        # As it stands there, and not as it binds; what is inherited does not.
        undo = (
            partial(setattr, owner, name, vars(owner)[name]) if name in vars(owner) else partial(delattr, owner, name)
        )
        self._undo.append(undo)
        setattr(owner, name, value)

    def _here(self) -> Work | None:
        return self._of_thread.get(threading.get_ident())

    @contextmanager
    def _waiting(self) -> Iterator[Work | None]:
        """A task waits for a thread in the meantime; `None` if it is one of another event loop."""
        if not self._loop.is_running_here():
            yield None
            return
        work = Work()
        self._waited_for.add(work)
        try:
            yield work
        finally:
            self._waited_for.discard(work)

    def _known(self, work: Work | None, func: Callable[..., Any]) -> Callable[..., Any]:
        """A function whose thread is known to do that work."""
        if work is None:
            return func

        def known(*args: Any) -> Any:
            ident = threading.get_ident()
            self._of_thread[ident] = work
            try:
                return func(*args)
            finally:
                self._of_thread.pop(ident, None)

        return known

    async def _while_away(self, work: Work | None, func: Callable[..., Awaitable[Any]], *args: Any) -> Any:
        """Await in the event loop what a thread waits for."""
        if work is None:
            return await func(*args)
        work.away += 1
        try:
            return await func(*args)
        finally:
            work.away -= 1
