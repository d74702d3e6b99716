"""The options of a task: which there are, and what each of them must be."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any, TypeAlias

from . import _checks
from ._functions import Function, is_plain
from ._gates import Gate
from ._opening import checked_cache_store, checked_dataset_store
from ._retry import RetryDelay, RetryOn
from ._templates import placeholders, render
from .limits import Limit, Rate

__all__ = ["CacheHash", "CacheTTL", "Options", "checked_options", "dataset_placeholders"]

CacheTTL: TypeAlias = "float | Callable[[Any], float | None]"
"""For how many seconds a result is kept, or a function of the result that says so."""

CacheHash: TypeAlias = "Callable[[Callable[..., Any], Mapping[str, Any]], str]"
"""Makes a text of a function and its inputs by parameter name."""


@dataclass(frozen=True, slots=True)
class Options:
    """The options of a task, checked."""

    name: str
    description: str | None
    retries: int
    retry_on: RetryOn
    retry_delay: RetryDelay
    timeout: float | None
    total_timeout: float | None
    item_timeout: float | None
    pump: bool
    limit: Limit | None
    rate: Rate | None
    cache: Any
    cache_store: Any
    cache_ttl: CacheTTL | None
    cache_hash: CacheHash | None
    version: str | int | None
    dataset: str | None
    dataset_store: Any
    dataset_format: str | None
    backend: str | None
    wrap_errors: bool

    @property
    def gates(self) -> tuple[Gate, ...]:
        """What lets an attempt, or a stream, begin: the limit first, for a place in time must not be lost by waiting."""
        return tuple(each._gate for each in (self.limit, self.rate) if each is not None)

    @property
    def deadlines(self) -> dict[str, float | None]:
        """What bounds a call, or its parts, in seconds."""
        return {"timeout": self.timeout, "total_timeout": self.total_timeout, "item_timeout": self.item_timeout}

    def changed(self, function: Function, changes: dict[str, Any]) -> Options:
        """These options with some others, checked together."""
        return checked_options(function, **{**self.as_given(), **changes})

    def as_given(self) -> dict[str, Any]:
        """What `checked_options` makes these options of."""
        return {option.name: getattr(self, option.name) for option in fields(self)}


def checked_options(
    function: Function,
    *,
    name: Any,
    description: Any,
    retries: Any,
    retry_on: Any,
    retry_delay: Any,
    timeout: Any,
    total_timeout: Any,
    item_timeout: Any,
    pump: Any,
    limit: Any,
    rate: Any,
    cache: Any,
    cache_store: Any,
    cache_ttl: Any,
    cache_hash: Any,
    version: Any,
    dataset: Any,
    dataset_store: Any,
    dataset_format: Any,
    backend: Any,
    wrap_errors: Any,
) -> Options:
    """The options of a task, each as it is to be used.

    Raises:
        TypeError: An option has the wrong type.
        ValueError: An option is out of range, or does not apply to this kind of function.
    """
    name = _checked_name(name, function)
    where = f"task {name!r}"
    if function.is_generator:
        _refuse_for_streams(
            where,
            retries=retries,
            retry_on=retry_on,
            retry_delay=retry_delay,
            timeout=timeout,
            total_timeout=total_timeout,
            rate=rate,
            cache=cache,
            cache_store=cache_store,
            cache_ttl=cache_ttl,
            cache_hash=cache_hash,
        )
    deadlines = {"timeout": timeout, "total_timeout": total_timeout, "item_timeout": item_timeout}
    return Options(
        name=name,
        description=_checked_description(where, description, function),
        retries=_checks.whole(f"{where}: retries", retries, least=0),
        retry_on=_checked_retry_on(where, retry_on),
        retry_delay=_checked_retry_delay(where, retry_delay),
        timeout=_checked_seconds(f"{where}: timeout", timeout),
        total_timeout=_checked_seconds(f"{where}: total_timeout", total_timeout),
        item_timeout=_checked_item_timeout(where, item_timeout, function),
        pump=_checked_pump(where, pump, function),
        limit=_checked_limit(where, limit, name),
        rate=_checked_rate(where, rate),
        cache=_checked_cache(where, cache, cache_store),
        cache_store=None if cache_store is None else checked_cache_store(f"{where}: cache_store", cache_store),
        cache_ttl=_checked_cache_ttl(where, cache_ttl),
        cache_hash=_checked_cache_hash(where, cache_hash),
        version=_checked_version(where, version),
        dataset=_checked_dataset(where, dataset, dataset_format, function),
        dataset_store=None
        if dataset_store is None
        else checked_dataset_store(f"{where}: dataset_store", dataset_store),
        dataset_format=dataset_format,
        backend=_checked_backend(where, backend, deadlines, function),
        wrap_errors=_checks.flag(f"{where}: wrap_errors", wrap_errors),
    )


_DEFAULTS = {
    "retries": 0,
    "retry_on": Exception,
    "retry_delay": 0,
    "timeout": None,
    "total_timeout": None,
    "rate": None,
    "cache": False,
    "cache_store": None,
    "cache_ttl": None,
    "cache_hash": None,
}
_CACHE = "a stream is not kept; cache a function that collects it, or the tasks that it calls"
_INSTEAD = {
    "timeout": "use item_timeout= (seconds per item)",
    "total_timeout": "use item_timeout= (seconds per item), or put a deadline around the loop that consumes it",
    "rate": "use limit= (how many are open at once), or a rate for the tasks that it calls",
    **dict.fromkeys(("cache", "cache_store", "cache_ttl", "cache_hash"), _CACHE),
}


def _refuse_for_streams(where: str, **given: Any) -> None:
    """Raise for an option that a stream has no use for."""
    for option, value in given.items():
        default = _DEFAULTS[option]
        if (value != default or isinstance(value, bool)) and value is not default:
            remedy = _INSTEAD.get(
                option, "a stream cannot start over; retry inside it, or in the task that consumes it"
            )
            raise ValueError(f"{where} is a generator: {option}={value!r} does not apply to streams; {remedy}")


def _checked_seconds(what: str, seconds: Any) -> float | None:
    return None if seconds is None else _checks.finite(what, seconds, least=0, above=True)


def _checked_item_timeout(where: str, seconds: Any, function: Function) -> float | None:
    if seconds is not None and not function.is_generator:
        raise ValueError(
            f"{where} is no generator: item_timeout={seconds!r} is for the items of streams; use timeout= (seconds per attempt)"
        )
    return _checked_seconds(f"{where}: item_timeout", seconds)


def _checked_pump(where: str, pump: Any, function: Function) -> bool:
    if _checks.flag(f"{where}: pump", pump) and not (function.is_generator and function.is_async):
        remedy = "has no stream to pump"
        if function.is_generator:
            remedy = "is a sync generator; to step it in a thread of its own use to_thread()"
        raise ValueError(f"{where}: pump=True is for async generators, and this {remedy}")
    return pump  # type: ignore[no-any-return]


def _checked_limit(where: str, limit: Any, name: str) -> Limit | None:
    if limit is None or isinstance(limit, Limit):
        return limit
    if isinstance(limit, bool) or not isinstance(limit, int):
        raise TypeError(f"{where}: limit must be a whole number of attempts at once or a Limit, not {limit!r}")
    return Limit(name, _checks.whole(f"{where}: limit", limit, least=1))


def _checked_rate(where: str, rate: Any) -> Rate | None:
    if rate is None or isinstance(rate, Rate):
        return rate
    raise TypeError(f"{where}: rate must be a Rate, such as Rate(10, per=1), not {rate!r}")


def _checked_cache(where: str, cache: Any, store: Any) -> Any:
    if isinstance(cache, bool):
        return cache
    if store is not None:
        raise ValueError(f"{where}: cache={cache!r} and cache_store={store!r} name two stores; one of them is enough")
    return checked_cache_store(f"{where}: cache", cache)


def _checked_cache_ttl(where: str, ttl: Any) -> CacheTTL | None:
    if callable(ttl):
        if is_plain(ttl):
            return ttl  # type: ignore[no-any-return]
        raise TypeError(f"{where}: cache_ttl must be seconds or a plain function of the result, not {ttl!r}")
    return _checked_seconds(f"{where}: cache_ttl", ttl)


def _checked_cache_hash(where: str, cache_hash: Any) -> CacheHash | None:
    if cache_hash is None or is_plain(cache_hash):
        return cache_hash  # type: ignore[no-any-return]
    raise TypeError(f"{where}: cache_hash must be a plain function of the function and its inputs, not {cache_hash!r}")


def _checked_version(where: str, version: Any) -> str | int | None:
    if version is None or type(version) in (str, int):
        return version  # type: ignore[no-any-return]
    raise TypeError(f"{where}: version must be a str or an int, not {version!r}")


def _checked_dataset(where: str, dataset: Any, format: Any, function: Function) -> str | None:
    if dataset is None:
        if format is not None:
            raise ValueError(
                f"{where}: dataset_format={format!r} does nothing without dataset=, which says where to save"
            )
        return None
    from .datasets._formats import format_named, format_of  # not by `import daglite`
    from .datasets._keys import checked_key

    what = f"{where}: dataset"
    if not isinstance(dataset, str):
        raise TypeError(f"{what} must be a str such as '{{name}}.json', not {dataset!r}")
    used = dataset_placeholders(function, dataset, what)
    if function.is_generator and "iter_index" not in used:
        raise ValueError(
            f"{where} is a generator, and saves each item: dataset={dataset!r} must hold {{iter_index}}, the item's number"
        )
    likely = render(dataset, dict.fromkeys(used, "0"))
    checked_key(likely, what)
    if format is not None:
        format_named(format, what)
    elif not used or "." in dataset.rpartition("}")[2]:
        format_of(likely, what)
    return dataset


def dataset_placeholders(function: Function, dataset: str, what: str) -> frozenset[str]:
    """The placeholders in the key of a dataset.

    Args:
        function: The task's function.
        dataset: The key.
        what: Whose key it is, to begin an error message with.

    Raises:
        ValueError: A placeholder is malformed, or not available.
    """
    of_items = ("iter_index",) if function.is_generator else ()
    return placeholders(dataset, dict.fromkeys((*function.parameters, "name", "map_index", *of_items)), what)


def _checked_name(name: Any, function: Function) -> str:
    if name is None:
        # The names of lambdas and of some callables hold what a template would stumble over.
        return function.name.replace("{", "{{").replace("}", "}}")
    where = f"task {function.name!r}: name"
    if not isinstance(name, str):
        raise TypeError(f"{where} must be a str, not {name!r}")
    if not name or "." in name:
        raise ValueError(f"{where} {name!r} must not be empty or hold a period")
    placeholders(name, (*function.parameters, "map_index"), where)
    return name


def _checked_description(where: str, description: Any, function: Function) -> str | None:
    if description is None:
        return inspect.getdoc(function.origin)
    if not isinstance(description, str):
        raise TypeError(f"{where}: description must be a str, not {description!r}")
    return description


def _checked_retry_on(where: str, retry_on: Any) -> RetryOn:
    kinds = retry_on if isinstance(retry_on, tuple) else (retry_on,)
    if kinds and all(isinstance(kind, type) for kind in kinds):
        for kind in kinds:
            if not issubclass(kind, Exception):
                raise ValueError(
                    f"{where}: retry_on={kind.__qualname__} is not an Exception: cancellation, "
                    f"interrupts and exits are never retried"
                )
        return retry_on  # type: ignore[no-any-return]
    if is_plain(retry_on):
        return retry_on  # type: ignore[no-any-return]
    raise TypeError(f"{where}: retry_on must be exception types or a plain function of the error, not {retry_on!r}")


def _checked_retry_delay(where: str, delay: Any) -> RetryDelay:
    if callable(delay):
        if is_plain(delay):
            return delay  # type: ignore[no-any-return]
        raise TypeError(
            f"{where}: retry_delay must be seconds, a Backoff or a plain function of the retry's number, not {delay!r}"
        )
    return _checks.finite(f"{where}: retry_delay", delay, least=0)


def _checked_backend(where: str, backend: Any, deadlines: dict[str, Any], function: Function) -> str | None:
    if backend is None:
        return None
    _checks.backend(where, backend)
    if function.is_async:
        raise ValueError(f"{where}: backend={backend!r} is for sync functions; an async one runs in its caller's task")
    for option, seconds in deadlines.items():
        if backend == "inline" and seconds is not None:
            raise ValueError(f"{where}: {option}={seconds!r} cannot be enforced on the backend 'inline'; use 'thread'")
    return backend  # type: ignore[no-any-return]
