"""Who listens to a session, and how an event gets there from the event loop or from a thread."""

from __future__ import annotations

import time
from collections import deque
from typing import TYPE_CHECKING, Any
from uuid import UUID

import anyio

from ._eventloop import Loop
from ._log import logger
from .events import (
    Event,
    ItemYielded,
    SessionEnded,
    SessionStarted,
    TaskCancelled,
    TaskFailed,
    TaskReported,
    TaskRetrying,
    TaskStarted,
    TaskSucceeded,
)

if TYPE_CHECKING:
    from typing_extensions import Self

    from ._metadata import TaskMetadata
    from ._protocols import Watched

__all__ = ["Bus", "Subscription", "described"]

BACKLOG = 10_000  # waiting events at which a subscriber is warned about


class Bus:
    """The subscriptions of a session. It makes an event of what it is told, and hands it to each of them.

    Args:
        session_id: The session.
        outer: The bus of the enclosing session, whose subscribers hear of it too.
    """

    def __init__(self, session_id: UUID, outer: Bus | None) -> None:
        self.session_id: UUID = session_id
        self.outer: Bus | None = outer
        self.loop: Loop = Loop()
        self.subscriptions: tuple[Subscription, ...] = ()  # replaced as a whole: threads walk through it
        self.closed: bool = False  # to subscriptions that end when the session begins to end

    def is_listening(self) -> bool:
        """Whether anyone subscribes, here or to an enclosing session."""
        return bool(self.subscriptions) or (self.outer is not None and self.outer.is_listening())

    def publish(self, event: Event) -> None:
        """Hand an event to all subscribers: at once, without waiting, from any thread."""
        for subscription in self.subscriptions:
            subscription.put(event)
        if self.outer is not None:
            self.outer.publish(event)

    def session_started(self, name: str) -> None:
        """The session was entered."""
        if self.is_listening():
            self.publish(SessionStarted(self.session_id, time.time(), name))

    def session_ended(self, name: str, duration: float) -> None:
        """The session has ended after so many seconds."""
        if self.is_listening():
            self.publish(SessionEnded(self.session_id, time.time(), name, duration))

    def started(self, call: Watched) -> None:
        """A call has begun."""
        self.publish(TaskStarted(self.session_id, time.time(), call.metadata))

    def retrying(self, call: Watched, error: BaseException, delay: float) -> None:
        """An attempt has failed, and another follows after so many seconds."""
        self.publish(TaskRetrying(self.session_id, time.time(), call.metadata, call.attempts, delay, described(error)))

    def yielded(self, call: Watched, index: int) -> None:
        """A stream has given an item."""
        self.publish(ItemYielded(self.session_id, time.time(), call.metadata, index))

    def ended(self, call: Watched, error: BaseException | None, *, closed: bool) -> None:
        """A call has ended with what its function raised, if it did, or a stream was closed."""
        duration = time.perf_counter() - call.began
        about = self.session_id, time.time(), call.metadata, duration, call.attempts
        if error is None:
            self.publish(TaskSucceeded(*about, call.items, closed))
        elif isinstance(error, Exception):
            self.publish(TaskFailed(*about, described(error)))
        else:
            self.publish(TaskCancelled(*about))

    def reported(self, metadata: TaskMetadata, type: str, data: Any) -> None:
        """A call says something of itself."""
        self.publish(TaskReported(self.session_id, time.time(), metadata, type, data))

    def end(self, *, lasting: bool) -> None:
        """Let subscriptions end once they are drained.

        Args:
            lasting: Those that last until the session has ended; else those that do not.
        """
        self.closed = True
        for subscription in self.subscriptions:
            if subscription.lasting is lasting:
                subscription.end()


class Subscription:
    """The events of a session, in the order in which they were published: `async with`, then `async for`.

    Whatever is published from then on is kept until it is taken, without a limit: once 10,000 events wait, a warning is
    logged. Events wait in a deque, and the memory object stream carries that: one wake-up serves all that wait.

    Args:
        bus: Whose events.
        lasting: Whether it lasts until the session has ended, and not only until it begins to end.
    """

    def __init__(self, bus: Bus, *, lasting: bool = False) -> None:
        self.lasting: bool = lasting
        self._bus = bus
        self._waiting: deque[Event] = deque()
        self._woken = False
        self._warned = False
        self._open = False
        self._used = False

    async def __aenter__(self) -> Self:
        self.open()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        self.close()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Event:
        if not self._used:
            raise RuntimeError("a subscription has to be entered: async with session.events() as events")
        while True:
            try:
                return self._waiting.popleft()
            except IndexError:
                # In this order: a thread that puts an event between the two lines wakes us.
                self._woken = False
                if not self._waiting:
                    await self._wait()

    async def _wait(self) -> None:
        try:
            self._waiting = await self._receive.receive()
        except (anyio.EndOfStream, anyio.ClosedResourceError):
            raise StopAsyncIteration from None

    def open(self) -> None:
        """Begin to keep what is published.

        Raises:
            RuntimeError: It was opened before.
        """
        if self._used:
            raise RuntimeError("a subscription can be entered once; session.events() makes another")
        self._used = True
        self._send, self._receive = anyio.create_memory_object_stream[deque[Event]](1)
        if self._bus.closed:
            self._send.close()
            return
        self._open = True
        self._bus.subscriptions = (*self._bus.subscriptions, self)

    def put(self, event: Event) -> None:
        """Keep an event, from any thread."""
        self._waiting.append(event)
        if not self._woken:
            self._woken = True
            self._bus.loop.run(self._wake)
        if len(self._waiting) >= BACKLOG and not self._warned:
            self._warned = True
            logger().warning("%d events wait for a subscriber, which takes them too slowly or not at all", BACKLOG)

    def _wake(self) -> None:
        try:
            self._send.send_nowait(self._waiting)
        except (anyio.WouldBlock, anyio.BrokenResourceError, anyio.ClosedResourceError):
            pass  # it is awake already, or gone

    def end(self) -> None:
        """Take no more events; those that wait are still delivered."""
        if self._open:
            self._open = False
            self._bus.subscriptions = tuple(each for each in self._bus.subscriptions if each is not self)
            self._send.close()

    def close(self) -> None:
        """End, and forget what waits."""
        self.end()
        self._receive.close()
        self._waiting.clear()


def described(error: BaseException) -> str:
    """An error as text. What a call wraps its function's error in says nothing that its event does not."""
    try:
        return f"{type(error).__name__}: {error}"
    except Exception:  # the user's own __str__
        return type(error).__name__
