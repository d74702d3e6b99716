"""What a fan-out calls: a task for each item of iterables, or calls as they are given."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import AsyncIterator, Iterator, Mapping
from typing import Any, TypeAlias

import anyio

from ._task_call import TaskCall
from .exceptions import LimitError
from .tasks import AsyncStream, Task, as_task

__all__ = ["Calls", "Items", "Job", "Jobs"]

Job: TypeAlias = tuple[Task[Any, Any], tuple[Any, ...], Mapping[str, Any]]  # a task and the arguments of one call


class Jobs:
    """Where the calls of a fan-out come from.

    Args:
        what: The public function, for messages.
        subject: Whose calls they are, for messages.
        tasks: Of which tasks they are.
    """

    def __init__(self, what: str, subject: str, tasks: tuple[Task[Any, Any], ...]) -> None:
        self.subject: str = subject
        self.where: str = f"{what} of {subject}"
        self.tasks: tuple[Task[Any, Any], ...] = tasks

    @abstractmethod
    async def take(self) -> Job | None:
        """The next call; `None` if there are no more."""

    async def aclose(self, grace: float) -> None:
        """Take no more; there are so many seconds to close what they come from."""


class Items(Jobs):
    """Calls of one task, with arguments from each iterable, until the shortest is exhausted.

    Args:
        what: The public function, for messages.
        target: The task, or a function.
        iterables: Where the arguments come from.

    Raises:
        TypeError: The task or an iterable is none.
        LimitError: A stream among them holds a token of the limit that the calls need.
    """

    def __init__(self, what: str, target: Any, iterables: tuple[Any, ...]) -> None:
        if isinstance(target, TaskCall):
            raise TypeError(
                f"{what} takes a task and its iterables, not {target!r}; calls are for gather_tasks, map_tasks and race_tasks"
            )
        self._task = as_task(target)
        super().__init__(what, f"task {self._task.name!r}", (self._task,))
        if not iterables:
            raise TypeError(f"{self.where}: there is no iterable to take arguments from")
        self._iterators = [_iterator(self.where, number, each) for number, each in enumerate(iterables, start=1)]
        for iterator in self._iterators:
            if isinstance(iterator, AsyncStream):
                self._own(iterator)

    def _own(self, stream: AsyncStream[Any]) -> None:
        stream._steps.is_owned = True  # it is closed here
        source, limit = stream._steps.call.spec, self._task.limit
        if limit is not None and source.options.limit is limit:
            raise LimitError(
                f"{self.where}: its calls need tokens of limit {limit.name!r}, of which stream {source.label!r}, which they "
                f"get their arguments from, holds one: they would wait for each other. Give it a limit of its own"
            )

    async def take(self) -> Job | None:
        """The next call."""
        taken: list[Any] = []
        try:
            for iterator in self._iterators:
                if isinstance(iterator, AsyncIterator):
                    taken.append(await iterator.__anext__())
                else:
                    taken.append(next(iterator))
        except (StopIteration, StopAsyncIteration):
            return None
        return self._task, tuple(taken), _NOTHING

    async def aclose(self, grace: float) -> None:
        """Close the async generators among them, which would else be left to the event loop to end."""
        deadline = anyio.current_time() + grace
        failure: Exception | None = None
        for iterator in self._iterators:
            if isinstance(iterator, AsyncIterator) and hasattr(iterator, "aclose"):
                # A scope for each: one that takes too long, or fails, does not keep the next from being closed.
                with anyio.CancelScope(deadline=deadline, shield=True):
                    try:
                        await iterator.aclose()
                    except Exception as exc:
                        failure = failure or exc
        if failure is not None:
            raise failure


_NOTHING: Mapping[str, Any] = {}


def _iterator(where: str, number: int, iterable: Any) -> Iterator[Any] | AsyncIterator[Any]:
    if hasattr(iterable, "__aiter__"):
        asynchronous: AsyncIterator[Any] = iterable.__aiter__()
        return asynchronous
    try:
        synchronous: Iterator[Any] = iter(iterable)
        return synchronous
    except TypeError:
        raise TypeError(f"{where}: iterable {number} is {iterable!r}, which cannot be iterated over") from None


class Calls(Jobs):
    """Calls as they are given.

    Args:
        what: The public function, for messages.
        calls: The calls.
        streams: Whether those of streams are taken, which give lists.

    Raises:
        TypeError: One of them is none, or that of a stream where none is taken.
    """

    def __init__(self, what: str, calls: tuple[Any, ...], *, streams: bool = True) -> None:
        for number, call in enumerate(calls, start=1):
            if not isinstance(call, TaskCall):
                raise TypeError(
                    f"{what}: argument {number} is {call!r}, and no call as the others are; make one with "
                    f"t.call(...), or give one task and its iterables"
                )
            if call.task.is_generator and not streams:
                raise TypeError(
                    f"{what}: argument {number} is {call!r}, which is a stream and has no result that could be the first; "
                    f"call a task that takes from it what you need"
                )
        tasks = tuple(dict.fromkeys(call.task for call in calls))
        super().__init__(what, _named(tasks), tasks)
        self._calls: Iterator[TaskCall[Any]] = iter(calls)

    async def take(self) -> Job | None:
        """The next call."""
        call = next(self._calls, None)
        return None if call is None else (call.task, call.args, call.kwargs)


def _named(tasks: tuple[Task[Any, Any], ...]) -> str:
    """Tasks, in a message."""
    names = list(dict.fromkeys(repr(task.name) for task in tasks))
    if len(names) > 3:
        names[2:] = [f"{len(names) - 2} others"]
    if len(names) < 2:
        return f"task {names[0]}" if names else "no task"
    return f"tasks {', '.join(names[:-1])} and {names[-1]}"
