"""Events as JSON: for browsers, and for files."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any
from uuid import UUID

from ._metadata import TaskMetadata
from .events import Event

__all__ = ["as_json", "fields_of"]

DEPTH = 20  # of dictionaries in each other, in which a reader gets more than text for what JSON has no word for
OF_A_CALL = ("id", "name", "parent_id", "map_index", "backend", "is_async", "is_generator", "is_background")


def fields_of(event: Event, *, inputs: bool) -> dict[str, Any]:
    """What an event says: its class, as `event`, and its fields.

    Args:
        event: The event.
        inputs: Whether it says the arguments of its call.
    """
    fields: dict[str, Any] = {"event": type(event).__name__}
    for name in names_of(type(event)):
        value = getattr(event, name)
        if isinstance(value, TaskMetadata):
            call = fields[name] = {each: getattr(value, each) for each in OF_A_CALL}
            if inputs:
                call["inputs"] = dict(value.inputs)
        else:
            fields[name] = value
    return fields


def names_of(kind: type[Event]) -> tuple[str, ...]:
    """The names of the fields of a class of events."""
    names = _names.get(kind)
    if names is None:
        names = _names[kind] = tuple(each.name for each in dataclasses.fields(kind))
    return names


_names: dict[type[Event], tuple[str, ...]] = {}


def as_json(fields: Mapping[str, Any]) -> str:
    """A line of JSON: what it has no word for, as text."""
    try:
        return json.dumps(fields, allow_nan=False, default=text_of_id)
    except Exception:  # also of the user's own class
        return json.dumps({name: plain(value) for name, value in fields.items()})


def text_of_id(value: Any) -> str:
    """The text of an id, which every event has."""
    if isinstance(value, UUID):
        return str(value)
    raise TypeError


def plain(value: Any, depth: int = DEPTH) -> Any:
    """A value as JSON can say it."""
    try:
        json.dumps(value, allow_nan=False)
    except Exception:
        if isinstance(value, dict) and depth:
            return {shown(name): plain(each, depth - 1) for name, each in value.items()}
        return shown(value)
    return value


def shown(value: Any) -> str:
    """The text of a value."""
    try:
        return str(value) if isinstance(value, (str, UUID)) else repr(value)
    except Exception:  # the user's own __repr__
        return f"<{type(value).__qualname__}>"
