"""What is current: one context variable for the call, its parent and the session."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextvars import ContextVar, Token
from threading import get_ident
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from ._eventloop import in_event_loop
from .exceptions import SessionError
from .settings import get_settings

if TYPE_CHECKING:
    from ._books import Books
    from ._metadata import TaskMetadata
    from ._protocols import Thread, Watched, Watcher
    from ._threads import Threads
    from .settings import Settings

__all__ = [
    "OPEN",
    "OUTSIDE",
    "Home",
    "Position",
    "Root",
    "current_task",
    "here",
    "report",
    "reset",
    "set_current",
    "whereabouts",
]


class Home:
    """What the code of a session sees of it, or the code of none: resolved once, not by every call.

    Args:
        name: What the session is called.
        session: The session, for those who ask; `None` outside.
        threads: The worker threads; `None` for those of the event loop.
        settings: What holds for calls that do not say; `None` for what holds in the process.
        books: The calls that run, the open streams, and the counts of others; `None` outside.
        start_soon: Starts a coroutine function in the session's task group; `None` outside.
    """

    __slots__ = (
        "_aside",
        "_settings",
        "books",
        "closed",
        "is_quiet",
        "leaving",
        "name",
        "session",
        "start_soon",
        "threads",
        "watcher",
    )

    def __init__(
        self,
        name: str = "",
        *,
        session: Any = None,
        threads: Threads | None = None,
        settings: Settings | None = None,
        books: Books | None = None,
        start_soon: Callable[..., Any] | None = None,
    ) -> None:
        self.name: str = name
        self.session: Any = session
        self.is_quiet: bool = True  # nobody is told of calls, and all are accepted
        self.watcher: Watcher | None = None  # who is told of the calls, while there is anybody
        self._aside: Home | None = None
        self.threads: Threads | None = threads
        self._settings: Settings | None = settings
        self.books: Books | None = books
        self.start_soon: Callable[..., Any] | None = start_soon
        self.leaving: bool = False  # no more calls but those of running calls
        self.closed: bool = False  # no more calls

    @property
    def settings(self) -> Settings:
        """What holds for calls that do not say."""
        return self._settings or get_settings()

    def aside(self) -> Home:
        """The same session, for the code of hooks: nobody is told of its calls."""
        if self._aside is None:
            self._aside = Home(
                self.name,
                session=self.session,
                threads=self.threads,
                settings=self._settings,
                books=self.books,
                start_soon=self.start_soon,
            )
        return self._aside

    def watch(self, watcher: Watcher | None) -> None:
        """Let somebody be told of the calls, or nobody."""
        self.watcher = watcher
        self.is_quiet = watcher is None and not self.leaving

    def leave(self) -> None:
        """Accept no more calls but those of running calls."""
        self.leaving = True
        self.is_quiet = False
        if self._aside is not None:
            self._aside.leave()

    def close(self) -> None:
        """Accept no more calls."""
        self.closed = True
        if self._aside is not None:
            self._aside.close()

    def is_foreign(self) -> bool:
        """Whether the caller runs in another event loop than the session's, whose context was copied from one in it."""
        books = self.books
        # In its own thread none but its own runs, as good as always, and it is asked for every call.
        if books is None or books.thread == get_ident():
            return False
        return in_event_loop() and not books.loop.is_running_here()

    def disown(self) -> None:
        """Be no session's any more, for those who believe that they are in it: they are in a copy of its process."""
        self.session = self.watcher = self.threads = self.books = self.start_soon = None
        self.leaving = self.closed = False
        self.is_quiet = True
        if self._aside is not None:
            self._aside.disown()

    def refuse(self, what: str, position: Position) -> None:
        """Raise if a session that is ending, or has ended, accepts nothing more from there.

        Args:
            what: What is refused, for messages: `"task 'a' was called"`.
            position: Where it comes from.

        Raises:
            SessionError: It does not.
        """
        if self.closed:
            raise SessionError(f"{what} in session {self.name!r}, which has ended")
        if self.leaving and not position.accepted:
            raise SessionError(
                f"{what} in session {self.name!r}, which is ending: only calls that run already may make others"
            )


OPEN: dict[Home, None] = {}  # of the open sessions of this process, oldest first


class Position(Protocol):
    """Where code runs: in a call, or directly in a session, or in neither."""

    @property
    def home(self) -> Home:
        """What the code sees of its session."""
        ...

    @property
    def call(self) -> Watched | None:
        """The innermost call that the code belongs to."""
        ...

    @property
    def slot(self) -> Thread | None:
        """The worker thread that the code runs in, or that waits for it."""
        ...

    @property
    def starts_background(self) -> bool:
        """Whether the call that is made from here is a background call."""
        ...

    @property
    def accepted(self) -> bool:
        """Whether calls from here go on while the session ends."""
        ...

    @property
    def root(self) -> Root:
        """Where its outermost call was made, or that of the background call that it is in."""
        ...


class Owner(Protocol):
    """What closes streams at its end, sooner than the session or where there is none."""

    @property
    def streams(self) -> dict[Any, None]:
        """Those that are open, oldest first."""
        ...


class Bound(Owner, Protocol):
    """What makes a session current in another task or thread."""

    ended: bool
    task: Any


class Root:
    """The position of code that is in a session but in no call of it.

    Args:
        home: The session.
        call: The call in which the session was opened, or from which a background call was started.
        slot: The worker thread that the code runs in, or that waits for it.
        starts_background: Whether it is where a background call is made; that was accepted when it was started.
        is_serving: Whether that call is a service, or was started by one.
        binding: What made the session current here, if that was not its own `async with`.
        origin: What made it current where the background call was started.
    """

    __slots__ = ("binding", "call", "home", "is_serving", "origin", "slot", "starts_background")

    def __init__(
        self,
        home: Home,
        call: Watched | None = None,
        slot: Thread | None = None,
        *,
        starts_background: bool = False,
        is_serving: bool = False,
        binding: Bound | None = None,
        origin: Bound | None = None,
    ) -> None:
        self.home: Home = home
        self.call: Watched | None = call
        self.slot: Thread | None = slot
        self.starts_background: bool = starts_background
        self.is_serving: bool = is_serving
        self.binding: Bound | None = binding
        self.origin: Bound | None = origin

    @property
    def accepted(self) -> bool:
        """Whether calls from here go on while the session ends, which waits for those who are bound to it."""
        return self.starts_background or (self.binding is not None and not self.binding.ended)

    @property
    def root(self) -> Root:
        """Itself."""
        return self


OUTSIDE = Root(Home())
_current: ContextVar[Position] = ContextVar("daglite_current", default=OUTSIDE)

here = _current.get
set_current = _current.set
reset_token = _current.reset
PositionToken: TypeAlias = "Token[Position]"


def whereabouts() -> Position:
    """Where the running code is, as `here` says, but outside if another event loop runs it than the session's."""
    position = _current.get()
    return OUTSIDE if position.home.is_foreign() else position


def reset(token: PositionToken) -> None:
    """Make current again what was so before."""
    try:
        _current.reset(token)
    except ValueError:
        # A coroutine that is dropped half-way is closed in the context of whoever drops it, where there is
        # nothing to be undone.
        pass


def current_task() -> TaskMetadata | None:
    """The innermost call that the running code belongs to; `None` outside all calls."""
    call = whereabouts().call
    return None if call is None else call.metadata


def report(type: str, data: Any = None) -> None:
    """Tell the subscribers of the session something about the running call, such as its progress.

    It never waits and never fails, and may be used in threads. Outside a call, or with nobody listening, it does
    nothing.

    Args:
        type: What kind of thing is reported, for subscribers to tell by.
        data: The thing. Subscribers get it as it is.
    """
    position = whereabouts()
    watcher, call = position.home.watcher, position.call
    if watcher is not None and call is not None:
        watcher.reported(call, position.slot, type, data)


def _forget_sessions() -> None:
    """In a forked process: its parent has the sessions, with the event loops and threads that they need."""
    set_current(OUTSIDE)
    for home in OPEN:
        home.disown()
    OPEN.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_sessions)
