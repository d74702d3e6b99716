"""A clock for tests, which jumps over what an event loop would wait for."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from .. import _checks, _clock
from .._eventloop import Loop, running_loop, trio_runner
from ._threads import ThreadsAtWork

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["VirtualClock"]


class VirtualClock:
    """Lets an hour pass in a test as soon as there is nothing left to do but to wait for it.

    In `with` it is the clock of the event loop that runs there, asyncio's own or Trio: of its sleeps, deadlines and cancel
    scopes, of the waits and timeouts of tasks, of rates, and of the durations and ages that daglite tells. It stands still
    while something runs. When every task waits, it jumps to the next moment at which one is to go on, and in no real time.

    ```python
    import anyio
    from daglite import Backoff, task
    from daglite.testing import VirtualClock


    @task(retries=3, retry_delay=Backoff(initial=1200, maximum=3600, jitter=False))
    async def fetch() -> str:
        attempts.append(clock.time())
        if len(attempts) < 3:
            raise ConnectionError
        return "here"


    attempts: list[float] = []


    async def main() -> None:
        global clock
        with VirtualClock() as clock:
            assert await fetch() == "here"
            assert attempts == [0, 1200, 3600]


    anyio.run(main)
    ```

    It does not jump while a thread works that a task waits for, be it of a task's `to_thread`, of anyio's, asyncio's or
    Trio's: it then goes as the real one does, so that deadlines are kept. A thread that waits for the event loop, by a
    `from_thread`, does not work; and for one that was abandoned nobody waits, until its session ends. Threads themselves live in real time:
    `time.sleep` is as long as ever. So do the files, sockets and processes that tasks wait for: the clock looks whether one is
    ready, and jumps if none is.

    With pytest, the fixture `virtual_clock` is one for the time of a test.

    Args:
        autojump_threshold: Real seconds in which nothing must happen before it jumps, for tests that wait for files, sockets or
            processes as well; 0 by default.

    Raises:
        TypeError: `autojump_threshold` is no number.
        ValueError: It is negative or not finite.
    """

    def __init__(self, *, autojump_threshold: float = 0.0) -> None:
        _checks.finite("VirtualClock: autojump_threshold", autojump_threshold, least=0)
        self.autojump_threshold: float = autojump_threshold
        self._passed = 0.0
        self._going_since: float | None = None  # while it goes as the real one does
        self._loop: Loop | None = None

    def time(self) -> float:
        """Seconds that have passed since it was entered."""
        passed, since = self._passed, self._going_since
        return passed if since is None else passed + (time.perf_counter() - since)

    def jump(self, seconds: float) -> None:
        """Let time pass at once: what was to happen until then happens when the caller waits next.

        Args:
            seconds: How much.

        Raises:
            TypeError: It is no number.
            ValueError: It is negative or not finite.
            RuntimeError: The clock is not entered.
        """
        _checks.finite("VirtualClock.jump: seconds", seconds, least=0)
        if self._loop is None:
            raise RuntimeError("a virtual clock is moved while it is entered: with VirtualClock() as clock")
        if self._loop.is_here():
            self._move(seconds)
        else:
            self._loop.call(self._move, seconds)

    def __enter__(self) -> Self:
        global _entered
        loop = running_loop()
        if loop is None:
            raise RuntimeError("a virtual clock is that of an event loop: enter it in an async function")
        if _entered is not None:
            raise RuntimeError("there is a virtual clock already: a process has one at a time")
        if self._loop is not None or self._passed:
            raise RuntimeError("a virtual clock is entered once; VirtualClock() makes another")
        here = Loop()
        self._threads = ThreadsAtWork(here, loop)
        self._put_back = _put_into_asyncio(self, loop) if here.name == "asyncio" else _put_into_trio(self, here)
        self._real = _clock.monotonic, _clock.wall
        self._wall_began = _clock.wall()
        _clock.monotonic, _clock.wall = self._now, self._wall
        self._threads.watch()
        self._loop, _entered = here, self
        return self

    def __exit__(self, *exc_info: object) -> None:
        global _entered
        _entered = None
        self._threads.unwatch()
        _clock.monotonic, _clock.wall = self._real
        self._put_back()
        self._passed, self._going_since, self._loop = self.time(), None, None

    def _begin_at(self, now: float) -> None:
        # At a whole second: what is added to it and taken from it is then exact.
        self._began = math.ceil(now)

    def _now(self) -> float:
        return self._began + self.time()

    def _wall(self) -> float:
        return self._wall_began + self.time()

    def _move(self, seconds: float) -> None:
        self._passed += seconds

    def _go(self) -> None:
        """Go as the real clock does."""
        if self._going_since is None:
            self._going_since = time.perf_counter()

    def _stop(self) -> None:
        """Stand still."""
        self._passed, self._going_since = self.time(), None

    def _wait(self, select: Callable[[float | None], Any], timeout: float | None) -> Any:
        """Wait for files as a selector does, but no longer than until there is nothing but the time to wait for.

        Args:
            select: Really waits.
            timeout: Seconds until something is to happen; `None` if nothing is.
        """
        if timeout is not None and timeout <= 0:
            return select(0)
        if self._threads.are_at_work():
            self._go()
            try:
                return select(timeout)
            finally:
                self._stop()
        if timeout is None:
            return select(None)
        events = select(min(self.autojump_threshold, timeout))
        if not events:
            self._move(timeout)
        return events


_entered: VirtualClock | None = None


class _Selector:
    """That of asyncio's event loop, which waits by a virtual clock."""

    def __init__(self, selector: Any, clock: VirtualClock) -> None:
        self._selector = selector
        self._clock = clock

    def select(self, timeout: float | None = None) -> Any:
        return self._clock._wait(self._selector.select, timeout)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._selector, name)


def _put_into_asyncio(clock: VirtualClock, loop: Any) -> Callable[[], None]:
    """Let an event loop of asyncio go by the clock; what is returned undoes that."""
    selector = getattr(loop, "_selector", None)
    if selector is None:
        kind = f"{type(loop).__module__}.{type(loop).__qualname__}"
        raise RuntimeError(f"a virtual clock is for asyncio's own event loops and for Trio, not for {kind}")
    clock._begin_at(loop.time())
    loop.time = clock._now
    loop._selector = _Selector(selector, clock)

    def put_back() -> None:
        del loop.time
        loop._selector = selector

    return put_back


def _put_into_trio(clock: VirtualClock, loop: Loop) -> Callable[[], None]:
    """Let Trio go by the clock; what is returned undoes that."""
    runner, mock = trio_runner()
    real, threshold = runner.clock, runner.clock_autojump_threshold

    def sleep_time(deadline: float) -> float:
        """Real seconds until then; Trio asks when no task can run, and jumps if nothing comes before the threshold."""
        if clock._threads.are_at_work():
            clock._go()
            runner.clock_autojump_threshold = math.inf
        else:
            runner.clock_autojump_threshold = math.inf if deadline == math.inf else clock.autojump_threshold
        return max(deadline - clock._now(), 0.0)

    def current_time() -> float:
        if loop.is_here():
            clock._stop()
        return clock._now()

    def autojump() -> None:
        left = runner.deadlines.next_deadline() - clock._now()
        if 0 < left < math.inf:
            clock._move(left)

    clock._begin_at(real.current_time())
    # Trio jumps with its own kind of clock alone, which is made to ask this one.
    mock.deadline_to_sleep_time, mock.current_time, mock._autojump = sleep_time, current_time, autojump
    runner.clock = mock

    def put_back() -> None:
        runner.clock, runner.clock_autojump_threshold = real, threshold

    return put_back
