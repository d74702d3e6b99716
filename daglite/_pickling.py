"""Errors in a form that can always be pickled, and comes back as much itself as it can.

Pickle gives up on the whole when one part of it cannot be pickled, and tells of some errors only
when they are loaded: it calls the class with the error's `args`, which need not be what its
`__init__` takes. What a call failed with must arrive all the same. So each part travels by itself,
with a text to stand in for it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

from ._metadata import TaskMetadata

if sys.version_info < (3, 11):
    from exceptiongroup import BaseExceptionGroup

__all__ = ["reduce_error"]

StandIn: TypeAlias = Callable[[str], BaseException]
"""Makes an error out of the text of one that did not arrive."""


def reduce_error(error: BaseException, stand_in: StandIn) -> tuple[Any, ...]:
    """What `__reduce__` of one of our own errors returns.

    Args:
        error: The error. Its `__cause__`, which pickle leaves out, goes with it.
        stand_in: A class that can be pickled.
    """
    return _rebuilt, (_Parts.of(error), _packed(error.__cause__), stand_in)


def _rebuilt(parts: _Parts, cause: Any, stand_in: StandIn) -> BaseException:
    error = parts.together(stand_in)
    error.__cause__ = _unpacked(cause, stand_in)
    return error


def _packed(value: Any) -> Any:
    if isinstance(value, BaseException):
        return _Error.of(value)
    if isinstance(value, TaskMetadata):
        return _Metadata(replace(value, inputs={}), _packed(dict(value.inputs)))
    if type(value) is dict and all(type(key) is str for key in value):
        return {key: _packed(part) for key, part in value.items()}
    if type(value) in (list, tuple):
        return type(value)(map(_packed, value))
    data = _dumped(value)
    return _Value(data, f"<{type(value).__qualname__}>" if data else _text_of(value))


def _unpacked(part: Any, stand_in: StandIn) -> Any:
    if type(part) is dict:
        return {key: _unpacked(value, stand_in) for key, value in part.items()}
    if type(part) in (list, tuple):
        return type(part)(_unpacked(value, stand_in) for value in part)
    return part.unpacked(stand_in)


@dataclass(frozen=True)
class _Value:
    """Anything: pickled if it can be, and what is shown in its place if not."""

    data: bytes | None
    text: str

    def unpacked(self, _: StandIn) -> Any:
        if self.data is None:
            return self.text
        import pickle  # not by `import daglite`

        try:
            return pickle.loads(self.data)
        except Exception:  # whatever its class does
            return self.text


@dataclass(frozen=True)
class _Metadata:
    """A call, whose arguments travel one by one."""

    metadata: TaskMetadata
    inputs: dict[str, Any]

    def unpacked(self, stand_in: StandIn) -> TaskMetadata:
        return replace(self.metadata, inputs=_unpacked(self.inputs, stand_in))


@dataclass(frozen=True)
class _Parts:
    """An error taken apart, to be put together without its `__init__`."""

    kind: type[BaseException]
    args: tuple[Any, ...]
    attributes: dict[str, Any]

    @classmethod
    def of(cls, error: BaseException) -> _Parts:
        # Of a class that is local to a function the nearest that can be found.
        kind = next(kind for kind in type(error).__mro__ if _dumped(kind) is not None)
        args: tuple[Any, ...] = error.args
        if isinstance(error, BaseExceptionGroup):
            args = error.message, list(error.exceptions)
        return cls(kind, _packed(args), _packed(error.__dict__))

    def together(self, stand_in: StandIn) -> BaseException:
        args = _unpacked(self.args, stand_in)
        error = self.kind.__new__(self.kind, *args)
        error.args = args  # an OSError leaves them to its `__init__`
        error.__dict__.update(_unpacked(self.attributes, stand_in))
        return error


@dataclass(frozen=True)
class _Error:
    """An error: pickled as it is if that works, else in parts, else as text."""

    data: bytes | None
    parts: bytes | None
    text: str

    @classmethod
    def of(cls, error: BaseException) -> _Error:
        text = f"{type(error).__qualname__}: {_text_of(error, str)}"
        data = _dumped(error)
        if data is not None and isinstance(_loaded(data), type(error)):
            return cls(data, None, text)
        parts = None
        if _dumped(type(error)) is not None:
            parts = _dumped(_Parts.of(error))
        return cls(None, parts, text)

    def unpacked(self, stand_in: StandIn) -> BaseException:
        error = None
        if self.data is not None:
            error = _loaded(self.data)
        elif self.parts is not None:
            parts = _loaded(self.parts)
            try:
                error = parts.together(stand_in)
            except Exception:  # its class has a `__new__` of its own
                pass
        return error if isinstance(error, BaseException) else stand_in(self.text)


def _dumped(value: Any) -> bytes | None:
    import pickle  # not by `import daglite`

    try:
        return pickle.dumps(value, pickle.HIGHEST_PROTOCOL)
    except Exception:  # not only PicklingError: whatever a class does
        return None


def _loaded(data: bytes) -> Any:
    import pickle  # not by `import daglite`

    try:
        return pickle.loads(data)
    except Exception:
        return None


def _text_of(value: Any, text_of: Callable[[Any], str] = repr) -> str:
    try:
        return text_of(value)
    except Exception:
        return f"<{type(value).__qualname__}>"
