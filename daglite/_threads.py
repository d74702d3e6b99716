"""The worker threads of a session, or of an event loop outside sessions, and those that outlive their deadline."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

import anyio
from anyio import CapacityLimiter, to_thread
from anyio.lowlevel import RunVar

from . import _clock
from ._eventloop import Loop
from ._protocols import AttemptRefused, AttemptTimeout
from ._running import Running
from .exceptions import BackendError
from .settings import get_settings

if TYPE_CHECKING:
    from ._protocols import Watched

__all__ = ["ENDLESS", "Patience", "Stuck", "Threads", "Work", "threads_of_loop"]


class Work(Protocol):
    """What a thread is given to do."""

    name: str
    began: float
    deadline: float | None
    expires: float
    threads: Threads | None
    loop: Loop | None
    has_place: bool
    given_up: bool
    trips: Running[Any] | None

    @property
    def call(self) -> Watched | None:
        """The call that it is for."""
        ...

    def run(self) -> None:
        """Do it; its outcome is kept, and not raised."""
        ...

    def abandon(self, stuck: Stuck) -> bool:
        """Give it up: false if it has ended already, and its outcome is there."""
        ...

    def cancel(self, wake: Callable[[], object]) -> bool:
        """Let it notice, if it asks, and be called when it has ended: false if it does not run."""
        ...

    @property
    def is_done(self) -> bool:
        """Whether it was done, and its outcome is there."""
        ...


class Stuck(Running[Work]):
    """The threads that were abandoned and still run. Python cannot stop them; so they are counted.

    Args:
        owner: Whose threads they are, for messages.
        limit: How many there may be before no other thread is given out; by default as many as the settings say.
    """

    def __init__(self, owner: str, limit: int | None = None) -> None:
        super().__init__()
        self._owner = owner
        self._limit = limit

    def names(self) -> str:
        """The tasks whose functions they run, for messages."""
        return ", ".join(sorted(repr(work.name) for work in self.copy()))

    def refuse(self, name: str) -> None:
        """Raise if there are too many to start another thread.

        Raises:
            AttemptRefused: With the `BackendError`.
        """
        limit = get_settings().max_threads if self._limit is None else self._limit
        if len(self) >= limit:
            raise AttemptRefused(
                BackendError(
                    f"task {name!r} cannot have a thread: {limit} of {self._owner} are stuck past their deadlines "
                    f"in {self.names()}"
                )
            )


class Patience:
    """How long those that were cancelled wait for their threads: until they end, or until a session says otherwise.

    Args:
        begun: Called when somebody waits, and no deadline is set.
    """

    def __init__(self, begun: Callable[[], None]) -> None:
        self.deadline: float = math.inf
        self._begun = begun
        self._waiting: set[anyio.CancelScope] = set()

    def end_at(self, deadline: float) -> None:
        """Let all wait until then, by the event loop's clock."""
        self.deadline = deadline
        for scope in self._waiting:
            scope.deadline = deadline

    async def wait(self, ended: anyio.Event) -> bool:
        """Wait, whatever is cancelled.

        Returns:
            Whether it has ended in time.
        """
        if self.deadline == math.inf:
            self._begun()
        with anyio.CancelScope(shield=True, deadline=self.deadline) as scope:
            self._waiting.add(scope)
            try:
                await ended.wait()
            finally:
                self._waiting.discard(scope)
        return ended.is_set()


ENDLESS = Patience(lambda: None)  # of those that no session bounds


class Threads:
    """Worker threads, so many at once.

    Args:
        owner: Whose they are, for messages.
        max_threads: How many.
        patience: How long those that were cancelled wait for threads without a deadline; by default until they end.
    """

    def __init__(self, owner: str, max_threads: int, patience: Patience | None = None) -> None:
        self.max_threads: int = max_threads
        self.patience: Patience = patience or ENDLESS
        self.stuck: Stuck = Stuck(owner, max_threads)
        self._limiter: CapacityLimiter | None = None  # made for the first: most sessions have no threads
        self.loop: Loop  # from when there is a limiter
        self._uncounted: CapacityLimiter

    async def run(self, work: Work, timeout: float | None) -> None:
        """Have something done in a worker thread, in a copy of the current context, and wait for it.

        Args:
            work: What is to be done.
            timeout: Seconds after which it is abandoned; the wait for a free thread does not count.

        Raises:
            AttemptTimeout: The time was up.
            AttemptRefused: Too many threads are stuck.
        """
        self.stuck.refuse(work.name)
        limiter = self._limiter
        if limiter is None:
            limiter = self._limiter = CapacityLimiter(self.max_threads)
            # Ours counts. That of an abandoned thread is free at once; Trio would keep it until the thread ends.
            self._uncounted = CapacityLimiter(math.inf)
            self.loop = Loop()
        await acquire(limiter, work)
        work.threads, work.loop, work.has_place = self, self.loop, True
        left = anyio.current_effective_deadline() - anyio.current_time()
        work.expires = _clock.monotonic() + (left if timeout is None else min(left, timeout))
        try:
            self.stuck.refuse(work.name)
            if timeout is None:
                await self._run_shielded(work)
            else:
                await self._run_within(timeout, work)
        except BaseException:  # cancelled
            work.abandon(self.stuck)
            raise
        finally:
            self.give_place(work)
            if work.trips:  # cancelled, as the thread was abandoned; without a caller they would belong to nobody
                with anyio.CancelScope(shield=True):
                    await work.trips.until_none()

    def give_place(self, work: Work) -> bool:
        """Let another thread run instead of one that waits for the event loop; false if it has no place."""
        if not work.has_place:
            return False
        assert self._limiter is not None
        work.has_place = False
        self._limiter.release_on_behalf_of(work)
        return True

    async def take_place(self, work: Work) -> None:
        """Wait until it may run again. Whoever waits for a thread has no place, so that none waits for another."""
        assert self._limiter is not None
        await acquire(self._limiter, work)
        work.has_place = True
        if work.given_up:  # in the meantime; it goes on, but is not counted among these any more
            self.give_place(work)

    async def _run_shielded(self, work: Work) -> None:
        # What is to be abandoned at some time has to be so from the start: anyio's own shield has no end.
        bounded = self.patience is not ENDLESS
        try:
            await to_thread.run_sync(work.run, limiter=self._uncounted, abandon_on_cancel=bounded)
        except BaseException:
            # Or a native `Task.cancel`, to which anyio's shield is none: the thread runs. A second one gives it up.
            loop, ended = Loop(), anyio.Event()
            if work.cancel(lambda: loop.post(ended.set)):
                await self.patience.wait(ended)
            # As with anyio's shield: a value that is there is returned, and the next checkpoint is cancelled.
            if not (work.is_done and anyio.current_effective_deadline() == -math.inf):
                raise

    async def _run_within(self, timeout: float, work: Work) -> None:
        deadline = anyio.current_time() + timeout
        work.deadline = _clock.monotonic() + timeout
        with anyio.CancelScope(deadline=deadline) as scope:
            await to_thread.run_sync(work.run, limiter=self._uncounted, abandon_on_cancel=True)
        # A value that arrives wins, also one that the thread has, and the event loop has not seen yet; but not that the
        # thread was the first to notice that its time was up.
        if scope.cancelled_caught and (work.abandon(self.stuck) or not work.is_done):
            raise AttemptTimeout(deadline)


async def acquire(limiter: CapacityLimiter, work: Work) -> None:
    """Wait for a place, but not for the event loop if there is one: who gets it is about to wait for a thread."""
    try:
        limiter.acquire_on_behalf_of_nowait(work)
    except anyio.WouldBlock:
        await limiter.acquire_on_behalf_of(work)


# Not anyio's default limiter, whose tokens web frameworks hold for their sync endpoints: those that go back to the
# event loop and into threads again would wait for each other.
_threads: RunVar[Threads] = RunVar("daglite_threads")


def threads_of_loop() -> Threads:
    """The worker threads of calls that are in no session, for each event loop its own."""
    try:
        return _threads.get()
    except LookupError:
        threads = Threads("the event loop's threads", get_settings().max_threads)
        _threads.set(threads)
        return threads
