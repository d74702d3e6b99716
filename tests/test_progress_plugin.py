"""How far the calls of a session are, in a terminal, in a notebook and as lines."""

import io
import subprocess
import sys
import types
from collections.abc import AsyncIterator
from typing import Any

import anyio
import pytest
from anyio.lowlevel import checkpoint
from rich.console import Console

from daglite import gather_tasks, session, stream_tasks, task
from daglite.exceptions import TaskError
from daglite.plugins import ProgressPlugin
from daglite.plugins._board import Board
from daglite.plugins._progress import table_of
from daglite.testing import EventRecorder, VirtualClock

LONG = 1e6  # seconds until the next update: only the last is shown


@task(retries=1)
async def fetch(number: int) -> int:
    if number == 3:
        raise ValueError("wrong")
    return number


@task(cache=True)
def parse(number: int) -> int:
    return number


@task
async def crawl(numbers: list[int]) -> None:
    await gather_tasks(fetch, numbers, errors="collect")


@task
async def rows(count: int) -> AsyncIterator[int]:
    for number in range(count):
        await checkpoint()
        yield number


@task
async def factorial(number: int) -> int:
    return 1 if number < 2 else number * await factorial(number - 1)


def no_terminal() -> Console:
    return Console(file=io.StringIO(), width=20)


def terminal() -> Console:
    return Console(file=io.StringIO(), force_terminal=True, width=100, height=30, color_system=None)


def written(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def lines_of(console: Console) -> list[str]:
    """What was written, without times and speeds."""
    lines = []
    for line in written(console).splitlines():
        name, path, counts = line.split(": ")
        assert name.startswith("work, ")
        assert name.endswith(" s")
        lines.append(f"{path}: {', '.join(each for each in counts.split(', ') if not each.endswith('/s'))}")
    return lines


async def work() -> None:
    await crawl([1, 2, 3])
    await gather_tasks(parse, [7, 8])
    await gather_tasks(parse, [7, 8])
    async for _ in rows(5):
        pass
    assert await factorial(4) == 24


async def test_without_a_terminal_there_is_a_line_for_each_task() -> None:
    console = no_terminal()
    plugin = ProgressPlugin(console=console, interval=LONG)
    async with session(name="work", plugins=[plugin], cache_store="memory://progress"):
        await work()
        parse.invalidate(7)
        parse.invalidate(8)
    assert lines_of(console) == [
        "crawl: 1 done",
        "crawl > fetch: 2 done, 1 failed, 1 retries",
        "parse: 4 done, 2 cached",
        "rows: 1 done, 5 items",
        "factorial: 4 done",
    ]
    assert "\x1b" not in written(console)


async def test_lines_come_when_there_is_something_new(virtual_clock: VirtualClock) -> None:
    console = no_terminal()

    @task
    async def wait(number: int) -> None:
        await anyio.sleep(number)

    async with session(name="work", plugins=[ProgressPlugin(console=console)]):
        await gather_tasks(wait, [1, 15, 100])
    assert lines_of(console) == ["wait: 1 done, 2 running", "wait: 2 done, 1 running", "wait: 3 done"]


async def test_in_a_terminal_a_table_is_drawn_in_place(virtual_clock: VirtualClock) -> None:
    console = terminal()

    @task
    async def wait(number: int) -> None:
        await anyio.sleep(number)

    async with session(
        name="work", plugins=[ProgressPlugin(console=console, interval=1)], cache_store="memory://drawn"
    ):
        await gather_tasks(wait, [1.5, 2.5])
        await crawl([1, 3])
    shown = written(console)
    assert "\x1b[1A" in shown  # back to the line above
    assert "\x1b[?25h" in shown  # the cursor is visible again
    last = [line.split() for line in shown.rpartition("work, ")[2].splitlines()]
    assert last[0][2:] == ["done", "failed", "retries", "speed", "time"]
    assert [line[:2] for line in last[1:4]] == [["wait", "2"], ["crawl", "1"], ["fetch", "1"]]


async def test_what_is_printed_meanwhile_stays_above(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    screen = Terminal()
    monkeypatch.setattr(sys, "stdout", screen)
    monkeypatch.setattr(sys, "stderr", screen)
    console = Console(file=screen, force_terminal=True, width=60, color_system=None)
    async with session(name="work", plugins=[ProgressPlugin(console=console, interval=0.001)]):
        await fetch(1)
        while "fetch" not in screen.getvalue():
            await anyio.sleep(0.001)
        print("said by the program")
    assert sys.stdout is screen
    assert "said by the program\n" in screen.getvalue()


async def test_a_second_display_in_one_terminal_prints_lines() -> None:
    first, second, third = terminal(), terminal(), terminal()
    async with session(name="first", plugins=[ProgressPlugin(console=first, interval=LONG)]):
        await anyio.wait_all_tasks_blocked()  # it is there before the second
        async with session(name="work", plugins=[ProgressPlugin(console=second, interval=LONG)]):
            await fetch(1)
    async with session(name="third", plugins=[ProgressPlugin(console=third, interval=LONG)]):
        await fetch(1)
    assert "\x1b" in written(first)
    assert lines_of(second) == ["fetch: 1 done"]
    assert "\x1b" in written(third)


@pytest.mark.parametrize("console", [no_terminal(), terminal()])
async def test_where_nothing_is_called_nothing_is_shown(console: Console) -> None:
    async with session(plugins=[ProgressPlugin(console=console, interval=0.001)]):
        await anyio.sleep(0.01)
    assert written(console) == ""


async def test_inner_sessions_are_shown_with_the_outer() -> None:
    console = no_terminal()
    plugin = ProgressPlugin(console=console, interval=LONG)
    async with session(name="work", plugins=[plugin]):
        async with session(name="inner", plugins=[plugin]) as inner:
            inner.start_soon(crawl, [1])
    assert lines_of(console) == ["crawl: 1 done", "crawl > fetch: 1 done"]


async def test_a_background_call_is_below_what_has_started_it_while_that_runs() -> None:
    console = no_terminal()

    @task
    async def outer(over: anyio.Event) -> None:
        s.start_soon(inner, over)
        await checkpoint()
        await anyio.wait_all_tasks_blocked()

    @task
    async def inner(over: anyio.Event) -> None:
        await over.wait()
        await fetch(1)

    async with session(name="work", plugins=[ProgressPlugin(console=console, interval=LONG)]) as s:
        over = anyio.Event()
        await outer(over)
        over.set()
    assert lines_of(console) == ["outer: 1 done", "outer > inner: 1 done", "outer > inner > fetch: 1 done"]


async def test_cancelled_calls_are_counted_and_the_last_line_comes() -> None:
    console = no_terminal()

    @task
    async def wait() -> None:
        await anyio.sleep_forever()

    async with session(name="work", plugins=[ProgressPlugin(console=console, interval=LONG)]) as s:
        s.start_soon(wait)
        await anyio.wait_all_tasks_blocked()
        s.cancel()
        await checkpoint()
    assert lines_of(console) == ["wait: 0 done, 1 cancelled"]


def test_a_script_has_it_too() -> None:
    console = no_terminal()
    with session(name="work", plugins=[ProgressPlugin(console=console, interval=LONG)]):
        assert fetch.from_thread(1) == 1
    assert lines_of(console) == ["fetch: 1 done"]


class Gone(io.StringIO):
    """A pipe whose reader has gone."""

    def write(self, text: str) -> int:
        raise BrokenPipeError("the reader has gone")


class Ending(Console):
    """Ends the program, as Rich's own does, which takes its stdout away as well."""

    def on_broken_pipe(self) -> None:
        raise SystemExit(1)


@pytest.mark.parametrize("is_terminal", [False, True])
async def test_a_console_that_cannot_be_written_harms_no_call(
    is_terminal: bool, caplog: pytest.LogCaptureFixture
) -> None:
    console = Ending(file=Gone(), force_terminal=is_terminal)
    async with session(plugins=[ProgressPlugin(console=console, interval=0.001)]) as s:
        async with stream_tasks(fetch, [1, 2]) as results:
            async for _ in results:
                await anyio.sleep(0.01)
    assert s.stats().succeeded == 2
    assert "plugin ProgressPlugin failed to watch it" in caplog.text
    again = terminal()
    async with session(plugins=[ProgressPlugin(console=again, interval=LONG)]):
        await fetch(1)
    assert "\x1b" in written(again)  # the terminal is free again


def test_without_a_reader_of_stderr_the_program_goes_on_and_has_its_stdout() -> None:
    program = """
import anyio, os, logging
from daglite import session, task
from daglite.plugins import ProgressPlugin
logging.disable(logging.CRITICAL)  # which would go to stderr too
reader, writer = os.pipe()
os.dup2(writer, 2)
os.close(reader)
@task
async def work() -> None:
    await anyio.sleep(0.01)
async def main() -> None:
    async with session(plugins=[ProgressPlugin(interval=0.001)]):
        await work()
anyio.run(main)
print("done")
"""
    done = subprocess.run([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, check=False, timeout=50)
    assert done.stdout == "done\n"


class Handle:
    """What IPython gives for an output that can be changed."""

    def __init__(self, first: Any) -> None:
        self.shown = [first]

    def update(self, table: Any) -> None:
        self.shown.append(table)


async def test_in_a_notebook_the_output_of_the_cell_is_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    handles: list[Handle] = []

    def display(table: Any, display_id: bool) -> Handle:
        assert display_id
        handles.append(Handle(table))
        return handles[-1]

    ipython, module = types.ModuleType("IPython"), types.ModuleType("IPython.display")
    module.display = display  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    monkeypatch.setitem(sys.modules, "IPython.display", module)
    console = Console(file=io.StringIO(), force_jupyter=True)
    async with session(name="work", plugins=[ProgressPlugin(console=console, interval=0.001)]):
        await fetch(1)
        while not handles:
            await anyio.sleep(0.001)
        await fetch(2)
    [handle] = handles
    bundle = handle.shown[-1]._repr_mimebundle_([], [])
    assert "fetch" in bundle["text/html"]
    assert "fetch" in bundle["text/plain"]
    assert written(console) == ""


async def test_markup_in_a_name_is_shown_as_it_is(recorded_events: EventRecorder) -> None:
    console = no_terminal()
    async with session(name="work", plugins=[ProgressPlugin(console=console, interval=LONG)]):
        await fetch.with_options(name="[red]load [/bold] :smile:")(1)
    assert "[red]load [/bold] :smile: 1 done" in written(console).replace("smile:: ", "smile: ")
    board = Board()
    for event in recorded_events.events:
        board.count(event)
    table = Console(file=io.StringIO(), width=100)
    table.print(table_of(board, 0.0))
    assert "[red]load [/bold] :smile:" in written(table)


async def test_a_program_of_very_many_tasks_shows_some(recorded_events: EventRecorder) -> None:
    async with session():
        for number in range(50):
            await fetch.with_options(name=f"task {number}")(1)
    board = Board()
    for event in recorded_events.events:
        board.count(event)
    console = Console(file=io.StringIO(), width=100)
    console.print(table_of(board, 0.0))
    lines = written(console).splitlines()
    assert len(lines) == 42
    assert lines[-1].strip() == "… and 10 more"


async def test_a_failing_call_is_red_in_the_table_and_an_error_for_the_caller() -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=100, color_system="standard")
    with pytest.raises(TaskError):
        async with session(name="work", plugins=[ProgressPlugin(console=console, interval=LONG)]):
            await fetch(3)
    assert "\x1b[31m" in written(console)


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"interval": 0}, ValueError, "ProgressPlugin: interval must be"),
        ({"interval": "fast"}, TypeError, "ProgressPlugin: interval must be"),
        ({"console": sys.stderr}, TypeError, "ProgressPlugin: console must be a rich.console.Console, not <"),
    ],
)
def test_wrong_options_are_refused(options: Any, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        ProgressPlugin(**options)
