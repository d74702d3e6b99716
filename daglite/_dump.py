"""What runs, for those who look at a program from outside."""

from __future__ import annotations

import os
import signal
import sys
import threading
from types import FrameType
from typing import Any

from ._context import OPEN
from ._tree import tree_of

__all__ = ["dump_on_signal"]


def dump_on_signal(signum: int | None = None) -> None:
    """Print the calls of all open sessions to stderr when the process gets a signal: `kill -USR1 <pid>`.

    It works while the event loop waits, and also while it is blocked by a function: the trees are printed by the main
    thread, between two steps of Python code or out of a wait. A handler that was set before is called afterwards. Calling it again
    changes nothing.

    ```python
    from daglite import dump_on_signal

    dump_on_signal()
    ```

    Args:
        signum: The signal; `signal.SIGUSR1` by default.

    Raises:
        RuntimeError: This is not the main thread, or the platform has no `SIGUSR1`, as Windows has none.
        TypeError: It is no signal.
        ValueError: There is no such signal, or it cannot be handled.
    """
    if signum is None:
        signum = getattr(signal, "SIGUSR1", None)
        if signum is None:
            raise RuntimeError("dump_on_signal: this platform has no SIGUSR1; name another signal, such as SIGBREAK")
    if isinstance(signum, bool) or not isinstance(signum, int):
        raise TypeError(f"dump_on_signal: a signal is a number such as signal.SIGUSR1, not {signum!r}")
    if threading.current_thread() is not threading.main_thread():
        raise RuntimeError(
            "dump_on_signal: signals are handled in the main thread; call it there, before other threads"
        )
    try:
        before = signal.getsignal(signum)
        if isinstance(before, Dump):
            return
        signal.signal(signum, Dump(before))
    except (OSError, ValueError) as exc:
        raise ValueError(f"dump_on_signal: signal {signum} cannot be handled: {exc}") from None


class Dump:
    """The handler.

    Args:
        before: What handled the signal before.
    """

    def __init__(self, before: Any) -> None:
        self._before = before

    def __call__(self, signum: int, frame: FrameType | None) -> None:
        """Print, and let nothing of it disturb the program."""
        try:
            text = dumped()
        except Exception as exc:
            text = f"daglite: what runs could not be found out: {exc!r}\n"
        try:
            sys.stderr.write(text)
            sys.stderr.flush()
        except Exception:  # it is closed, or was interrupted in the middle of writing
            try:
                os.write(2, text.encode(errors="replace"))
            except OSError:
                pass
        if callable(self._before):
            self._before(signum, frame)


def dumped() -> str:
    """The trees of all sessions."""
    trees = [str(tree_of(home.books)) for home in list(OPEN) if home.books is not None and home.books.outer is None]
    return "\n".join(trees or ["daglite: no session is open"]) + "\n"
