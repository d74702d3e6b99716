"""A root in a folder of this machine.

No link below it is followed: every part of a key is opened by itself, from within the folder before it, so that nobody can put a
link in its place in between. What is saved is written to a file beside, brought to the disk, and then given its name.
"""

from __future__ import annotations

import errno
import os
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, BinaryIO

from ._keys import OWN_FOLDER, InvalidKey, checked_key

__all__ = ["LocalFolder"]

# Not on Windows, where a folder has no number: there it is looked whether a part is a link, and then it is followed by its path.
_BY_NUMBER = {os.open, os.mkdir, os.unlink, os.rename, os.stat} <= os.supports_dir_fd
_FOLDER = os.O_RDONLY | getattr(os, "O_DIRECTORY", 0) | getattr(os, "O_NOFOLLOW", 0)
_READ = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
_WRITE = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
_STRAY_AFTER = 3600.0  # seconds after which nobody writes to a file any more that has no name yet


class Folder:
    """An open folder.

    Args:
        path: Where it is, for systems that open no folders.
        number: Its file descriptor elsewhere.
    """

    def __init__(self, path: str, number: int | None) -> None:
        self.path = path
        self.number = number

    @classmethod
    def opened(cls, path: str) -> Folder:
        """A folder, wherever its path leads."""
        return cls(path, os.open(path, _FOLDER & ~getattr(os, "O_NOFOLLOW", 0)) if _BY_NUMBER else None)

    def close(self) -> None:
        """Let go of it."""
        if self.number is not None:
            os.close(self.number)

    def of(self, name: str) -> tuple[str, dict[str, Any]]:
        """What calls of the system take for what has this name in it."""
        return (os.path.join(self.path, name), {}) if self.number is None else (name, {"dir_fd": self.number})

    def status(self, name: str) -> os.stat_result | None:
        """What is known of something in it, also of a link; `None` if there is no such thing."""
        path, where = self.of(name)
        try:
            return os.stat(path, follow_symlinks=False, **where)
        except FileNotFoundError:
            return None

    def is_link(self, name: str) -> bool:
        """Whether something in it is a link."""
        status = self.status(name)
        return status is not None and stat.S_ISLNK(status.st_mode)

    def open(self, name: str, flags: int) -> int:
        """Open a file in it."""
        path, where = self.of(name)
        return os.open(path, flags, 0o666, **where)

    def inner(self, name: str) -> Folder:
        """A folder in it.

        Raises:
            OSError: There is none, or it is a link.
        """
        path = os.path.join(self.path, name)
        if self.number is not None:
            return Folder(path, os.open(name, _FOLDER, dir_fd=self.number))
        status = os.lstat(path)
        if not stat.S_ISDIR(status.st_mode):
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), path)
        return Folder(path, None)

    def make(self, name: str) -> None:
        """Make a folder in it, for good; if there is one by now, so much the better."""
        path, where = self.of(name)
        with suppress(FileExistsError):
            os.mkdir(path, **where)
            self.sync()

    def remove(self, name: str) -> None:
        """Remove a file in it."""
        path, where = self.of(name)
        os.unlink(path, **where)

    def sync(self) -> None:
        """Have the system bring to the disk what names there are in it."""
        if self.number is not None:
            os.fsync(self.number)


class NewFile:
    """A file that has yet to get its name.

    Args:
        beside: The folder that it is in until then.
        folder: That in which it gets its name.
        name: The name.
    """

    def __init__(self, beside: Folder, folder: Folder, name: str) -> None:
        self._beside = beside
        self._folder = folder
        self._name = name
        self._temporary = os.urandom(16).hex()
        self._number = beside.open(self._temporary, _WRITE)
        self._is_open = True
        self._has_name = False
        # Some libraries close the file that they are given, which would then not be brought to the disk.
        self.file: BinaryIO = os.fdopen(self._number, "w+b", closefd=False)

    def commit(self) -> None:
        """Give it its name, in place of what has had that."""
        self.file.close()
        os.fsync(self._number)
        self._let_go()  # for Windows renames no file that is open
        source, source_in = self._beside.of(self._temporary)
        target, target_in = self._folder.of(self._name)
        renaming = {f"src_{key}": value for key, value in source_in.items()}
        renaming.update({f"dst_{key}": value for key, value in target_in.items()})
        os.replace(source, target, **renaming)
        self._has_name = True
        self._folder.sync()

    def close(self) -> None:
        """Remove it, if it has no name."""
        with suppress(OSError):  # what could not be written cannot be flushed either
            self.file.close()
        self._let_go()
        if not self._has_name:
            with suppress(OSError):
                self._beside.remove(self._temporary)

    def _let_go(self) -> None:
        if self._is_open:
            self._is_open = False
            os.close(self._number)


class LocalFolder:
    """A root in a folder of this machine.

    Args:
        path: The folder.
    """

    def __init__(self, path: str) -> None:
        self.path: str = path
        self._has_swept = False

    @contextmanager
    def reading(self, parts: tuple[str, ...]) -> Iterator[BinaryIO]:
        """An open file.

        Raises:
            FileNotFoundError: There is none.
            InvalidKey: A link is in the way.
            OSError: It cannot be read.
        """
        with self._folder_of(parts) as (folder, name):
            refuse_link(folder, name, parts)
            number = folder.open(name, _READ)
        if not stat.S_ISREG(os.fstat(number).st_mode):
            os.close(number)
            raise OSError(errno.EINVAL, "it is no file", "/".join(parts))
        with os.fdopen(number, "rb") as file:
            yield file

    @contextmanager
    def writing(self, parts: tuple[str, ...]) -> Iterator[BinaryIO]:
        """A new file, which gets its name if nothing is raised.

        Raises:
            InvalidKey: A link is in the way.
            OSError: It cannot be written.
        """
        make_folders(self.path)
        with self._folder_of(parts, make=True) as (folder, name), self._own_folder() as beside:
            refuse_link(folder, name, parts)
            status = folder.status(name)
            if status is not None and stat.S_ISDIR(status.st_mode):
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), "/".join(parts))
            new = NewFile(beside, folder, name)
            try:
                yield new.file
                new.commit()
            finally:
                new.close()

    def exists(self, parts: tuple[str, ...]) -> bool:
        """Whether there is a file.

        Raises:
            InvalidKey: A link is in the way.
        """
        try:
            with self._folder_of(parts) as (folder, name):
                refuse_link(folder, name, parts)
                status = folder.status(name)
        except (FileNotFoundError, NotADirectoryError):
            return False
        return status is not None and stat.S_ISREG(status.st_mode)

    def delete(self, parts: tuple[str, ...]) -> None:
        """Remove a file.

        Raises:
            FileNotFoundError: There is none.
            InvalidKey: A link is in the way.
            OSError: It cannot be removed.
        """
        with self._folder_of(parts) as (folder, name):
            refuse_link(folder, name, parts)
            folder.remove(name)
            folder.sync()

    def keys(self) -> Iterator[str]:
        """The keys of all files, in no order."""
        for folder, inner, names in os.walk(self.path, onerror=raise_unless_missing):
            below = os.path.relpath(folder, self.path)
            parts = () if below == os.curdir else tuple(below.split(os.sep))
            if not parts and OWN_FOLDER in inner:
                inner.remove(OWN_FOLDER)
            for name in names:
                key = "/".join((*parts, name))
                with suppress(InvalidKey, OSError):  # it is none of a store; or it is gone by now
                    checked_key(key)
                    if stat.S_ISREG(os.lstat(os.path.join(folder, name)).st_mode):
                        yield key

    @contextmanager
    def _folder_of(self, parts: tuple[str, ...], *, make: bool = False) -> Iterator[tuple[Folder, str]]:
        """The open folder that a key leads to, and the name in it."""
        folder = Folder.opened(self.path)
        try:
            for part in parts[:-1]:
                inner = entered(folder, part, parts, make=make)
                folder.close()
                folder = inner
            yield folder, parts[-1]
        finally:
            folder.close()

    @contextmanager
    def _own_folder(self) -> Iterator[Folder]:
        """The open folder of what has no name yet, where there is nothing else for long."""
        with self._folder_of((OWN_FOLDER, ""), make=True) as (folder, _):
            if not self._has_swept:
                self._has_swept = True
                sweep(folder)
            yield folder


def entered(folder: Folder, name: str, parts: tuple[str, ...], *, make: bool) -> Folder:
    """The open folder of a name in another."""
    try:
        return folder.inner(name)
    except FileNotFoundError:
        if not make:
            raise
    except OSError:  # of a link some systems say that it is one, others that it is no folder
        refuse_link(folder, name, parts)
        raise
    folder.make(name)
    try:
        return folder.inner(name)
    except OSError:
        refuse_link(folder, name, parts)
        raise


def refuse_link(folder: Folder, name: str, parts: tuple[str, ...]) -> None:
    """Raise if something is a link, wherever that leads.

    Raises:
        InvalidKey: It is.
    """
    if folder.is_link(name):
        raise InvalidKey(
            f"dataset: {'/'.join(parts)!r} is no key, for {name!r} is a symbolic link in this store, and none is followed"
        )


def make_folders(path: str) -> None:
    """Make a folder and those around it, for good."""
    if os.path.isdir(path):
        return
    around = os.path.dirname(path)
    make_folders(around)
    folder = Folder.opened(around)
    try:
        folder.make(os.path.basename(path))
    finally:
        folder.close()


def sweep(folder: Folder) -> None:
    """Remove what processes have left that were killed while they wrote."""
    oldest = time.time() - _STRAY_AFTER
    for name in os.listdir(folder.path if folder.number is None else folder.number):
        status = folder.status(name)
        if status is not None and stat.S_ISREG(status.st_mode) and status.st_mtime < oldest:
            with suppress(OSError):
                folder.remove(name)


def raise_unless_missing(error: OSError) -> None:
    """What `os.walk` could not list: a store that has never been written to is empty."""
    if not isinstance(error, FileNotFoundError):
        raise error
