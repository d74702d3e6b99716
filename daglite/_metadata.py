"""Who a call is."""

from __future__ import annotations

import itertools
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

__all__ = ["TaskMetadata", "new_id"]


@dataclass(frozen=True, slots=True)
class TaskMetadata:
    """One call of a task, described.

    Args:
        id: Different for every call.
        name: The task's name with its placeholders filled in.
        backend: Where the function runs: `"inline"`, in the caller's own task or thread, or `"thread"`.
        inputs: The arguments by parameter name, defaults included, `self` left out.
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


def new_id() -> UUID:
    """An id that no other call or session has, in this process or another."""
    return UUID(int=next(_ids.numbers))
