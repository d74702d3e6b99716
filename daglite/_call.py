"""The books of one call: what it is, how it goes, and how it ended."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from threading import current_thread, get_ident
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from . import _clock
from ._context import OUTSIDE, Home, Position, Root, reset, reset_token, set_current, whereabouts
from ._eventloop import cancellations, in_event_loop, is_being_cancelled
from ._log import described, logger
from ._metadata import Draft, TaskMetadata, drafted, new_number, number_of
from ._retry import RetryDelay, delay_before
from ._slots import Slot, ThreadCancelled, check_cancelled
from ._spec import Spec
from .exceptions import DatasetError, TaskError, TaskTimeoutError

if TYPE_CHECKING:
    from types import TracebackType

    from typing_extensions import Self

    from ._flights import Computation, Flight
    from ._gates import Gate, Tokens
    from ._protocols import Backend, Thread, Wait, Watched, Watcher

if sys.version_info < (3, 11):
    from exceptiongroup import BaseExceptionGroup

__all__ = ["Call", "Scope"]

Scope: TypeAlias = Literal["attempt", "total", "item"]

_OPTIONS = {"attempt": ("timeout", "result"), "total": ("total_timeout", "result"), "item": ("item_timeout", "item")}


class Call:
    """One call of a task, from its beginning to its one end. It never awaits, sleeps or reads a file.

    Entering makes it the current call. Leaving makes its parent current again and decides which error comes out.

    Args:
        spec: The task.
        args: The positional arguments.
        kwargs: The keyword arguments.
        parent: Where the call is made.

    Attributes:
        map_index: The call's position in its fan-out.
        cancel: Cancels it, if it has a task of the event loop to itself.
        backend: Where its attempts run; `None` for the caller's own task or thread.
    """

    # What every call has are slots, which are the cheapest; what most never need are defaults of the class.
    __slots__ = (
        "__dict__",
        "_metadata",
        "_token",
        "args",
        "backend",
        "began",
        "home",
        "kwargs",
        "map_index",  # as all of a fan-out have one
        "parent",
        "result",
        "slot",
        "spec",
    )

    began: float  # by `_clock.monotonic`, in a session
    result: Any  # for the watcher, before a call ends that has succeeded
    cancel: Callable[[], None] | None = None
    starts_background: bool = False  # no call that it makes is in the background for that
    accepted: bool = True  # what it calls goes on while the session ends
    attempts: int = 1  # of which the last may be running
    items: int | None = None  # that a stream has given
    muted: bool = False  # nobody is to hear of it any more
    retries_told: int = 0  # to the watcher
    # What follows is for the tree of calls, and by `_clock.monotonic`.
    work: Thread | None = None  # where the attempt runs, if elsewhere
    held: Tokens | None = None  # the limit of which it has a token
    leads: Computation | None = None  # what it computes for others too
    waits_for: Wait | None = None  # before the attempt that is to come, or for a cache
    deadline: float | None = None  # of the attempt
    total_deadline: float | None = None  # of the whole call
    backing_off: tuple[int, float] = (-1, 0.0)  # after which attempt, and until when
    last_error: Exception | None = None  # before the attempt that runs, for a call with a deadline
    _was_late: bool = False
    _cancellations: int = 0  # of the caller, when it began
    _refused: bool = False
    _is_noted: bool = False  # whether the error says already which task raised it
    _raised: Exception | None = None  # an error that is this call's own already, and not one inside it

    def __init__(self, spec: Spec, args: tuple[Any, ...], kwargs: Mapping[str, Any], parent: Position) -> None:
        self.spec: Spec = spec
        self.args: tuple[Any, ...] = args
        self.kwargs: Mapping[str, Any] = kwargs
        self.parent: Position = parent
        self.home: Home = parent.home
        self.slot: Thread | None = parent.slot
        self.backend: Backend | None = None
        self.map_index: int | None = None
        self._metadata: TaskMetadata | None = None

    @property
    def metadata(self) -> TaskMetadata:
        """Who the call is; made when something asks for it."""
        if self._metadata is None:
            metadata = self._described()
            if self._metadata is None:  # else another thread was quicker, and a call has one id
                self._metadata = metadata
        return self._metadata

    def _described(self) -> TaskMetadata:
        parent = self.parent.call
        draft: Draft = tuple.__new__(  # a third of what it costs to call the class
            Draft,
            (
                new_number(),
                self.spec,
                self.args,
                self.kwargs,
                self.map_index,
                "inline" if self.backend is None else self.backend.name,
                None if parent is None else number_of(parent.metadata),
                self.parent.starts_background,
                self.home.settings.redact,
            ),
        )
        metadata = drafted(draft)
        if self.spec.placeholders:
            metadata.name  # noqa: B018 - made now: what it is made of may change
        return metadata

    @property
    def watcher(self) -> Watcher | None:
        """Who is to hear of it; whoever began to listen while it runs hears how it ends."""
        return None if self.muted else self.home.watcher

    @property
    def call(self) -> Call:
        """The call itself, for code that asks where it is."""
        return self

    @property
    def root(self) -> Root:
        """Where the outermost call around it was made."""
        position = self.parent
        while isinstance(position, Call):  # not by recursion: calls may be nested as deep as functions
            position = position.parent
        return position.root

    @property
    def caller(self) -> Watched | None:
        """The call that makes it."""
        return self.parent.call

    def __enter__(self) -> Self:
        self._token = set_current(self)  # before the hooks of its beginning
        home = self.home
        books = home.books
        if (
            home.is_quiet
            and self.slot is None
            and self.spec.is_plain
            and (books is None or books.thread == get_ident())
        ):
            if books is not None:  # what `begin` comes to here, without the way there
                self.began = _clock.monotonic()
                books.live[self] = None
                next(books.begun)
        else:
            try:
                self.begin()
            except BaseException:
                reset(self._token)
                raise
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            reset_token(self._token)
        except ValueError:  # as in `reset`
            pass
        home = self.home
        if exc is None and home.is_quiet and self.slot is None:
            if home.books is not None:  # what `end` comes to here
                del home.books.live[self]
            return
        error = self.end(exc)
        if error is not None:
            try:
                raise error
            finally:
                del error, exc  # else its traceback, which holds this frame, would hold itself

    def arrive(self) -> None:
        """Find out where the call is made, before it begins.

        Raises:
            SessionError: The session accepts no more calls.
            RuntimeError: It would block the event loop.
        """
        home, spec = self.home, self.spec
        if home.is_foreign():
            self.parent, self.slot = OUTSIDE, None
            self.home = home = OUTSIDE.home
        if home.leaving:
            home.refuse(f"task {spec.label!r} was called", self.parent)
        if not (spec.is_plain or spec.is_async or self.backend):
            self.refuse_to_block(spec.options.retry_delay if spec.retries else 0)

    def begin(self) -> None:
        """Note that the call begins.

        Raises:
            SessionError: The session accepts no more calls.
            RuntimeError: It would block the event loop.
        """
        self.arrive()
        home, spec = self.home, self.spec
        if spec.retries or spec.is_kept:
            self._cancellations = cancellations()
        books = home.books
        if books is None:
            if spec.gates and self.slot is not None:
                self.slot.begin(self, _nothing)  # which takes back what it holds, should it be given up
            return
        if self.slot is None and books.thread != get_ident():
            # A thread of the user's with a copy of the context: the session's end may come between the call's own.
            self.slot = Slot(self.parent, f"thread {current_thread().name!r}")
        self.began = _clock.monotonic()
        books.live[self] = None
        next(books.begun)
        if home.closed:  # by now, in another thread, and what ran was given up before this did
            books.forget(self)
            home.refuse(f"task {spec.label!r} was called", self.parent)
        watcher = home.watcher
        try:
            if watcher is not None:
                heard = watcher.started(self)
            else:
                heard = self.slot is None or self.slot.begin(self, _nothing)
            if not heard:  # it is in a thread that was given up
                self.muted = True
                books.forget(self)
        except BaseException as exc:  # an interrupt in a hook
            self.end(exc)
            raise

    def move_here(self) -> None:
        """Make it a call of where the running code is; a background call stays where it was started."""
        if not self.is_background():
            self.parent = whereabouts()
            self.home = self.parent.home
            self.slot = self.parent.slot

    def is_background(self) -> bool:
        """Whether it was started with `start_soon`."""
        return self.parent.starts_background

    def yielded(self) -> None:
        """Note that the stream has given an item."""
        assert self.items is not None  # it is a stream
        self.items += 1
        watcher = self.watcher
        if watcher is not None:
            watcher.yielded(self, self.items - 1)

    def end(self, exc: BaseException | None, *, closed: bool = False) -> BaseException | None:
        """Note that the call has ended.

        Args:
            exc: What its function raised, if it did.
            closed: Whether it is a stream that was closed before it was exhausted.

        Returns:
            What is to be raised instead.
        """
        if exc is None:
            failure, error = None, None
        else:
            failure, error = self._judged(exc)
            self._raised = None  # its traceback holds the call
        books = self.home.books
        if books is not None:
            watcher = self.watcher
            try:
                if watcher is not None:
                    watcher.ended(self, failure, closed=closed)
                    self.result = None
                elif self.slot is not None:
                    self.slot.end(self, _nothing)
            finally:
                books.end(self, failure)
        elif self.spec.gates and self.slot is not None:
            self.slot.end(self, _nothing)
        return error

    def give_up(self, *, told: bool) -> Callable[[], None] | None:
        """The thread that runs it was given up: for all that anybody hears, it has ended as cancelled.

        Args:
            told: Whether plugins hear of its own end already.

        Returns:
            What is to be called when the thread's state is no longer locked.
        """
        watcher = self.watcher
        self.muted = True
        self.give_back()
        cancellation = ThreadCancelled()
        tell_plugins = None if watcher is None else watcher.given_up(self, cancellation)
        if self.home.books is not None:
            self.home.books.end(self, cancellation)
        return None if told else tell_plugins

    def wait_for(self, gate: Gate) -> None:
        """Note that it waits before it begins, or tries again."""
        self.waits_for = gate
        watcher = self.watcher
        if watcher is not None:
            watcher.waiting(self, gate.name)

    def pause_for(self, wait: Wait) -> None:
        """Show in the tree of calls, before the call has begun, that it waits for something."""
        self.waits_for = wait
        books = self.home.books
        if books is not None:
            self.began = _clock.monotonic()
            books.live[self] = None
            next(books.begun)

    def resume(self) -> None:
        """Note that it does so no more: it has yet to begin."""
        self.waits_for = None
        if self.home.books is not None:
            self.home.books.forget(self)

    def give_back(self) -> None:
        """Let another have the token of its limit, if it has one: its thread may be given up while it does so itself."""
        held: Tokens | None = self.__dict__.pop("held", None)
        if held is not None:
            held.streams.pop(self, None)
            held.give_back()

    def retry_in(self, exc: Exception) -> float:
        """Seconds to wait after a failed attempt, before the next; raises the error again if there is none.

        Args:
            exc: What the attempt raised, and is being handled.
        """
        try:
            delay = self._delay_after(exc)
            if delay is None:
                raise  # what the driver is handling
            self.backing_off = self.attempts, _clock.monotonic() + delay
            self._raised = None  # its traceback holds the call
            if self.total_deadline is not None:
                self.last_error = exc
            watcher = self.watcher
            if watcher is not None:
                watcher.retrying(self, exc, delay)
            return delay
        finally:
            del exc  # else its traceback, which holds this frame, would hold itself

    def refuse_to_block(self, delay: RetryDelay) -> None:
        """Raise if the call, in place, would stop the event loop of this thread while it waits.

        Args:
            delay: Seconds that it waits before a retry, or what says how many.

        Raises:
            RuntimeError: It would, or it has a deadline, for which it would wait for another thread.
        """
        if not (delay or self.spec.is_bounded or self.spec.gates) or not in_event_loop():
            return
        waits: dict[str, RetryDelay | None] = {**self.spec.options.deadlines, "retry_delay": delay or None}
        why = next((f"for its {option} of {shown(wait)}" for option, wait in waits.items() if wait is not None), None)
        if why is None:
            why = f"when it is {self.spec.gates[0].state} ({self.spec.gates[0].name!r})"
        instead = "async for item in" if self.spec.is_generator else "await"
        text = (
            f"task {self.spec.label!r} would block the event loop {why}; "
            f"write: {instead} {self.spec.function.name}.to_thread(...)"
        )
        raise self.refuse(RuntimeError(text))

    def start_total(self) -> float | None:
        """Seconds that are left to the whole call, whose time begins when this is first asked; `None` if it is unlimited."""
        total = self.spec.total_timeout
        if total is None:
            return None
        now = _clock.monotonic()
        if self.total_deadline is None:
            self.total_deadline = now + total
        return self.total_deadline - now

    def next_limit(self) -> tuple[Scope, float | None]:
        """What bounds the next attempt, and by how many seconds."""
        timeout = self.spec.timeout
        if self.total_deadline is None:
            return "attempt", timeout
        left = max(self.total_deadline - _clock.monotonic(), 0.0)
        return ("attempt", timeout) if timeout is not None and timeout < left else ("total", left)

    def timed_out(self, scope: Scope) -> TaskTimeoutError:
        """The error of a call whose time is up.

        Args:
            scope: What the time was for.
        """
        option, what = _OPTIONS[scope]
        limit: float = getattr(self.spec, option)
        text = f"no {what} within its {option} of {limit:g} s"
        cause, self.last_error = self.last_error, None
        if scope == "total":
            self._refused = True  # nothing is tried again
            if cause is not None and not (isinstance(cause, TaskTimeoutError) and cause.metadata is self.metadata):
                text += f", after {type(cause).__name__}: {cause}"
        error = TaskTimeoutError(
            self._failed_with(text), scope=scope, limit=limit, metadata=self.metadata, attempts=self.attempts
        )
        if scope == "total":
            error.__cause__ = cause
        self._raised = error
        return error

    def came_late(self, scope: Scope, late: float) -> None:
        """Say so of a value that has come too late; it wins all the same.

        Args:
            scope: What the time was for that was up.
            late: For how many seconds, by the event loop's clock; none or less if it was not.
        """
        if late > 0 and not self._was_late:
            self._was_late = scope != "item"  # the deadline of the whole call may be missed as well
            option, _ = _OPTIONS[scope]
            logger().warning(
                "task %r: a value came %.3g s after its %s of %g s: the function has blocked the event loop, or not let itself "
                "be cancelled. What blocks belongs into a sync function, to be called with to_thread()",
                self.metadata.name,
                late,
                option,
                getattr(self.spec, option),
            )

    def refuse(self, error: Exception) -> Exception:
        """An error of a call that cannot be made: it comes out as it is, and is never retried."""
        self._refused = True
        return self.fail_with(error)

    def fail_with(self, error: Exception) -> Exception:
        """An error that is the call's own, and not its function's: it comes out as it is."""
        self._raised = error
        return error

    def fails_by_itself(self, exc: Exception) -> bool:
        """Whether what it has failed with concerns all who want the same, and not this one call alone.

        Args:
            exc: What its function raised, and is being handled.
        """
        if self._refused or self._is_misfit(exc) or self._is_cancelled():
            return False
        return bridged_cancellation(exc) is None

    def fail_like(self, flight: Flight) -> Exception:
        """The error of the call that this one has followed, to be raised inside of this one."""
        error, self.attempts, self._is_noted = flight.taken_error(), flight.attempts, flight.is_noted
        flight.is_noted = self._is_noted or not self.spec.options.wrap_errors
        self.retries_told = self.attempts - 1
        if flight.is_own and isinstance(error, TaskTimeoutError):
            text = self._failed_with(f"no result within its timeout of {error.limit:g} s")
            error = TaskTimeoutError(
                text, scope=error.scope, limit=error.limit, metadata=self.metadata, attempts=self.attempts
            )
        elif flight.is_own and isinstance(error, DatasetError):
            cause = error.__cause__
            error = DatasetError(str(error))
            error.__cause__ = cause
        return self.fail_with(error) if flight.is_own else error

    def is_own(self, exc: BaseException) -> bool:
        """Whether an error is this call's own, and not one that its function raised."""
        return exc is self._raised

    def _is_cancelled(self) -> bool:
        slot = self.slot
        return is_being_cancelled(self._cancellations) or (slot is not None and (slot.given_up or slot.cancelled))

    def _delay_after(self, exc: Exception) -> float | None:
        if self.attempts > self.spec.retries or self._refused or self._is_misfit(exc):
            return None
        if self._is_cancelled():
            return None
        options = self.spec.options
        return delay_before(options.name, options.retry_on, options.retry_delay, self.attempts, exc)

    def _is_misfit(self, exc: BaseException) -> bool:
        """Whether it is the caller's mistake: wrong arguments come out as from any function."""
        return isinstance(exc, TypeError) and not self.spec.function.fits(self.args, self.kwargs)

    def _judged(self, exc: BaseException) -> tuple[BaseException, BaseException | None]:
        """What the call has failed with, and what is to be raised in place of what its function raised."""
        if exc is self._raised or self._is_misfit(exc):
            return exc, None
        if isinstance(exc, Exception):
            cancellation = bridged_cancellation(exc)
            if cancellation is not None:
                return cancellation, cancellation
            error = self._wrapped(exc)
            return exc, None if error is exc else error
        if isinstance(exc, BaseExceptionGroup):
            # Failures and a cancellation in one: the failures are the call's, the cancellation goes on.
            failures, rest = exc.split(Exception)
            if failures is not None and rest is not None:
                return failures, BaseExceptionGroup(exc.message, [self._wrapped(failures), rest])
        return exc, None

    def _wrapped(self, exc: Exception) -> Exception:
        """What the call raises because of its function's error: a `TaskError`, or the error itself with a note."""
        if not self.spec.options.wrap_errors:
            if not self._is_noted:
                add_note(exc, f"Raised by task {self.metadata.name!r} after {self._counted()}.")
            return exc
        text = self._failed_with(described(exc))
        error = TaskError(text, metadata=self.metadata, attempts=self.attempts)
        error.__cause__ = exc
        return error

    def _failed_with(self, text: str) -> str:
        return f"Task {self.metadata.name!r} failed after {self._counted()} with error: {text}"

    def _counted(self) -> str:
        number, what = (self.attempts, "attempt") if self.items is None else (self.items, "item")
        return f"1 {what}" if number == 1 else f"{number} {what}s"


def bridged_cancellation(exc: Exception) -> BaseException | None:
    """The cancellation of this thread, where its function has raised it as an error.

    What a thread waits for in an event loop by other means than ours, such as a portal, is cancelled with the thread, and
    comes out as an `Exception` of `concurrent.futures`.
    """
    # Another thread may be about to import it: then nobody has raised one yet.
    cancelled = getattr(sys.modules.get("concurrent.futures"), "CancelledError", None)
    if cancelled is not None and isinstance(exc, cancelled):
        try:
            check_cancelled()
        except BaseException as cancellation:
            return cancellation
    return None


def shown(wait: RetryDelay) -> str:
    """What says how long, as text."""
    return str(wait) if callable(wait) else f"{wait:g} s"


def _nothing() -> None:
    """Told to a thread of a call that nobody watches."""


def add_note(exc: BaseException, note: str) -> None:
    """`BaseException.add_note`, also before Python 3.11; an error that takes none goes without."""
    try:
        if sys.version_info >= (3, 11):
            exc.add_note(note)
        else:
            exc.__dict__["__notes__"] = [*getattr(exc, "__notes__", ()), note]
    except Exception:  # its class is a frozen dataclass, say
        pass
