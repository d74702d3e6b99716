"""What keeps results: what a store has to be, and which one is meant by a path or a URL."""

from __future__ import annotations

import os
import re
from typing import Any, Final, Protocol, TypeAlias, final

__all__ = [
    "REDIS",
    "CACHE_MISS",
    "CacheMiss",
    "CacheStore",
    "StoreLike",
    "checked_store",
    "location_of",
    "without_password",
]


@final
class CacheMiss:
    """The type of `CACHE_MISS`."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "CACHE_MISS"

    def __reduce__(self) -> str:
        return "CACHE_MISS"


CACHE_MISS: Final = CacheMiss()
"""What a store answers that has no value for a key: `None` is a value."""


class CacheStore(Protocol):
    """What keeps values under keys. Any object with these methods is one; it must be safe to use from several threads.

    An attribute `blocking = False` says that it never waits for anything, and is asked in the event loop's own thread; others
    are asked in worker threads. An attribute `location`, hashable, says where it keeps its values: objects with equal
    ones are one store. A method `close()`, if there is one, is for whoever made it.
    """

    def get(self, key: str) -> Any:
        """The value of a key, each time a new object; `CACHE_MISS` if there is none.

        Args:
            key: What the value is kept under.
        """
        ...

    def put(self, key: str, value: Any, ttl: float | None = None) -> None:
        """Keep a value, in place of another one of that key.

        Args:
            key: What to keep it under.
            value: The value.
            ttl: For how many seconds; `None` if it stays.
        """
        ...

    def delete(self, key: str) -> None:
        """Forget the value of a key, if there is one."""
        ...

    def clear(self) -> None:
        """Forget all values."""
        ...


StoreLike: TypeAlias = "CacheStore | str | os.PathLike[str]"
"""A store; or the path of a folder for one, `"memory://name"` for one in this process, or the `"redis://..."` of a server."""

REDIS = ("redis", "rediss", "unix")  # the schemes of its URLs

_METHODS = ("get", "put", "delete", "clear")


def checked_store(what: str, store: Any) -> Any:
    """Check what somebody has given for a store.

    Args:
        what: Whose option it is, to begin an error message with.
        store: What was given.

    Returns:
        The store; or the text that stands for one.

    Raises:
        TypeError: It is no store, path or URL.
        ValueError: There is no store for that URL, or the path is empty.
    """
    if isinstance(store, (str, os.PathLike)):
        text = os.fspath(store)
        if not isinstance(text, str) or "\0" in text:
            raise ValueError(f"{what} must be a path of text, without a NUL, not {store!r}")
        scheme, separator, name = text.partition("://")
        if separator and scheme != "memory" and scheme not in REDIS:
            raise ValueError(
                f"{what}: there is no store for {without_password(text)!r}; there are paths of folders, 'memory://name' and 'redis://host'"
            )
        if not text or (separator and not name):
            raise ValueError(f"{what} must not be empty: name a folder, or a store as in 'memory://name', not {text!r}")
        return text
    if isinstance(store, type) or not all(callable(getattr(store, method, None)) for method in _METHODS):
        raise TypeError(
            f"{what} must be a path or a store with the methods get, put, delete and clear, such as "
            f"daglite.cache.MemoryCacheStore(), not {store!r}"
        )
    return store


def without_password(text: str) -> str:
    """A path or URL as it may be shown."""
    return re.sub(r"//[^/@]*@", "//...@", text)


def location_of(store: CacheStore) -> Any:
    """What two objects have in common that are one store."""
    location = getattr(store, "location", None)
    return id(store) if location is None else location  # itself it need not be hashable
