"""Datasets by hand: saved to, and loaded from, the store that holds where the code is."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar, overload

from ._context import Position, whereabouts
from ._destinations import Access, dataset_store_at
from ._keeping import in_thread, saved_in_thread
from ._opening import DatasetStoreLike, checked_dataset_store
from .exceptions import DatasetError

if TYPE_CHECKING:
    from .datasets import DatasetStore

__all__ = ["aload_dataset", "asave_dataset", "load_dataset", "save_dataset"]

T = TypeVar("T")


def save_dataset(
    key: str,
    value: Any,
    *,
    format: str | None = None,
    options: Mapping[str, Any] | None = None,
    store: DatasetStoreLike | None = None,
) -> None:
    """Save a value under a key, from sync code.

    ```python
    from tempfile import TemporaryDirectory

    from daglite import load_dataset, save_dataset, session

    with TemporaryDirectory() as folder, session(dataset_store=folder):
        save_dataset("reports/2026.json", {"sold": 42})
        assert load_dataset("reports/2026.json") == {"sold": 42}
    ```

    See `daglite.datasets.DatasetStore` for keys and formats. In an event loop's own thread it stops that while it writes: async code
    uses `asave_dataset`.

    Args:
        key: Where to, below the root of the store, such as `"reports/2026.json"`.
        value: The value.
        format: In which format; by default the one that the key's extension means.
        options: Options of the format; none by default.
        store: A store, or the path or URL of one; by default that of the running task, of the session, or of the settings.

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: The key may lead out of the store, or there is no such format.
        DatasetError: The value cannot be saved: what was saved before still is. Or there is no store.
    """
    position = whereabouts()
    target = _store(position, store, key)
    with Access(position, "save", key=key, value=value, format=format, options=options):
        target.save(key, value, format, options)


async def asave_dataset(
    key: str,
    value: Any,
    *,
    format: str | None = None,
    options: Mapping[str, Any] | None = None,
    store: DatasetStoreLike | None = None,
) -> None:
    """Save a value under a key, in a worker thread; the arguments and errors are those of `save_dataset`.

    A cancellation waits until it is saved, for no longer than the session's `grace`: then the thread saves it by itself.
    """
    position = whereabouts()
    target = _store(position, store, key)
    with Access(position, "save", key=key, value=value, format=format, options=options):
        save = partial(target.save, key, value, format, options)
        await saved_in_thread(f"dataset {key!r}", save, position.home.settings.grace)


@overload
def load_dataset(
    key: str,
    type: type[T],
    *,
    format: str | None = None,
    options: Mapping[str, Any] | None = None,
    store: DatasetStoreLike | None = None,
) -> T: ...
@overload
def load_dataset(
    key: str,
    type: None = None,
    *,
    format: str | None = None,
    options: Mapping[str, Any] | None = None,
    store: DatasetStoreLike | None = None,
) -> Any: ...
def load_dataset(
    key: str,
    type: type | None = None,
    *,
    format: str | None = None,
    options: Mapping[str, Any] | None = None,
    store: DatasetStoreLike | None = None,
) -> Any:
    """The value of a key, for sync code.

    Args:
        key: What it was saved under.
        type: The class that it must be of, which of tables says by which library they are read; by default any class, and the first of
            pandas, polars and pyarrow that is installed.
        format: In which format it is; by default the one that the key's extension means.
        options: Options of the format; none by default.
        store: As in `save_dataset`.

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: The key may lead out of the store, or there is no such format.
        FileNotFoundError: Nothing was saved under the key.
        DatasetError: It cannot be read, or is not what was asked for. Or there is no store.
    """
    position = whereabouts()
    source = _store(position, store, key)
    with Access(position, "load", key=key, return_type=type, format=format, options=options) as access:
        access.result = source.load(key, type, format, options)
    return access.result


@overload
async def aload_dataset(
    key: str,
    type: type[T],
    *,
    format: str | None = None,
    options: Mapping[str, Any] | None = None,
    store: DatasetStoreLike | None = None,
) -> T: ...
@overload
async def aload_dataset(
    key: str,
    type: None = None,
    *,
    format: str | None = None,
    options: Mapping[str, Any] | None = None,
    store: DatasetStoreLike | None = None,
) -> Any: ...
async def aload_dataset(
    key: str,
    type: type | None = None,
    *,
    format: str | None = None,
    options: Mapping[str, Any] | None = None,
    store: DatasetStoreLike | None = None,
) -> Any:
    """The value of a key, read in a worker thread; the arguments and errors are those of `load_dataset`.

    Who is cancelled goes on at once.
    """
    position = whereabouts()
    source = _store(position, store, key)
    with Access(position, "load", key=key, return_type=type, format=format, options=options) as access:
        access.result = await in_thread(partial(source.load, key, type, format, options))
    return access.result


def _store(position: Position, given: DatasetStoreLike | None, key: str) -> DatasetStore:
    if given is not None:
        given = checked_dataset_store("store", given)
    found = dataset_store_at(position, given)
    if found is None:
        raise DatasetError(
            f"dataset {key!r}: there is no store; open a session(dataset_store=...), set DAGLITE_DATASET_STORE, or pass store="
        )
    return found
