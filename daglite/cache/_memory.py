"""A store in the memory of this process."""

from __future__ import annotations

import os
import pickle
import threading
from collections import OrderedDict
from typing import Any
from weakref import WeakSet, WeakValueDictionary

from .. import _checks, _clock
from .._stores import CACHE_MISS

__all__ = ["MemoryCacheStore"]


class MemoryCacheStore:
    """Keeps values in the memory of this process, and of many those that were used last.

    They are kept pickled: what somebody does with the result of a call is not seen by the next who gets it.

    ```python
    from daglite import task
    from daglite.cache import MemoryCacheStore


    @task(cache=MemoryCacheStore(max_items=1000), cache_ttl=60)
    def square(number: int) -> int:
        return number**2


    assert square(4) == square(4) == 16
    ```

    It never waits, and is asked in the event loop's own thread. `cache="memory://name"` is one for all in the process who
    name it. It may be pickled: in this process that gives the store itself again, in another one an empty one.

    Args:
        max_items: How many values it keeps; 10,000 by default.
        max_bytes: How many bytes they may have together, pickled; 100 MiB by default. A larger one is refused.

    Raises:
        TypeError: A number is not whole.
        ValueError: A number is less than 1.
    """

    blocking = False

    def __init__(self, max_items: int = 10_000, max_bytes: int = 100 << 20) -> None:
        self.max_items: int = _checks.whole("MemoryCacheStore: max_items", max_items, least=1)
        self.max_bytes: int = _checks.whole("MemoryCacheStore: max_bytes", max_bytes, least=1)
        self._entries: OrderedDict[str, tuple[bytes, float | None]] = OrderedDict()  # those used last at the end
        self._size = 0
        self._lock = threading.Lock()
        self._name: str | None = None  # from when it is pickled
        _stores.add(self)

    def __repr__(self) -> str:
        return f"MemoryCacheStore(max_items={self.max_items}, max_bytes={self.max_bytes})"

    def __reduce__(self) -> tuple[Any, ...]:
        if self._name is None:
            self._name = os.urandom(16).hex()
            _pickled[self._name] = self
        return _unpickled, (self._name, self.max_items, self.max_bytes)

    def __len__(self) -> int:
        """How many values it keeps, those included whose time is up and that nobody has asked for."""
        return len(self._entries)

    def get(self, key: str) -> Any:
        """The value of a key, a new object each time; `daglite.cache.CACHE_MISS` if there is none."""
        with self._lock:
            entry = self._entries.get(key)
            if entry is None:
                return CACHE_MISS
            data, expires = entry
            if expires is not None and _clock.monotonic() >= expires:
                self._forget(key)
                return CACHE_MISS
            self._entries.move_to_end(key)
        return pickle.loads(data)

    def put(self, key: str, value: Any, ttl: float | None = None) -> None:
        """Keep a value.

        Args:
            key: What to keep it under.
            value: The value, which must be one that pickle takes.
            ttl: For how many seconds; `None` if it stays until there are too many.

        Raises:
            ValueError: It is larger than `max_bytes`, or `ttl` is not above 0.
        """
        if ttl is not None:
            ttl = _clock.monotonic() + _checks.finite("MemoryCacheStore.put: ttl", ttl, least=0, above=True)
        data = pickle.dumps(value, pickle.HIGHEST_PROTOCOL)
        if len(data) > self.max_bytes:
            raise ValueError(f"a value of {len(data)} bytes is too large for a store of {self.max_bytes} bytes")
        with self._lock:
            self._forget(key)
            self._entries[key] = data, ttl
            self._size += len(data)
            while self._size > self.max_bytes or len(self._entries) > self.max_items:
                self._forget(next(iter(self._entries)))

    def delete(self, key: str) -> None:
        """Forget the value of a key, if there is one."""
        with self._lock:
            self._forget(key)

    def clear(self) -> None:
        """Forget all values."""
        with self._lock:
            self._entries.clear()
            self._size = 0

    def _forget(self, key: str) -> None:
        entry = self._entries.pop(key, None)
        if entry is not None:
            self._size -= len(entry[0])


_stores: WeakSet[MemoryCacheStore] = WeakSet()
_pickled: WeakValueDictionary[str, MemoryCacheStore] = WeakValueDictionary()


def _unpickled(name: str, max_items: int, max_bytes: int) -> MemoryCacheStore:
    """The store of a name in this process."""
    found = _pickled.get(name)
    if found is None:
        found = _pickled[name] = MemoryCacheStore(max_items, max_bytes)
        found._name = name
    return found


def _reset() -> None:
    for store in _stores:
        store._lock = threading.Lock()  # a thread that is not here may have held it


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_reset)
