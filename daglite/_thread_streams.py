"""Sync streams off the event loop: each in a worker thread of its own, from the first step to the close.

One thread, because some things belong to the thread that made them: a sqlite3 connection does.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from contextvars import Context
from typing import Any

import anyio

from ._call import Call
from ._eventloop import Loop, context_for_thread
from ._log import logger
from ._slots import Slot, ThreadCancelled
from ._steps import AwaitedSteps
from ._threads import ENDLESS

__all__ = ["ThreadSteps"]


class Reply:
    """What a thread has to say of a step; made in the event loop, which waits for it."""

    def __init__(self, slot: Slot) -> None:
        self._slot = slot
        self._threads = slot.home.threads
        self._event = anyio.Event()
        self.item: Any = None
        self.error: BaseException | None = None
        self.abandoned: bool = False

    def set(self) -> None:
        """Wake the one who waits."""
        self._event.set()

    async def wait(self) -> BaseException | None:
        """Wait for the thread, whatever happens; when the session's patience ends it is abandoned.

        Returns:
            The cancellation that came in the meantime.
        """
        try:
            await self._event.wait()
        except BaseException as cancellation:
            self._slot.let_notice()
            patience = ENDLESS if self._threads is None else self._threads.patience
            try:
                in_time = await patience.wait(self._event)
            finally:
                self._slot.cancelled = False  # the close of a generator that has yielded all the same is not cancelled
            if not in_time and self._threads is not None and self._slot.abandon(self._threads.stuck):
                self.error, self.abandoned = cancellation, True
            return cancellation
        return None


class ThreadSteps(AwaitedSteps):
    """A generator, stepped in a thread of its own by whoever awaits an item."""

    in_thread = True

    def __init__(self, call: Call, generator: Any) -> None:
        super().__init__(call, generator)
        self._requests: queue.SimpleQueue[tuple[Callable[[], Any], Reply | None]] = queue.SimpleQueue()

    def open(self) -> Context:
        """Begin the call, and its thread."""
        if self.context is not None:
            return self.context
        context = super().open()
        # A daemon: a stream that nobody closes must not keep the program from ending.
        name = f"stream {self.call.spec.label}"
        thread = threading.Thread(
            target=serve, args=(self._requests, context, self._slot, Loop()), name=name, daemon=True
        )
        try:
            thread.start()
        except RuntimeError as exc:  # the system has no more of them
            raise self.left(exc)
        return context

    def _own_context(self) -> Context:
        return context_for_thread()

    def _position(self) -> Slot:
        self._slot = Slot(self.call, self.call.spec.label)
        return self._slot

    async def run(self, what: str, make: Callable[[], Any], thrown: BaseException | None = None) -> Any:
        """Take a step; the arguments are those of `AsyncSteps.run`.

        A cancellation waits until the generator has come to its next `yield`. Then it is closed, as an async generator
        would have ended.
        """
        if self.ended:
            raise StopAsyncIteration
        self.enter(what)
        try:
            reply, cancellation = await self._ask(self.within(make))
            if reply.error is not None:
                self._dismiss()
                error = self.left(reply.error, thrown)
                raise StopAsyncIteration if isinstance(error, StopIteration) else error
            if cancellation is not None:
                raise await self._cancelled(cancellation)
        finally:
            self.busy = False
        self.yielded()
        return reply.item

    async def _discard(self) -> None:
        self.generator.close()

    async def _close(self) -> None:
        try:
            reply, cancellation = await self._ask(self.within(self.generator.close, is_last=True))
            self._dismiss()
            if reply.error is not None:
                raise self.left(reply.error)
            self.end(None, closed=True)
            if cancellation is not None:
                raise cancellation
        finally:
            self.busy = False

    async def _cancelled(self, cancellation: BaseException) -> BaseException:
        """Close the generator, and end the stream as cancelled."""
        with anyio.CancelScope(shield=True):
            reply, _ = await self._ask(self.within(self.generator.close, is_last=True))
        self._dismiss()
        return self.left(cancellation if reply.error is None else reply.error)

    async def _ask(self, make: Callable[[], Any]) -> tuple[Reply, BaseException | None]:
        """Have the thread do something, and wait for it."""
        reply = Reply(self._slot)
        self._slot.resume()
        self._requests.put((make, reply))
        cancellation = await reply.wait()
        if reply.abandoned:
            self.context = self._own_context()  # the thread is still in the other, and the end is to be told of
        if isinstance(reply.error, ThreadCancelled) and cancellation is not None:
            reply.error = cancellation  # of which the generator has heard by `check_cancelled`
        return reply, cancellation

    def _dismiss(self) -> None:
        """Let the thread end."""
        self._requests.put((_stop, None))

    def drop(self) -> None:
        """Nobody can step it any more: the thread closes the generator, and ends."""
        if self.context is None or self.ended:
            return
        session = self.call.home.session
        if session is not None:
            session._close_soon(self)
        else:
            self.ended = True
            self._requests.put((self.generator.close, None))
            self._dismiss()


def serve(
    requests: queue.SimpleQueue[tuple[Callable[[], Any], Reply | None]], context: Context, slot: Slot, loop: Loop
) -> None:
    """What the thread does: it knows the stream's parts, and not the stream, which can still be dropped."""
    slot.loop = loop
    slot.enter_thread()
    while True:
        make, reply = requests.get()
        if make is _stop:
            return
        try:
            item = context.run(make)
        except BaseException as exc:
            if reply is None:
                logger().error("a stream that was dropped failed to close", exc_info=exc)
            else:
                reply.error = exc
        else:
            if reply is not None:
                reply.item = item
        slot.pause()
        if reply is not None:
            loop.run(reply.set)
        del make, reply


def _stop() -> None:
    """Said to a thread that is to end."""
