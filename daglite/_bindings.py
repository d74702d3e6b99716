"""Those who use a session from other tasks and threads than it is open in."""

from __future__ import annotations

import math
import threading
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast

import anyio

from ._context import OUTSIDE, Home, PositionToken, Root, here, reset, set_current, whereabouts
from ._eventloop import Loop, in_event_loop, name_of_task
from ._open_streams import Closing
from ._running import Running
from ._slots import Slot, ThreadCancelled
from .exceptions import CallCancelledError, SessionError

if TYPE_CHECKING:
    from ._bus import Subscription
    from ._sync_session import SyncSession

__all__ = ["Binding", "Bindings", "binding_around", "is_begun_under"]

S = TypeVar("S")


class Bindings(Running["Binding[Any]"]):
    """The open ones of a session.

    Args:
        home: The session.
    """

    def __init__(self, home: Home) -> None:
        super().__init__()
        self._home = home
        self._deadline = math.inf

    def check(self) -> None:
        """Raise if no more are accepted.

        Raises:
            SessionError: The session is about to end.
        """
        if self._home.leaving:
            raise SessionError(f"session {self._home.name!r}: bind() after it has begun to end")

    def add(self, one: Binding[Any]) -> None:
        """One more.

        Raises:
            SessionError: The session is about to end.
        """
        self._all[one] = None
        if self._home.leaving:  # in this order: whoever is added before it ends is waited for
            self.discard(one)
            self.check()

    async def until_none(self) -> None:
        """Wait until there are none, or the session's grace is over."""
        if not self:
            return
        if self._deadline == math.inf:
            self._deadline = anyio.current_time() + self._home.settings.grace
        with anyio.CancelScope(deadline=self._deadline):
            await super().until_none()

    def give_up(self) -> list[str]:
        """End those that are left: nobody is to hear of what they do.

        Returns:
            What runs in them.
        """
        left = self.clear()
        for binding in left:
            binding._give_up()
        return sorted(binding.owner for binding in left)


def binding_around(position: Any) -> Binding[Any] | None:
    """The innermost open one, of a task, that a position is in; what a background call is in has been left."""
    while position is not None:
        found = position.root.binding
        if isinstance(found, Binding) and found.task is not None and not found.ended:
            return found
        position = around(position.root)
    return None


def is_begun_under(call: Any, binding: Binding[Any]) -> bool:
    """Whether a call was begun under a binding, or started there in the background, or was begun by one that was."""
    position = call
    while position is not None:
        root: Root = position.root
        if root.binding is binding or root.origin is binding:
            return True
        position = around(root)
    return False


def around(root: Root) -> Any:
    """Where it was that a session was opened, or a background call started: in a call, or in another session, or in neither."""
    return root.call or getattr(root.home.session, "_outside", None)


class Binding(Generic[S]):
    """What `Session.bind()` returns, for `async with` in a task and for `with` in a thread: it may be entered once.

    Args:
        session: The session.
        home: What its code sees of it.
        loop: Its event loop.
        bindings: The open ones of the session.
    """

    __slots__ = (
        "_bindings",
        "_home",
        "_loop",
        "_session",
        "_slot",
        "_subscriptions",
        "_token",
        "_used",
        "ended",
        "streams",
        "task",
    )

    def __init__(self, session: S, home: Home, loop: Loop, bindings: Bindings) -> None:
        self.streams: dict[Any, None] = {}  # opened under it, oldest first, which it closes
        self.ended: bool = False  # what is called or opened under it from now on is the session's
        self.task: Any = None
        self._session = session
        self._home = home
        self._loop = loop
        self._bindings = bindings
        self._used = False
        self._slot: Slot | None = None
        self._subscriptions: list[Subscription] | None = None  # which it closes
        self._token: PositionToken

    async def __aenter__(self) -> S:
        self.enter()
        return self._session

    def enter(self) -> None:
        """Enter it in a task, as `async with` does."""
        self.task = self._loop.task_here()
        if self.task is None:
            raise self._refused("`async with` in another event loop than its own: a thread takes `with`")
        if self._used:
            raise self._refused_second()
        self._bindings.add(self)
        self._used = True
        # Outside of all sessions, as requests are, nothing is to be found out.
        self._token = set_current(Root(self._home, binding=self) if here() is OUTSIDE else self._root())

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if not self.leave():
            await self.close()

    def leave(self) -> bool:
        """Leave it, as `async with` does.

        Returns:
            Whether that is all: else it has streams, and is to be closed.
        """
        if self.ended or not self._used:
            raise self._refused_again()
        reset(self._token)
        self.ended = True
        if self.streams or self._subscriptions:
            return False
        self._bindings.discard(self)
        self.task = None
        return True

    def add(self, subscription: Subscription) -> None:
        """Close a subscription in the end, if nobody has before."""
        self._subscriptions = [*(self._subscriptions or ()), subscription]

    async def close(self) -> None:
        """Close its streams and subscriptions."""
        for subscription in self._subscriptions or ():
            subscription._leave()
        grace = self._home.settings.grace
        closing = Closing(f"bind() of session {self._home.name!r}", grace)
        self._cut_off()
        try:
            await closing.close_all(self.streams, anyio.current_time() + grace)
        finally:
            self._bindings.discard(self)
            self.task = None
        if (error := closing.fatal or closing.cancellation) is not None:
            raise error

    def _cut_off(self) -> None:
        """Let those who still read from its streams know."""
        for steps in list(self.streams):
            steps.cut = True

    def __enter__(self) -> SyncSession:
        if in_event_loop():
            raise self._refused("`with` in an event loop's thread: use `async with`")
        slot = Slot(self._root(), f"thread {threading.current_thread().name!r}")
        outer = here().slot
        if isinstance(outer, Slot) and outer.is_here():
            slot.serve(outer)
        try:
            if self._used:
                raise self._refused_second()
            self._bindings.add(self)
            self._used = True
            self._slot = slot
        except BaseException:
            slot.leave()
            raise
        slot.resume()
        slot.enter_thread()
        self._token = set_current(slot)
        return cast("SyncSession", self._session)  # the same, whose methods do otherwise in a thread

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self.ended or not self._used:
            raise self._refused_again()
        assert self._slot is not None
        closing = Closing(f"bind() of session {self._home.name!r}", math.inf)
        self._cut_off()
        try:
            closing.close_all_here(self.streams)  # while the event loop of some can be gone to
        finally:
            reset(self._token)
            self.ended = True
            self._slot.leave()
            self._bindings.discard(self)
        exc = closing.fatal or exc
        if closing.fatal is not None and not isinstance(exc, ThreadCancelled):
            raise closing.fatal
        if isinstance(exc, ThreadCancelled) and not self._slot.is_inner():
            # Outside of it nobody is being cancelled, and a thread of the user's has nobody to hear of that.
            name = self._home.name
            raise CallCancelledError(f"session {name!r} was cancelled, or ended, while {self.owner} used it") from exc

    def is_here(self) -> bool:
        """Whether this is the thread that has entered it."""
        return self._slot is not None and self._slot.is_here()

    def let_notice(self) -> None:
        """Let the code in it notice that the session is cancelled."""
        if self._slot is not None:
            self._slot.let_notice()

    @property
    def owner(self) -> str:
        """Where it is entered."""
        return f"task {name_of_task(self.task)!r}" if self._slot is None else self._slot.name

    def _root(self) -> Root:
        """Where its code runs: in the call that it is in already, if that is so."""
        position = whereabouts()
        is_same = position.home.session is self._session
        home = position.home if is_same else self._home  # that of a hook, maybe
        is_serving = is_same and position.root.is_serving
        return Root(home, position.call, position.slot, is_serving=is_serving, binding=self)

    def _give_up(self) -> None:
        """The session ends without it."""
        if self._slot is not None:
            self._slot.give_up()

    def _refused_second(self) -> SessionError:
        return self._refused("it was entered before, and can be once: bind() makes another")

    def _refused_again(self) -> SessionError:
        return self._refused("it is left, and was not entered, or was left before")

    def _refused(self, why: str) -> SessionError:
        return SessionError(f"session {self._home.name!r}: bind(): {why}")
