"""What a call asks of its store: to be looked up before it begins, and to be kept when it has succeeded.

A store that blocks is asked in threads of its own. One that fails has nothing, and keeps nothing: that is told, and is never an
error of the call.
"""

from __future__ import annotations

import threading
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, TypeVar

import anyio
from anyio import CapacityLimiter, to_thread
from anyio.lowlevel import RunVar, checkpoint_if_cancelled

from . import _checks
from ._call import Call
from ._eventloop import Loop, comes_from_scope, give_way
from ._flights import Computation, Look, flights_here
from ._log import described, logger
from ._stores import CACHE_MISS, CacheStore, location_of

__all__ = [
    "in_thread",
    "in_total_time",
    "keep",
    "keep_sync",
    "looked_up",
    "looked_up_here",
    "saved_in_thread",
]

T = TypeVar("T")

THREADS = 20  # of stores, for each event loop


class Looking:
    """What a call waits for that is looked up."""

    state = "looking in its cache"
    name = None


class Keeping:
    """What a call waits for whose result is kept."""

    state = "keeping its result"
    name = None


LOOKING = Looking()
KEEPING = Keeping()


async def looked_up(call: Call, store: CacheStore, key: str) -> Any:
    """What is kept under a key in a store that blocks; nothing, if the store fails."""
    look = Look((location_of(store), key))
    call.pause_for(LOOKING)
    try:
        value = CACHE_MISS
        with flights_here().looking(look):
            while value is CACHE_MISS and look.is_stale:
                look.is_stale = False
                value = await in_total_time(call, partial(got_in_thread, call, store, key))
    except BaseException:
        call.resume()
        with call:  # it has begun, for all that anybody hears, and come to this
            raise
    call.resume()
    return value


def looked_up_here(call: Call, store: CacheStore, key: str) -> Any:
    """What is kept under a key; nothing, if the store fails."""
    try:
        return store.get(key)
    except Exception as exc:
        failed(call, "get", exc)
        return CACHE_MISS


async def got_in_thread(call: Call, store: CacheStore, key: str) -> Any:
    """The same off the event loop; who is cancelled goes on, and the thread by itself."""
    try:
        return await in_thread(partial(store.get, key))
    except Exception as exc:
        failed(call, "get", exc)
        return CACHE_MISS


async def keep(call: Call, store: CacheStore, computation: Computation, value: Any) -> None:
    """Keep the result of a call, whatever is cancelled."""
    put = putting(call, store, computation, value)
    if put is None:
        return
    call.waits_for = KEEPING
    try:
        if getattr(store, "blocking", True):
            await to_its_end(put, call.home.settings.grace)
        else:
            put()
    except Exception as exc:
        failed(call, "put", exc)
    finally:
        call.waits_for = None


def keep_sync(call: Call, store: CacheStore, computation: Computation, value: Any) -> None:
    """Keep the result of a call."""
    put = putting(call, store, computation, value)
    if put is not None:
        try:
            put()
        except Exception as exc:
            failed(call, "put", exc)


def putting(call: Call, store: CacheStore, computation: Computation, value: Any) -> Callable[[], None] | None:
    """A function that keeps a result; `None` if it is not to be kept."""
    ttl = call.spec.options.cache_ttl
    if callable(ttl):
        try:
            ttl = ttl(value)
            if ttl is not None:
                ttl = _checks.finite("its answer", ttl, least=0, above=True)
        except Exception as exc:
            failed(call, "cache_ttl", exc)
            return None

    key, seconds = computation.place[1], ttl

    def put() -> None:
        if not computation.detached:
            store.put(key, value, seconds)
            if computation.detached:  # it was invalidated in the meantime
                store.delete(key)

    return put


def failed(call: Call, operation: str, error: Exception) -> None:
    """Tell of what went wrong with a cache."""
    what = {"get": "be read", "put": "keep its result", "cache_ttl": "be told by cache_ttl how long to keep it"}[
        operation
    ]
    logger().warning("task %r: its cache could not %s: %s", call.metadata.name, what, described(error))
    if call.watcher is not None:
        call.watcher.cache_failed(call, operation, error)


async def in_total_time(call: Call, func: Callable[[], Awaitable[T]]) -> T:
    """Await something that belongs to the time for the whole call.

    Raises:
        TaskTimeoutError: It is up.
    """
    left = call.start_total()
    if left is None:
        return await func()
    deadline = anyio.current_time() + left
    with anyio.CancelScope(deadline=deadline):
        return await func()
    await give_way(deadline)
    raise call.timed_out("total")


# Threads for stores.

_limiters: RunVar[CapacityLimiter] = RunVar("daglite_store_threads")


def limiter() -> CapacityLimiter:
    """Of the threads of stores in this event loop, which are none of those in which tasks run."""
    try:
        return _limiters.get()
    except LookupError:
        made = CapacityLimiter(THREADS)
        _limiters.set(made)
        return made


async def in_thread(func: Callable[[], T]) -> T:
    """Call a function in a thread; whoever is cancelled goes on, and the thread by itself."""
    return await to_thread.run_sync(func, abandon_on_cancel=True, limiter=limiter())


class Unfinished(TimeoutError):
    """Something goes on in a thread that a cancelled call has waited for as long as it may."""


async def saved_in_thread(what: str, save: Callable[[], None], grace: float) -> None:
    """Save something in a thread, and see that through; a cancellation that has waited for it as long as it may goes on.

    Args:
        what: The first words of what is said then.
        save: What saves it.
        grace: For how many seconds a cancellation waits.
    """
    try:
        await to_its_end(save, grace)
    except Unfinished as exc:
        logger().warning("%s is saved by a thread that goes on by itself: %s", what, exc)
        await checkpoint_if_cancelled()
        raise


async def to_its_end(func: Callable[[], None], grace: float) -> None:
    """Call a function in a thread, and see that through; once it is cancelled for no more than so many seconds.

    Raises:
        Unfinished: They were not enough, and the thread goes on by itself.
    """
    once, loop, ended = threading.Lock(), Loop(), anyio.Event()
    errors: list[BaseException] = []

    def run() -> None:
        if not once.acquire(blocking=False):
            return  # it has begun in another thread
        try:
            func()
        except BaseException as exc:  # whoever waits may have stopped to listen to the thread
            errors.append(exc)
        finally:
            loop.post(ended.set)

    try:
        await in_thread(run)
    except BaseException:
        with anyio.CancelScope(shield=True, deadline=anyio.current_time() + grace):
            if not once.locked():  # the cancellation came before it
                await in_thread(run)
            await ended.wait()
        if not ended.is_set():
            errors.append(Unfinished(f"it has taken longer than the {grace:g} s that a cancelled call waits for it"))
        # As with anyio's shield: the value that is there is returned, and the next checkpoint is cancelled.
        if not comes_from_scope():
            raise
    if errors:
        raise errors.pop()
