"""A census of the standard library: what is in its source files, and which are slow to parse.

    python examples/stdlib_census.py
    python examples/stdlib_census.py --event-loop trio --limit 4 --root some/folder
    python examples/stdlib_census.py --sync
    python examples/stdlib_census.py --cache some/other/folder --save a/third

The files are found and parsed in worker threads, a few at once, and added up as they come in; the event loop stays free
to tell how far it is, by a `ProgressPlugin`. What is counted on the way comes from the events of the session. Files that do not parse are
there to be broken, as the test data of Python's own tests: they are counted, and are no failures. With `--sync` the
program itself is a plain script, which finds all files first and then waits; the tasks are the same. With `--cache` the results are kept in
a folder, under keys of what is in the files, wherever they lie: a second run parses what has changed, and says how little that was. With `--save` the
table becomes a file for other programs.
"""

import argparse
import ast
import heapq
import importlib.util
import io
import os
import platform
import sys
import sysconfig
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from time import thread_time
from typing import Literal

import anyio

from daglite import Outcome, map_tasks, save_dataset, session, stream_tasks, task
from daglite.events import CacheHit, Event, SessionEnded, TaskFailed, TaskRetrying, TaskSucceeded
from daglite.exceptions import TaskError
from daglite.plugins import ProgressPlugin
from daglite.sessions import Subscription

STDLIB = Path(sysconfig.get_path("stdlib"))
INSTALLED = {"site-packages", "dist-packages"}
SHOWN = 5
TABLE = "census.json"


@dataclass(frozen=True)
class Facts:
    """What there is to know about what is in one file."""

    lines: int
    functions: int = 0
    coroutines: int = 0
    seconds: float = 0.0
    broken: bool = False


@dataclass(frozen=True)
class Examined:
    """One file."""

    path: Path
    facts: Facts


@dataclass
class Totals:
    """What is known of all files so far."""

    files: int = 0
    lines: int = 0
    functions: int = 0
    coroutines: int = 0
    broken: int = 0
    slowest: list[Examined] = field(default_factory=list)
    failures: list[TaskError] = field(default_factory=list)

    def count(self, outcome: Outcome[Examined]) -> None:
        if outcome.value is not None:
            self.add(outcome.value)
        elif isinstance(outcome.error, TaskError):
            self.failures.append(outcome.error)

    def add(self, file: Examined) -> None:
        facts = file.facts
        self.files += 1
        self.lines += facts.lines
        self.functions += facts.functions
        self.coroutines += facts.coroutines
        self.broken += facts.broken
        self.slowest = heapq.nlargest(SHOWN, [*self.slowest, file], key=lambda each: each.facts.seconds)


@dataclass
class Counts:
    """What there was to do, by the events of the session."""

    done: int = 0
    parsed: int = 0
    cached: int = 0
    failed: int = 0
    retries: int = 0
    seconds: float = 0.0

    async def follow(self, events: Subscription) -> None:
        """Count the events until the session has ended."""
        async for event in events:
            self.count(event)

    def count(self, event: Event) -> None:
        match event:
            case TaskSucceeded(items=None, metadata=call):  # at its end a stream says how many items it gave
                self.done += call.map_index is not None  # one of the fan-out
                self.parsed += call.map_index is None
            case CacheHit():
                self.cached += 1
            case TaskRetrying():
                self.retries += 1
            case TaskFailed(metadata=call):
                self.failed += call.map_index is not None
            case SessionEnded(duration=seconds):
                self.seconds = seconds


@task
def source_files(root: Path) -> Iterator[Path]:
    """The Python files of a folder, without packages that were installed into it."""
    for folder, subfolders, names in os.walk(root):
        subfolders[:] = sorted(set(subfolders) - INSTALLED)
        for name in sorted(names):
            if name.endswith(".py"):
                yield Path(folder, name)


# An editor that saves a file, or pip that upgrades one, takes it away for a moment.
@task(retries=2, retry_on=FileNotFoundError, retry_delay=0.05)
def examine(path: Path) -> Examined:
    """Read one file, and count what is in it."""
    return Examined(path, parse(path.read_bytes()))


# The key is made of the source itself. What the parser makes of that changes with Python, as does the folder of the cache.
@task(cache=True, version=1)
def parse(source: bytes) -> Facts:
    """Parse a source, and count what is in it."""
    began = thread_time()
    lines = len(source.splitlines())
    try:
        tree = ast.parse(source)
    except SyntaxError:
        return Facts(lines, seconds=thread_time() - began, broken=True)
    kinds = Counter(map(type, ast.walk(tree)))
    return Facts(lines, kinds[ast.FunctionDef], kinds[ast.AsyncFunctionDef], thread_time() - began)


async def take_census(root: Path, limit: int, cache: Path | None = None) -> tuple[Totals, Counts]:
    """Examine every file under a folder, so many at once."""
    totals, counts = Totals(), Counts()
    async with session(name="census", cache_store=cache, plugins=[ProgressPlugin()]) as s:
        s.watch(counts.follow)
        files = source_files.to_thread(root)
        async with stream_tasks(examine, files, limit=limit, errors="collect") as outcomes:
            async for outcome in outcomes:
                totals.count(outcome)
    return totals, counts


def take_census_here(
    root: Path, limit: int, event_loop: Literal["asyncio", "trio"], cache: Path | None = None
) -> tuple[Totals, Counts]:
    """The same from a plain script: an event loop is in the background for as long as the session is open."""
    totals, counts = Totals(), Counts()
    with session(name="census", event_loop=event_loop, cache_store=cache, plugins=[ProgressPlugin()]) as s:
        s.watch(counts.follow)
        files = list(source_files(root))
        for outcome in map_tasks(examine, files, limit=limit, errors="collect"):
            totals.count(outcome)
    return totals, counts


def tabulate(totals: Totals, counts: Counts, *, with_cache: bool) -> dict[str, float]:
    """The numbers, by name; the time is in seconds."""
    rows = {
        "files": totals.files,
        "lines": totals.lines,
        "functions": totals.functions,
        "coroutines": totals.coroutines,
        "broken on purpose": totals.broken,
        "failures": len(totals.failures),
        "retries": counts.retries,
        "wall time": counts.seconds,
        "calls/s": (counts.done + counts.failed) / counts.seconds,
    }
    if with_cache:
        rows |= {"parsed": counts.parsed, "in the cache": counts.cached}
    return rows


def print_report(root: Path, totals: Totals, table: dict[str, float]) -> None:
    for name, number in table.items():
        value = f"{number:.2f} s" if name == "wall time" else f"{number:,.0f}"
        print(f"  {name:18}{value:>12}")
    if table.get("parsed") == 0:
        print("\nNothing was parsed: what is in these files was in the cache.")
    print("\nSlowest files, in CPU time:")
    for file in totals.slowest:
        print(f"  {file.facts.seconds:.3f} s  {file.path.relative_to(root)}")
    if totals.failures:
        print("\nFiles that could not be examined:")
    for error in totals.failures:
        print(f"  {error}")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Count what is in Python source files.")
    parser.add_argument("--root", type=Path, default=STDLIB, help="folder (default: %(default)s)")
    parser.add_argument("--limit", type=int, default=8, help="files at once (default: %(default)s)")
    parser.add_argument("--event-loop", choices=["asyncio", "trio"], default="asyncio")
    parser.add_argument("--sync", action="store_true", help="as a plain script, with the event loop in the background")
    parser.add_argument("--cache", type=Path, help="folder in which results are kept for the next time")
    parser.add_argument("--save", type=Path, help=f"folder in which the table is saved, as {TABLE}")
    arguments = parser.parse_args()
    if not arguments.root.is_dir():
        parser.error(f"--root: there is no folder {str(arguments.root)!r}")
    for option, folder in (("--cache", arguments.cache), ("--save", arguments.save)):
        if folder is not None and folder.exists() and not folder.is_dir():
            parser.error(f"{option}: {str(folder)!r} is no folder")
    if arguments.limit < 1:
        parser.error(f"--limit: at least one file at once, not {arguments.limit}")
    if arguments.event_loop == "trio" and importlib.util.find_spec("trio") is None:
        parser.error("--event-loop trio: Trio is not installed; run `python -m pip install trio`")
    return arguments


def main() -> None:
    arguments = parse_arguments()
    # What the parser thinks of other people's string literals is not news here.
    warnings.simplefilter("ignore", SyntaxWarning)
    warnings.simplefilter("ignore", DeprecationWarning)
    # File names may hold what a terminal cannot show.
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    print(
        f"{arguments.root}: Python {platform.python_version()}, {arguments.event_loop}, "
        f"{arguments.limit} files at once in threads"
    )
    root, limit, cache, event_loop = arguments.root, arguments.limit, arguments.cache, arguments.event_loop
    if arguments.sync:
        totals, counts = take_census_here(root, limit, event_loop, cache)
    else:
        totals, counts = anyio.run(take_census, root, limit, cache, backend=event_loop)
    table = tabulate(totals, counts, with_cache=cache is not None)
    print_report(root, totals, table)
    if arguments.save is not None:
        save_dataset(TABLE, table, store=arguments.save)
        print(f"\nSaved as {arguments.save / TABLE}.")


if __name__ == "__main__":
    main()
