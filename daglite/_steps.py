"""Generators that are stepped in a context of their own, and the books of it."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Awaitable, Callable, Generator
from contextvars import Context, copy_context
from types import coroutine
from typing import Any

import anyio

from ._admission import admit, admit_sync
from ._call import Call
from ._circles import whoever
from ._context import Owner, Position, set_current
from ._eventloop import give_way
from ._log import logger
from ._protocols import AttemptTimeout, Surroundings
from .exceptions import SessionError

__all__ = ["AsyncSteps", "AwaitedSteps", "Steps", "SyncSteps"]


class Steps:
    """The books of one stream: open or not, busy or not, and one end.

    Args:
        call: The call.
        generator: What is stepped.
    """

    next: Any
    send: Any
    throw: Any

    def __init__(self, call: Call, generator: Any) -> None:
        self.call: Call = call
        call.items = 0
        call.result = None
        self.generator: Any = generator
        self.next, self.send, self.throw = self._methods(generator)
        self.context: Context | None = None  # the stream's own, from when it is opened
        self.admitted: bool = not call.spec.gates  # by its limit, of which it has a token while it is open
        self.busy: bool = False
        self.closing: bool = False
        self.ended: bool = False
        self._binding: Owner | None = None  # what closes it, if not the session
        self._surroundings: Surroundings | None = None  # of the generator's code, by plugins

    in_thread: bool = False  # of its own
    is_pumped: bool = False  # it is in a task of its own, where it can be closed from any thread's session
    is_owned: bool = False  # whoever steps it closes it
    cut: bool = False  # what it was opened under has ended, and not all of it was taken

    def _methods(self, generator: Any) -> tuple[Any, Any, Any]:
        return generator.__next__, generator.send, generator.throw

    def _own_context(self) -> Context:
        return copy_context()

    def _position(self) -> Position:
        return self.call

    def open(self) -> Context:
        """Begin the call, if that has not been done, in a copy of the context of whoever does.

        Raises:
            SessionError: The session accepts no more calls.
        """
        if self.context is None:
            context = self._own_context()
            self.call.move_here()
            context.run(set_current, self._position())
            try:
                context.run(self.call.begin)
            except SessionError:
                raise
            except BaseException:  # an interrupt in a hook: it has begun, and ended
                self.ended = True
                raise
            self.context = context
            watcher = self.call.watcher
            if watcher is not None:
                self._surroundings = watcher.activation(self.call)
            books, binding = self.call.home.books, self.call.root.binding
            if books is not None:
                books.streams[self] = None
                if binding is not None and not binding.ended:
                    self._binding = binding
                    binding.streams[self] = None
        return self.context

    def admit_here(self) -> None:
        """Wait in this thread until it may begin."""
        consumer = whoever()
        admit_sync(self.call, consumer)
        self._begin_to_hold(consumer)

    def _begin_to_hold(self, consumer: Any) -> None:
        """Note that it may begin, and whose calls would wait for it if they needed a token of its limit."""
        self.admitted = True
        held = self.call.held  # read once: its thread may be given up
        if held is not None:
            held.streams[self.call] = consumer

    def enter(self, what: str) -> Context:
        """Begin a step, or the close.

        Args:
            what: What it is called in messages.

        Returns:
            The context to take it in.

        Raises:
            RuntimeError: Another step, or the close, runs elsewhere.
        """
        if self.busy:
            raise RuntimeError(f"stream {self.call.spec.label!r} was {what} while a step of it runs elsewhere")
        context = self.context or self.open()
        self.busy = True
        self.closing = what == "closed"
        return context

    def within(self, make: Callable[[], Any], *, is_first: bool = True, is_last: bool = False) -> Callable[[], Any]:
        """A step, inside what plugins put around the generator's code: entered by the first, left by the last.

        Args:
            make: Takes the step, or gives what is to be awaited.
            is_first: Whether the generator may begin with it.
            is_last: Whether it is the close, with which it does not.
        """
        around = self._surroundings
        if around is None or not (around.begun or (is_first and not is_last)):
            return make
        return around.around(make, is_async=self.call.spec.is_async, is_last=is_last)

    def yielded(self) -> None:
        """Note an item; who watches hears of it in the stream's own context."""
        call = self.call
        if call.home.watcher is None or self.context is None:
            call.items += 1  # type: ignore[operator]  # of a stream it is a number
        else:
            self.context.run(call.yielded)

    def left(self, exc: BaseException, thrown: BaseException | None = None) -> BaseException:
        """The end of a step that gave no item.

        Args:
            exc: How the generator has left it.
            thrown: What was thrown into the generator. If that comes out again it is no failure of the stream.

        Returns:
            What is to be raised.
        """
        if isinstance(exc, (StopIteration, StopAsyncIteration)):
            self.end(None)
            return exc
        if exc is thrown:
            self.end(None, closed=True)
            return exc
        return self.end(exc) or exc

    def over(self, end: type[Exception]) -> Exception:
        """What is raised by a step after the end, or after it was cut off: for a reader that is the end of nothing.

        Args:
            end: What says so to who iterates.
        """
        if not self.cut:
            return end()
        return SessionError(
            f"stream {self.call.spec.label!r} was opened in a request, or under another bind(), and closed when that ended: what reads on "
            f"after that, such as a background call, has to open the stream itself"
        )

    def end(self, exc: BaseException | None, *, closed: bool = False) -> BaseException | None:
        """Note the end, of which there is one.

        Args:
            exc: What the generator has raised, if it did.
            closed: Whether it was closed before it was exhausted.

        Returns:
            What is to be raised instead.
        """
        self.ended = True
        if self.call.spec.gates:
            self.call.give_back()
        if self.call.home.books is not None:
            self.call.home.books.streams.pop(self, None)
        if self._binding is not None:
            self._binding.streams.pop(self, None)
        assert self.context is not None
        if self.call.watcher is None:
            return self.call.end(exc, closed=closed)
        return self.context.run(self.call.end, exc, closed=closed)


class AwaitedSteps(Steps):
    """A generator whose steps, and whose close, are awaited."""

    def __init__(self, call: Call, generator: Any) -> None:
        super().__init__(call, generator)
        self._closing: anyio.Event | None = None

    async def aclose(self) -> None:
        """Close the generator; who comes second waits for the first."""
        if self._closing is not None:
            await self._closing.wait()
        if self.ended:
            return
        if self.context is None:
            await self._discard()
            self.ended = True
            return
        if self.cut and self.busy and not self.is_pumped:
            return  # whoever steps it is told by the next step, which closes it
        self._begin_close()
        self._closing = anyio.Event()
        try:
            await self._close()
        finally:
            self._closing.set()

    async def admit(self, consumer: Any) -> None:
        """Wait until it may begin, for whoever steps it."""
        await admit(self.call, consumer)
        self._begin_to_hold(consumer)

    async def too_late(self) -> Exception:
        """What is raised by a step after the end."""
        if not self.busy:  # a step of it may have run when it was cut off, which was then not to be closed
            await self.aclose()
        return self.over(StopAsyncIteration)

    async def timed_out(self, timeout: AttemptTimeout) -> BaseException:
        """What comes of an item that has not come in time: an outer deadline that was not later is the outer's."""
        try:
            await give_way(timeout.deadline)
        except BaseException as cancellation:
            return cancellation
        return self.call.timed_out("item")

    @abstractmethod
    async def _discard(self) -> None:
        """Close the generator, of which nothing has run."""

    def _begin_close(self) -> None:
        self.enter("closed")

    @abstractmethod
    async def _close(self) -> None:
        """Close the generator, and end the stream."""


class AsyncSteps(AwaitedSteps):
    """An async generator, stepped in the consumer's task."""

    def _methods(self, generator: Any) -> tuple[Any, Any, Any]:
        return generator.__anext__, generator.asend, generator.athrow

    async def run(self, what: str, make: Callable[[], Awaitable[Any]], thrown: BaseException | None = None) -> Any:
        """Take a step.

        Args:
            what: What it is called in messages.
            make: Gives what is to be awaited.
            thrown: What is thrown into the generator by it.
        """
        if self.ended or self.cut:
            raise await self.too_late()
        context = self.enter(what)
        try:
            if not self.admitted:
                await self.admit(whoever())
            item = await in_context(context, self.within(make)())
        except BaseException as exc:
            raise self.left(exc, thrown)
        finally:
            del make, thrown  # else its traceback, which holds this frame, would hold itself
            self.busy = False
        self.yielded()
        return item

    async def _discard(self) -> None:
        await self.generator.aclose()

    async def _close(self) -> None:
        assert self.context is not None
        try:
            await in_context(self.context, self.within(self.generator.aclose, is_last=True)())
        except BaseException as exc:
            raise self.left(exc)
        self.end(None, closed=True)

    def drop(self) -> None:
        """Nobody can step it any more."""
        session = self.call.home.session
        if session is not None and self.context is not None and not self.ended:
            session._close_soon(self)
        else:
            self.call.give_back()  # to end the generator is the event loop's own matter


class SyncSteps(Steps):
    """A generator, stepped in the thread of whoever does."""

    def run(self, what: str, make: Callable[[], Any], thrown: BaseException | None = None) -> Any:
        """Take a step; the arguments are those of `AsyncSteps.run`."""
        if self.ended or self.cut:
            raise self.too_late()
        context = self.enter(what)
        try:
            if not self.admitted:
                self.admit_here()
            item = context.run(self.within(make))
        except BaseException as exc:
            raise self.left(exc, thrown)
        finally:
            del make, thrown  # else its traceback, which holds this frame, would hold itself
            self.busy = False
        self.yielded()
        return item

    def too_late(self) -> Exception:
        """What is raised by a step after the end."""
        if not self.busy:  # as in `AwaitedSteps.too_late`
            self.close_now()
        return self.over(StopIteration)

    def close_now(self) -> None:
        """Close the generator."""
        if self.ended or (self.cut and self.busy):  # in which case the next step closes it, and is told
            return
        if self.context is None:
            self.generator.close()  # it was never begun: nothing of it runs
            self.ended = True
            return
        context = self.enter("closed")
        try:
            context.run(self.within(self.generator.close, is_last=True))
        except BaseException as exc:
            raise self.left(exc)
        self.end(None, closed=True)

    async def aclose(self) -> None:
        """The same, for those who close async streams too."""
        self.close_now()

    def drop(self) -> None:
        """Nobody can step it any more: close it, as Python does with a generator."""
        try:
            self.close_now()
        except Exception:
            logger().exception("stream %r failed to close", self.call.spec.label)


@coroutine
def in_context(context: Context, awaitable: Awaitable[Any]) -> Generator[Any, Any, Any]:
    """Await something in another context than the task's: every part of it, between two waits, runs there."""
    steps: Any = awaitable.__await__()
    try:
        waits_for = context.run(steps.send, None)
        while True:
            try:
                value = yield waits_for
            except BaseException as exc:  # a cancellation, or that this coroutine is closed
                waits_for = context.run(steps.throw, exc)
            else:
                waits_for = context.run(steps.send, value)
    except StopIteration as stop:
        return stop.value
    finally:
        del awaitable, steps  # which hold what is thrown in, of which the traceback holds this frame
