"""What is being computed to be kept: for one call, and for those in the same event loop who want the same."""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeAlias

from anyio.lowlevel import RunVar

from ._gates import Waiter

if TYPE_CHECKING:
    from typing_extensions import Self

    from ._protocols import Watched
    from ._refresh import Refresh

__all__ = ["Computation", "Flight", "Flights", "Follower", "Place", "detach", "flights_here"]

Place: TypeAlias = "tuple[Any, str]"
"""Where something is kept, and under which key."""


class Computation:
    """A result that is being computed, to be kept.

    Args:
        place: Where.
        refresh: The `refresh_cache()` in which it was begun.
    """

    detached: bool = False  # the result is not to be kept, nor to be waited for

    def __init__(self, place: Place, refresh: Refresh | None) -> None:
        self.place: Place = place
        self.refresh: Refresh | None = refresh
        self.blocked: dict[Any, None] = {}  # calls below the one that computes that wait for something

    def __enter__(self) -> Self:
        if self.refresh is not None:
            detach(self.place, self.refresh)
        with _lock:
            _running.setdefault(self.place, {})[self] = None
        return self

    def __exit__(self, *exc_info: object) -> None:
        with _lock:
            others = _running.get(self.place, {})  # of the process that this one was forked from
            others.pop(self, None)
            if not others:
                _running.pop(self.place, None)


_lock = threading.Lock()
_running: dict[Place, dict[Computation, None]] = {}  # in all event loops and threads


def detach(place: Place, refresh: Refresh | None = None) -> None:
    """Let what is being computed not be kept: later calls compute anew.

    Args:
        place: Where it would be.
        refresh: Those that were begun in this `refresh_cache()` are left alone.
    """
    with _lock:
        for computation in _running.get(place, ()):
            if refresh is None or computation.refresh is not refresh:
                computation.detached = True


class Follower(Waiter):
    """A call that waits for a flight; it is admitted when it is to lead that.

    Attributes:
        call: The call.
        is_evicted: Whether it is not to wait, but to compute for itself.
    """

    __slots__ = ("call", "is_evicted")

    call: Watched
    is_evicted: bool

    @classmethod
    def of(cls, call: Watched) -> Self:
        """One in the event loop of this thread."""
        follower = cls.in_loop()
        follower.call, follower.is_evicted = call, False
        return follower


class Flight(Computation):
    """A computation that others wait for. It runs in the task of the call that leads it.

    Args:
        place: Where the result is to be kept.
        refresh: The `refresh_cache()` in which it was begun.
        leader: The call that computes.
    """

    state = "following another's computation"  # of a call that waits for it
    name = None

    def __init__(self, place: Place, refresh: Refresh | None, leader: Watched) -> None:
        super().__init__(place, refresh)
        self.leader: Watched | None = leader
        self.is_over: bool = False  # whether there is a result, or an error that is all its followers'
        self.has_failed: bool = False
        self.attempts: int = 1  # of the leader
        self.is_noted: bool = False  # whether the error says which task raised it
        self.is_own: bool = False  # whether the error is the leader's, and not its function's
        self._followers: OrderedDict[Follower, None] = OrderedDict()
        self._error: Exception | None = None
        self._takers = 0  # who have yet to take it
        self._value: Any = None
        self._pickled: bytes | None = None

    def join(self, follower: Follower) -> None:
        """Wait for it."""
        self._followers[follower] = None

    def leave(self, follower: Follower) -> bool:
        """Wait no more; whether it was given the lead by now, which is for the next then."""
        self._followers.pop(follower, None)
        return follower.is_admitted

    def evict(self, call: Watched) -> None:
        """Let the call compute for itself that waits."""
        for follower in list(self._followers):
            if follower.call is call:
                del self._followers[follower]
                follower.is_evicted = True
                follower.wake()

    def succeed(self, value: Any) -> None:
        """Give its followers the result, before whoever leads it can change that."""
        self._value = value
        if self._followers:
            self.pickle()
        self._end()

    def fail(self, error: Exception, attempts: int, *, is_own: bool, is_noted: bool) -> None:
        """Give its followers the error.

        Args:
            error: What the leader has failed with.
            attempts: How often it has run the function.
            is_own: Whether it is its own, and not its function's: that of its timeout, or of what could not be saved.
            is_noted: Whether it says which task raised it.
        """
        self.has_failed = True
        self.attempts, self.is_own, self.is_noted = attempts, is_own, is_noted
        self._takers = len(self._followers)
        if self._takers:
            self._error = error
        self._end()

    def taken_error(self) -> Exception:
        """The error, for one of those who were there when it came; for the last it is let go of, with all that it holds."""
        error = self._error
        assert error is not None
        self._takers -= 1
        if not self._takers:
            self._error = None
        return error

    def pass_on(self) -> None:
        """Let the first of those who wait compute it from the start; nobody, if it is over, or nobody waits."""
        self.leader = None
        if self._followers:
            follower, _ = self._followers.popitem(last=False)
            self.leader = follower.call
            follower.is_admitted = True
            follower.wake()

    def value(self) -> Any:
        """A copy of the result; the result itself, if it cannot be pickled."""
        import pickle  # not by `import daglite`

        self.pickle()
        if self._pickled is not None:
            try:
                return pickle.loads(self._pickled)
            except Exception:  # whatever its class does
                pass
        return self._value

    def pickle(self) -> None:
        """Keep the result as it is now."""
        import pickle  # not by `import daglite`

        if self._pickled is None:
            try:
                self._pickled = pickle.dumps(self._value, pickle.HIGHEST_PROTOCOL)
            except Exception:  # whatever its class does
                pass

    def _end(self) -> None:
        self.is_over = True
        followers, self._followers = self._followers, OrderedDict()
        for follower in followers:
            follower.wake()


class Look:
    """A lookup that goes on.

    Args:
        place: What is looked up.

    Attributes:
        is_stale: Whether it is to be looked up: not yet, or again, for a computation of it has ended meanwhile.
    """

    def __init__(self, place: Place) -> None:
        self.place: Place = place
        self.is_stale: bool = True


class Flights:
    """The flights of an event loop."""

    def __init__(self) -> None:
        self._flights: dict[Place, Flight] = {}
        self._looks: dict[Place, dict[Look, None]] = {}

    def running(self, place: Place, refresh: Refresh | None) -> Flight | None:
        """The flight that a call may follow."""
        flight = self._flights.get(place)
        if flight is None or flight.detached or (refresh is not None and flight.refresh is not refresh):
            return None
        return flight

    def begin(self, flight: Flight) -> Flight:
        """Begin one, which others may follow if there is none yet."""
        flight.__enter__()
        if self.running(flight.place, flight.refresh) is None:
            self._flights[flight.place] = flight
        return flight

    def hand_over(self, flight: Flight) -> None:
        """Let another lead one; if nobody is left to, or it is over, it ends."""
        flight.pass_on()
        if flight.leader is not None:
            return
        if self._flights.get(flight.place) is flight:
            del self._flights[flight.place]
        flight.__exit__()
        for look in self._looks.get(flight.place, ()):
            look.is_stale = True

    @contextmanager
    def looking(self, look: Look) -> Iterator[None]:
        """Let it be known that somebody looks something up."""
        looks = self._looks.setdefault(look.place, {})
        looks[look] = None
        try:
            yield
        finally:
            del looks[look]
            if not looks:
                del self._looks[look.place]


_flights: RunVar[Flights] = RunVar("daglite_flights")


def flights_here() -> Flights:
    """The flights of the event loop of this thread."""
    try:
        return _flights.get()
    except LookupError:
        made = Flights()
        _flights.set(made)
        return made


def _reset() -> None:
    """In a forked process, where nobody computes what its parent does."""
    global _lock
    _lock = threading.Lock()
    _running.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_reset)
