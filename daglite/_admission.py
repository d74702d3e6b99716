"""The wait before an attempt, or a stream, begins: for the limit and the rate of its task."""

from __future__ import annotations

import math
import threading
from typing import Any

import anyio

from . import _clock
from ._call import Call
from ._circles import Blocked, chain_of, whoever
from ._context import here
from ._gates import Gate, Tokens, Waiter
from ._slots import Slot, check_cancelled
from ._trips import find_way
from .exceptions import LimitError

__all__ = ["admit", "admit_sync"]


async def admit(call: Call, consumer: Any = None) -> None:
    """Wait until a call's next attempt, or its stream, may begin.

    Args:
        call: The call.
        consumer: Who steps it, if it is a stream: see `whoever`.

    Raises:
        LimitError: A call around it, or a stream that is open in the same task, holds a token of its limit.
    """
    for gate in call.spec.gates:
        refuse_nested(call, gate, consumer)
        if gate.enter():
            note(call, gate)
        else:
            await wait_in_loop(call, gate)


def admit_sync(call: Call, consumer: Any = None) -> None:
    """The same in a thread, no longer than until the deadline of the whole call.

    Args:
        call: The call.
        consumer: As above.

    Raises:
        LimitError: As above.
        TaskTimeoutError: The deadline has passed.
    """
    for gate in call.spec.gates:
        refuse_nested(call, gate, consumer)
        if gate.enter():
            note(call, gate)
        else:
            wait_in_thread(call, gate)


def note(call: Call, gate: Gate) -> None:
    """Note what a call holds, and has to give back."""
    if isinstance(gate, Tokens):
        call.held = gate


def refuse_nested(call: Call, gate: Gate, consumer: Any) -> None:
    """Raise if those who wait for a call hold what it would wait for."""
    if not isinstance(gate, Tokens):
        return
    for holder in chain_of(call):
        if holder is not call and holder.held is gate:
            raise call.refuse(nested(call, gate, f"task {holder.spec.label!r} around it"))
    if gate.streams:
        consumer = consumer or whoever()
        for stream, other in gate.streams.copy().items():
            if other is consumer:
                raise call.refuse(nested(call, gate, f"stream {stream.spec.label!r}, which is open in the same task,"))


def nested(call: Call, gate: Gate, holder: str) -> LimitError:
    """The error of a call that would wait for those who wait for it."""
    return LimitError(
        f"task {call.spec.label!r} needs a token of limit {gate.name!r}, of which {holder} holds one: they would wait for "
        f"each other. Give it a limit of its own"
    )


async def wait_in_loop(call: Call, gate: Gate) -> None:
    """Wait until a gate lets the call in. Cancelled, it leaves nothing behind."""
    waiter = Waiter.in_loop()
    gate.join(waiter)
    try:
        call.wait_for(gate)
        with Blocked(call, gate) as blocked:
            blocked.evict()
            while delay := gate.delay(waiter):
                if delay == math.inf:
                    await waiter.event.wait()
                else:
                    await anyio.sleep(delay)
    except BaseException:
        gate.leave(waiter)
        raise
    finally:
        call.waits_for = None
    note(call, gate)


def wait_in_thread(call: Call, gate: Gate) -> None:
    """The same, in the event loop that belongs to the thread, so that others may have its place in the meantime."""
    left = math.inf if call.total_deadline is None else call.total_deadline - _clock.monotonic()
    label = call.spec.label
    way = find_way(f"task {label!r}", label, f"await {call.spec.function.name}.to_thread(...)")

    async def wait() -> bool:
        with anyio.CancelScope(deadline=anyio.current_time() + left):
            await wait_in_loop(call, gate)
            return True
        return False

    in_time = wait_here(call, gate, left) if way is None else way.take(f"task {label!r}", label, lambda _: wait())
    if not in_time:
        raise call.timed_out("total")
    check_cancelled()  # it may have got in when nobody waited any more


def wait_here(call: Call, gate: Gate, left: float) -> bool:
    """The same in a thread without an event loop; false if it has taken longer than so many seconds."""
    waiter = Waiter(threading.Event(), None)
    deadline = _clock.monotonic() + left
    slot = here().slot
    wait = ThreadWait(waiter)
    if isinstance(slot, Slot):
        slot.set_out(wait)
    gate.join(waiter)
    try:
        call.wait_for(gate)
        with Blocked(call, gate) as blocked:
            blocked.evict()
            while True:
                waiter.event.clear()  # before it is asked: who wakes it in between is not missed
                delay = gate.delay(waiter)
                if not delay:
                    break
                check_cancelled()
                left = deadline - _clock.monotonic()
                if left <= 0:
                    gate.leave(waiter)
                    return False
                waiter.event.wait(min(delay, left, threading.TIMEOUT_MAX))
    except BaseException:
        gate.leave(waiter)
        raise
    finally:
        call.waits_for = None
        if isinstance(slot, Slot):
            slot.returned(wait)
    note(call, gate)
    return True


class ThreadWait:
    """A wait that ends when its thread is given up.

    Args:
        waiter: Who waits.
    """

    starts_cancelled = False

    def __init__(self, waiter: Waiter) -> None:
        self._waiter = waiter

    def cancel(self) -> None:
        """Let it look whether it is cancelled."""
        self._waiter.event.set()
