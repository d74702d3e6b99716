"""One call from beginning to end, twice: for those that are awaited, and for functions that are called in place.

`run` and `run_sync` are the same text but for `await`.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import Any

import anyio

from ._bridge import run_in_daemon
from ._call import Call
from ._eventloop import give_way
from ._protocols import Attempt, AttemptRefused, AttemptTimeout, Backend

__all__ = ["run", "run_sync"]


async def run(call: Call) -> Any:
    """Call a task's function, in the event loop or on a backend, until it succeeds or may not be tried again."""
    with call:
        while True:
            try:
                result = await attempt(call)  # only the user's function is in here
                break
            except Exception as exc:  # never a cancellation, nor a group that holds one
                delay = call.retry_in(exc)
            await pause(delay)
            call.attempts += 1
        if call.home.watcher is not None:
            call.result = result
        return result


def run_sync(call: Call) -> Any:
    """Call a task's function until it succeeds or may not be tried again."""
    with call:
        while True:
            try:
                result = attempt_sync(call)  # only the user's function is in here
                break
            except Exception as exc:  # never a cancellation, nor a group that holds one
                delay = call.retry_in(exc)
            pause_sync(call, delay)
            call.attempts += 1
        if call.home.watcher is not None:
            call.result = result
        return result


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
    if spec.timeout is None:
        watcher = call.home.watcher
        func = spec.func if watcher is None else watcher.surrounded(call, spec.func, is_async=False)
        return func(*call.args, **call.kwargs) if call.kwargs else func(*call.args)
    try:
        return run_in_daemon(described(call), spec.timeout)
    except AttemptTimeout:
        raise call.timed_out("attempt", spec.timeout) from None
    except AttemptRefused as refused:
        raise call.refuse(refused.error) from None


async def attempt_in_time(call: Call, func: Callable[..., Any], timeout: float) -> Any:
    """Run the function once, in the caller's own task, until its deadline."""
    deadline = anyio.current_time() + timeout
    call.deadline = time.perf_counter() + timeout
    with anyio.CancelScope(deadline=deadline):
        # A value that arrives wins, also late, as with `anyio.fail_after`.
        value = await func(*call.args, **call.kwargs)
        if (now := anyio.current_time()) > deadline:
            call.arrived("timeout", timeout, now - deadline)
        return value
    await give_way(deadline)
    raise call.timed_out("attempt", timeout)


async def attempt_elsewhere(call: Call, backend: Backend) -> Any:
    """Run the function once, on a backend."""
    try:
        return await backend.run(described(call))
    except AttemptTimeout as timeout:
        await give_way(timeout.deadline)
        assert call.spec.timeout is not None  # else no time can be up
        raise call.timed_out("attempt", call.spec.timeout) from None
    except AttemptRefused as refused:
        raise call.refuse(refused.error) from None


def described(call: Call) -> Attempt:
    """The next execution of the function, for those who run it."""
    spec = call.spec
    watcher = call.home.watcher
    func = spec.func if watcher is None else watcher.surrounded(call, spec.func, is_async=False)
    return Attempt(spec.label, func, call.args, call.kwargs, spec.timeout)


async def pause(delay: float) -> None:
    """Wait before a retry; also without a delay a point at which the call can be cancelled."""
    # An attempt that blocked may have outlasted a deadline around the call, which is to end it before the next.
    await give_way(anyio.current_time())
    await anyio.sleep(delay)


def pause_sync(call: Call, delay: float) -> None:
    """Wait before a retry."""
    if delay:
        call.refuse_to_block(delay)  # the seconds may be those that `retry_on` has returned
        time.sleep(delay)
