"""A store of datasets."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from inspect import isclass
from typing import Any, BinaryIO, Protocol, TypeVar, get_origin, overload

from .._log import described
from .._stores import without_password
from ..exceptions import DatasetError
from ._folders import LocalFolder
from ._formats import DatasetFormat, format_named, format_of
from ._keys import InvalidKey, checked_key

__all__ = ["DatasetStore"]

T = TypeVar("T")


class DatasetStore:
    """Keeps values under keys in files below one root, for people and other programs too.

    ```python
    from tempfile import TemporaryDirectory

    from daglite.datasets import DatasetStore

    with TemporaryDirectory() as folder:
        store = DatasetStore(folder)
        store.save("reports/2026.json", {"sold": 42})
        assert store.load("reports/2026.json") == {"sold": 42}
        assert store.list_keys() == ["reports/2026.json"]
    ```

    A key is a path below the root, such as `reports/2026.json`; none leads out of it, and no symbolic link below the root is
    followed. The extension says in which format a value is saved, unless a format is named: `pickle`, `json`, `text` and `bytes`;
    `csv` and `parquet` for the tables of pandas, polars and pyarrow; `npy` for the arrays of NumPy; and those that were registered.

    A file is written beside, brought to the disk, and then given its name: whoever reads finds the value before or the one after, and
    of two who save to one key the last to be complete wins. **Who can write a `pickle` can run code in those who load it.**

    It may be used in several threads and processes at once, and it blocks: async code uses `daglite.asave_dataset` and
    `daglite.aload_dataset`. What is saved and loaded by its methods is not reported to sessions.

    Args:
        path: The root: a folder, which is made when something is first saved; a relative one is one of the folder that is current
            when the store is first used. Or a URL such as `s3://bucket/folder` for one elsewhere, for which `daglite[remote]` must be
            installed, and what that kind of URL needs; `file:///folder` is the folder.
        storage_options: What fsspec is to be given with the URL; nothing by default.

    Raises:
        TypeError: It is no path.
        ValueError: It is empty, or fsspec knows no such URL.
        ImportError: What its URL needs is not installed.
    """

    def __init__(self, path: str | os.PathLike[str], *, storage_options: Mapping[str, Any] | None = None) -> None:
        text = os.fspath(path)
        if not isinstance(text, str):
            raise TypeError(f"DatasetStore: path must be text, not {path!r}")
        if not text or "\0" in text:
            raise ValueError(f"DatasetStore: path must not be empty or hold a NUL, not {path!r}")
        if _is_remote(text):
            from ._remote import check_url  # and with it fsspec

            check_url(text)
        self.path: str = text
        self.storage_options: Mapping[str, Any] | None = storage_options
        self._opened: Root | None = None

    def __repr__(self) -> str:
        options = "" if self.storage_options is None else ", storage_options=..."
        return f"DatasetStore({without_password(self.path)!r}{options})"

    def __reduce__(self) -> tuple[Any, ...]:
        return _made, (self.path, self.storage_options)

    def save(self, key: str, value: Any, format: str | None = None, options: Mapping[str, Any] | None = None) -> None:
        """Save a value, in place of what was saved under the key before.

        Args:
            key: Where to.
            value: The value.
            format: In which format; by default the one that the key's extension means.
            options: Options of the format; none by default.

        Raises:
            TypeError: The key or the format's name is no text.
            ValueError: The key may lead out of the root, or there is no such format.
            DatasetError: The format does not take the value, or it cannot be written: what was saved before still is.
        """
        parts, found = checked_key(key), _format(key, format)
        try:
            with self._root().writing(parts) as file:
                found.dump(value, file, **(options or {}))
        except InvalidKey:
            raise
        except Exception as exc:
            raise _failed(key, "saved", found, exc) from exc

    @overload
    def load(
        self, key: str, type: type[T], format: str | None = None, options: Mapping[str, Any] | None = None
    ) -> T: ...
    @overload
    def load(
        self, key: str, type: None = None, format: str | None = None, options: Mapping[str, Any] | None = None
    ) -> Any: ...
    def load(
        self, key: str, type: type | None = None, format: str | None = None, options: Mapping[str, Any] | None = None
    ) -> Any:
        """The value of a key.

        Args:
            key: What it was saved under.
            type: The class that it must be of, which of tables says by which library they are read; by default any class, and the
                first of pandas, polars and pyarrow that is installed.
            format: In which format it is; by default the one that the key's extension means.
            options: Options of the format; none by default.

        Raises:
            TypeError: The key or the format's name is no text, or `type` no class.
            ValueError: The key may lead out of the root, or there is no such format.
            FileNotFoundError: Nothing was saved under the key.
            DatasetError: It cannot be read, or is not what was asked for.
        """
        parts, found = checked_key(key), _format(key, format)
        if type is not None and (not isclass(type) or get_origin(type) is not None):  # list[int] is a class to 3.10
            raise TypeError(f"dataset {key!r}: type must be a class, not {type!r}")
        file: BinaryIO | None = None
        try:
            with self._root().reading(parts) as file:
                value = found.load(file, type, **(options or {}))
        except InvalidKey:
            raise
        except Exception as exc:
            if file is None and isinstance(exc, (FileNotFoundError, NotADirectoryError)):
                raise self._missing(key) from None
            raise _failed(key, "loaded", found, exc) from exc
        if type is not None and not isinstance(value, type):
            raise DatasetError(
                f"dataset {key!r} is of class {value.__class__.__qualname__}, and not {type.__qualname__}"
            )
        return value

    def exists(self, key: str) -> bool:
        """Whether something was saved under a key.

        Raises:
            TypeError: The key is no text.
            ValueError: The key may lead out of the root.
            OSError: The root cannot be read.
        """
        return self._root().exists(checked_key(key))

    def delete(self, key: str) -> None:
        """Remove what was saved under a key.

        Raises:
            TypeError: The key is no text.
            ValueError: The key may lead out of the root.
            FileNotFoundError: Nothing was.
            OSError: It cannot be removed.
        """
        try:
            self._root().delete(checked_key(key))
        except (FileNotFoundError, NotADirectoryError):
            raise self._missing(key) from None

    def list_keys(self) -> list[str]:
        """The keys of all that was saved, sorted.

        Raises:
            OSError: The root cannot be read.
        """
        return sorted(self._root().keys())

    def _root(self) -> Root:
        if self._opened is None:
            self._opened = _opened(self.path, self.storage_options)
        return self._opened

    def _missing(self, key: str) -> FileNotFoundError:
        return FileNotFoundError(errno.ENOENT, f"there is no such dataset in {without_password(self.path)!r}", key)


class Root(Protocol):
    """Where a store keeps its files. The parts of keys that it is given were checked."""

    def reading(self, parts: tuple[str, ...]) -> AbstractContextManager[BinaryIO]:
        """An open file."""
        ...

    def writing(self, parts: tuple[str, ...]) -> AbstractContextManager[BinaryIO]:
        """A new file, which gets its name if nothing is raised."""
        ...

    def exists(self, parts: tuple[str, ...]) -> bool:
        """Whether there is a file."""
        ...

    def delete(self, parts: tuple[str, ...]) -> None:
        """Remove a file."""
        ...

    def keys(self) -> Iterator[str]:
        """The keys of all files, in no order."""
        ...


def _opened(path: str, storage_options: Mapping[str, Any] | None) -> Root:
    if not _is_remote(path):
        return LocalFolder(os.path.abspath(path.removeprefix("file://").removeprefix("local://")))
    from ._remote import RemoteFolder  # and with it fsspec

    return RemoteFolder(path, storage_options)


def _is_remote(path: str) -> bool:
    """Whether it is a URL, and not that of a folder of this machine, which is none of fsspec's business."""
    scheme, separator, _ = path.partition("://")
    return bool(separator) and scheme not in ("file", "local")


def _made(path: str, storage_options: Mapping[str, Any] | None) -> DatasetStore:
    return DatasetStore(path, storage_options=storage_options)


def _format(key: str, name: str | None) -> DatasetFormat:
    where = f"dataset {key!r}"
    return format_of(key, where) if name is None else format_named(name, where)


def _failed(key: str, how: str, format: DatasetFormat, error: Exception) -> DatasetError:
    return DatasetError(f"dataset {key!r} cannot be {how} as {format.name}: {described(error)}")
