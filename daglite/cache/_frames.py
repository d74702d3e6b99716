"""What counts of arrays and tables: of numpy, pandas and polars, none of which is imported here before somebody has."""

from __future__ import annotations

import sys
from typing import Any

from ._encoding import EncoderFunc, Encoding

__all__ = ["encoder_for"]


def encoder_for(cls: type[Any]) -> EncoderFunc | None:
    """How to encode the objects of a class of one of these packages; `None` if nobody knows."""
    np: Any = sys.modules.get("numpy")
    if np is not None:
        if cls in (np.ndarray, np.memmap):
            return encode_array
        if issubclass(cls, np.generic):
            return encode_number
        if issubclass(cls, np.dtype) or cls is np.ufunc:
            return encode_text
    package = _package_of(cls)
    if package == "pandas":
        return _PANDAS.get(cls.__qualname__)
    if package == "polars":
        polars: Any = sys.modules["polars"]
        return _POLARS.get(cls.__qualname__) or (encode_text if issubclass(cls, polars.DataType) else None)
    return None


def _package_of(cls: type[Any]) -> str:
    return cls.__module__.partition(".")[0]


def begin(value: Any, encoding: Encoding) -> None:
    """Add the name of the class, whatever module of its package it is in: that changes between versions."""
    encoding.write(b"o")
    encoding.value(f"{_package_of(type(value))}:{type(value).__qualname__}")


def encode_text(value: Any, encoding: Encoding) -> None:
    """By its text, as of the types of columns."""
    begin(value, encoding)
    encoding.value(str(value))


def encode_array(array: Any, encoding: Encoding) -> None:
    """An array of numpy: the type of its elements, its shape, and they in C's order, wherever they lie."""
    begin(array, encoding)
    encoding.value(_text_of_dtype(array.dtype))
    encoding.value(array.shape)
    if array.dtype.hasobject:
        encoding.values(array.ravel().tolist(), array.size)
    else:
        np = sys.modules["numpy"]
        encoding.buffer(np.ascontiguousarray(array).reshape(-1).view(np.uint8))


def encode_number(number: Any, encoding: Encoding) -> None:
    """A single number, date or text of numpy."""
    begin(number, encoding)
    encoding.value(_text_of_dtype(number.dtype))
    encoding.value(number.item() if number.dtype.hasobject else number.tobytes())


def _text_of_dtype(dtype: Any) -> str:
    return dtype.str if dtype.names is None else str(dtype.descr)


def encode_series(series: Any, encoding: Encoding) -> None:
    """A column of pandas, with its name and index."""
    begin(series, encoding)
    encoding.enter(3)
    encoding.value(series.name)
    encoding.value(series.index)
    _encode_column(series.array, encoding)
    encoding.leave()


def encode_pandas_frame(frame: Any, encoding: Encoding) -> None:
    """A table of pandas: its columns one by one, whatever lies together."""
    begin(frame, encoding)
    encoding.enter(frame.shape[1])
    encoding.value(frame.columns)
    encoding.value(frame.index)
    for position in range(frame.shape[1]):
        _encode_column(frame.iloc[:, position].array, encoding)
    encoding.leave()


def encode_index(index: Any, encoding: Encoding) -> None:
    """The labels of pandas, with their names."""
    begin(index, encoding)
    encoding.enter(2)
    encoding.value(list(index.names))
    if hasattr(index, "levels"):
        for level, codes in zip(index.levels, index.codes, strict=True):
            encoding.value(level)
            encoding.value(codes)
    else:
        _encode_column(index.array, encoding)
    encoding.leave()


def _encode_column(array: Any, encoding: Encoding) -> None:
    """The values of a column, with their type; of those with categories which there are, and in which order."""
    encoding.value(str(array.dtype))
    if hasattr(array, "categories"):
        encoding.value(array.categories)
        encoding.value(array.ordered)
        encoding.value(array.codes)
        return
    values = array.to_numpy()
    if values.dtype.hasobject:
        encoding.values(values.tolist(), len(values))
    else:
        encoding.value(values)


def encode_timestamp(value: Any, encoding: Encoding) -> None:
    """A moment or duration of pandas, to the nanosecond."""
    begin(value, encoding)
    encoding.values((value.value, value.unit, getattr(value, "tzinfo", None)), 3)


def encode_period(value: Any, encoding: Encoding) -> None:
    """A month, say."""
    begin(value, encoding)
    encoding.values((value.ordinal, value.freqstr), 2)


def encode_interval(value: Any, encoding: Encoding) -> None:
    """What lies between two values."""
    begin(value, encoding)
    encoding.values((value.left, value.right, value.closed), 3)


def encode_column_of_polars(series: Any, encoding: Encoding) -> None:
    """A column of polars, with its name."""
    begin(series, encoding)
    encoding.value(series.name)
    _encode_values_of_polars(series, encoding)


def encode_polars_frame(frame: Any, encoding: Encoding) -> None:
    """A table of polars, column by column."""
    begin(frame, encoding)
    encoding.value(frame.shape)
    for series in frame.get_columns():
        encoding.value(series)


def _encode_values_of_polars(series: Any, encoding: Encoding) -> None:
    encoding.value(str(series.dtype))
    if series.dtype.is_numeric() and not series.dtype.is_decimal() and not series.null_count():
        encoding.value(series.to_numpy())
    else:
        encoding.value(series.to_list())


_PANDAS: dict[str, EncoderFunc] = {
    "DataFrame": encode_pandas_frame,
    "Series": encode_series,
    **dict.fromkeys(
        (
            "Index",
            "RangeIndex",
            "DatetimeIndex",
            "TimedeltaIndex",
            "PeriodIndex",
            "CategoricalIndex",
            "MultiIndex",
            "IntervalIndex",
        ),
        encode_index,
    ),
    "Timestamp": encode_timestamp,
    "Timedelta": encode_timestamp,
    "Period": encode_period,
    "Interval": encode_interval,
    "NAType": encode_text,
    "NaTType": encode_text,
}
_POLARS: dict[str, EncoderFunc] = {"DataFrame": encode_polars_frame, "Series": encode_column_of_polars}
