"""Where the attempts of sync functions run: here, in a worker thread, or in a thread that no event loop waits for."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import copy_context
from functools import partial
from typing import Any

import anyio

from . import _checks, _clock
from ._call import Call
from ._context import Home, Position, here
from ._open_streams import Closing
from ._protocols import Attempt, AttemptTimeout, Backend
from ._slots import Slot
from ._threads import Stuck, threads_of_loop

__all__ = ["INLINE", "THREAD", "find_backend", "run_in_daemon", "stuck_in_place"]


class InlineBackend:
    """Runs attempts in the caller's own task, where they stop the event loop for as long as they take."""

    name = "inline"

    async def run(self, attempt: Attempt) -> Any:
        """Run an attempt here and now; `find_backend` refuses those with a deadline."""
        return attempt.func(*attempt.args, **attempt.kwargs)


class ThreadBackend:
    """Runs attempts in the worker threads of the session, or in those of the event loop outside sessions.

    At a deadline the caller goes on, and the thread is abandoned.
    """

    name = "thread"

    async def run(self, attempt: Attempt) -> Any:
        """Run an attempt in a worker thread, in a copy of the current context."""
        position = here()
        slot = Slot(position, attempt.name, partial(attempt.func, *attempt.args, **attempt.kwargs))
        with known_to_call(position, slot):
            try:
                await (position.home.threads or threads_of_loop()).run(slot, attempt.timeout)
            finally:
                if slot.has_streams:
                    await close_streams(slot, position.home.settings.grace)
        return slot.result()


async def close_streams(slot: Slot, grace: float) -> None:
    """Close what a thread has left open in the event loop, outside of sessions."""
    closing = Closing(f"the thread of task {slot.name!r}", grace)
    await closing.close_all(slot.streams, anyio.current_time() + grace)
    if (error := closing.fatal or closing.cancellation) is not None:
        raise error


@contextmanager
def known_to_call(position: Position, slot: Slot) -> Iterator[None]:
    """Let a call know in what thread its attempt runs, for the tree of calls."""
    if not isinstance(position, Call):  # a stream in a thread, which begins its call there
        yield
        return
    position.work = slot
    try:
        yield
    finally:
        position.work = None  # else each would hold the other


INLINE = InlineBackend()
THREAD = ThreadBackend()


def find_backend(where: str, name: Any, deadlines: Mapping[str, float | None]) -> Backend:
    """The backend of a name, for a task.

    Args:
        where: Who asks for it, to begin an error message with.
        name: Its name.
        deadlines: The task's options that set one, in seconds.

    Raises:
        TypeError: It is not a name.
        ValueError: There is no such backend, or it cannot enforce a deadline.
    """
    _checks.backend(where, name)
    if name == "thread":
        return THREAD
    for option, seconds in deadlines.items():
        if seconds is not None:
            raise ValueError(
                f"{where}: its {option} of {seconds:g} s cannot end a function that runs in the event loop's own thread; "
                f"use the backend 'thread' instead of 'inline'"
            )
    return INLINE


# Of calls in place outside sessions, in threads where no event loop runs: the process counts them.
_stuck = Stuck("this process' threads")


def stuck_in_place(home: Home) -> Stuck:
    """Who counts the threads that stand in for others, and were abandoned."""
    return _stuck if home.threads is None else home.threads.stuck


def run_in_daemon(attempt: Attempt, timeout: float) -> Any:
    """Run an attempt in a thread of its own, and wait for it in this one, so that its deadline is real.

    Raises:
        AttemptTimeout: Its time was up.
        AttemptRefused: Too many threads are stuck.
    """
    position = here()
    stuck = stuck_in_place(position.home)
    stuck.refuse(attempt.name)
    done = threading.Event()
    slot = Slot(position, attempt.name, partial(attempt.func, *attempt.args, **attempt.kwargs), done.set)
    if isinstance(position.slot, Slot) and position.slot.is_here():
        slot.serve(position.slot)
    slot.deadline = slot.expires = _clock.monotonic() + timeout
    # A daemon: a thread that is past its deadline must not keep the program from ending.
    thread = threading.Thread(target=copy_context().run, args=(slot.run,), name=f"task {attempt.name}", daemon=True)
    with known_to_call(position, slot):
        thread.start()
        try:
            in_time = done.wait(timeout)
        except BaseException:  # an interrupt
            slot.abandon(stuck)
            raise
    if not in_time and slot.abandon(stuck):
        raise AttemptTimeout(timeout)
    return slot.result()
