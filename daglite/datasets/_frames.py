"""Formats for the objects of pandas, polars, pyarrow and NumPy, none of which is imported before it is needed."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Mapping
from functools import partial
from importlib import import_module
from typing import Any, BinaryIO, TypeAlias

__all__ = ["CSV", "NPY", "PARQUET"]

Write: TypeAlias = Callable[..., None]  # of a value, a file and the options
Read: TypeAlias = Callable[..., Any]  # of a file and the options

# In the order in which they are preferred where nobody asks for one.
_CLASSES = {"pandas": "DataFrame", "polars": "DataFrame", "pyarrow": "Table"}
_TABLES = "a DataFrame of pandas or polars, or a Table of pyarrow"


class TableFormat:
    """A table: a `DataFrame` of pandas or polars, or a `Table` of pyarrow. The options are those of the library's function.

    Args:
        name: What the format is called.
        extensions: Those of its keys.
        writers: By library: what writes a table.
        readers: By library: what reads one.
    """

    def __init__(
        self, name: str, extensions: tuple[str, ...], writers: Mapping[str, Write], readers: Mapping[str, Read]
    ) -> None:
        self.name: str = name
        self.extensions: tuple[str, ...] = extensions
        self._writers = writers
        self._readers = readers

    def dump(self, value: Any, file: BinaryIO, **options: Any) -> None:
        """Write a table."""
        library = library_of(type(value))
        if library is None:
            raise TypeError(
                f"{self.name} is for {_TABLES}, not for {type(value).__module__}.{type(value).__qualname__}"
            )
        self._writers[library](value, file, **options)

    def load(self, file: BinaryIO, type: type | None, **options: Any) -> Any:
        """Read a table, as the class that was asked for, or else with the first of the libraries that is installed."""
        library = next(filter(is_installed, _CLASSES), None) if type is None else library_of(type)
        if library is not None:
            return self._readers[library](file, **options)
        if type is None:
            raise ImportError(f"{self.name} needs pandas, polars or pyarrow: pip install pandas")
        raise TypeError(f"{self.name} gives {_TABLES}, and no {type.__qualname__}")


def library_of(cls: type) -> str | None:
    """The library of whose tables this is the class, or a class made of it."""
    for name, table in _CLASSES.items():
        module = sys.modules.get(name)  # it is imported, if there is such a class
        known = getattr(module, table, None)
        if known is not None and issubclass(cls, known):
            return name
    return None


def is_installed(name: str) -> bool:
    """Whether a library can be imported."""
    if name in sys.modules:
        return sys.modules[name] is not None
    return importlib.util.find_spec(name) is not None


def write_csv_of_pandas(frame: Any, file: BinaryIO, **options: Any) -> None:
    """Write a table of pandas; the mere numbers of its rows are no column, and would come back as one."""
    index: Any = frame.index
    is_numbered = isinstance(index, import_module("pandas").RangeIndex) and index.name is None
    frame.to_csv(file, **{"index": not is_numbered, "mode": "wb", **options})


def by_method(name: str, value: Any, file: BinaryIO, **options: Any) -> None:
    """Write a value by a method of its own."""
    getattr(value, name)(file, **options)


def by_function(module: str, name: str, *args: Any, **options: Any) -> Any:
    """Call a function of a module that is imported now."""
    return getattr(import_module(module), name)(*args, **options)


CSV = TableFormat(
    "csv",
    ("csv",),
    {
        "pandas": write_csv_of_pandas,
        "polars": partial(by_method, "write_csv"),
        "pyarrow": partial(by_function, "pyarrow.csv", "write_csv"),
    },
    {
        "pandas": partial(by_function, "pandas", "read_csv"),
        "polars": partial(by_function, "polars", "read_csv"),
        "pyarrow": partial(by_function, "pyarrow.csv", "read_csv"),
    },
)

PARQUET = TableFormat(
    "parquet",
    ("parquet", "pq"),
    {
        "pandas": partial(by_method, "to_parquet"),
        "polars": partial(by_method, "write_parquet"),
        "pyarrow": partial(by_function, "pyarrow.parquet", "write_table"),
    },
    {
        "pandas": partial(by_function, "pandas", "read_parquet"),
        "polars": partial(by_function, "polars", "read_parquet"),
        "pyarrow": partial(by_function, "pyarrow.parquet", "read_table"),
    },
)


class NpyFormat:
    """An array of NumPy. The options are those of `numpy.save` and `numpy.load`; without `allow_pickle=True` no code can run."""

    name = "npy"
    extensions = ("npy",)

    def dump(self, value: Any, file: BinaryIO, **options: Any) -> None:
        """Write an array."""
        numpy: Any = sys.modules.get("numpy")
        if numpy is None or not isinstance(value, (numpy.ndarray, numpy.generic)):
            raise TypeError(
                f"npy is for an array of NumPy, not for {type(value).__module__}.{type(value).__qualname__}"
            )
        numpy.save(file, value, **{"allow_pickle": False, **options})

    def load(self, file: BinaryIO, type: type | None, **options: Any) -> Any:
        """Read an array."""
        if not is_installed("numpy"):
            raise ImportError("npy needs NumPy: pip install numpy")
        return by_function("numpy", "load", file, **options)


NPY = NpyFormat()
