"""The names of datasets: paths below the root of a store, which none of them leaves."""

from __future__ import annotations

import os
import re
from typing import Any

__all__ = ["OWN_FOLDER", "InvalidKey", "checked_key"]

OWN_FOLDER = ".daglite"  # of the store itself, where it writes what is not yet whole

_LONGEST = 255  # bytes of a name, on about every file system
_SCHEME = re.compile(r"[A-Za-z]:|[A-Za-z][A-Za-z0-9+.-]*:/")  # a drive, or that of a URI


class InvalidKey(ValueError):
    """A key may lead out of the root, or cannot be the name of a file."""


def checked_key(key: Any, where: str = "dataset") -> tuple[str, ...]:
    """The parts of a key, which lead from the root of a store to a file below it.

    Args:
        key: What was given for one.
        where: Whose key it is, to begin an error message with.

    Raises:
        TypeError: It is no text.
        ValueError: It may lead elsewhere, on one system or another, or cannot be a file's name.
    """
    if not isinstance(key, str):
        raise TypeError(f"{where}: a key must be a str, not {key!r}")
    parts = tuple(key.split("/"))
    why = _fault(key, parts)
    if why is not None:
        raise InvalidKey(
            f"{where}: {key!r} is no key, for {why}; a key is a path below the store's root, as in 'reports/2026/sales.csv'"
        )
    return parts


def _fault(key: str, parts: tuple[str, ...]) -> str | None:
    """What is wrong with a key; `None` if nothing is."""
    if not key:
        return "it is empty"
    if "\0" in key:
        return "it holds a NUL"
    if "\\" in key:
        return "it holds a backslash, which separates names on some systems; use '/'"
    if key.startswith("/"):
        return "it is absolute"
    if _SCHEME.match(key):
        return "it begins like a drive or a URI"
    if parts[0].casefold() == OWN_FOLDER:
        return f"the store itself uses {OWN_FOLDER!r}"
    for part in parts:
        if not part:
            return "it has an empty part"
        if not part.strip(". "):  # Windows ignores dots and spaces at the end: '.. ' is '..' there
            return f"{part!r} is no name of a file"
        try:
            size = len(part.encode())
        except UnicodeEncodeError:
            return f"{part!r} holds what is no character"
        if size > _LONGEST:
            return f"a part of it has {size} bytes, and {_LONGEST} are the most"
        if os.name == "nt" and (":" in part or part[-1] in ". "):
            return f"{part!r} means something else on Windows"
    return None
