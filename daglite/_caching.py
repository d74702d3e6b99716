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

import threading
from collections.abc import Awaitable, Callable
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import anyio
from anyio import CapacityLimiter, to_thread
from anyio.lowlevel import RunVar, checkpoint_if_cancelled

from . import _checks
from ._call import Call
from ._circles import Blocked, chain_of
from ._context import whereabouts
from ._eventloop import Loop, comes_from_scope, give_way
from ._failures import is_cancellation
from ._flights import Computation, Flight, Look, Place, detach, flights_here
from ._gates import Waiter
from ._log import described, logger
from ._opening import opened
from ._refresh import Refresh, refresh
from ._spec import Spec
from ._stores import CACHE_MISS, CacheStore, location_of

if TYPE_CHECKING:
    from ._context import Home
    from .cache._keys import Keys

__all__ = ["cached", "cached_sync", "forget", "forget_sync", "key_of"]

T = TypeVar("T")

THREADS = 20  # of stores, for each event loop


async def cached(call: Call, execute: Callable[[Call], Awaitable[Any]]) -> Any:
    """Await the result of a call: that which is kept, or that which another computes, or else what its function gives."""
    call.arrive()
    store = store_of(call.spec, call.home)
    if store is None:
        return await begun(call, execute)
    key = key_of(call.spec, call.args, call.kwargs)
    anew = refresh()
    if anew is None:
        if getattr(store, "blocking", True):
            value = await looked_up(call, store, key)
        else:
            call.start_total()
            value = got(call, store, key)
        if value is not CACHE_MISS:
            await checkpoint_if_cancelled()
            tell_hit(call, key, value)
            return value
    return await computed(call, store, (location_of(store), key), anew, execute)


def cached_sync(call: Call, execute: Callable[[Call], Any]) -> Any:
    """The result of a call: that which is kept, or else what its function gives."""
    call.arrive()
    store = store_of(call.spec, call.home)
    if store is None:
        return begun_sync(call, execute)
    key = key_of(call.spec, call.args, call.kwargs)
    anew = refresh()
    if anew is None:
        call.start_total()
        value = got(call, store, key)
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
    if flight is not None:
        if not flight.is_over:
            await followed(call, flight)
        if flight.is_over:
            return await outcome_of(call, flight)
    if flight is None or flight.leader is not call:  # there is none, or it is not to be waited for
        tell_miss(call, place, anew)
        flight = flights.begin(Flight(place, anew, call))
    return await led(call, store, flight, execute)


def computed_sync(
    call: Call, store: CacheStore, place: Place, anew: Refresh | None, execute: Callable[[Call], Any]
) -> Any:
    """What the function gives."""
    refuse_recursion(call, place)
    tell_miss(call, place, anew)
    with Computation(place, anew) as call.leads, call:
        value = execute(call)
        keep_sync(call, store, call.leads, value)
        if call.home.watcher is not None:
            call.result = value
        return value


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
                    flight.fail(exc, call.attempts, is_timeout=call.is_own(exc), is_noted=noted)
                raise
            flight.succeed(value)
            await keep(call, store, flight, value)
            if call.home.watcher is not None:
                call.result = value
            return value
    finally:
        del call.leads  # else each would hold the other
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


# What a call is kept under, and where.


def store_of(spec: Spec, home: Home) -> CacheStore | None:
    """Where the results of a task are kept; `None` if nowhere."""
    options = spec.options
    if not spec.is_cached:
        return None
    store = options.cache_store if options.cache is True else options.cache
    if store is None:
        store = home.settings.cache_store
        if store is None:
            return None
    if isinstance(store, str):
        return opened(store, home.settings.cache_key)
    return store  # type: ignore[no-any-return]


def key_of(spec: Spec, args: tuple[Any, ...], kwargs: Any) -> str:
    """What the result of a call is kept under.

    Raises:
        CacheKeyError: No key can be made of its arguments, or of its function.
    """
    function, options = spec.function, spec.options
    keys = function.root.keys
    made: Keys | None = None if keys is None else keys.get(options.version)
    if made is None:
        made = first_keys(spec)
    if options.cache_hash is not None:
        return made.by(options.cache_hash, function.all_inputs(args, kwargs))
    if not kwargs and len(args) == made.count and function is function.root:
        return made.of_args(args)
    return made.of(function.all_inputs(args, kwargs).items())


def first_keys(spec: Spec) -> Keys:
    """What the keys of a task begin with, found out at its first call; methods that are bound to an object share it."""
    from .cache._keys import Keys  # not by `import daglite`

    root, version = spec.function.root, spec.options.version
    plain = root.plain
    is_positional = plain is not None and plain.positional == len(plain.defaults)
    made = Keys(spec.label, root.call, version, tuple(plain.defaults) if plain and is_positional else None)
    if root.keys is None:
        root.keys = {}
    root.keys[version] = made
    return made


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


async def followed(call: Call, flight: Flight) -> None:
    """Wait until another call has computed, or lets this one lead, or is not to be waited for."""
    waiter = Waiter.in_loop()
    flight.join(waiter, call)
    call.pause_for(flight)
    try:
        with Blocked(call, flight) as blocked:
            if blocked.closes_circle():
                flight.evict(call)
            await in_total_time(call, waiter.event.wait)
    except BaseException:
        if flight.leave(waiter):
            flights_here().hand_over(flight)
        call.resume()
        with call:  # it has begun, for all that anybody hears, and come to this
            raise
    call.resume()


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


# Reading.


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


def got(call: Call, store: CacheStore, key: str) -> Any:
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


def tell_miss(call: Call, place: Place, anew: Refresh | None) -> None:
    """Tell that the result of a call was not there; with `refresh_cache()` nobody has looked."""
    if call.watcher is not None and anew is None:
        call.watcher.cache_missed(call, place[1])


def tell_hit(call: Call, key: str, value: Any, *, shared: bool = False) -> None:
    """Tell that the result of a call was there."""
    if call.watcher is not None:
        call.watcher.cache_hit(call, key, value, shared=shared)


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


# Keeping.


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


async def to_its_end(func: Callable[[], None], grace: float) -> None:
    """Call a function in a thread, and see that through; once it is cancelled for no more than so many seconds.

    Raises:
        TimeoutError: They were not enough.
    """
    once, loop, ended = threading.Lock(), Loop(), anyio.Event()
    errors: list[Exception] = []

    def run() -> None:
        if not once.acquire(blocking=False):
            return  # it has begun in another thread
        try:
            func()
        except Exception as exc:
            errors.append(exc)
        finally:
            loop.post(ended.set)

    try:
        await in_thread(run)
    except BaseException as exc:
        if not is_cancellation(exc):
            raise
        with anyio.CancelScope(shield=True, deadline=anyio.current_time() + grace):
            if not once.locked():  # the cancellation came before it
                await in_thread(run)
            await ended.wait()
        if not ended.is_set():
            errors.append(TimeoutError(f"it has taken longer than the {grace:g} s that a cancelled call waits for it"))
        # As with anyio's shield: the value that is there is returned, and the next checkpoint is cancelled.
        if not comes_from_scope():
            raise
    if errors:
        raise errors.pop()
