"""The stores that paths and URLs stand for."""

from __future__ import annotations

from ._stores import CacheStore

__all__ = ["opened"]

_opened: dict[tuple[str, str | bytes | None], CacheStore] = {}
_folders: dict[str, CacheStore] = {}


def opened(text: str, signing_key: str | bytes | None) -> CacheStore:
    """The store that a path or URL stands for, which is one for all in this process who name the same place.

    Args:
        text: What `checked_store` has returned.
        signing_key: What a store of files signs its entries with.
    """
    found = _opened.get((text, signing_key))
    return _opened.setdefault((text, signing_key), _made(text, signing_key)) if found is None else found


def _made(text: str, signing_key: str | bytes | None) -> CacheStore:
    from .cache import FileCacheStore, MemoryCacheStore  # not by `import daglite`

    if "://" in text:
        return MemoryCacheStore()
    made = FileCacheStore(text, signing_key)
    return _folders.setdefault(made.location, made)
