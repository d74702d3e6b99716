"""Async generators that live in a task of their own, which gives one item at a time to whoever asks.

So a generator may hold cancel scopes and task groups across a `yield`, and be stepped and closed from anywhere: the scopes
belong to its task. That waits inside of them while the generator is suspended, so that what cancels them reaches it there.
"""

from __future__ import annotations

import contextlib
import math
import sys
from collections.abc import Awaitable, Callable
from contextvars import Context
from functools import partial
from typing import Any, TypeAlias

import anyio
from anyio import get_cancelled_exc_class

from . import _clock
from ._call import Call
from ._circles import whoever
from ._context import Owner, whereabouts
from ._eventloop import Loop
from ._failures import without_cancellation
from ._log import logger
from ._protocols import AttemptTimeout
from ._steps import AsyncSteps, in_context
from ._trips import run_in_loop
from ._typing import NOT_GIVEN
from .exceptions import CallCancelledError

if sys.version_info < (3, 11):
    from exceptiongroup import BaseExceptionGroup

__all__ = ["PumpedSteps"]

Outcome: TypeAlias = tuple[Any, BaseException | None]  # of a step: an item, or an error


class Request:
    """What a pump is asked for, and what comes of it.

    Args:
        make: Gives what the generator is stepped or closed with, to be awaited.
        is_plain: Whether it asks for the next item, and any will do.
    """

    def __init__(self, make: Callable[[], Awaitable[Any]], *, is_plain: bool = False) -> None:
        self.make = make
        self.is_plain = is_plain
        self.done = anyio.Event()
        self.item: Any = NOT_GIVEN
        self.error: BaseException | None = None

    def answer(self, item: Any, error: BaseException | None) -> None:
        """Let who asks know."""
        self.item, self.error = item, error
        self.done.set()

    def clear(self) -> None:
        """Hold no error any more, of which the traceback would hold this."""
        self.error = None
        del self.make


class PumpedSteps(AsyncSteps):
    """An async generator, stepped in a task of its own. All of this happens in the event loop.

    Args:
        call: The call.
        generator: The generator, which has not begun.
    """

    def __init__(self, call: Call, generator: Any) -> None:
        super().__init__(call, generator)
        self._scope: anyio.CancelScope | None = None  # of the pump, from when that runs
        self._cancelled: bool = False
        self._wanted = anyio.Event()
        self._request: Request | None = None
        self._early: Outcome | None = None  # what has come of the generator between two steps
        self._timeout: AttemptTimeout | None = None  # of an item; its scope is cancelled then, and the stream is over
        self._is_over: bool = False  # the generator has ended
        self._finished = anyio.Event()  # and the pump has, too
        self._stepped: anyio.Event | None = None  # the step has ended that ran when it was closed
        self._consumer: Any = None  # who takes the first step, if it has a limit

    is_pumped = True

    def open(self) -> Context:
        """Begin the call, and the pump."""
        if self.context is not None:
            return self.context
        context = super().open()
        home = self.call.home
        name = f"stream {self.call.spec.label}"
        if home.start_soon is not None:
            # Of the session: it closes its streams before it waits for its tasks.
            context.run(partial(home.start_soon, self._pump, name=name))
        else:
            Loop().spawn(self._pump, context, name)
        return context

    def belong_to(self, owner: Owner) -> None:
        """Be closed by a thread, outside of sessions."""
        self.is_owned = True
        self._binding = owner
        owner.streams[self] = None

    async def run(self, what: str, make: Callable[[], Awaitable[Any]], thrown: BaseException | None = None) -> Any:
        """Take a step; the arguments are those of `AsyncSteps.run`. A step that is cancelled cancels the generator."""
        if self.ended or self.closing:
            raise self.over(StopAsyncIteration)
        if self.context is None:
            self._check_owner()
        self.enter(what)
        if not self.admitted:
            self._consumer = whoever()
        request = Request(self.within(make), is_plain=thrown is None)
        cancellation: BaseException | None = None
        try:
            cancellation = await self._ask(request)
            failure, own = (None, None) if request.error is None else sorted_out(request.error, thrown)
            if isinstance(failure, AttemptTimeout):
                failure = cancellation or await self.timed_out(failure)
            if self.closing and (failure is None or isinstance(failure, (StopAsyncIteration, GeneratorExit))):
                self.end(None, closed=True)  # elsewhere
                raise cancellation or self.over(StopAsyncIteration)
            if cancellation is not None and (failure is thrown or isinstance(failure, StopAsyncIteration)):
                failure = None  # that it has ended otherwise is no reason to go on
            if failure is not None:
                raise self.left(failure, thrown)
            if cancellation is not None:
                raise self.left(cancellation)
            if own is not None:  # by `Task.cancel`, say: nobody here is being cancelled
                self.end(own)
                raise CallCancelledError(f"stream {self.call.spec.label!r} was cancelled in its own task")
        finally:
            failure = own = cancellation = thrown = None  # else a traceback would hold itself, by this frame
            del make
            self._dismiss(request)
            self.busy = False
            if self._stepped is not None:
                self._stepped.set()
        self.yielded()
        return request.item

    def _check_owner(self) -> None:
        """Raise if nobody would close it.

        Raises:
            RuntimeError: Nobody would.
        """
        if self.is_owned or whereabouts().home.books is not None:
            return
        raise RuntimeError(
            f"stream {self.call.spec.label!r} lives in a task of its own, and was stepped outside of sessions, where nothing "
            f"would close it; write: async with {self.call.spec.function.name}(...) as items"
        )

    def _begin_close(self) -> None:
        self.closing = True  # also while a step of it runs elsewhere

    def close_now(self) -> None:
        """Close the generator, for a thread."""
        if not self.ended:
            run_in_loop(self.call.spec.label, lambda _: self.aclose(), "await its aclose()")

    async def _ask(self, request: Request) -> BaseException | None:
        """Have the pump do something, and wait for it, also when that is cancelled: then the generator is, too.

        Returns:
            The cancellation that came in the meantime.
        """
        self._want(request)
        try:
            await request.done.wait()
        except BaseException as cancellation:
            self._cancel()
            return await self._until(self._finished) or cancellation
        return None

    def _want(self, request: Request) -> None:
        if self._finished.is_set():  # between two steps
            self._hand_over(request)
        else:
            self._request = request
            self._wanted.set()

    def _dismiss(self, request: Request) -> None:
        if self._request is request:  # nobody waits for it any more
            self._request = None
        request.clear()

    async def _close(self) -> None:
        """Have the pump close the generator, which has `grace` seconds for that."""
        cancellation = await self._close_in_pump()
        if cancellation is not None:
            raise cancellation

    async def _close_in_pump(self) -> BaseException | None:
        """The same.

        Returns:
            The native cancellation that came in the meantime; anyio's does not get in.
        """
        grace = self.call.home.settings.grace
        if self._scope is None:
            self._forgo()
        else:
            self._scope.deadline = anyio.current_time() + grace
        if self.busy:  # with a step elsewhere, which then ends the stream
            self._stepped = anyio.Event()
            self._cancel()
            return await self._until(self._stepped)
        request = Request(self.within(self.generator.aclose, is_last=True))
        self._want(request)
        interrupted = await self._until(self._finished)
        error, cancellation = (None, None) if request.error is None else without_cancellation(request.error)
        try:
            if isinstance(error, BaseExceptionGroup):
                error = error.split(GeneratorExit)[1]  # a task group's way to be closed
            if error is not None and not isinstance(error, (StopAsyncIteration, AttemptTimeout)):
                raise self.left(error)
            if cancellation is not None:
                logger().warning("stream %r had not closed after %g s", self.call.spec.label, grace)
            self.end(cancellation or interrupted, closed=True)
            return interrupted
        finally:
            error = cancellation = interrupted = None  # as in `run`
            self._dismiss(request)

    async def _until(self, event: anyio.Event) -> BaseException | None:
        """Wait, whatever is cancelled.

        Returns:
            The native cancellation that went through the shield. A second one waits no more: the pump ends by itself.
        """
        interrupted: BaseException | None = None
        while not event.is_set():
            try:
                with anyio.CancelScope(shield=True):
                    await event.wait()
            except get_cancelled_exc_class() as exc:
                if interrupted is not None:
                    break
                interrupted = exc
        return interrupted

    def _cancel(self) -> None:
        self._cancelled = True
        if self._scope is None:
            self._forgo()
        else:
            self._scope.cancel()
            self._wanted.set()  # it may wait inside a scope of the generator that is shielded

    def _forgo(self) -> None:
        """The pump has not begun: let it do nothing when it does. A task that asyncio cancels before that never does."""
        if not self._is_over:
            self._is_over = True
            with contextlib.suppress(StopIteration):
                self.generator.aclose().send(None)  # nothing of it has run, or does
            self._end_pump()

    async def _pump(self) -> None:
        """The task of the generator. What it raises is for those who ask; it opens one scope, and nothing else."""
        if self._is_over:
            return
        try:
            # Outside of sessions it is the event loop's own, which ends with it.
            with anyio.CancelScope(shield=self.call.home.start_soon is not None) as self._scope:
                while not self._is_over:
                    await self._serve()
        finally:
            self._end_pump()

    def _end_pump(self) -> None:
        self._finished.set()
        if self._request is not None:
            self._hand_over(self._request)

    async def _serve(self) -> None:
        """Wait until something is wanted, and do that."""
        try:
            await self._wanted.wait()
        except get_cancelled_exc_class() as exc:
            await self._throw(exc)
            return
        request, self._request = self._request, None
        self._wanted = anyio.Event()
        if request is None:  # it is cancelled
            pass
        elif self._early is not None and request.is_plain:
            self._hand_over(request)
        else:
            self._early = None
            request.answer(*await self._take_in_time(request))
            del request  # which holds what its error holds
        if self._is_done_for():
            await self._end_generator()

    async def _throw(self, cancellation: BaseException) -> None:
        """Between two steps a scope of the generator was cancelled, or its pump: it is told so where it is suspended."""
        is_second = self._early is not None  # it has been told before, and has yielded
        self._early = await self._take(self.within(partial(self.generator.athrow, cancellation), is_first=False))
        if is_second or self._is_done_for():
            await self._end_generator()

    def _is_done_for(self) -> bool:
        """Whether nothing more is wanted of the generator but that it ends."""
        return self.closing or self._cancelled or self._timeout is not None

    async def _end_generator(self) -> None:
        if not self._is_over:
            _, error = await self._take(self.within(self.generator.aclose, is_last=True))
            self._is_over = True
            if isinstance(error, Exception):
                logger().error("stream %r failed to close", self.call.spec.label, exc_info=error)

    def _hand_over(self, request: Request) -> None:
        early, self._early = self._early, None
        if early is None:
            request.answer(NOT_GIVEN, self._timeout or StopAsyncIteration())
        else:
            request.answer(*early)

    async def _take_in_time(self, request: Request) -> Outcome:
        """Step the generator within its `item_timeout`, if it has one."""
        if not (self.admitted or self.closing):
            _, error = await self._take(partial(self.admit, self._consumer))
            if error is not None:
                return NOT_GIVEN, error
        limit = self.call.spec.item_timeout
        if limit is None or self.closing:
            return await self._take(request.make)
        assert self._scope is not None
        deadline = anyio.current_time() + limit
        self._scope.deadline, self.call.deadline = deadline, _clock.monotonic() + limit
        try:
            item, error = await self._take(request.make)
            is_late, self.call.deadline = _clock.monotonic() > self.call.deadline, None
            if self._is_done_for():  # in the meantime, and a close has a deadline of its own
                return item, error
            self._scope.deadline = math.inf  # before it is looked at: Trio would find it passed
            if self._scope.cancel_called:
                self._timeout = AttemptTimeout(deadline)
                if error is not None:
                    failure, _ = without_cancellation(error)
                    return NOT_GIVEN, self._timeout if failure is None else failure
            if is_late and error is None:
                self.call.came_late("item", anyio.current_time() - deadline)
            return item, error
        finally:
            error = failure = None  # a traceback holds the callers' frames too, since Python 3.12, and so itself

    async def _take(self, make: Callable[[], Awaitable[Any]]) -> Outcome:
        """Step the generator, in its own context."""
        assert self.context is not None
        try:
            return await in_context(self.context, make()), None
        except BaseException as exc:
            self._is_over = True
            return NOT_GIVEN, exc
        finally:
            del make  # else a traceback would hold itself, by this frame


def sorted_out(error: BaseException, thrown: BaseException | None) -> tuple[BaseException | None, BaseException | None]:
    """How a generator was left, and the cancellation in that.

    What was thrown in is itself, be it a cancellation, also where a task group that it went through made a group of it.
    """
    if thrown is not None:
        is_own = error is thrown
        if isinstance(error, BaseExceptionGroup):
            own, others = error.split(lambda exc: exc is thrown)
            is_own = own is not None and (others is None or without_cancellation(others)[0] is None)
        if is_own:
            return thrown, None
    return without_cancellation(error)
