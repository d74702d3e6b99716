"""Who a call is."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol
from uuid import UUID

from ._log import logger

__all__ = [
    "Draft",
    "Redact",
    "TaskMetadata",
    "drafted",
    "facts_of",
    "label_of",
    "new_id",
    "new_number",
    "number_of",
    "parent_number_of",
]

Redact = Callable[[Mapping[str, Any]], Mapping[str, Any]]


class Described(Protocol):
    """What is read of a task."""

    is_async: bool
    is_generator: bool
    description: str | None

    @property
    def label(self) -> str:
        """What the task is called, whatever its calls are called."""
        ...

    def inputs_of(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """The arguments of a call by parameter name."""
        ...

    def name_of(self, inputs: Callable[[], Mapping[str, Any]], map_index: int | None) -> str:
        """The name of a call."""
        ...


class Draft(NamedTuple):
    """What a `TaskMetadata` is made of when something asks for it: most of them are never read as a whole."""

    number: int
    spec: Described
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    map_index: int | None
    backend: str
    parent: int | None
    is_background: bool
    redact: Redact | None

    def made(self, name: str) -> Any:
        """The value of one field."""
        spec = self.spec
        match name:
            case "id":
                return UUID(int=self.number)
            case "name":
                return spec.name_of(self.values, self.map_index)
            case "inputs":
                return self.inputs()
            case "parent_id":
                return None if self.parent is None else UUID(int=self.parent)
            case "backend" | "map_index" | "is_background":
                return getattr(self, name)
            case _:
                return getattr(spec, name)

    def inputs(self) -> Mapping[str, Any]:
        """The arguments as they may be shown."""
        inputs = self.spec.inputs_of(self.args, self.kwargs)
        return inputs if self.redact is None else redacted(self.redact, inputs)

    def values(self) -> Mapping[str, Any]:
        """What the placeholders of the name stand for."""
        inputs = self.spec.inputs_of(self.args, self.kwargs)
        return inputs if self.redact is None else {**dict.fromkeys(inputs, HIDDEN), **redacted(self.redact, inputs)}


HIDDEN = "<redacted>"


def redacted(redact: Redact, inputs: dict[str, Any]) -> Mapping[str, Any]:
    """What the function of the settings leaves of the arguments; nothing, if it fails."""
    try:
        return dict(redact(inputs))
    except Exception:
        logger().exception("the function that redacts inputs failed: %r", redact)
        return dict.fromkeys(inputs, HIDDEN)


class Lazy:
    """A place for the draft of an object whose fields are not yet set."""

    __slots__ = ("_draft",)

    _draft: Draft


@dataclass(frozen=True, slots=True)
class TaskMetadata(Lazy):
    """One call of a task, described.

    Args:
        id: Different for every call.
        name: The task's name with its placeholders filled in.
        backend: Where the function runs: `"inline"`, in the caller's own task or thread, or `"thread"`.
        inputs: The arguments by parameter name, defaults included, `self` left out, as `Settings.redact` leaves them.
        description: What the task says it does.
        map_index: The call's position in its fan-out, from 0; `None` outside one.
        parent_id: The call that made this one; `None` at the top.
        is_async: Whether the task's function is a coroutine function or async generator function.
        is_generator: Whether the task is a stream.
        is_background: Whether the call was started with `start_soon`.
    """

    id: UUID
    name: str
    backend: str = "inline"
    inputs: Mapping[str, Any] = field(default_factory=dict, kw_only=True)
    description: str | None = field(default=None, kw_only=True)
    map_index: int | None = field(default=None, kw_only=True)
    parent_id: UUID | None = field(default=None, kw_only=True)
    is_async: bool = field(default=False, kw_only=True)
    is_generator: bool = field(default=False, kw_only=True)
    is_background: bool = field(default=False, kw_only=True)

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            """A field that is not set yet: made now, and kept."""
            if name not in FIELDS:
                raise AttributeError(f"a TaskMetadata has no {name!r}")
            value = self._draft.made(name)
            object.__setattr__(self, name, value)
            return value


FIELDS = frozenset(each.name for each in fields(TaskMetadata))

_new = object.__new__
_set_draft = vars(Lazy)["_draft"].__set__  # by the descriptor of the slot, for the class is frozen


def drafted(draft: Draft) -> TaskMetadata:
    """A description whose fields are made when they are read."""
    metadata = _new(TaskMetadata)
    _set_draft(metadata, draft)
    return metadata


def number_of(metadata: TaskMetadata) -> int:
    """The id as a number, without making it for that."""
    try:
        return metadata._draft.number
    except AttributeError:  # it was made whole
        return metadata.id.int


def label_of(metadata: TaskMetadata) -> str:
    """What the task is called, whatever the call is called: the same for all calls of it."""
    try:
        return metadata._draft.spec.label
    except AttributeError:  # it was made whole
        index = "" if metadata.map_index is None else f"[{metadata.map_index}]"
        return metadata.name.removesuffix(index)


def facts_of(metadata: TaskMetadata) -> Draft | TaskMetadata:
    """What has its `backend`, `map_index` and `is_background`, without making them for that."""
    try:
        return metadata._draft
    except AttributeError:  # it was made whole
        return metadata


def parent_number_of(metadata: TaskMetadata) -> int | None:
    """The id of the call that made it as a number, without making it for that."""
    try:
        return metadata._draft.parent
    except AttributeError:  # it was made whole
        return None if metadata.parent_id is None else metadata.parent_id.int


class _Ids:
    """Numbers under a random prefix: unique across processes, and a tenth of what `uuid4` costs."""

    def __init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        # Version 8 of RFC 9562, a layout of one's own: here 62 random and 48 counting bits.
        random = int.from_bytes(os.urandom(8), "big")
        version_and_variant = (0x8 << 76) | (0b10 << 62)
        prefix = (random >> 16 << 80) | version_and_variant | ((random & 0x3FFF) << 48)
        self.numbers = itertools.count(prefix | 1)


_ids = _Ids()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_ids.restart)


def new_number() -> int:
    """An id, as a number, that no other call or session has, in this process or another."""
    return next(_ids.numbers)


def new_id() -> UUID:
    """An id that no other call or session has, in this process or another."""
    return UUID(int=new_number())
