"""A call whose result is kept: looked up before it begins, and kept after its last attempt.

    look up                 a hit: that is the result, and nothing begins
    follow                  another call computes the same: its result, or its error, or it lets this one lead
    with call:              it leads
        execute             attempts and waits, as of any call
        its followers go on
        keep                for those who come later; shielded, and outside of the call's deadlines

A cache that fails is a miss, or a result that is not kept: never an error of the call. What has `_sync` at its end is the same
in place, where nobody is followed: who waits for another there would keep its thread from computing.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

from anyio.lowlevel import checkpoint_if_cancelled

from ._call import Call
from ._circles import Blocked, chain_of
from ._context import whereabouts
from ._flights import Computation, Flight, Follower, Place, detach, flights_here
from ._keeping import in_thread, in_total_time, keep, keep_sync, looked_up, looked_up_here
from ._places import key_of, store_of
from ._refresh import Refresh, current_refresh
from ._saving import saving, saving_sync
from ._spec import Spec
from ._stores import CACHE_MISS, CacheStore, location_of

__all__ = ["cached", "cached_sync", "forget", "forget_sync"]


async def cached(call: Call, execute: Callable[[Call], Awaitable[Any]]) -> Any:
    """Await the result of a call: that which is kept, or that which another computes, or else what its function gives."""
    call.arrive()
    if call.spec.options.dataset is not None:
        execute = saving(call, execute)
    store = store_of(call.spec, call.home)
    if store is None:
        return await begun(call, execute)
    key = key_of(call.spec, call.args, call.kwargs)
    anew = current_refresh()
    if anew is None:
        if getattr(store, "blocking", True):
            value = await looked_up(call, store, key)
        else:
            call.start_total()
            value = looked_up_here(call, store, key)
        if value is not CACHE_MISS:
            await checkpoint_if_cancelled()
            tell_hit(call, key, value)
            return value
    return await computed(call, store, (location_of(store), key), anew, execute)


def cached_sync(call: Call, execute: Callable[[Call], Any]) -> Any:
    """The result of a call: that which is kept, or else what its function gives."""
    call.arrive()
    if call.spec.options.dataset is not None:
        execute = saving_sync(call, execute)
    store = store_of(call.spec, call.home)
    if store is None:
        return begun_sync(call, execute)
    key = key_of(call.spec, call.args, call.kwargs)
    anew = current_refresh()
    if anew is None:
        call.start_total()
        value = looked_up_here(call, store, key)
        if value is not CACHE_MISS:
            tell_hit(call, key, value)
            return value
    return computed_sync(call, store, (location_of(store), key), anew, execute)


async def computed(
    call: Call, store: CacheStore, place: Place, anew: Refresh | None, execute: Callable[[Call], Awaitable[Any]]
) -> Any:
    """What the function gives, for this call or another one with the same key."""
    refuse_recursion(call, place)
    flights = flights_here()
    flight = flights.running(place, anew)
    if flight is not None and not flight.is_over and not await followed(call, flight):
        flight = None
    if flight is not None and flight.is_over:
        return await outcome_of(call, flight)
    if flight is None:
        tell_miss(call, place, anew)
        flight = flights.begin(Flight(place, anew, call))
    return await led(call, store, flight, execute)


def computed_sync(
    call: Call, store: CacheStore, place: Place, anew: Refresh | None, execute: Callable[[Call], Any]
) -> Any:
    """What the function gives."""
    refuse_recursion(call, place)
    tell_miss(call, place, anew)
    with Computation(place, anew) as call.leads:
        try:
            with call:
                value = execute(call)
                keep_sync(call, store, call.leads, value)
                if call.home.watcher is not None:
                    call.result = value
                return value
        finally:
            del call.leads  # it may have left a stream open, which is not inside what is computed


async def led(call: Call, store: CacheStore, flight: Flight, execute: Callable[[Call], Awaitable[Any]]) -> Any:
    """What the function gives, for those too who follow; if it is not to be had here, the first of them leads."""
    call.leads = flight
    try:
        with call:
            try:
                value = await execute(call)
            except Exception as exc:
                if call.fails_by_itself(exc):
                    noted = not call.spec.options.wrap_errors
                    flight.fail(exc, call.attempts, is_own=call.is_own(exc), is_noted=noted)
                raise
            flight.succeed(value)
            await keep(call, store, flight, value)
            if call.home.watcher is not None:
                call.result = value
            return value
    finally:
        del call.leads  # it may have left a stream open, which is not inside what is computed
        flights_here().hand_over(flight)


async def begun(call: Call, execute: Callable[[Call], Awaitable[Any]]) -> Any:
    """Run a call without a cache."""
    with call:
        value = await execute(call)
        if call.home.watcher is not None:
            call.result = value
        return value


def begun_sync(call: Call, execute: Callable[[Call], Any]) -> Any:
    """Run a call without a cache."""
    with call:
        value = execute(call)
        if call.home.watcher is not None:
            call.result = value
        return value


# Following.


def refuse_recursion(call: Call, place: Place) -> None:
    """Raise if a call around this one computes what this one wants.

    Raises:
        RuntimeError: It does: it would wait for itself.
    """
    for around in chain_of(call):
        if around.leads is not None and around.leads.place == place:
            text = f"task {call.spec.label!r} calls itself with the same arguments, and would wait for itself"
            with call:
                raise call.refuse(RuntimeError(text))


async def followed(call: Call, flight: Flight) -> bool:
    """Wait until another call has computed, or lets this one lead; false if it is not to be waited for."""
    follower = Follower.of(call)
    flight.join(follower)
    call.pause_for(flight)
    try:
        with Blocked(call, flight) as blocked:
            if blocked.closes_circle():
                flight.evict(call)
            await in_total_time(call, follower.event.wait)
    except BaseException:
        if flight.leave(follower):
            flights_here().hand_over(flight)
        call.resume()
        with call:  # it has begun, for all that anybody hears, and come to this
            raise
    call.resume()
    return not follower.is_evicted


async def outcome_of(call: Call, flight: Flight) -> Any:
    """The result of the call that this one has followed, or an error of its own for the same reason."""
    if not flight.has_failed:
        await checkpoint_if_cancelled()
        value = flight.value()
        tell_hit(call, flight.place[1], value, shared=True)
        return value
    error = call.fail_like(flight)
    traceback = error.__traceback__
    try:
        with call:
            raise error
    finally:
        error.__traceback__ = traceback  # of all who raise it it is that of the leader
        del error


def tell_miss(call: Call, place: Place, anew: Refresh | None) -> None:
    """Tell that the result of a call was not there; with `refresh_cache()` nobody has looked."""
    if call.watcher is not None and anew is None:
        call.watcher.cache_missed(call, place[1])


def tell_hit(call: Call, key: str, value: Any, *, shared: bool = False) -> None:
    """Tell that the result of a call was there."""
    if call.watcher is not None:
        call.watcher.cache_hit(call, key, value, shared=shared)


# Forgetting.


async def forget(spec: Spec, args: tuple[Any, ...], kwargs: Any) -> None:
    """Forget what is kept of a call."""
    store = store_of(spec, whereabouts().home)
    if store is not None:
        key = key_of(spec, args, kwargs)
        detach((location_of(store), key))
        if getattr(store, "blocking", True):
            await in_thread(partial(store.delete, key))
        else:
            store.delete(key)


def forget_sync(spec: Spec, args: tuple[Any, ...], kwargs: Any) -> None:
    """Forget what is kept of a call."""
    store = store_of(spec, whereabouts().home)
    if store is not None:
        key = key_of(spec, args, kwargs)
        detach((location_of(store), key))
        store.delete(key)
