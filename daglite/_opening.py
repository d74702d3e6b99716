"""The stores that paths and URLs stand for, of caches and of datasets."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any, TypeAlias

from ._stores import REDIS, CacheStore, checked_store

if TYPE_CHECKING:
    from .datasets import DatasetStore

__all__ = ["DatasetStoreLike", "checked_cache_store", "checked_dataset_store", "opened", "opened_datasets"]

_opened: dict[tuple[str, str | bytes | None], CacheStore] = {}
_folders: dict[str, CacheStore] = {}
_datasets: dict[str, DatasetStore] = {}


def opened(text: str, signing_key: str | bytes | None) -> CacheStore:
    """The store that a path or URL stands for, which is one for all in this process who name the same place.

    Args:
        text: What `checked_cache_store` has returned.
        signing_key: What the store signs its entries with, if it is no store in memory.
    """
    found = _opened.get((text, signing_key))
    return _opened.setdefault((text, signing_key), _made(text, signing_key)) if found is None else found


def _made(text: str, signing_key: str | bytes | None) -> CacheStore:
    from .cache import FileCacheStore, MemoryCacheStore, RedisCacheStore  # not by `import daglite`

    scheme, separator, _ = text.partition("://")
    if scheme in REDIS:
        return RedisCacheStore(text, signing_key)
    if separator:
        return MemoryCacheStore()
    made = FileCacheStore(text, signing_key)
    return _folders.setdefault(made.location, made)


def checked_cache_store(what: str, store: Any) -> Any:
    """Check what somebody has given for a store, as `checked_store` does, and whether what a URL needs is there.

    Raises:
        TypeError: It is no store, path or URL.
        ValueError: There is no store for that URL, or the path is empty.
        ImportError: What the URL needs is not installed.
    """
    checked = checked_store(what, store)
    if isinstance(checked, str) and checked.partition("://")[0] in REDIS:
        from .cache import RedisCacheStore  # not by `import daglite`

        RedisCacheStore(checked)  # which connects to nobody
    return checked


DatasetStoreLike: TypeAlias = "DatasetStore | str | os.PathLike[str]"
"""A store of datasets; or the path of a folder, or a URL, for one."""


def checked_dataset_store(what: str, store: Any) -> Any:
    """Check what somebody has given for a store of datasets.

    Args:
        what: Whose option it is, to begin an error message with.
        store: What was given.

    Returns:
        The store; or the text that stands for one.

    Raises:
        TypeError: It is no store, path or URL.
        ValueError: There is no store for that URL, or the path is empty.
        ImportError: What the URL needs is not installed.
    """
    if isinstance(store, (str, os.PathLike)):
        text = os.fspath(store)
        if not isinstance(text, str) or not text or "\0" in text:
            raise ValueError(f"{what} must be a path of text, not empty and without a NUL, not {store!r}")
        opened_datasets(text)  # which there may be none for
        return text
    datasets = sys.modules.get("daglite.datasets")  # imported by whoever has such a store
    if datasets is None or not isinstance(store, datasets.DatasetStore):
        raise TypeError(f"{what} must be a path, a URL or a daglite.datasets.DatasetStore, not {store!r}")
    return store


def opened_datasets(text: str) -> DatasetStore:
    """The store of datasets that a path or URL stands for.

    Args:
        text: What `checked_dataset_store` has returned.

    Raises:
        ValueError: There is none for that URL.
        ImportError: What the URL needs is not installed.
    """
    found = _datasets.get(text)
    if found is None:
        from .datasets import DatasetStore  # not by `import daglite`

        found = _datasets.setdefault(text, DatasetStore(text))
    return found
