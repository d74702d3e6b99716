"""What lets attempts begin, so many at once or so many in a time: counters with a queue, for event loops and threads.

Whoever does not get in at once joins the queue, and waits for as long as `Gate.delay` says. Who leaves it, cancelled in a loop or
interrupted in a thread, leaves nothing behind: what was given to it is given to the next.
"""

from __future__ import annotations

import math
import os
import threading
from abc import abstractmethod
from collections import OrderedDict
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

import anyio

from . import _clock
from ._eventloop import Loop

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["Gate", "Pace", "Tokens", "Waiter"]


class Waiter:
    """Somebody in a queue.

    Args:
        event: What it waits with.
        loop: The event loop in which it does so; `None` if it is a thread that waits in none.
    """

    __slots__ = ("event", "is_admitted", "loop")

    def __init__(self, event: anyio.Event | threading.Event, loop: Loop | None) -> None:
        self.event: Any = event
        self.loop: Loop | None = loop
        self.is_admitted: bool = False

    @classmethod
    def in_loop(cls) -> Self:
        """One in the event loop of this thread."""
        return cls(anyio.Event(), Loop())

    def wake(self) -> bool:
        """Let it look how long it has to wait, from any thread; false if its event loop has ended, and it with that."""
        if self.loop is None or self.loop.is_running_here():
            self.event.set()
            return True
        return self.loop.post(self.event.set)


class Gate:
    """Lets in one after another, in the order in which they have come.

    Args:
        name: What messages call it.
    """

    state: str = "waiting"  # of a call that waits for it

    def __init__(self, name: str) -> None:
        self.name: str = name
        self.blocked: dict[Any, None] = {}  # calls below a holder that wait for something
        self._queue: OrderedDict[Waiter, None] = OrderedDict()
        # A generator that the collector closes gives back what it holds, whatever this thread is about to do.
        self._lock = threading.RLock()
        _gates.add(self)

    @property
    def waiting(self) -> int:
        """How many are in the queue."""
        return len(self._queue)

    @abstractmethod
    def enter(self) -> bool:
        """Get in, if that is possible at once."""

    def join(self, waiter: Waiter) -> None:
        """Join the queue."""
        with self._lock:
            self._queue[waiter] = None

    @abstractmethod
    def delay(self, waiter: Waiter) -> float:
        """Seconds that somebody has to wait, if nobody wakes it before: 0 if it has got in, `math.inf` if nobody can say."""

    @abstractmethod
    def leave(self, waiter: Waiter) -> None:
        """Leave the queue without having begun; what was given in the meantime goes to the next."""

    def reset(self) -> None:
        """In a forked process, where nobody is in the queue, nor has got in."""
        self._lock = threading.RLock()
        self._queue.clear()
        self.blocked.clear()


class Tokens(Gate):
    """Lets in so many at once: each holds a token until it gives it back.

    Args:
        name: What messages call it.
        total: How many there are.
    """

    state = "waiting for a limit"

    def __init__(self, name: str, total: int) -> None:
        super().__init__(name)
        self.total: int = total
        self.free: int = total  # none while somebody waits
        self.streams: dict[Any, Any] = {}  # the open ones that hold a token, each with the task or thread that steps it

    def enter(self) -> bool:
        """Take a token, if one is free."""
        with self._lock:
            if not self.free:
                return False
            self.free -= 1
            return True

    def join(self, waiter: Waiter) -> None:
        """Join the queue, or take a token that has become free."""
        with self._lock:
            super().join(waiter)
            self._advance()

    def delay(self, waiter: Waiter) -> float:
        """Whoever is let in is woken."""
        return 0.0 if waiter.is_admitted else math.inf

    def leave(self, waiter: Waiter) -> None:
        """Leave the queue, or give back the token."""
        with self._lock:
            if waiter.is_admitted:
                self.give_back()
            else:
                self._queue.pop(waiter, None)

    def give_back(self) -> None:
        """Give back a token, which is that of the first in the queue now."""
        with self._lock:
            if self.free < self.total:  # else it was taken before this process was forked
                self.free += 1
                self._advance()

    def _advance(self) -> None:
        while self.free and self._queue:
            self.free -= 1  # first: the collector may come in between, and with it another token
            waiter, _ = self._queue.popitem(last=False)
            waiter.is_admitted = True
            if not waiter.wake():
                self.free += 1

    def reset(self) -> None:
        """All are free."""
        super().reset()
        self.free = self.total
        self.streams.clear()


class Pace(Gate):
    """Lets in so many in a time: one after each interval, and some at once after a pause.

    Args:
        name: What messages call it.
        interval: Seconds from one to the next.
        burst: How many may get in at once.
    """

    state = "waiting for a rate"

    def __init__(self, name: str, interval: float, burst: int) -> None:
        super().__init__(name)
        self._interval = interval
        self._ahead = (burst - 1) * interval  # how much of what is to come may be used up
        # Until when the time is used up: the theoretical arrival time of the generic cell rate algorithm.
        self._used = -math.inf

    def enter(self) -> bool:
        """Get in, if nobody waits and it is time."""
        with self._lock:
            return not self._queue and self._left() <= 0 and self._use()

    def delay(self, waiter: Waiter) -> float:
        """The first in the queue waits for its time; the others wait for it."""
        with self._lock:
            if not self._is_first(waiter):
                return math.inf
            left = self._left()
            if left > 0:
                return left
            waiter.is_admitted = self._use()
            del self._queue[waiter]
            self._rouse()
            return 0.0

    def leave(self, waiter: Waiter) -> None:
        """Leave the queue, in which the second may have become the first."""
        with self._lock:
            was_first = self._is_first(waiter)
            self._queue.pop(waiter, None)
            if was_first:
                self._rouse()

    def _is_first(self, waiter: Waiter) -> bool:
        return next(iter(self._queue), None) is waiter

    def _left(self) -> float:
        return self._used - self._ahead - _clock.monotonic()

    def _use(self) -> bool:
        self._used = max(self._used, _clock.monotonic()) + self._interval
        return True

    def _rouse(self) -> None:
        """Let the first look at the time."""
        while self._queue and not next(iter(self._queue)).wake():
            self._queue.popitem(last=False)


_gates: WeakSet[Gate] = WeakSet()


def _reset() -> None:
    for gate in _gates:
        gate.reset()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_reset)
