"""What is current: one context variable for the call, its parent and the session."""

from __future__ import annotations

from contextvars import ContextVar, Token
from typing import Protocol, TypeAlias

from ._metadata import TaskMetadata

__all__ = ["OUTSIDE", "Position", "current_task", "here", "reset", "set_current"]


class Position(Protocol):
    """Where code runs: in a call, or directly in a session, or in neither."""

    @property
    def metadata(self) -> TaskMetadata | None:
        """The call that the code belongs to."""
        ...


class Outside:
    """The position of code that runs in no call and no session."""

    metadata = None


OUTSIDE = Outside()
_current: ContextVar[Position] = ContextVar("daglite_current", default=OUTSIDE)

here = _current.get
set_current = _current.set
PositionToken: TypeAlias = "Token[Position]"


def reset(token: PositionToken) -> None:
    """Make current again what was so before."""
    try:
        _current.reset(token)
    except ValueError:
        # A coroutine that is dropped half-way is closed in the context of whoever drops it, where there is
        # nothing to be undone.
        pass


def current_task() -> TaskMetadata | None:
    """The innermost call that the running code belongs to; `None` outside all calls."""
    return here().metadata
