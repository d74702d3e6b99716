"""What a value given as an option must be."""

from __future__ import annotations

import math
from typing import Any

__all__ = ["BACKENDS", "backend", "finite", "flag", "name", "one_of", "secret", "whole"]

BACKENDS = ("inline", "thread")


def finite(what: str, value: Any, *, least: float, above: bool = False) -> float:
    """Check a number of seconds or a factor.

    Args:
        what: Whose option it is, to begin an error message with.
        value: What was given; a `bool` is not a number.
        least: The smallest number allowed.
        above: Whether the number must be greater than `least`.

    Returns:
        The value as a float.

    Raises:
        TypeError: It is not a number.
        ValueError: It is not finite, or too small.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{what} must be a number, not {value!r}")
    try:
        usable = math.isfinite(value)
    except OverflowError:  # an int beyond every float
        usable = False
    if not usable:
        raise ValueError(f"{what} must be finite, not {value!r}")
    if value < least or (above and value == least):
        raise ValueError(f"{what} must be {'more than' if above else 'at least'} {least}, not {value!r}")
    return float(value)


def whole(what: str, value: Any, *, least: int) -> int:
    """Check a count; like `finite`, for whole numbers."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{what} must be a whole number, not {value!r}")
    if value < least:
        raise ValueError(f"{what} must be at least {least}, not {value!r}")
    return value


def name(what: str, value: Any) -> str:
    """Check what something is to be called."""
    if not isinstance(value, str):
        raise TypeError(f"{what} must be a str, not {value!r}")
    if not value:
        raise ValueError(f"{what} must not be empty")
    return value


def secret(what: str, value: Any) -> bytes | None:
    """Check a secret, or that none was given; no error shows it."""
    if value is not None and not isinstance(value, (str, bytes)):
        raise TypeError(f"{what} must be a str or bytes")
    if value is not None and not value:
        raise ValueError(f"{what} must not be empty")
    return value.encode() if isinstance(value, str) else value


def flag(what: str, value: Any) -> bool:
    """Check a bool, of which no other value is taken for one."""
    if not isinstance(value, bool):
        raise TypeError(f"{what} must be a bool, not {value!r}")
    return value


def one_of(what: str, value: Any, choices: tuple[str, ...]) -> str:
    """Check a choice between some words."""
    if value not in choices:
        raise ValueError(f"{what} must be {' or '.join(map(repr, choices))}, not {value!r}")
    return str(value)


def backend(where: str, name: Any) -> str:
    """Check the name of a backend.

    Args:
        where: Who asks for it, to begin an error message with.
        name: The name.

    Raises:
        TypeError: It is not a name.
        ValueError: There is no such backend.
    """
    if not isinstance(name, str):
        raise TypeError(f"{where}: backend must be a str, not {name!r}")
    if name not in BACKENDS:
        raise ValueError(f"{where}: there is no backend {name!r}; there are {', '.join(map(repr, BACKENDS))}")
    return name
