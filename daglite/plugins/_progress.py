"""A display of how far the calls of a session are: in a terminal, in a notebook, or as lines."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

import anyio
from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from daglite import _checks
from daglite.plugins._board import Board, Row

if TYPE_CHECKING:
    from daglite._bus import Subscription

__all__ = ["ProgressPlugin"]

ROWS = 40  # of a display: there may be any number of tasks


class ProgressPlugin:
    """Shows how far the calls of a session are, by task: how many run, are done and have failed, retries, cache hits, and how fast it goes.

    ```python
    import anyio
    from daglite import gather_tasks, session, task
    from daglite.plugins import ProgressPlugin


    @task
    async def fetch(number: int) -> int:
        await anyio.sleep(0.01)
        return number


    async def main() -> None:
        async with session(plugins=[ProgressPlugin()]):
            await gather_tasks(fetch, range(20), limit=5)


    # anyio.run(main)
    ```

    The calls that a task makes are shown below it, so that nested fan-outs are a tree; a task that calls itself is one row. In a terminal the
    table stays at the bottom, below what the program prints in the meantime, and in a notebook in its cell. Elsewhere, as in the log of a
    CI job, there is a line for each task now and then, and one at the end. It is written to stderr.

    Counting is done beside the calls, and showing harms none of them: what cannot be shown, for stderr is gone, is logged. While a function blocks the
    event loop nothing moves. While one display is on a terminal, another prints lines.

    Args:
        interval: Seconds between two updates: 0.1 by default in a terminal and a notebook, and 10 as lines.
        console: Where it is shown; a `rich.console.Console` for stderr by default.

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: `interval` is not above 0.
    """

    def __init__(self, *, interval: float | None = None, console: Console | None = None) -> None:
        self._interval = (
            None if interval is None else _checks.finite("ProgressPlugin: interval", interval, least=0, above=True)
        )
        if console is not None and not isinstance(console, Console):
            raise TypeError(f"ProgressPlugin: console must be a rich.console.Console, not {console!r:.80}")
        self._console = console

    async def consume(self, events: Subscription) -> None:
        """Show the events of a session, until it has ended."""
        console = self._console or Stderr(stderr=True)
        board = Board()
        display = display_on(console)
        try:
            async with anyio.create_task_group() as group:
                group.start_soon(self._show, board, display)
                async for event in events:
                    board.count(event)
                group.cancel_scope.cancel()
        finally:
            attempt(display.close, board)

    async def _show(self, board: Board, display: Display) -> None:
        while True:
            await anyio.sleep(self._interval or display.interval)
            if board.changed or display.moves:
                board.changed = False
                attempt(display.show, board)


def attempt(show: Callable[[Board], None], board: Board) -> None:
    """Show something.

    Raises:
        BrokenPipeError: Nobody is there to see it. A console of Rich's would end the program.
    """
    try:
        show(board)
    except SystemExit as exc:
        raise BrokenPipeError("the console of the progress display is gone") from exc


class Stderr(Console):
    """The console that is used by default."""

    def on_broken_pipe(self) -> None:
        """Let the error out. Rich's own answer takes the program's stdout away, which somebody else may read."""
        raise


class Display(Protocol):
    """Where a board is shown."""

    interval: float
    moves: bool  # also while nothing is counted, for the time goes on

    def show(self, board: Board) -> None:
        """Show how far it is."""
        ...

    def close(self, board: Board) -> None:
        """Show how it has ended."""
        ...


class Terminal:
    """A table at the bottom of a terminal, which is drawn anew, in place.

    Args:
        console: The terminal.
        free: Called when it is free for another display.
    """

    interval = 0.1
    moves = True

    def __init__(self, console: Console, free: Callable[[], None]) -> None:
        self._free = free
        self._live = Live(
            console=console,
            auto_refresh=False,  # which would be a thread
            redirect_stdout=is_terminal(sys.stdout),  # elsewhere it would go to this console, and not to its file
            redirect_stderr=is_terminal(sys.stderr),
        )

    def show(self, board: Board) -> None:
        """Draw the table, once there is something in it."""
        if not board.root.below:
            return
        self._live.start()
        self._live.update(table_of(board, time.time()), refresh=True)

    def close(self, board: Board) -> None:
        """Draw it a last time, and leave it there."""
        try:
            self.show(board)
        finally:
            try:
                self._live.stop()
            except IndexError:  # it could not be started, and what is then taken back was not there
                pass
            finally:
                self._free()


class Notebook:
    """A table in the output of the cell that runs."""

    interval = 0.1
    moves = True

    def __init__(self) -> None:
        self._handle: Any = None

    def show(self, board: Board) -> None:
        """Draw the table, once there is something in it."""
        if not board.root.below:
            return
        from IPython.display import display  # it is there, in a notebook

        table = table_of(board, time.time())
        if self._handle is None:
            self._handle = display(table, display_id=True)
        else:
            self._handle.update(table)

    def close(self, board: Board) -> None:
        """Draw it a last time, and leave it there."""
        self.show(board)


class Lines:
    """A line for each task, now and then.

    Args:
        console: Where they are written.
    """

    interval = 10.0
    moves = False

    def __init__(self, console: Console) -> None:
        self._console = console
        self._shown: dict[Row, str] = {}

    def show(self, board: Board) -> None:
        """Write a line for each task of which there is something new."""
        now = time.time()
        for _, row in board.rows():
            counts = ", ".join(counts_of(row))
            if self._shown.get(row) != counts:
                self._shown[row] = counts
                rate = row.rate(now)
                speed = "" if rate is None else f", {per_second(rate)}"
                line = f"{board.name}, {row.seconds(now):.1f} s: {' > '.join(row.path())}: {counts}{speed}"
                self._console.print(line, markup=False, highlight=False, emoji=False, soft_wrap=True)

    def close(self, board: Board) -> None:
        """Write the last line of each task."""
        self.show(board)


_lock = threading.Lock()  # event loops in other threads may have displays too
_is_shown: bool = False  # whether there is a table in a terminal: a second would draw over it


def display_on(console: Console) -> Display:
    """What suits a console."""
    if console.is_jupyter:
        return Notebook()
    if console.is_terminal and not console.is_dumb_terminal and take_terminal():
        return Terminal(console, free_terminal)
    return Lines(console)


def take_terminal() -> bool:
    """Whether nobody else has it."""
    global _is_shown
    with _lock:
        taken, _is_shown = _is_shown, True
        return not taken


def free_terminal() -> None:
    """Let others have it."""
    global _is_shown
    _is_shown = False


def is_terminal(file: Any) -> bool:
    """Whether a file of the process is one; without a console it may be `None`."""
    try:
        return bool(file.isatty())
    except Exception:
        return False


def table_of(board: Board, now: float) -> Table:
    """How far it is, as a table: a column that says nothing is left out."""
    rows = list(board.rows())
    more = len(rows) - ROWS
    columns = [(title, [value(row, now) for _, row in rows[:ROWS]]) for title, value in COLUMNS]
    table = Table.grid(padding=(0, 2))
    seconds = 0.0 if board.first is None else max(now - board.first, 0.0)
    shown = [(title, values) for title, values in columns if any(values)]
    table.add_column()
    for _ in shown:
        table.add_column(justify="right")
    table.add_row(
        Text(f"{board.name}, {seconds:.1f} s", style="bold"), *(Text(title, style="dim") for title, _ in shown)
    )
    for number, (depth, row) in enumerate(rows[:ROWS]):
        values = [Text(values[number], style="red" if title == "failed" else "") for title, values in shown]
        table.add_row(Text("  " * depth + row.label, overflow="ellipsis", no_wrap=True), *values)
    if more > 0:
        table.add_row(Text(f"… and {more} more", style="dim"))
    return table


def number(count: int) -> str:
    """A count, as a table shows it; nothing is left blank."""
    return f"{count:,}" if count else ""


def per_second(rate: float) -> str:
    """How many a second."""
    return f"{rate:,.0f}/s" if rate >= 10 else f"{rate:.1f}/s"


def shown_rate(row: Row, now: float) -> str:
    """How fast it goes, if that is known."""
    rate = row.rate(now)
    return "" if rate is None else per_second(rate)


COLUMNS: list[tuple[str, Callable[[Row, float], str]]] = [
    ("done", lambda row, now: f"{row.done:,}"),
    ("running", lambda row, now: number(row.running)),
    ("failed", lambda row, now: number(row.failed)),
    ("cancelled", lambda row, now: number(row.cancelled)),
    ("retries", lambda row, now: number(row.retries)),
    ("cached", lambda row, now: number(row.hits)),
    ("items", lambda row, now: number(row.items)),
    ("speed", shown_rate),
    ("time", lambda row, now: f"{row.seconds(now):.1f} s"),
]


def counts_of(row: Row) -> list[str]:
    """What is known of a task, as parts of a line."""
    counts = {
        "running": row.running,
        "failed": row.failed,
        "cancelled": row.cancelled,
        "retries": row.retries,
        "cached": row.hits,
        "items": row.items,
    }
    return [f"{row.done:,} done", *(f"{count:,} {what}" for what, count in counts.items() if count)]
