"""What is told of a session and its calls: events to subscribers, hooks to plugins.

A hook that reports something does so between the first event of its call and the last.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from time import time as now
from typing import TYPE_CHECKING, Any, Literal

from . import _clock, _hooks
from ._bus import Bus
from ._context import Home, Position, Root, reset, set_current
from ._hooks import Activation, Hooks, Implementation
from ._log import described
from .events import (
    CacheFailed,
    CacheHit,
    CacheMissed,
    DatasetLoaded,
    DatasetSaved,
    Event,
    ItemYielded,
    LogRecorded,
    SessionEnded,
    SessionStarted,
    TaskCancelled,
    TaskFailed,
    TaskReported,
    TaskRetrying,
    TaskStarted,
    TaskSucceeded,
    TaskWaiting,
)

if TYPE_CHECKING:
    from logging import LogRecord

    from ._protocols import Thread, Watched

__all__ = ["Reports"]


class Reports:
    """Tells subscribers and plugins what happens in a session.

    Args:
        home: The session.
        bus: Its subscribers.
        hooks: Its plugins.
        outside: Where it was opened.
    """

    def __init__(self, home: Home, bus: Bus, hooks: Hooks, outside: Position) -> None:
        self.bus: Bus = bus
        self.hooks: Hooks = hooks
        self._home = home
        self._aside = home.aside()
        self._outside = outside
        self._before = hooks.of("before_node_execute")
        self._after = hooks.of("after_node_execute")
        self._error = hooks.of("on_node_error")
        self._cancelled = hooks.of("on_node_cancelled")
        self._before_retry = hooks.of("before_node_retry")
        self._after_retry = hooks.of("after_node_retry")
        self._cache_hit = hooks.of("on_cache_hit")
        self._cache_miss = hooks.of("on_cache_miss")
        self._iteration = hooks.of("node_iteration")
        self._activate = hooks.of("activate")
        self._has_hooks: bool = any("session" not in each.hook for each in hooks.implementations)
        bus.changed = self._listen
        self._listen()

    def _listen(self) -> None:
        """Let the calls of the session be watched, if there is anybody who wants to hear of them."""
        self._home.watch(self if self._has_hooks or self.bus.listeners else None)

    def session_started(self, name: str) -> None:
        """The session was entered."""
        if self.bus.listeners:
            self.bus.publish(SessionStarted(self.bus.session_id, now(), name))
        facts = {"session_id": self.bus.session_id}
        self._call_aside(self.hooks.of("before_session_start"), facts, self._aside, self._outside.call)

    def session_ended(self, name: str, duration: float) -> None:
        """The session has ended after so many seconds."""
        facts = {"session_id": self.bus.session_id, "duration": duration}
        try:
            outside = self._outside  # in the session no calls are made any more
            self._call_aside(self.hooks.of("after_session_end"), facts, outside.home.aside(), outside.call)
        finally:
            if self.bus.listeners:
                self.bus.publish(SessionEnded(self.bus.session_id, now(), name, duration))

    def started(self, call: Watched) -> bool:
        """A call has begun; false if nobody is to hear of it any more."""
        slot = call.slot
        if slot is not None:
            if not slot.begin(call, partial(self._publish_started, call)):
                return False
        elif self.bus.listeners:
            self._publish_started(call)
        if self._before:
            self._fire(self._before, call, {})
        return True

    def _publish_started(self, call: Watched) -> None:
        if self.bus.listeners:
            self.bus.publish(TaskStarted(self.bus.session_id, now(), call.metadata), call)

    def waiting(self, call: Watched, limit: str) -> None:
        """An attempt, or a stream, waits for a limit or a rate of that name before it begins."""
        if self.bus.listeners:
            event = TaskWaiting(self.bus.session_id, now(), call.metadata, limit)
            self._publish(event, call, call.slot)

    def cache_hit(self, call: Watched, key: str, value: Any, *, shared: bool) -> None:
        """The result of a call, which does not begin, was in its cache, or was computed by another that ran."""
        if self._cache_hit:
            self._fire(self._cache_hit, call, {"key": key, "value": value})
        if self.bus.listeners:
            self._publish(CacheHit(self.bus.session_id, now(), call.metadata, key, shared), call, call.slot)

    def cache_missed(self, call: Watched, key: str) -> None:
        """The result of a call is not in its cache."""
        if self._cache_miss:
            self._fire(self._cache_miss, call, {"key": key})
        if self.bus.listeners:
            self._publish(CacheMissed(self.bus.session_id, now(), call.metadata, key), call, call.slot)

    def cache_failed(self, call: Watched, operation: str, error: Exception) -> None:
        """A cache could not be read or written, or for how long to keep a result could not be found out."""
        if self.bus.listeners:
            event = CacheFailed(self.bus.session_id, now(), call.metadata, operation, described(error))
            self._publish(event, call, call.slot)

    def accessing(
        self, operation: Literal["save", "load"], call: Watched | None, slot: Thread | None, facts: Mapping[str, Any]
    ) -> None:
        """The code of a call, or of the session outside of calls, is about to save or to load a dataset."""
        self._fire_of_dataset(f"before_dataset_{operation}", call, slot, facts)

    def accessed(
        self,
        operation: Literal["save", "load"],
        call: Watched | None,
        slot: Thread | None,
        facts: Mapping[str, Any],
        result: Any,
        duration: float,
    ) -> None:
        """It has done so, in so many seconds, with what was loaded."""
        if self.bus.listeners:
            kind = DatasetSaved if operation == "save" else DatasetLoaded
            metadata = None if call is None else call.metadata
            event = kind(self.bus.session_id, now(), metadata, facts["key"], facts["format"], duration)
            self._publish(event, call, slot)
        outcome = {} if operation == "save" else {"result": result, "duration": duration}
        self._fire_of_dataset(f"after_dataset_{operation}", call, slot, {**facts, **outcome})

    def _fire_of_dataset(self, hook: str, call: Watched | None, slot: Thread | None, facts: Mapping[str, Any]) -> None:
        implementations = self.hooks.of(hook)
        if implementations:
            about = {**facts, "metadata": None if call is None else call.metadata}
            self._call_aside(implementations, about, self._aside, call, slot)

    def retrying(self, call: Watched, error: Exception, delay: float) -> None:
        """An attempt has failed, and another follows after so many seconds."""
        attempt = call.attempts
        self._retried(call, succeeded=False)
        if self.bus.listeners:
            event = TaskRetrying(self.bus.session_id, now(), call.metadata, attempt, delay, described(error))
            self._publish(event, call, call.slot)
        if self._before_retry:
            self._fire(self._before_retry, call, {"attempt": attempt, "error": error})

    def _retried(self, call: Watched, *, succeeded: bool) -> None:
        """A retry has ended, if the last attempt was one and nobody was told."""
        retry = call.attempts - 1
        if retry > call.retries_told:
            call.retries_told = retry
            if self._after_retry:
                self._fire(self._after_retry, call, {"attempt": retry, "succeeded": succeeded})

    def yielded(self, call: Watched, index: int) -> None:
        """A stream has given an item."""
        if self.bus.listeners:
            event = ItemYielded(self.bus.session_id, now(), call.metadata, index)
            self._publish(event, call, call.slot)
        if self._iteration:
            self._fire(self._iteration, call, {"index": index})

    def ended(self, call: Watched, error: BaseException | None, *, closed: bool) -> None:
        """A call has ended with what its function raised, if it did, or a stream was closed."""
        duration = _clock.monotonic() - call.began
        slot = call.slot
        try:
            if self._has_hooks and (slot is None or slot.ending(call)):
                if call.attempts > 1:
                    self._retried(call, succeeded=error is None)
                self._fire_end(call, error, duration)
        finally:
            if slot is not None:
                slot.end(call, partial(self._publish_end, call, error, duration, closed))
            elif self.bus.listeners:
                self._publish_end(call, error, duration, closed)

    def given_up(self, call: Watched, error: BaseException) -> Callable[[], None]:
        """The thread of a call was given up, and its state is locked; what is returned tells plugins of it later."""
        duration = _clock.monotonic() - call.began
        self._publish_end(call, error, duration, closed=False)
        return partial(self._fire_end, call, error, duration)

    def _fire_end(self, call: Watched, error: BaseException | None, duration: float) -> None:
        if error is None:
            if self._after:
                self._fire(self._after, call, {"result": call.result, "duration": duration})
        elif isinstance(error, Exception):
            if self._error:
                self._fire(self._error, call, {"error": error, "duration": duration})
        elif self._cancelled:
            self._fire(self._cancelled, call, {"duration": duration})

    def _publish_end(self, call: Watched, error: BaseException | None, duration: float, closed: bool) -> None:
        if not self.bus.listeners:
            return
        about = self.bus.session_id, now(), call.metadata, duration, call.attempts
        if error is None:
            self.bus.publish(TaskSucceeded(*about, call.items, closed), call)
        elif isinstance(error, Exception):
            self.bus.publish(TaskFailed(*about, described(error)), call)
        else:
            self.bus.publish(TaskCancelled(*about), call)

    def reported(self, call: Watched, slot: Thread | None, type: str, data: Any) -> None:
        """The code of a call, in a worker thread or not, says something of the call."""
        if self.bus.listeners:
            event = TaskReported(self.bus.session_id, now(), call.metadata, type, data)
            self._publish(event, call, slot)

    def logged(self, call: Watched | None, slot: Thread | None, record: LogRecord) -> None:
        """The code of a call, or of the session outside of calls, has logged something."""
        if self.bus.listeners:
            error = record.exc_info and record.exc_info[1]
            event = LogRecorded(
                self.bus.session_id,
                record.created,
                None if call is None else call.metadata,
                record.name,
                record.levelno,
                message_of(record),
                described(error) if error else None,
            )
            self._publish(event, call, slot)

    def activation(self, call: Watched) -> Activation | None:
        """What surrounds the function's code; `None` if nothing does."""
        return Activation(self._activate, call.metadata) if self._activate else None

    def surrounded(self, call: Watched, func: Callable[..., Any], *, is_async: bool) -> Callable[..., Any]:
        """The function of an attempt, with what surrounds its code."""
        if not self._activate:
            return func
        return _hooks.surrounded(self._activate, call.metadata, func, is_async=is_async)

    def _publish(self, event: Event, call: Watched | None, slot: Thread | None) -> None:
        if slot is None:
            self.bus.publish(event, call)
        else:
            slot.tell(partial(self.bus.publish, event, call))

    def _fire(self, implementations: tuple[Implementation, ...], call: Watched, facts: dict[str, Any]) -> None:
        """Call a hook for a call, from whose thread nobody has been released."""
        facts["metadata"] = call.metadata
        self._call_aside(implementations, facts, self._aside, call, call.slot)

    def _call_aside(
        self,
        implementations: tuple[Implementation, ...],
        facts: dict[str, Any],
        home: Home,
        call: Watched | None,
        slot: Thread | None = None,
    ) -> None:
        """Call a hook where nobody watches the calls that it makes."""
        aside = facts["reporter"] = Aside(self, home, call, slot)
        token = set_current(aside)
        try:
            _hooks.call(implementations, facts)
        finally:
            reset(token)


class Aside:
    """The position of the code of hooks: in a call, but the calls that it makes are watched by nobody.

    It is also what hooks report through, in the name of the call.
    """

    __slots__ = ("_reports", "call", "home", "slot")

    starts_background = False
    accepted = True

    def __init__(self, reports: Reports, home: Home, call: Watched | None, slot: Thread | None) -> None:
        self._reports = reports
        self.home: Home = home
        self.call: Watched | None = call
        self.slot: Thread | None = slot

    @property
    def root(self) -> Root:
        """Where the outermost call around it was made."""
        root: Root = Root(self.home) if self.call is None else self.call.root
        return root

    def report(self, type: str, data: Any = None) -> None:
        """Publish a `TaskReported` of the call; see `daglite.plugins.Reporter`."""
        if self.call is not None:
            self._reports.reported(self.call, self.slot, type, data)


def message_of(record: LogRecord) -> str:
    """What is logged as text; what cannot be formatted is for the handlers of the record to complain of."""
    try:
        return record.getMessage()
    except Exception:
        return f"<a message of {record.name} that could not be formatted>"
