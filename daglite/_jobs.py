"""What a fan-out calls: a task for each item of iterables, or calls as they are given."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Awaitable, Callable, Iterator, Mapping
from functools import partial
from typing import Any, TypeAlias

from ._sources import AsyncSource, Source
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

    async def while_open(self, body: Callable[[], Awaitable[None]], grace: float) -> None:
        """Do something that takes calls, then close what they come from, for which there are so many seconds."""
        await body()

    async def absorb(self, cancellation: BaseException) -> bool:
        """Whether a cancellation of the task that takes calls concerns nothing but what they come from."""
        return False


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
        self._sources = [self._source(number, each) for number, each in enumerate(iterables, start=1)]
        self._open = [source for source in self._sources if isinstance(source, AsyncSource) and source.is_generator]

    def _source(self, number: int, iterable: Any) -> Source | AsyncSource:
        if hasattr(iterable, "__aiter__"):
            asynchronous = iterable.__aiter__()
            if isinstance(asynchronous, AsyncStream):
                self._own(asynchronous)
            return AsyncSource(asynchronous)
        try:
            return Source(iter(iterable))
        except TypeError:
            raise TypeError(f"{self.where}: iterable {number} is {iterable!r}, which cannot be iterated over") from None

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
            for source in self._sources:
                taken.append(await source.take() if source.is_async else source.take())
        except (StopIteration, StopAsyncIteration):
            return None
        return self._task, tuple(taken), _NOTHING

    async def while_open(self, body: Callable[[], Awaitable[None]], grace: float) -> None:
        """Do something that takes calls, then close the async generators, which would else be left to the event loop to end."""
        for source in reversed(self._open):  # the last, whose scopes are the innermost, is closed first
            body = partial(source.while_open, body, grace)
        await body()

    async def absorb(self, cancellation: BaseException) -> bool:
        """Throw a cancellation into the generator that it comes from; of several nobody can tell whose it is."""
        return len(self._open) == 1 and await self._open[0].absorb(cancellation)


_NOTHING: Mapping[str, Any] = {}


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
