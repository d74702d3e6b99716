"""The calls that run at this moment, as a tree, for people who ask what a program waits for."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, TypeVar

from . import _clock
from ._books import Books

if TYPE_CHECKING:
    from uuid import UUID

    from ._metadata import TaskMetadata
    from ._protocols import Watched

__all__ = ["CallTree", "LiveCall", "find_call", "live_calls", "tree_of", "why_not_alone"]

T = TypeVar("T")

STUCK = "stuck in an abandoned thread"


@dataclass(frozen=True, slots=True)
class LiveCall:
    """A call that runs, or a thread that was abandoned and still does, as it was when it was looked at.

    Args:
        metadata: The call.
        state: `"running"`, also where it waits for what it awaits; `"backing off"` before a retry; `"waiting for a
            limit"`, `"waiting for a rate"` or `"waiting for a thread"`; `"in a thread"`; of a cached
            task `"looking in its cache"`, `"following another's computation"` or `"keeping its result"`; of one with a dataset
            `"saving its dataset"`; of a stream `"between items"`
            when nobody asks for one, or `"closing"`; or `"stuck in an abandoned thread"`, of a thread whose caller was
            released, and which Python cannot stop.
        age: Seconds since it began.
        attempts: How often its function was run.
        deadline: Seconds until its time is up, by its `timeout`, `total_timeout` or `item_timeout`, below 0 if it is; `None`
            if nothing of that applies.
        retry_in: Seconds until the next attempt, if it is backing off.
        items: Of a stream, how many it gave; `None` of other calls.
        limit: What the limit or rate is called that it waits for, if it does.
        calls: The calls that it has made and that run.
    """

    metadata: TaskMetadata
    state: str
    age: float
    attempts: int
    deadline: float | None = None
    retry_in: float | None = None
    items: int | None = None
    limit: str | None = None
    calls: tuple[LiveCall, ...] = ()

    def __str__(self) -> str:
        parts = [f"{_one_line(self.metadata.name)}: {self.state}"]
        if self.limit is not None:
            parts[0] += f" ({_one_line(self.limit)!r})"
        if self.retry_in is not None:
            parts.append(f"attempt {self.attempts + 1} in {max(self.retry_in, 0):.1f} s")
        elif self.attempts > 1:
            parts.append(f"attempt {self.attempts}")
        if self.items is not None:
            parts.append("1 item" if self.items == 1 else f"{self.items} items")
        parts.append(f"{self.age:.1f} s old")
        if self.deadline is not None:
            late = self.deadline < 0
            parts.append(f"{-self.deadline:.1f} s past its deadline" if late else f"{self.deadline:.1f} s left")
        return f"{', '.join(parts)}  [{self.metadata.id}]"


@dataclass(frozen=True, slots=True)
class CallTree:
    """The calls of a session that run, those of inner sessions included. `print` it.

    Args:
        session_id: The session.
        name: What the session is called.
        age: Seconds since it was entered.
        calls: The calls that were made by no other call in it; each has those that it has made.
    """

    session_id: UUID
    name: str
    age: float
    calls: tuple[LiveCall, ...] = ()

    def __iter__(self) -> Iterator[LiveCall]:
        """All calls, each before those that it has made."""
        return (call for call, _ in self._walk())

    def __str__(self) -> str:
        lines = [f"{prefix}{call}" for call, prefix in self._walk()]
        count = "no call runs" if not lines else "1 call runs" if len(lines) == 1 else f"{len(lines)} calls run"
        return "\n".join([f"session {self.name!r}: {count}, {self.age:.1f} s old  [{self.session_id}]", *lines])

    def _walk(self) -> Iterator[tuple[LiveCall, str]]:
        """The calls, each with the lines that lead to it; a stack, for calls may be nested deeper than functions."""
        stack = [(call, "", index == 0) for index, call in enumerate(reversed(self.calls))]
        while stack:
            call, indent, is_last = stack.pop()
            yield call, indent + ("└─ " if is_last else "├─ ")
            inner = indent + ("   " if is_last else "│  ")
            stack += [(each, inner, index == 0) for index, each in enumerate(reversed(call.calls))]


@dataclass(slots=True)
class _Node:
    """What is known of a call before what it has made is."""

    call: LiveCall
    calls: list[LiveCall] = field(default_factory=list)  # youngest first


def tree_of(books: Books) -> CallTree:
    """The tree of a session.

    It is made without a lock: whoever asks may have interrupted who holds it.
    """
    now = _clock.monotonic()
    all_books = _with_inner(books)
    streams = {steps.call: steps for each in all_books for steps in _snapshot(each.streams)}
    live = sorted((call for each in all_books for call in _snapshot(each.live)), key=lambda call: call.began)
    nodes: dict[Watched, _Node] = {call: _Node(_alone(call, streams.get(call), now)) for call in live}
    roots: list[LiveCall] = []
    for work in [work for each in all_books for work in _snapshot(each.stuck)]:
        call = work.call
        if call is not None:
            left = None if work.deadline is None else work.deadline - now
            stuck = LiveCall(call.metadata, STUCK, now - work.began, call.attempts, left)
            _parent(nodes, call, roots).append(stuck)
    # From the youngest, for a call is younger than the one that made it.
    for call in reversed(live):
        node = nodes[call]
        _parent(nodes, call.caller, roots).append(replace(node.call, calls=tuple(reversed(node.calls))))
    return CallTree(books.session_id, books.name, now - books.opened, tuple(reversed(roots)))


def _with_inner(books: Books) -> list[Books]:
    found = [books]
    for each in found:
        found += _snapshot(each.inner)
    return found


def _snapshot(items: Iterable[T]) -> list[T]:
    """What is in a dictionary that other threads change."""
    while True:
        try:
            return list(items)
        except RuntimeError:  # it was changed in this moment
            continue


def _parent(nodes: dict[Watched, _Node], caller: Watched | None, roots: list[LiveCall]) -> list[LiveCall]:
    """Where to put what a call has made: with the nearest that still runs."""
    while caller is not None:
        if caller in nodes:
            return nodes[caller].calls
        caller = caller.caller
    return roots


def _alone(call: Watched, steps: Any, now: float) -> LiveCall:
    """A call without what it has made."""
    state, deadline, retry_in = "running", call.deadline, None
    attempt, until = call.backing_off
    work_state = None if call.work is None else call.work.state
    wait = call.waits_for
    if wait is not None:
        state, deadline = wait.state, None
    elif attempt == call.attempts:
        state, deadline, retry_in = "backing off", None, until - now
    elif steps is not None and steps.closing:
        state = "closing"
    elif steps is not None and not steps.busy:
        state = "between items"
    elif call.work is not None and work_state is not None:
        state, deadline = work_state, call.work.deadline
    elif call.metadata.is_async:
        pass  # it runs in the event loop, also if a thread waits for it there
    elif call.slot is not None or (steps is not None and steps.in_thread):
        state = "in a thread"
    deadlines = [each for each in (deadline, call.total_deadline) if each is not None]
    left = min(deadlines) - now if deadlines else None
    limit = None if wait is None else wait.name
    return LiveCall(call.metadata, state, now - call.began, call.attempts, left, retry_in, call.items, limit)


def _one_line(text: str) -> str:
    return " ".join(text.splitlines()) or repr(text)


def find_call(books: Books, id: UUID) -> Watched | None:
    """The call of that id, if it runs."""
    return next((call for call in live_calls(books) if call.metadata.id == id), None)


def live_calls(books: Books) -> Iterator[Watched]:
    """The calls that run, those of inner sessions included."""
    return (call for each in _with_inner(books) for call in _snapshot(each.live))


def why_not_alone(call: Watched) -> str:
    """Why a call cannot be cancelled by itself, and what can."""
    text = f"task {call.metadata.name!r} runs in the task of whoever called it, and cannot be cancelled alone"
    caller = call.caller
    while caller is not None:
        if caller.cancel is not None:
            return f"{text}; cancel under {caller.metadata.name!r}, whose id is {caller.metadata.id}"
        caller = caller.caller
    return f"{text}; start it with start_soon() or in a fan-out, or cancel() the session"
