"""A root elsewhere, through fsspec.

What is saved is written to a temporary file of this machine first, so that what cannot be written touches nothing there. An object
store takes it as one thing. Of other file systems nobody knows whether others see half of an upload: there it gets another name
first, and is moved.
"""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any, BinaryIO

from .._stores import without_password
from ._keys import OWN_FOLDER, InvalidKey, checked_key

__all__ = ["RemoteFolder", "check_url"]

# Whose uploads are seen when they are whole, and for whom moving means to copy.
_OBJECT_STORES = {"abfs", "abfss", "adl", "az", "gcs", "gs", "oci", "oss", "r2", "s3", "s3a"}


def check_url(url: str) -> None:
    """Check that there is a file system for a URL.

    Raises:
        ValueError: There is none.
        ImportError: It is not installed, or fsspec is not.
    """
    fsspec = imported(url)
    for part in url.split("::"):  # one through the other
        scheme = part.partition("://")[0]
        try:
            fsspec.get_filesystem_class(scheme)
        except ValueError as exc:
            raise ValueError(f"DatasetStore: there is no store for {without_password(url)!r}: {exc}") from None
        except ImportError as exc:
            raise ImportError(f"DatasetStore: {without_password(url)!r} needs more than fsspec: {exc}") from None


def imported(url: str) -> Any:
    """The module `fsspec`.

    Raises:
        ImportError: It is not installed.
    """
    try:
        import fsspec
    except ModuleNotFoundError:
        raise ImportError(
            f"DatasetStore: {without_password(url)!r} needs fsspec: pip install 'daglite[remote]'"
        ) from None
    return fsspec


class RemoteFolder:
    """A root elsewhere.

    Args:
        url: Where.
        storage_options: What fsspec is to be given with it.
    """

    def __init__(self, url: str, storage_options: Mapping[str, Any] | None) -> None:
        self._url = url
        self._files, root = imported(url).url_to_fs(url, **(storage_options or {}))
        self._root: str = root.rstrip("/")

    @contextmanager
    def reading(self, parts: tuple[str, ...]) -> Iterator[BinaryIO]:
        """An open file.

        Raises:
            FileNotFoundError: There is none.
            OSError: It cannot be read.
        """
        self._forget_listings()
        with self._files.open(self._path(parts), "rb") as file:
            yield file

    @contextmanager
    def writing(self, parts: tuple[str, ...]) -> Iterator[BinaryIO]:
        """A new file, which is brought to its place if nothing is raised.

        Raises:
            OSError: It cannot be written.
        """
        path = self._path(parts)
        self._forget_listings()
        if self._files.isdir(path):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), "/".join(parts))
        number, temporary = tempfile.mkstemp(prefix="daglite-")
        try:
            with os.fdopen(number, "w+b") as file:
                yield file
            self._bring(temporary, path)
        finally:
            os.unlink(temporary)

    def exists(self, parts: tuple[str, ...]) -> bool:
        """Whether there is a file."""
        self._forget_listings()
        return bool(self._files.isfile(self._path(parts)))

    def delete(self, parts: tuple[str, ...]) -> None:
        """Remove a file.

        Raises:
            FileNotFoundError: There is none.
            OSError: It cannot be removed.
        """
        if not self.exists(parts):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), "/".join(parts))
        self._files.rm_file(self._path(parts))

    def keys(self) -> Iterator[str]:
        """The keys of all files, in no order."""
        self._forget_listings()
        for path in self._files.find(self._root):
            if path.startswith(f"{self._root}/"):
                key = path[len(self._root) + 1 :]
                with suppress(InvalidKey):
                    checked_key(key)
                    yield key

    def _path(self, parts: tuple[str, ...]) -> str:
        return "/".join((self._root, *parts))

    def _forget_listings(self) -> None:
        # Some keep what they have listed, and do not see what others have written since.
        self._files.invalidate_cache()

    def _bring(self, local: str, path: str) -> None:
        protocol = self._files.protocol
        if _OBJECT_STORES & {protocol, *([] if isinstance(protocol, str) else protocol)}:
            self._files.put_file(local, path)
            return
        beside = self._path((OWN_FOLDER, os.urandom(16).hex()))
        for place in (beside, path):
            self._files.makedirs(place.rpartition("/")[0], exist_ok=True)
        try:
            self._files.put_file(local, beside)
            self._move(beside, path)
        except BaseException:
            with suppress(Exception):
                self._files.rm_file(beside)
            raise

    def _move(self, source: str, target: str) -> None:
        from fsspec import AbstractFileSystem

        if type(self._files).mv is AbstractFileSystem.mv:  # which takes '[1]' in a key for a pattern
            self._files.cp_file(source, target)
            self._files.rm_file(source)
        else:
            self._files.mv(source, target)
