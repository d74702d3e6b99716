"""One call from beginning to end, twice: for those that are awaited, and for functions that are called in place.

    with call:                      it is the current call; watchers hear that it has begun
        until the total deadline:   attempts and waits, `retried_in_time`
            until one succeeds:     `retried`
                admitted            by the limit and the rate, `admitted`
                one attempt         here until its deadline, or on a backend: the only place where the user's function runs
                call.retry_in(exc)  seconds to wait, or the call's error is raised
                a pause
                                    it is over: watchers hear of its one end, and what comes out is the call's error

A call whose result is kept begins after that was looked up, and keeps it before it ends: `_caching`, which is given the part
from the total deadline on.

What is not asked for is not there: a call without options is `with call:` and its one attempt. The books, and what error comes
out, are `Call`'s; nothing here knows of events, plugins, threads or sessions. What has `_sync` at its end is the same text as
what has not, but for `await`, and for who keeps a deadline. Streams keep the same books a step at a time, in `_steps`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Awaitable, Callable
from typing import Any

import anyio

from . import _clock
from ._admission import admit, admit_sync
from ._bridge import run_in_daemon
from ._caching import cached, cached_sync
from ._call import Call
from ._eventloop import give_way
from ._protocols import Attempt, AttemptRefused, AttemptTimeout, Backend

__all__ = ["run", "run_sync"]


async def run(call: Call) -> Any:
    """Call a task's function, in the event loop or on a backend, until it succeeds or may not be tried again."""
    if call.spec.is_kept:
        return await cached(call, attempts)
    with call:
        result = await (attempt(call) if call.spec.is_single else attempts(call))
        if call.home.watcher is not None:
            call.result = result
        return result


def run_sync(call: Call) -> Any:
    """Call a task's function until it succeeds or may not be tried again."""
    if call.spec.is_kept:
        return cached_sync(call, attempts_sync)
    with call:
        result = attempt_sync(call) if call.spec.is_single else attempts_sync(call)
        if call.home.watcher is not None:
            call.result = result
        return result


def attempts(call: Call) -> Awaitable[Any]:
    """Run the function as often as it takes, until the deadline for the whole call if it has one."""
    left = call.start_total()
    return retried(call) if left is None else retried_in_time(call, left)


def attempts_sync(call: Call) -> Any:
    """Run the function as often as it takes, until the deadline for the whole call if it has one."""
    return retried_sync(call) if call.start_total() is None else retried_in_time_sync(call)


async def retried(call: Call) -> Any:
    """Run the function until it succeeds or may not be tried again."""
    run_once = admitted if call.spec.gates else attempt
    while True:
        try:
            return await run_once(call)  # only the user's function is in here
        except Exception as exc:  # never a cancellation, nor a group that holds one
            delay = call.retry_in(exc)
        await pause(delay)
        call.attempts += 1


def retried_sync(call: Call) -> Any:
    """Run the function until it succeeds or may not be tried again."""
    run_once = admitted_sync if call.spec.gates else attempt_sync
    while True:
        try:
            return run_once(call)  # only the user's function is in here
        except Exception as exc:  # never a cancellation, nor a group that holds one
            delay = call.retry_in(exc)
        pause_sync(call, delay)
        call.attempts += 1


async def retried_in_time(call: Call, left: float) -> Any:
    """The same until a deadline, in so many seconds, which ends attempts and waits."""
    deadline = anyio.current_time() + left
    try:
        with anyio.CancelScope(deadline=deadline):
            value = await retried(call)
            assert call.total_deadline is not None
            if _clock.monotonic() > call.total_deadline:  # as in `attempt_in_time`
                call.came_late("total", anyio.current_time() - deadline)
            return value
        await give_way(deadline)
        raise call.timed_out("total")
    finally:
        call.last_error = None  # its traceback holds the call


def retried_in_time_sync(call: Call) -> Any:
    """The same until a deadline, which ends attempts and waits."""
    try:
        return retried_sync(call)
    finally:
        call.last_error = None  # its traceback holds the call


async def admitted(call: Call) -> Any:
    """Run the function once, when its limit and its rate let it begin."""
    try:
        await admit(call)
        return await attempt(call)
    finally:
        call.give_back()


def admitted_sync(call: Call) -> Any:
    """Run the function once, when its limit and its rate let it begin."""
    try:
        admit_sync(call)
        return attempt_sync(call)
    finally:
        call.give_back()


def attempt(call: Call) -> Awaitable[Any]:
    """Run the function once, in the caller's own task or where its backend says."""
    spec = call.spec
    # No coroutine of its own, which would be one more to pass through for every call.
    if call.backend is not None:
        return attempt_elsewhere(call, call.backend)
    watcher = call.home.watcher
    func = spec.func if watcher is None else watcher.surrounded(call, spec.func, is_async=True)
    if spec.timeout is not None:
        return attempt_in_time(call, func, spec.timeout)
    # Merging no keyword arguments would cost half as much as the call.
    return func(*call.args, **call.kwargs) if call.kwargs else func(*call.args)  # type: ignore[no-any-return]


def attempt_sync(call: Call) -> Any:
    """Run the function once, here and now, or in a thread if it has a deadline."""
    spec = call.spec
    if not spec.is_bounded:
        watcher = call.home.watcher
        func = spec.func if watcher is None else watcher.surrounded(call, spec.func, is_async=False)
        return func(*call.args, **call.kwargs) if call.kwargs else func(*call.args)
    scope, limit = call.next_limit()
    assert limit is not None
    try:
        return run_in_daemon(described(call, limit), limit)
    except AttemptTimeout:
        pass
    except AttemptRefused as refused:
        raise call.refuse(refused.error) from None
    raise call.timed_out(scope)


async def attempt_in_time(call: Call, func: Callable[..., Any], timeout: float) -> Any:
    """Run the function once, in the caller's own task, until its deadline."""
    deadline = anyio.current_time() + timeout
    call.deadline = _clock.monotonic() + timeout
    with anyio.CancelScope(deadline=deadline):
        # A value that arrives wins, also late, as with `anyio.fail_after`.
        value = await func(*call.args, **call.kwargs)
        if _clock.monotonic() > call.deadline:  # a quicker way to ask than the event loop's clock
            call.came_late("attempt", anyio.current_time() - deadline)
        return value
    await give_way(deadline)
    raise call.timed_out("attempt")


async def attempt_elsewhere(call: Call, backend: Backend) -> Any:
    """Run the function once, on a backend."""
    scope, limit = call.next_limit()
    try:
        return await backend.run(described(call, limit))
    except AttemptTimeout as timeout:
        deadline = timeout.deadline
    except AttemptRefused as refused:
        raise call.refuse(refused.error) from None
    await give_way(deadline)
    raise call.timed_out(scope)


def described(call: Call, limit: float | None) -> Attempt:
    """The next execution of the function, which may take so many seconds, for those who run it."""
    spec = call.spec
    watcher = call.home.watcher
    func = spec.func if watcher is None else watcher.surrounded(call, spec.func, is_async=False)
    return Attempt(spec.label, func, call.args, call.kwargs, limit)


async def pause(delay: float) -> None:
    """Wait before a retry; also without a delay a point at which the call can be cancelled."""
    # An attempt that blocked may have outlasted a deadline around the call, which is to end it before the next.
    await give_way(anyio.current_time())
    await anyio.sleep(delay)


def pause_sync(call: Call, delay: float) -> None:
    """Wait before a retry, but not beyond the deadline of the whole call.

    Raises:
        TaskTimeoutError: It has passed.
    """
    if delay:
        call.refuse_to_block(delay)  # the seconds may be those that `retry_on` has returned
    left = math.inf if call.total_deadline is None else max(call.total_deadline - _clock.monotonic(), 0)
    time.sleep(min(delay, left))
    if delay >= left:
        raise call.timed_out("total")
