"""Who listens to a session, and how an event gets there from the event loop or from a thread."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol
from uuid import UUID

import anyio

from ._eventloop import Loop, LoopEnded, in_event_loop
from ._log import logger

if TYPE_CHECKING:
    from typing_extensions import Self

    from ._protocols import Watched
    from .events import Event

__all__ = ["LISTENERS", "Bus", "Listener", "Subscription", "is_under"]

BACKLOG = 10_000  # waiting events at which a subscriber is warned about


class Listener(Protocol):
    """Who is handed the events of a session: a subscription, or whoever keeps them in a test."""

    _lasting: bool

    def _put(self, event: Event, call: Watched | None) -> None:
        """Take an event, at once and in any thread."""
        ...

    def _end(self) -> None:
        """There are no more: the session ends, or has ended for one that lasts until then."""
        ...


LISTENERS: list[Listener] = []
"""Who listens to every session that is in no other, from its beginning: in tests."""


class Bus:
    """The subscriptions of a session, and of those around it.

    Args:
        session_id: The session.
        loop: Its event loop.
        outer: The bus of the enclosing session, whose subscribers hear of it too.
    """

    def __init__(self, session_id: UUID, loop: Loop, outer: Bus | None) -> None:
        self.session_id: UUID = session_id
        self.loop: Loop = loop
        self.listeners: tuple[Listener, ...] = ()  # replaced as a whole: threads walk through it
        self.closed: bool = False  # to subscriptions that end when the session begins to end
        self._own: tuple[Listener, ...] = tuple(LISTENERS) if outer is None else ()
        self._outer = outer
        self._inner: list[Bus] = []
        self.changed: Callable[[], None] | None = None  # called when somebody begins or ceases to listen
        if outer is not None:
            outer._inner.append(self)
        self._gather()

    def publish(self, event: Event, call: Watched | None = None) -> None:
        """Hand an event to all subscribers: at once, without waiting, from any thread.

        Args:
            event: The event.
            call: The call that it is about; `None` if it is about none.
        """
        for listener in self.listeners:
            listener._put(event, call)

    def add(self, listener: Listener) -> None:
        """Somebody subscribes."""
        self._own = (*self._own, listener)
        self._gather()

    def discard(self, listener: Listener) -> None:
        """Somebody does so no more."""
        self._own = tuple(each for each in self._own if each is not listener)
        self._gather()

    def _gather(self) -> None:
        outer = () if self._outer is None else self._outer.listeners
        self.listeners = (*self._own, *outer)
        if self.changed is not None:
            self.changed()
        for bus in self._inner:
            bus._gather()

    def end(self, *, lasting: bool) -> None:
        """Let subscriptions end once they are drained.

        Args:
            lasting: Those that last until the session has ended; else those that do not.
        """
        self.closed = True
        for listener in self._own:
            if listener._lasting is lasting:
                listener._end()
        if lasting and self._outer is not None:
            self._outer._inner.remove(self)


class Subscription:
    """The events of a session, in the order in which they were published: `async with`, then `async for`.

    In a thread it is `with`, then `for`, which waits for each.

    Whatever is published from then on is kept until it is taken, without a limit: once 10,000 events wait, a warning is
    logged. With `max_buffer` the oldest give way to new ones, and are counted.

    Attributes:
        dropped: How many events gave way to newer ones, and were never taken.
    """

    # Events wait in a deque, and the memory object stream carries that: one wake-up serves all that wait, where an
    # event by itself costs twenty times as much.

    def __init__(
        self,
        bus: Bus,
        *,
        lasting: bool = False,
        max_buffer: int | None = None,
        belongs: Callable[[Watched | None], bool] | None = None,
    ) -> None:
        self.dropped: int = 0
        self._lasting = lasting  # until the session has ended, and not only until it begins to end
        self._bus = bus
        self._max_buffer = max_buffer
        self._belongs = belongs  # whether it has the events of a call; of all by default
        self._lock = threading.Lock()
        self._waiting: deque[Event] = deque()
        self._woken = False
        self._warned = False
        self._open = False
        self._used = False
        self._ready: threading.Event | None = None  # by which a thread is woken

    def __enter__(self) -> Self:
        if in_event_loop():
            raise RuntimeError("`with` in an event loop's own thread: async with session.events() as events")
        self._refuse_second()
        self._ready = threading.Event()
        try:
            self._bus.loop.call(self._enter)
        except LoopEnded:
            self._enter()  # there is nothing more to be told
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._bus.loop.run(self._end)  # when that has ended, so has this
        self._waiting.clear()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Event:
        """The next event; it is waited for, until the session begins to end."""
        if self._ready is None:
            raise RuntimeError("a subscription has to be entered: with session.events() as events")
        while True:
            try:
                return self._waiting.popleft()
            except IndexError:
                # In this order: a thread that puts an event between the two lines wakes us.
                self._ready.clear()
                self._woken = False
                if not self._waiting:
                    if not self._open:
                        raise StopIteration from None
                    if not self._bus.loop.wait(self._ready):
                        raise StopIteration from None  # the event loop has ended, with all that could be told

    async def __aenter__(self) -> Self:
        self._enter()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        self._leave()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Event:
        if not self._used or self._ready is not None:
            raise RuntimeError("a subscription has to be entered: async with session.events() as events")
        while True:
            try:
                return self._waiting.popleft()
            except IndexError:
                # In this order: a thread that puts an event between the two lines wakes us.
                self._woken = False
                if not self._waiting:
                    await self._wait()

    def _taken(self, limit: int) -> list[Event]:
        """Those that wait, at most so many: for who has just taken the next."""
        waiting = self._waiting
        return [waiting.popleft() for _ in range(min(len(waiting), limit))]

    async def _wait(self) -> None:
        try:
            self._waiting = await self._receive.receive()
        except (anyio.EndOfStream, anyio.ClosedResourceError):
            raise StopAsyncIteration from None

    def _enter(self) -> None:
        """Begin to keep what is published.

        Raises:
            RuntimeError: It was opened before.
        """
        self._refuse_second()
        self._used = True
        if self._ready is None:
            self._send, self._receive = anyio.create_memory_object_stream[Any](1)
        if self._bus.closed:
            self._close()
            return
        self._open = True
        self._bus.add(self)

    def _refuse_second(self) -> None:
        if self._used:
            raise RuntimeError("a subscription can be entered once; session.events() makes another")

    def _put(self, event: Event, call: Watched | None) -> None:
        """Keep an event, from any thread.

        Args:
            event: The event.
            call: The call that it is about.
        """
        if self._belongs is not None and not self._belongs(call):
            return
        if self._max_buffer is None:
            self._waiting.append(event)
        else:
            self._put_bounded(event, self._max_buffer)
        if not self._woken:
            self._woken = True
            if self._ready is not None:
                self._ready.set()
            else:
                self._bus.loop.run(self._wake)
        if len(self._waiting) >= BACKLOG and not self._warned:
            self._warned = True
            logger().warning("%d events wait for a subscriber, which takes them too slowly or not at all", BACKLOG)

    def _put_bounded(self, event: Event, limit: int) -> None:
        with self._lock:
            if len(self._waiting) >= limit:
                try:
                    self._waiting.popleft()
                    self.dropped += 1
                except IndexError:  # it was taken in this moment
                    pass
            self._waiting.append(event)

    def _wake(self) -> None:
        try:
            self._send.send_nowait(self._waiting)
        except (anyio.WouldBlock, anyio.BrokenResourceError, anyio.ClosedResourceError):
            pass  # it is awake already, or gone

    def _end(self) -> None:
        """Take no more events; those that wait are still delivered."""
        if self._open:
            self._open = False
            self._bus.discard(self)
            self._close()

    def _close(self) -> None:
        if self._ready is None:
            self._send.close()
        else:
            self._ready.set()

    def _leave(self) -> None:
        """End, and forget what waits."""
        self._end()
        self._receive.close()
        self._waiting.clear()


def is_under(call: Watched | None, id: UUID) -> bool:
    """Whether a call has that id, or was begun by one that has, or by one that was."""
    while call is not None:
        if call.metadata.id == id:
            return True
        call = call.caller
    return False
