"""What runs in a worker thread: where its code is, what it has begun, and what comes of it."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal, Protocol

import anyio
from anyio import get_cancelled_exc_class

from . import _clock
from ._context import Home, Position, Root, here, reset, set_current
from ._eventloop import check_waiting_task, in_event_loop, is_waiting_task_cancelled, running_task
from ._running import Running

if TYPE_CHECKING:
    from ._eventloop import Loop
    from ._protocols import Watched
    from ._threads import Stuck, Threads

__all__ = ["Slot", "ThreadCancelled", "check_cancelled", "remaining"]


class ThreadCancelled(BaseException):
    """Raised by `check_cancelled` in a thread that was given up, where nobody is left to see it."""


class Trip(Protocol):
    """Something that a thread waits for in the event loop."""

    starts_cancelled: bool

    def cancel(self) -> None:
        """Cancel it, from any thread."""
        ...


class Slot:
    """The position of code in a worker thread, and the state of that thread.

    A thread that is given up goes on, and nobody is to hear of it: the calls that it had begun end as cancelled, and
    what it does or reports later is dropped.

    Args:
        position: From where the thread was started.
        name: The task whose function it runs.
        func: What it runs; nothing, if it is taken over by whoever uses it.
        wake: Called in the thread when it has run it.
    """

    def __init__(
        self,
        position: Position,
        name: str,
        func: Callable[[], Any] = lambda: None,
        wake: Callable[[], object] | None = None,
    ) -> None:
        self.home: Home = position.home
        self.name: str = name
        self.given_up: bool = False
        self.cancelled: bool = False  # to be noticed by `check_cancelled`; what it does is heard all the same
        self.began: float = 0.0  # by `_clock.monotonic`, as all that the tree of calls shows
        self.deadline: float | None = None
        self.expires: float = math.inf  # when who waits for it does so no more; the deadlines around that count as well
        self.threads: Threads | None = None  # among which it has a place
        self.has_place: bool = False
        self._holder: Slot | None = None  # whose place that is, if it stands in for another
        self.loop: Loop | None = None  # that waits for it
        self.trips: Running[Trip] | None = None  # what it waits for there
        self._streams: dict[Any, None] | None = None
        self._thread: int | None = None
        self._position = position
        self._func = func
        # Held for the state, and to publish, which never waits. Publishing may log, and logging publish.
        self._lock = threading.RLock()
        self._state: Literal["waiting", "running", "ended"] = "waiting"
        self._stuck: Stuck | None = None  # who counts it, if it is abandoned and runs
        self._calls: dict[Watched, bool] = {}  # what runs in it, and whether its end is being told of
        self._inner: dict[Slot, None] = {}  # threads that were started from this one, through the event loop
        self._value: Any = None
        self._error: BaseException | None = None
        self._wake = wake
        self._outer: Slot | None = position.slot if isinstance(position.slot, Slot) else None
        if self._outer is not None:
            self._outer._adopt(self)

    starts_background = False

    @property
    def accepted(self) -> bool:
        """Whether calls from here go on while the session ends."""
        return self._position.accepted

    @property
    def slot(self) -> Slot:
        """The thread itself, for the calls in it."""
        return self

    @property
    def root(self) -> Root:
        """Where the outermost call around it was made."""
        return self._position.root

    @property
    def call(self) -> Watched | None:
        """The call that the code belongs to."""
        return self._position.call

    @property
    def state(self) -> str | None:
        """What it does, as the tree of calls says it; `None` if it has done it."""
        return {"waiting": "waiting for a thread", "running": "in a thread"}.get(self._state)

    def serve(self, outer: Slot) -> None:
        """Note that it stands in for another: for one that waits for it, or that is this very thread."""
        self._holder = outer.holder
        self.loop = outer.loop

    @property
    def holder(self) -> Slot:
        """The thread that has a place for this one."""
        return self._holder or self

    @property
    def streams(self) -> dict[Any, None]:
        """The streams that it has opened in the event loop, outside of sessions, which are closed when it ends."""
        if self._streams is None:
            self._streams = {}
        return self._streams

    @property
    def has_streams(self) -> bool:
        """Whether there are any."""
        return bool(self._streams)

    def is_of(self, loop: Loop) -> bool:
        """Whether the event loop that waits for it is this one."""
        return self.loop is not None and self.loop.is_same(loop)

    @property
    def is_stuck(self) -> bool:
        """Whether it is counted among those that were abandoned and still run."""
        return self._stuck is not None

    def enter_thread(self) -> None:
        """Note that it is this thread."""
        self._thread = threading.get_ident()

    def is_here(self) -> bool:
        """Whether it is this thread, and not one of the user's with a copy of its context."""
        return self._thread == threading.get_ident()

    def is_inner(self) -> bool:
        """Whether it was started from another, through the event loop or not, and ends with that."""
        return self._outer is not None

    def resume(self) -> bool:
        """Note that it begins to run, or runs again; false if it was given up."""
        with self._lock:
            if not self.given_up:
                self._state = "running"
                self.began = _clock.monotonic()
            return not self.given_up

    def pause(self) -> None:
        """Note that it has nothing to do."""
        with self._lock:
            self._state = "ended"
            if self._stuck is not None:
                self._stuck.discard(self)

    def leave(self) -> None:
        """Note that whoever uses the thread has done with it."""
        self.pause()
        if self._outer is not None:
            self._outer._forget(self)

    def run(self) -> None:
        """Run the function, in the thread."""
        if not self.resume():
            return
        self.enter_thread()
        token = set_current(self)
        value, error = None, None
        try:
            value = self._func()
        except BaseException as exc:
            error = exc
        finally:
            reset(token)
        with self._lock:
            self._state = "ended"
            wake = self._wake
            if self._stuck is not None:
                self._stuck.discard(self)
            else:
                self._value, self._error = value, error
        del error  # else its traceback, which holds this frame, would hold itself
        if self._outer is not None:
            self._outer._forget(self)
        if wake is not None:
            wake()

    def result(self) -> Any:
        """What the function has returned; or raises what it raised."""
        error, self._error = self._error, None
        try:
            if error is not None:
                raise error
            return self._value
        finally:
            del error

    @property
    def is_done(self) -> bool:
        """Whether it has run, and its outcome is there: more than that it has noticed a cancellation, ours or the loop's."""
        return self._state == "ended" and not isinstance(self._error, (ThreadCancelled, get_cancelled_exc_class()))

    def abandon(self, stuck: Stuck) -> bool:
        """Give the thread up, if it has not ended.

        Args:
            stuck: Who is to count it for as long as it still runs.

        Returns:
            Whether it was given up; else its result is there.
        """
        with self._lock:
            if self._state == "ended":
                return False
            if self._state == "running":
                self._stuck = stuck
                stuck.add(self)
        self.give_up()
        return True

    def cancel(self, wake: Callable[[], object]) -> bool:
        """Let `check_cancelled` notice that the caller is cancelled.

        Args:
            wake: Called in the thread when it has ended.

        Returns:
            Whether it has yet to end.
        """
        with self._lock:
            if self._state == "waiting":
                self.given_up = True  # it never begins
            if self._state != "running":
                return False
            self._wake = wake
        self.let_notice()
        return True

    def left(self) -> float:
        """Seconds that it has yet, or those that wait for it."""
        if self.cancelled or self.given_up:
            return 0.0
        left = self.expires - _clock.monotonic()
        return left if self._outer is None else min(left, self._outer.left())

    def let_notice(self) -> None:
        """Let its code notice that the caller is cancelled: by `check_cancelled`, or by what it waits for."""
        with self._lock:
            self.cancelled = True
            trips = () if self.trips is None else self.trips.copy()
        for trip in trips:
            trip.cancel()

    def set_out(self, trip: Trip) -> None:
        """Note that it waits for something in the event loop.

        Raises:
            BaseException: It was given up: nobody is to hear of that.
        """
        with self._lock:
            if self.given_up:
                raise ThreadCancelled(f"nobody waits for task {self.name!r} any more")
            if self.trips is None:
                self.trips = Running()
            self.trips.add(trip)
            trip.starts_cancelled = self.cancelled

    def returned(self, trip: Trip) -> None:
        """Note that it does so no more."""
        assert self.trips is not None
        self.trips.discard(trip)

    def give_place(self) -> Threads | None:
        """Let another thread have its place.

        Returns:
            Where it has one again later; `None` if it has none.
        """
        threads = self.threads
        return threads if threads is not None and threads.give_place(self) else None

    def give_up(self) -> None:
        """Let nobody hear of it any more."""
        with self._lock:
            self.given_up = True
            calls, self._calls = self._calls, {}
            last_words = [call.give_up(told=told) for call, told in calls.items()]
            inner = list(self._inner)
            trips = () if self.trips is None else self.trips.copy()
        for trip in trips:
            trip.cancel()
        for say in last_words:
            if say is not None:
                say()
        for slot in inner:
            slot.give_up()

    def begin(self, call: Watched, started: Callable[[], None]) -> bool:
        """Note a call that begins in it, and tell of it; false if nobody is to hear of the call."""
        with self._lock:
            if not self.given_up:
                self._calls[call] = False
                started()
            return not self.given_up

    def ending(self, call: Watched) -> bool:
        """Note that a call is about to end; false if nobody is to hear of it."""
        with self._lock:
            if call not in self._calls:
                return False
            self._calls[call] = True
            return True

    def end(self, call: Watched, ended: Callable[[], None]) -> None:
        """Note that a call has ended, and tell of it, unless the thread was given up before."""
        with self._lock:
            if call in self._calls:
                del self._calls[call]
                ended()

    def tell(self, report: Callable[[], None]) -> None:
        """Tell of something, unless the thread was given up."""
        with self._lock:
            if not self.given_up:
                report()

    def _adopt(self, inner: Slot) -> None:
        with self._lock:
            self._inner[inner] = None
            inner.given_up = self.given_up

    def _forget(self, inner: Slot) -> None:
        with self._lock:
            self._inner.pop(inner, None)


def remaining() -> float:
    """Seconds that are left to the running code, until the first of the deadlines around it.

    Those are its task's `timeout`, `total_timeout` and `item_timeout`, and the cancel scopes of anyio around the call: in the
    event loop, and in a worker thread that somebody waits for there. Of `asyncio.timeout` and `asyncio.wait_for` nobody
    knows but asyncio.

    ```python
    import anyio
    from daglite import remaining, task


    @task(timeout=30)
    async def fetch() -> bool:
        return 29 < remaining() <= 30


    assert anyio.run(fetch)
    ```

    Returns:
        The seconds; 0 if the time is up or the caller was cancelled, `math.inf` if there is no deadline.
    """
    left = math.inf
    if running_task() is not None:
        left = anyio.current_effective_deadline() - anyio.current_time()
    slot = here().slot
    if isinstance(slot, Slot):
        left = min(left, slot.left())
    if left > 0 and not in_event_loop() and is_waiting_task_cancelled():
        return 0.0
    return max(left, 0.0)


def check_cancelled() -> None:
    """End a function in a thread whose caller does not wait for it any more: call it now and then.

    A thread without a deadline is waited for, also when its caller is cancelled; a thread past its deadline goes on by
    itself. This is how either ends sooner, and how code in `with session()` hears that the session is cancelled.
    Elsewhere it does nothing.

    Raises:
        BaseException: The caller was cancelled, or the time was up. Let it through: like a cancellation it is no
            `Exception`, and it is never retried.
    """
    slot = here().slot
    if isinstance(slot, Slot) and (slot.given_up or slot.cancelled):
        raise ThreadCancelled(f"nobody waits for task {slot.name!r} any more")
    if not in_event_loop():
        check_waiting_task()
