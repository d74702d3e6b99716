"""Calls that have yet to begin."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Generic, TypeVar

__all__ = ["TaskCall"]

R_co = TypeVar("R_co", covariant=True)


class TaskCall(Generic[R_co]):
    """A task and its arguments: a call that has yet to begin, for `gather_tasks`, `map_tasks` and `race_tasks`.

    What makes it is `t.call(...)`. It may be given to several of them, and is another call each time.

    Attributes:
        task: The task.
        args: Its positional arguments.
        kwargs: Its keyword arguments.
    """

    __slots__ = ("args", "kwargs", "task")

    def __init__(self, task: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        self.task: Any = task
        self.args: tuple[Any, ...] = args
        self.kwargs: Mapping[str, Any] = kwargs

    def __repr__(self) -> str:
        return f"<call of task {self.task.name!r}>"
