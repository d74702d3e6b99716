"""Sync streams in worker threads of their own, each from the first step to the close.

One thread, because some things belong to the thread that made them: a sqlite3 connection does.
"""

from __future__ import annotations

import math
import queue
import threading
from abc import abstractmethod
from collections.abc import Callable
from contextvars import Context
from typing import Any

import anyio
from anyio import to_thread

from . import _clock
from ._bridge import stuck_in_place
from ._call import Call
from ._circles import whoever
from ._context import here
from ._eventloop import Loop, context_for_thread
from ._log import logger
from ._protocols import AttemptRefused, AttemptTimeout
from ._slots import Slot, ThreadCancelled
from ._steps import AwaitedSteps, Steps
from ._threads import ENDLESS, Stuck, threads_of_loop

__all__ = ["ThreadSteps", "TimedSteps"]


class Reply:
    """What a thread has to say of a step.

    Args:
        event: Wakes the one who waits for it.
    """

    def __init__(self, event: anyio.Event | threading.Event) -> None:
        self.event = event
        self.item: Any = None
        self.error: BaseException | None = None

    def set(self) -> None:
        """Wake the one who waits."""
        self.event.set()


class OwnThread(Steps):
    """A generator in a thread of its own."""

    in_thread = True
    context: Context | None  # as in `Steps`: said again for type checkers that go by what is assigned here

    def __init__(self, call: Call, generator: Any) -> None:
        super().__init__(call, generator)
        self._requests: queue.SimpleQueue[tuple[Callable[[], Any], Reply | None]] = queue.SimpleQueue()

    def open(self) -> Context:
        """Begin the call, and its thread.

        Raises:
            BackendError: As many threads as there may be are stuck past their deadlines.
        """
        if self.context is not None:
            return self.context
        context = super().open()
        label = self.call.spec.label
        # A daemon: a stream that nobody closes must not keep the program from ending.
        thread = threading.Thread(
            target=serve,
            args=(self._requests, context, self._slot, self._loop()),
            name=f"stream {label}",
            daemon=True,
        )
        try:
            self._stuck().refuse(label)
            thread.start()
        except AttemptRefused as refused:
            raise self.left(self.call.refuse(refused.error)) from None
        except RuntimeError as exc:  # the system has no more of them
            raise self.left(exc)
        return context

    def _own_context(self) -> Context:
        return context_for_thread()

    def _position(self) -> Slot:
        self._slot = Slot(self.call, self.call.spec.label)
        return self._slot

    @abstractmethod
    def _loop(self) -> Loop | None:
        """The event loop that waits for it, if one does."""

    @abstractmethod
    def _stuck(self) -> Stuck:
        """Who counts it when it is abandoned."""

    def _ask(self, make: Callable[[], Any], reply: Reply, limit: float | None, left: float = math.inf) -> None:
        """Have the thread do something.

        Args:
            make: What it is to do.
            reply: For what it says.
            limit: Seconds that it may take.
            left: Seconds that who waits for it has.
        """
        self._slot.resume()
        now = _clock.monotonic()
        self._slot.deadline = self.call.deadline = None if limit is None else now + limit
        self._slot.expires = now + (left if limit is None else min(left, limit))
        self._requests.put((make, reply))

    def _abandoned(self) -> None:
        """Note that the thread is left to itself: its context with it, and the end is to be told of in another."""
        self.context = self._own_context()
        self._requests.put((self.within(self.generator.close, is_last=True), None))

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
            self.call.give_back()
            self._requests.put((self.generator.close, None))
            self._dismiss()


class ThreadSteps(OwnThread, AwaitedSteps):
    """A generator, stepped in a thread of its own by whoever awaits an item."""

    def _loop(self) -> Loop:
        return Loop()

    def _stuck(self) -> Stuck:
        return (self.call.home.threads or threads_of_loop()).stuck

    async def run(self, what: str, make: Callable[[], Any], thrown: BaseException | None = None) -> Any:
        """Take a step; the arguments are those of `AsyncSteps.run`.

        A cancellation waits until the generator has come to its next `yield`. Then it is closed, as an async generator
        would have ended. With an `item_timeout` the thread is abandoned, then and at the deadline.
        """
        if self.ended or self.cut:
            raise await self.too_late()
        self.enter(what)
        error: BaseException | None = None
        cancellation: BaseException | None = None
        try:
            if not self.admitted:
                await self._admit_or_end()
            item, error, cancellation = await self._await(self.within(make), self.call.spec.item_timeout)
            if error is not None:
                self._dismiss()
                if isinstance(error, AttemptTimeout):
                    error = await self.timed_out(error)
                elif isinstance(error, StopIteration) and cancellation is not None:
                    error = cancellation  # which asyncio's own would not be heard of again
                error = self.left(error, thrown)
                raise StopAsyncIteration if isinstance(error, StopIteration) else error
            if cancellation is not None:
                raise await self._cancelled(cancellation)
        finally:
            del error, cancellation, thrown, make  # else a traceback would hold itself, by this frame
            self.busy = False
        self.yielded()
        return item

    async def _admit_or_end(self) -> None:
        try:
            await self.admit(whoever())
        except BaseException as exc:
            self._dismiss()
            raise self.left(exc)

    async def _discard(self) -> None:
        self.generator.close()

    async def _close(self) -> None:
        error: BaseException | None = None
        cancellation: BaseException | None = None
        try:
            error, cancellation = await self._close_in_thread()
            if error is not None:
                raise self.left(error)
            if not self.ended:
                self.end(None, closed=True)
            if cancellation is not None:
                raise cancellation
        finally:
            del error, cancellation  # as in `run`
            self.busy = False

    async def _cancelled(self, cancellation: BaseException) -> BaseException:
        """Close the generator, and end the stream as cancelled."""
        with anyio.CancelScope(shield=True):
            error, _ = await self._close_in_thread()
        return cancellation if self.ended else self.left(cancellation if error is None else error)

    async def _close_in_thread(self) -> tuple[BaseException | None, BaseException | None]:
        """Have the thread close the generator, and end.

        If its items have a deadline so has that: `grace` seconds, after which the stream has ended as cancelled.

        Returns:
            What the generator has failed with, and the cancellation that came in the meantime.
        """
        grace = None if self.call.spec.item_timeout is None else self.call.home.settings.grace
        with anyio.CancelScope(shield=grace is not None):
            _, error, cancellation = await self._await(self.within(self.generator.close, is_last=True), grace)
        self._dismiss()
        if isinstance(error, AttemptTimeout):
            logger().warning("stream %r had not closed after %g s", self.call.spec.label, grace)
            self.end(ThreadCancelled())
            error = None
        return error, cancellation

    async def _await(
        self, make: Callable[[], Any], limit: float | None
    ) -> tuple[Any, BaseException | None, BaseException | None]:
        """Have the thread do something, which may take so many seconds, and wait for it, whatever happens.

        Returns:
            What comes of it: an item, or an error; and the cancellation that came in the meantime.
        """
        event = anyio.Event()
        reply = Reply(event)
        now = anyio.current_time()
        self._ask(make, reply, limit, anyio.current_effective_deadline() - now)
        deadline = math.inf if limit is None else now + limit
        cancellation = await (self._patiently(event) if limit is None else self._until(event, deadline))
        self.call.deadline = None
        if not event.is_set() and self._slot.abandon(self._stuck()):
            self._abandoned()
            return None, cancellation or AttemptTimeout(deadline), cancellation
        # Or it has ended in this moment: an item that arrives wins.
        if isinstance(reply.error, ThreadCancelled) and cancellation is not None:
            return None, cancellation, cancellation  # of which the generator has heard by `check_cancelled`
        return reply.item, reply.error, cancellation

    async def _until(self, event: anyio.Event, deadline: float) -> BaseException | None:
        """Wait until then; the cancellation that came in the meantime."""
        try:
            with anyio.CancelScope(deadline=deadline):
                await event.wait()
        except BaseException as cancellation:
            return cancellation
        return None

    async def _patiently(self, event: anyio.Event) -> BaseException | None:
        """The same without a deadline: until the session's patience ends."""
        try:
            await event.wait()
        except BaseException as cancellation:
            self._slot.let_notice()
            threads = self.call.home.threads
            try:
                await (ENDLESS if threads is None else threads.patience).wait(event)
            finally:
                self._slot.cancelled = False  # the close of a generator that has yielded all the same is not cancelled
            return cancellation
        return None


class TimedSteps(OwnThread):
    """A generator with an `item_timeout`, stepped for another thread that waits for it, so that its deadlines are real."""

    busy: bool  # likewise

    def open(self) -> Context:
        """Begin the call, and its thread."""
        is_new = self.context is None
        position = here()
        context = super().open()
        if is_new and isinstance(position.slot, Slot) and position.slot.is_here():
            self._slot.serve(position.slot)
        return context

    def _loop(self) -> None:
        return None

    def _stuck(self) -> Stuck:
        return stuck_in_place(self.call.home)

    def run(self, what: str, make: Callable[[], Any], thrown: BaseException | None = None) -> Any:
        """Take a step; the arguments are those of `AsyncSteps.run`."""
        if self.ended:
            raise self.over(StopIteration)
        self.enter(what)
        limit = self.call.spec.item_timeout
        assert limit is not None
        reply = Reply(event := threading.Event())
        try:
            if not self.admitted:
                self._admit_here_or_end()
            self._ask(self.within(make), reply, limit)
            if not self._wait(event, limit):
                raise self.left(self.call.timed_out("item"))
            if reply.error is not None:
                self._dismiss()
                raise self.left(reply.error, thrown)
        finally:
            del thrown, make
            reply.error = None  # as in `ThreadSteps.run`
            self.busy = False
        self.yielded()
        return reply.item

    def _admit_here_or_end(self) -> None:
        try:
            self.admit_here()
        except BaseException as exc:
            self._dismiss()
            raise self.left(exc)

    def close_now(self) -> None:
        """Close the generator, which has `grace` seconds for that, and end its thread."""
        if self.ended:
            return
        if self.context is None:
            self.generator.close()  # it was never begun: nothing of it runs
            self.ended = True
            return
        self.enter("closed")
        grace = self.call.home.settings.grace
        reply = Reply(event := threading.Event())
        try:
            self._ask(self.within(self.generator.close, is_last=True), reply, grace)
            if not self._wait(event, grace):
                logger().warning("stream %r had not closed after %g s", self.call.spec.label, grace)
                self.end(ThreadCancelled())
                return
            self._dismiss()
            if reply.error is not None:
                raise self.left(reply.error)
            self.end(None, closed=True)
        finally:
            reply.error = None  # as in `run`
            self.busy = False

    def _wait(self, event: threading.Event, seconds: float) -> bool:
        """Wait for the thread; false if it was abandoned."""
        try:
            in_time = event.wait(seconds)
            self.call.deadline = None
        except BaseException as exc:  # an interrupt
            self._slot.abandon(self._stuck())
            self._leave_thread()
            raise self.left(exc)
        if in_time or not self._slot.abandon(self._stuck()):
            return True
        self._leave_thread()
        return False

    def _leave_thread(self) -> None:
        self._abandoned()
        self._dismiss()

    async def aclose(self) -> None:
        """The same, for a session that ends; the event loop goes on in the meantime."""
        limiter = anyio.CapacityLimiter(1)  # its own, for others may be held by those that wait for this
        await to_thread.run_sync(self.close_now, abandon_on_cancel=True, limiter=limiter)


def serve(
    requests: queue.SimpleQueue[tuple[Callable[[], Any], Reply | None]], context: Context, slot: Slot, loop: Loop | None
) -> None:
    """What the thread does: it knows the stream's parts, and not the stream, which can still be dropped."""
    if loop is not None:
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
        if reply is None or not slot.is_stuck:  # else it is about to close its generator, which counts as well
            slot.pause()
        if reply is not None:
            if loop is None:
                reply.set()
            else:
                loop.run(reply.set)
        del make, reply


def _stop() -> None:
    """Said to a thread that is to end."""
