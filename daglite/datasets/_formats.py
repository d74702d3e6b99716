"""How values become files, and files values: the registry of formats, and those that need nothing else."""

from __future__ import annotations

import json
import pickle
import re
from typing import Any, BinaryIO, Protocol, runtime_checkable

from .._log import described, logger
from ._frames import CSV, NPY, PARQUET

__all__ = ["DatasetFormat", "format_named", "format_of", "register_format"]

_GROUP = "daglite.formats"  # of the entry points
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_+-]*")
_EXTENSION = re.compile(r"[a-z0-9_+-]+(\.[a-z0-9_+-]+)*")


@runtime_checkable
class DatasetFormat(Protocol):
    """How values of some types become files, and files values: any object with these attributes.

    A package offers one to all who install it by an entry point in the group `daglite.formats`, which refers to the object, or to a
    class or function that makes it. It is imported when a key or `format=` asks for one that is not known.

    Attributes may be plain ones of a class: only reading them is asked for.
    """

    @property
    def name(self) -> str:
        """What `format=` calls it."""
        ...

    @property
    def extensions(self) -> tuple[str, ...]:
        """Those of the keys that mean it, in lower case and without the first dot, such as `("yaml", "yml")`."""
        ...

    def dump(self, value: Any, file: BinaryIO, /, *args: Any, **options: Any) -> None:
        """Write a value.

        Args:
            value: The value.
            file: A file that can be written, read and sought in, at its beginning. Nobody else sees it before it is whole.
            args: There are none; it says for type checkers that a format may have any options.
            options: Those that were given to `save`.

        Raises:
            TypeError: It is for values of other types.
        """
        ...

    def load(self, file: BinaryIO, type: type | None, /, *args: Any, **options: Any) -> Any:
        """Read a value.

        Args:
            file: A file that can be read and sought in, at its beginning.
            type: The class that was asked for; `None` if none was. What is returned is compared with it elsewhere.
            args: There are none.
            options: Those that were given to `load`.
        """
        ...


class PickleFormat:
    """Any value that pickle takes; the options are those of `pickle.dump` and `pickle.load`."""

    name = "pickle"
    extensions = ("pickle", "pkl")

    def dump(self, value: Any, file: BinaryIO, **options: Any) -> None:
        """Write a value."""
        pickle.dump(value, file, **{"protocol": pickle.HIGHEST_PROTOCOL, **options})

    def load(self, file: BinaryIO, type: type | None, **options: Any) -> Any:
        """Read a value, which runs whatever code the file names."""
        return pickle.load(file, **options)


class JSONFormat:
    """What JSON has: dictionaries, lists, strings, numbers, booleans and `None`; the options are those of the module `json`."""

    name = "json"
    extensions = ("json",)

    def dump(self, value: Any, file: BinaryIO, **options: Any) -> None:
        """Write a value."""
        file.write(json.dumps(value, **{"ensure_ascii": False, **options}).encode(errors="surrogatepass"))

    def load(self, file: BinaryIO, type: type | None, **options: Any) -> Any:
        """Read a value."""
        return json.loads(file.read(), **options)


class TextFormat:
    """A string, as it is; the options are `encoding`, UTF-8 by default, and `errors`, as those of `str.encode`."""

    name = "text"
    extensions = ("txt", "text")

    def dump(self, value: Any, file: BinaryIO, **options: Any) -> None:
        """Write a string."""
        if not isinstance(value, str):
            raise TypeError(f"text is for a str, not for {_kind(value)}")
        file.write(value.encode(**options))

    def load(self, file: BinaryIO, type: type | None, **options: Any) -> str:
        """Read a string."""
        return file.read().decode(**options)


class BytesFormat:
    """Bytes, as they are."""

    name = "bytes"
    extensions = ("bytes", "bin")

    def dump(self, value: Any, file: BinaryIO) -> None:
        """Write bytes, or what gives a view of some."""
        if not isinstance(value, (bytes, bytearray, memoryview)):
            raise TypeError(f"bytes is for bytes, a bytearray or a memoryview, not for {_kind(value)}")
        file.write(value)

    def load(self, file: BinaryIO, type: type | None) -> bytes | bytearray:
        """Read bytes."""
        return bytearray(file.read()) if type is bytearray else file.read()


def _kind(value: Any) -> str:
    return f"{type(value).__module__}.{type(value).__qualname__}"


# The registry.

_formats: dict[str, DatasetFormat] = {}
_by_extension: dict[str, DatasetFormat] = {}
_refused: set[str] = set()  # entry points that were complained of


def register_format(format: DatasetFormat) -> None:
    r"""Make a format known in this process, before a task or a store is to use it.

    ```python
    import csv
    import io

    from daglite.datasets import register_format


    class Rows:
        name = "rows"
        extensions = ("tsv",)

        def dump(self, value, file, **options):
            text = io.TextIOWrapper(file, encoding="utf-8", newline="")
            csv.writer(text, delimiter="\t", **options).writerows(value)
            text.detach()

        def load(self, file, type, **options):
            text = io.TextIOWrapper(file, encoding="utf-8", newline="")
            return list(csv.reader(text, delimiter="\t", **options))


    register_format(Rows())
    ```

    Args:
        format: The format.

    Raises:
        TypeError: It has not what a `DatasetFormat` has.
        ValueError: Its name, or an extension, is malformed, or that of a format of another class.
    """
    name, extensions = _checked(format)
    for extension in extensions:
        if not _may_replace(format, _by_extension.get(extension)):
            raise ValueError(
                f"register_format: the extension {extension!r} is that of format {_by_extension[extension].name!r}"
            )
    if not _may_replace(format, _formats.get(name)):
        raise ValueError(f"register_format: there is a format {name!r} already")
    _formats[name] = format
    _by_extension.update(dict.fromkeys(extensions, format))


def _may_replace(format: DatasetFormat, known: DatasetFormat | None) -> bool:
    """Whether a format may be known in place of another: of one that its class was made anew of, as notebooks and reloads do."""
    kind, other = type(format), type(known)
    return known is None or (kind.__module__, kind.__qualname__) == (other.__module__, other.__qualname__)


def _checked(format: Any) -> tuple[str, tuple[str, ...]]:
    """The name and the extensions of a format.

    Raises:
        TypeError: It has not what a `DatasetFormat` has.
        ValueError: Its name, or an extension, is malformed.
    """
    if isinstance(format, type) or not isinstance(format, DatasetFormat):
        raise TypeError(
            f"register_format: a format is an object with name, extensions, dump() and load(), and not {format!r}"
        )
    name: Any = format.name
    extensions: Any = format.extensions
    if not isinstance(name, str) or not isinstance(extensions, tuple):
        raise TypeError(f"register_format: {format!r} needs a name that is a str, and a tuple of extensions")
    if not _NAME.fullmatch(name):
        raise ValueError(f"register_format: {name!r} is no name for a format: use letters, digits, '_', '+' and '-'")
    for extension in extensions:
        if not isinstance(extension, str) or not _EXTENSION.fullmatch(extension):
            raise ValueError(
                f"register_format: format {name!r}: {extension!r} is no extension; write it in lower case, without the first dot"
            )
    return name, extensions


def format_named(name: Any, where: str) -> DatasetFormat:
    """The format of a name.

    Args:
        name: What was given for one.
        where: Who asks for it, to begin an error message with.

    Raises:
        TypeError: It is no name.
        ValueError: There is no such format.
    """
    if not isinstance(name, str):
        raise TypeError(f"{where}: format must be the name of one, not {name!r}")
    if name not in _formats:
        _discover()
    found = _formats.get(name)
    if found is None:
        raise ValueError(f"{where}: there is no format {name!r}; there are {_listed(_formats)}")
    return found


def format_of(key: str, where: str) -> DatasetFormat:
    """The format that the extension of a key means; of those with several dots the longest counts.

    Raises:
        ValueError: It has none, or means none.
    """
    extensions = key.rpartition("/")[2].casefold().split(".")[1:]
    candidates = [".".join(extensions[start:]) for start in range(len(extensions))]
    if not candidates:
        raise ValueError(
            f"{where}: {key!r} has no extension that says in which format it is; add one, or name a format: {_listed(_formats)}"
        )
    for _ in range(2):
        for extension in candidates:
            if extension in _by_extension:
                return _by_extension[extension]
        _discover()
    raise ValueError(
        f"{where}: no format has the extension {candidates[-1]!r} of {key!r}; name a format, of {_listed(_formats)}, "
        f"or use one of the extensions {_listed(_by_extension)}"
    )


def _discover() -> None:
    """Make those known that installed packages offer; one that fails harms none of the others."""
    from importlib.metadata import entry_points  # 50 ms to import

    for entry_point in entry_points(group=_GROUP):
        if entry_point.name in _formats or entry_point.value in _refused:
            continue
        try:
            found = entry_point.load()
            register_format(found if hasattr(found, "dump") and not isinstance(found, type) else found())
        except Exception as exc:
            _refused.add(entry_point.value)
            logger().warning(
                "the dataset format %r of %r cannot be used: %s", entry_point.name, entry_point.value, described(exc)
            )


def _listed(names: Any) -> str:
    return ", ".join(map(repr, sorted(names)))


def _register_own() -> None:
    own: tuple[DatasetFormat, ...] = (PickleFormat(), JSONFormat(), TextFormat(), BytesFormat(), CSV, PARQUET, NPY)
    for each in own:
        register_format(each)


_register_own()
