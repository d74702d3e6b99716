"""Who waits for whom, among calls that wait for a limit or for what another computes: none of them is to wait for itself.

A call that waits blocks those around it. So a computation waits for whatever a call below its leader waits for, and a token of a
limit is not given back before those calls go on that are below its holder. Both know the calls below them that wait, and what
for: a circle is a way from one to the next that comes back. Calls in the background block nobody.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from ._eventloop import running_task

if TYPE_CHECKING:
    from ._protocols import Watched

__all__ = ["Blocked", "chain_of", "whoever"]

# All of the process: a limit is for all event loops and threads. Taken only by those who are about to wait.
_lock = threading.RLock()
_of_tasks: dict[Any, Blocked] = {}  # what waits in a task, by the task


def _reset() -> None:
    """In a forked process, where nobody waits who did."""
    global _lock
    _lock = threading.RLock()
    _of_tasks.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_reset)


def whoever() -> Any:
    """The task of the event loop that the running code is in, or its thread where there is none."""
    return running_task() or threading.current_thread()


def chain_of(call: Watched) -> Iterator[Any]:
    """A call, and those around it that wait for it."""
    while True:
        yield call
        if call.is_background() or call.caller is None:
            return
        call = call.caller


class Blocked:
    """A call that is about to wait, or waits.

    Args:
        call: The call.
        wait: What for: a limit's tokens, or a flight.
    """

    def __init__(self, call: Watched, wait: Any) -> None:
        self.call: Watched = call
        self.wait: Any = wait
        self._task = whoever()
        # What others wait for that it keeps them from.
        self._kept = {each for around in chain_of(call) for each in (around.leads, around.held) if each is not None}

    def closes_circle(self) -> bool:
        """Whether it would wait for itself."""
        with _lock:
            return any(self._keeps(each.wait) for each in self._beyond())

    def evict(self) -> None:
        """Let those go on by themselves who wait for it, and without whom it would wait for itself."""
        with _lock:
            for each in self._beyond():
                if each.wait in self._kept and hasattr(each.wait, "evict"):
                    each.wait.evict(each.call)

    def __enter__(self) -> Blocked:
        with _lock:
            _of_tasks[self._task] = self
            for each in self._kept:
                each.blocked[self] = None
        return self

    def __exit__(self, *exc_info: object) -> None:
        with _lock:
            _of_tasks.pop(self._task, None)
            for each in self._kept:
                each.blocked.pop(self, None)

    def _beyond(self) -> list[Blocked]:
        """Those that must go on before what it waits for comes."""
        found: dict[Blocked, None] = {}
        seen, ahead = {self.wait}, [self.wait]
        while ahead:
            wait = ahead.pop()
            for each in _blocked_of(wait):
                if each is not self:
                    found[each] = None
                    if each.wait not in seen:
                        seen.add(each.wait)
                        ahead.append(each.wait)
        return list(found)

    def _keeps(self, wait: Any) -> bool:
        # A stream that is open in this task holds its token until this goes on.
        return wait in self._kept or self._task in getattr(wait, "streams", {}).values()


def _blocked_of(wait: Any) -> Iterator[Blocked]:
    """The calls that keep somebody from getting something."""
    yield from wait.blocked
    for consumer in getattr(wait, "streams", {}).values():
        if consumer in _of_tasks:
            yield _of_tasks[consumer]
