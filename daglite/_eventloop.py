"""What anyio has no word for: the one file that may import asyncio or trio."""

from __future__ import annotations

import math
import sys
import threading
from collections.abc import Callable, Coroutine
from contextvars import Context, copy_context
from functools import partial
from threading import get_ident
from typing import Any, TypeVar

import anyio
from anyio.lowlevel import checkpoint, current_token

__all__ = [
    "Loop",
    "LoopEnded",
    "cancellations",
    "check_installed",
    "comes_from_scope",
    "check_waiting_task",
    "context_for_thread",
    "give_way",
    "in_event_loop",
    "is_being_cancelled",
    "is_waiting_task_cancelled",
    "name_of_task",
    "running_loop",
    "running_task",
    "threads_of_trio",
    "trio_runner",
    "way_back",
]

T = TypeVar("T")

LOOK_EVERY = 5.0  # seconds: how often a thread that waits for the event loop looks whether it is still there


class LoopEnded(Exception):
    """An event loop that somebody wants something of is no more."""


class Loop:
    """The event loop that runs in this thread, for use from others."""

    def __init__(self) -> None:
        self._anyio_token = current_token()
        token: Any = self._anyio_token.native_token
        self._thread = get_ident()
        self._token = token
        self._is_asyncio = hasattr(token, "call_soon_threadsafe")
        # Else asyncio takes that of whoever posts, where anyio may see no event loop: it asks sniffio where that is
        # installed, and outside of tasks sniffio goes by the context.
        self._context = Context()
        self.enter(self._context)

    def enter(self, context: Context) -> None:
        """Let a context, which may be that of a thread without an event loop, be one to run things here in."""
        library = getattr(sys.modules.get("sniffio"), "current_async_library_cvar", None)
        if library is not None:
            context.run(library.set, "asyncio" if self._is_asyncio else None)

    @property
    def name(self) -> str:
        """What anyio calls it."""
        return "asyncio" if self._is_asyncio else "trio"

    def is_same(self, other: Loop) -> bool:
        """Whether both are one."""
        return self._token is other._token

    def is_running_here(self) -> bool:
        """Whether it runs the caller."""
        return get_ident() == self._thread and running_loop() is self._token

    def task_here(self) -> Any:
        """The task of it that the caller runs in; `None` elsewhere."""
        if get_ident() != self._thread:
            return None
        trio = getattr(sys.modules.get("trio"), "lowlevel", None)
        if trio is not None and trio.in_trio_task():
            return trio.current_task() if trio.current_trio_token() is self._token else None
        return sys.modules["asyncio"].current_task(self._token) if self._is_asyncio else None

    def is_here(self) -> bool:
        """Whether the caller is in its thread."""
        return get_ident() == self._thread

    def run(self, func: Callable[..., Any], *args: Any) -> None:
        """Call a function in the loop's thread: now, if that is the caller's, else soon and without waiting for it.

        After the loop has ended it does nothing: there is nobody left to tell.
        """
        if get_ident() == self._thread:
            func(*args)
        else:
            self.post(func, *args)

    def run_from_thread(self, func: Callable[..., Any]) -> None:
        """Await what a function gives, for a thread that nobody in the loop waits for, and wait for it."""
        from anyio import from_thread  # it imports much, and not every program has threads

        from_thread.run(func, token=self._anyio_token)

    def call(self, func: Callable[..., T], *args: Any) -> T:
        """Call a function in the loop's thread, in a copy of the context, and wait for it in this other one.

        Raises:
            LoopEnded: It has ended.
        """
        outcome: list[Any] = []
        ended = threading.Event()
        context = copy_context()
        self.enter(context)

        def run() -> None:
            try:
                outcome.extend((context.run(func, *args), None))
            except BaseException as exc:  # it concerns the caller
                outcome.extend((None, exc))
            finally:
                ended.set()

        self.post(run)
        if not self.wait(ended):
            raise LoopEnded
        value, error = outcome
        try:
            if error is not None:
                raise error
            return value  # type: ignore[no-any-return]
        finally:
            outcome.clear()
            del error  # else its traceback, which holds this frame, would hold itself

    def wait(self, ended: threading.Event) -> bool:
        """Wait in another thread for what the loop does; false if the loop has ended, and will not do it."""
        while not ended.wait(LOOK_EVERY):
            if not self.post(_nothing):
                return ended.is_set()
        return True

    def spawn(self, func: Callable[[], Coroutine[Any, Any, Any]], context: Context, name: str) -> None:
        """Start a task in a copy of a context, of which nobody hears but those who wait for what it does."""
        if self._is_asyncio:
            task = context.run(partial(self._token.create_task, func(), name=name))
            _spawned.add(task)  # the event loop itself keeps no hold of it
            task.add_done_callback(_spawned.discard)
        else:
            import trio

            trio.lowlevel.spawn_system_task(func, name=name, context=context.copy())

    def post(self, func: Callable[..., Any], *args: Any) -> bool:
        """Call a function in the loop's thread soon, also from there; false if it has ended."""
        if self._is_asyncio:
            try:
                self._token.call_soon_threadsafe(func, *args, context=self._context)
            except RuntimeError:  # it is closed
                return False
        else:
            import trio

            try:
                self._token.run_sync_soon(func, *args)
            except trio.RunFinishedError:
                return False
        return True


_spawned: set[Any] = set()


def _nothing() -> None:
    """Posted to find out whether the event loop is still there."""


def running_loop() -> Any:
    """The event loop that runs the caller, as anyio's token for it; `None` if none does.

    Trio may run inside asyncio, as its guest or in a task that it blocks, and so is asked first.
    """
    # A loop that was never imported does not run: importing it to ask would cost 50 ms.
    # `getattr`, here and below: another thread may be about to import it.
    running = getattr(sys.modules.get("asyncio"), "_get_running_loop", None)
    trio = getattr(sys.modules.get("trio"), "lowlevel", None)
    if trio is not None and trio.in_trio_task():
        return trio.current_trio_token()
    if running is not None and (loop := running()) is not None:
        return loop
    if trio is not None and trio.in_trio_run():
        return trio.current_trio_token()
    return None


def name_of_task(task: Any) -> str:
    """The name of a task, as `running_task` has it."""
    name: str = task.get_name() if hasattr(task, "get_name") else task.name
    return name


def running_task() -> Any:
    """The task of the event loop that the caller runs in, whatever the event loop has for one; `None` in none."""
    trio = getattr(sys.modules.get("trio"), "lowlevel", None)
    if trio is not None and trio.in_trio_task():
        return trio.current_task()
    asyncio: Any = sys.modules.get("asyncio")
    running = getattr(asyncio, "_get_running_loop", None)
    return None if running is None or running() is None else asyncio.current_task()


def check_installed(where: str, event_loop: str) -> None:
    """Raise if an event loop is not installed.

    Args:
        where: Who needs it, for the message.
        event_loop: Its name.

    Raises:
        ImportError: It is not.
    """
    from importlib.util import find_spec  # a millisecond, for those who ask for one by name

    if event_loop == "trio" and find_spec("trio") is None:
        raise ImportError(f"{where}: event_loop='trio' needs Trio, which is not installed: pip install 'daglite[trio]'")


def in_event_loop() -> bool:
    """Whether an event loop runs in this thread."""
    # A loop that was never imported does not run: importing it to ask would cost 50 ms.
    running = getattr(sys.modules.get("asyncio"), "_get_running_loop", None)
    if running is not None and running() is not None:
        return True
    trio = getattr(sys.modules.get("trio"), "lowlevel", None)
    return trio is not None and trio.in_trio_run()


def context_for_thread() -> Context:
    """A copy of the current context for a thread in which no event loop runs, as anyio makes it for its own."""
    context = copy_context()
    library = getattr(sys.modules.get("sniffio"), "current_async_library_cvar", None)
    if library is not None:
        context.run(library.set, None)
    return context


def cancellations() -> int:
    """How often somebody has asked the current asyncio task to end; 0 elsewhere.

    anyio does not know of a native `Task.cancel`, nor of `asyncio.timeout`. Python 3.10 keeps no such count.
    """
    asyncio: Any = sys.modules.get("asyncio")
    running = getattr(asyncio, "_get_running_loop", None)
    if sys.version_info < (3, 11) or running is None or running() is None:
        return 0
    task = asyncio.current_task()
    return 0 if task is None else task.cancelling()


def is_being_cancelled(before: int) -> bool:
    """Whether the caller is being cancelled, whatever has become of the exception.

    Args:
        before: What `cancellations` said when the call began.
    """
    if in_event_loop():
        return comes_from_scope() or cancellations() > before
    return is_waiting_task_cancelled()


def comes_from_scope() -> bool:
    """Whether a cancellation that has come to this task is that of a cancel scope around it.

    Else it is of this task alone, by asyncio's own means: which is no reason to end those beside it, as the task groups of
    anyio would if it left the task.
    """
    return anyio.current_effective_deadline() == -math.inf


async def give_way(deadline: float) -> None:
    """Let an outer deadline that was not later than this one have the last word: the caller is cancelled then."""
    if anyio.current_effective_deadline() <= deadline:
        # asyncio looks at its timers between two steps of a task: the first step lets it, the second is cancelled.
        await checkpoint()
        await checkpoint()


def way_back() -> Callable[..., Any] | None:
    """The `from_thread.run` of the event loop that waits for this worker thread; `None` if none does."""
    from anyio import from_thread  # it imports much, and not every program has threads

    trio = getattr(sys.modules.get("trio"), "from_thread", None)  # it may have made the thread without anyio's help
    for module in (from_thread,) if trio is None else (from_thread, trio):
        try:
            module.check_cancelled()
        except RuntimeError:
            continue
        except BaseException:  # the task that waits is being cancelled, of which the thread hears there
            pass
        return module.run  # type: ignore[no-any-return]
    return None


def trio_runner() -> tuple[Any, Any]:
    """What runs Trio in this thread, and a clock of Trio's that only goes when it is told to, for tests.

    Trio takes a clock when it is started, and has no word for another one later.
    """
    from trio._core._run import GLOBAL_RUN_CONTEXT
    from trio.testing import MockClock

    return GLOBAL_RUN_CONTEXT.runner, MockClock()


def threads_of_trio() -> tuple[Any, Any]:
    """The two modules by which Trio's tasks and threads wait for each other."""
    import trio

    return trio.to_thread, trio.from_thread


def check_waiting_task() -> None:
    """Raise the event loop's cancellation if the task that waits for this worker thread is being cancelled."""
    from anyio import from_thread  # it imports much, and not every program has threads

    try:
        from_thread.check_cancelled()
    except RuntimeError:  # no event loop waits for this thread
        pass


def is_waiting_task_cancelled() -> bool:
    """Whether the task that waits for this worker thread is being cancelled."""
    try:
        check_waiting_task()
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException:
        return True
    return False
