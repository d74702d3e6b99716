"""A store in a folder."""

from __future__ import annotations

import errno
import hashlib
import os
import pickle
import re
import stat
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

from .. import _checks, _clock
from .._log import described, logger
from .._stores import CACHE_MISS
from ._entries import Unreadable, packed, part_of, unpacked

__all__ = ["FileCacheStore"]

_ENTRY = re.compile("[0-9a-f]{62}")  # in one of 256 folders, which have the other two digits
_TEMPORARY = re.compile("[0-9a-f]{32}")
_TOUCH_AFTER = 60.0  # seconds
_STRAY_AFTER = 3600.0  # seconds
# What is in the place of a file may be anything: it is neither followed nor waited for.
_READ = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
_WRITE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)


class FileCacheStore:
    """Keeps values in a folder, for all processes that use it.

    ```python
    from daglite import task
    from daglite.cache import FileCacheStore


    @task(cache=FileCacheStore("/var/tmp/squares", max_bytes=1 << 30))
    def square(number: int) -> int:
        return number**2
    ```

    Every value is a file of its own, written beside and then renamed: whoever reads it finds all of it or nothing, also
    when a process is killed. A file that is damaged, or that was copied from elsewhere, is a miss, is logged and removed.

    Values are **pickled, and who can write to the folder can run code** in all who read it. With a `signing_key` nothing is
    unpickled that was not written with the same key.

    Args:
        path: The folder, which is made when it is first used; a relative one is one of the folder that is current then. What is
            in it is for this account alone, in a folder of its own for each version of Python and each signing key.
        signing_key: A secret with which entries are signed; `None`, the default, for a digest that notices only damage.
        max_bytes: How much there may be, approximately; without end by default. Of more than that those files are removed
            that were not used for longest.

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: The path or the key is empty, or `max_bytes` less than 1.
    """

    blocking = True

    def __init__(
        self,
        path: str | os.PathLike[str],
        signing_key: str | bytes | None = None,
        max_bytes: int | None = None,
    ) -> None:
        text = os.fspath(path)
        if not isinstance(text, str):
            raise TypeError(f"FileCacheStore: path must be text, not {path!r}")
        if not text or "\0" in text:
            raise ValueError(f"FileCacheStore: path must not be empty or hold a NUL, not {path!r}")
        if max_bytes is not None:
            _checks.whole("FileCacheStore: max_bytes", max_bytes, least=1)
        self.path: str = text
        self.max_bytes: int | None = max_bytes
        self._key: bytes | None = _checks.secret("FileCacheStore: signing_key", signing_key)
        self._folder: str | None = None
        self._written = 0  # bytes, since it was last looked how much there is
        self._has_swept = False

    def __repr__(self) -> str:
        signed = "" if self._key is None else ", signing_key=..."
        return f"FileCacheStore({self.path!r}{signed}, max_bytes={self.max_bytes})"

    def __reduce__(self) -> tuple[Any, ...]:
        return FileCacheStore, (self.path, self._key, self.max_bytes)

    @property
    def location(self) -> str:
        """The folder that is this store's own, below `path`."""
        if self._folder is None:
            self._folder = os.path.join(os.path.abspath(self.path), part_of(self._key))
        return self._folder

    def get(self, key: str) -> Any:
        """The value of a key; `daglite.cache.CACHE_MISS` if there is none that can be read.

        Raises:
            OSError: The folder cannot be read.
        """
        path = self._path_of(key)
        try:
            file = os.open(path, _READ)
        except FileNotFoundError:
            return CACHE_MISS
        except OSError as exc:
            if exc.errno != errno.ELOOP:
                raise
            return self._unreadable(path, Unreadable("it is a symbolic link"))
        try:
            status = os.fstat(file)
            if not stat.S_ISREG(status.st_mode):
                return self._unreadable(path, Unreadable("it is no file"))
            data = _read(file, status.st_size)
        finally:
            os.close(file)
        try:
            payload = unpacked(key, data, _clock.wall(), self._key)
            if payload is None:
                return CACHE_MISS
            value = pickle.loads(payload)
        except Exception as exc:  # not only UnpicklingError: whatever its class does, or that it is gone
            return self._unreadable(path, exc)
        if time.time() - status.st_mtime > _TOUCH_AFTER:  # a hit counts as use, and a touch costs as much as a hit
            with suppress(OSError):
                os.utime(path)
        return value

    def put(self, key: str, value: Any, ttl: float | None = None) -> None:
        """Keep a value.

        Args:
            key: What to keep it under.
            value: The value, which must be one that pickle takes.
            ttl: For how many seconds; `None` if it stays.

        Raises:
            ValueError: It is larger than `max_bytes`, or `ttl` is not above 0.
            OSError: It cannot be written; what was kept under the key before still is.
        """
        if ttl is not None:
            ttl = _checks.finite("FileCacheStore.put: ttl", ttl, least=0, above=True)
        payload = pickle.dumps(value, pickle.HIGHEST_PROTOCOL)
        data = packed(key, payload, _clock.wall(), ttl, self._key)
        if self.max_bytes is not None and len(data) > self.max_bytes:
            raise ValueError(f"a value of {len(data)} bytes is too large for a store of {self.max_bytes} bytes")
        if not self._has_swept:
            self._has_swept = True
            self._sweep()
        path = self._path_of(key)
        temporary = os.path.join(self.location, "tmp", os.urandom(16).hex())
        try:
            try:
                file = os.open(temporary, _WRITE, 0o600)
            except FileNotFoundError:
                self._make_folder()
                file = os.open(temporary, _WRITE, 0o600)
            try:
                _write(file, data)
            finally:
                os.close(file)
            try:
                os.replace(temporary, path)
            except FileNotFoundError:
                os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
                os.replace(temporary, path)
        except BaseException:
            with suppress(OSError):
                os.unlink(temporary)
            raise
        self._note_written(len(data))

    def delete(self, key: str) -> None:
        """Forget the value of a key, if there is one.

        Raises:
            OSError: It cannot be removed.
        """
        with suppress(FileNotFoundError):
            os.unlink(self._path_of(key))

    def clear(self) -> None:
        """Forget all values that this store could read, and none of another version of Python or signing key.

        Raises:
            OSError: They cannot be removed.
        """
        for entry in self._entries():
            with suppress(FileNotFoundError):
                os.unlink(entry.path)

    def _path_of(self, key: str) -> str:
        # Whatever the key is: it is no name of a file.
        name = hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()
        return f"{self._folder or self.location}{os.sep}{name[:2]}{os.sep}{name[2:]}"

    def _unreadable(self, path: str, error: Exception) -> Any:
        why = str(error) if isinstance(error, Unreadable) else f"its value cannot be loaded: {described(error)}"
        logger().warning("cache %r: the entry %s cannot be read, and is removed: %s", self.path, path, why)
        with suppress(OSError):
            os.unlink(path)
        return CACHE_MISS

    def _make_folder(self) -> None:
        os.makedirs(os.path.dirname(self.location), mode=0o700, exist_ok=True)
        for folder in (self.location, os.path.join(self.location, "tmp")):
            with suppress(FileExistsError):
                os.mkdir(folder, 0o700)

    def _entries(self) -> Iterator[os.DirEntry[str]]:
        """The files of values."""
        for number in range(256):
            yield from _files(os.path.join(self.location, f"{number:02x}"), _ENTRY)

    def _sweep(self) -> None:
        """Remove what processes have left that were killed while they wrote."""
        oldest = time.time() - _STRAY_AFTER
        for entry in _files(os.path.join(self.location, "tmp"), _TEMPORARY):
            with suppress(OSError):
                if entry.stat(follow_symlinks=False).st_mtime < oldest:
                    os.unlink(entry.path)

    def _note_written(self, size: int) -> None:
        """Look how much there is, when there may be too much: this takes a while, and so is seldom."""
        self._written += size  # approximately: several threads may be here
        if self.max_bytes is None or self._written < self.max_bytes / 16:
            return
        self._written = 0
        self._sweep()
        found = []
        for entry in self._entries():
            with suppress(OSError):  # somebody else may remove it
                status = entry.stat(follow_symlinks=False)
                found.append((status.st_mtime, status.st_size, entry.path))
        total = sum(size for _, size, _ in found)
        if total <= self.max_bytes:
            return
        for _, size, path in sorted(found):
            if total <= 0.9 * self.max_bytes:
                break
            with suppress(OSError):
                os.unlink(path)
            total -= size


def _files(folder: str, name: re.Pattern[str]) -> Iterator[os.DirEntry[str]]:
    """What is in a folder under such a name."""
    try:
        found = os.scandir(folder)
    except FileNotFoundError:
        return
    with found:
        for entry in found:
            if name.fullmatch(entry.name) and not entry.is_dir(follow_symlinks=False):
                yield entry


def _read(file: int, size: int) -> bytes:
    """All of a file, in most cases by one call of the system."""
    data = os.read(file, size + 1)
    if len(data) == size:
        return data
    parts = [data]
    while data:
        data = os.read(file, 1 << 20)
        parts.append(data)
    return b"".join(parts)


def _write(file: int, data: bytes) -> None:
    """Write all of it: of a disk that is about to be full the first part is taken, and the rest is an error."""
    written = os.write(file, data)
    while written < len(data):
        more = os.write(file, memoryview(data)[written:])
        if not more:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        written += more
