"""Drops one `finally`, reset, shield, re-raise or guard of the lifecycle at a time, and sees to it that a test fails.

    python scripts/mutations.py [--jobs 2] [MODULE ...]

Without modules it takes all of the lifecycle. First the tests run once, to learn which of them come by which line; then, for each
change, those that come by the lines that it changes, until one fails. What no test notices is an error, unless
`scripts/mutations.txt` says why it may go unnoticed; what that says of a change that a test notices is an error too.

It needs the extra `dev`, and takes an hour or two. The checkout is not touched: everything happens in temporary copies.
"""

from __future__ import annotations

import argparse
import ast
import copy
import itertools
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from queue import SimpleQueue

import coverage

ROOT = Path(__file__).resolve().parent.parent
EXCUSES = ROOT / "scripts" / "mutations.txt"
MODULES = (
    *(
        "_admission",
        "_bindings",
        "_books",
        "_bridge",
        "_bus",
        "_caching",
        "_call",
        "_children",
        "_circles",
        "_context",
        "_ending",
        "_failures",
    ),
    *(
        "_fan_out",
        "_flights",
        "_futures",
        "_gates",
        "_handles",
        "_hooks",
        "_jobs",
        "_keeping",
        "_lifecycle",
        "_open_streams",
        "_pumps",
    ),
    *("_reports", "_results", "_running", "_slots", "_sources", "_stays", "_steps", "_streams", "_thread_streams"),
    *("_datasets", "_destinations", "_from_thread_streams", "_saving", "_threads", "_trips", "_watchers", "sessions"),
)
UNDOING = {
    "reset",
    "reset_token",
    "discard",
    "pop",
    "clear",
    "remove",
    "give_back",
    "give_place",
    "close",
    "aclose",
    "set",
}
MOST = 1000  # tests that are run for a change, at most: those that come by there and are the quickest
# What happens in other processes, of which nobody hears by which lines they come: interrupted programs, and forks.
ELSEWHERE = (
    "tests/test_interrupts.py",
    "tests/test_foreign.py::test_a_fork_is_not_in_the_session",
    "tests/test_limits.py::test_a_forked_child_has_all_tokens",
    "tests/test_limits.py::test_a_forked_child_waits_for_nobody_of_its_parent",
    "tests/test_flights.py::test_a_forked_process_computes_nothing_and_waits_for_nothing_of_its_parent",
    "tests/test_store_model.py::test_a_forked_process_has_its_own_store_in_memory",
    "tests/test_sync_sessions.py::test_a_fork_is_not_in_it_and_opens_its_own",
)
PATIENCE = 300  # seconds for them; what takes longer hangs, which is noticed


@dataclass(frozen=True)
class Mutation:
    """One change of one module.

    Args:
        module: Its name.
        where: The function or class, by its qualified name.
        kind: What is dropped.
        text: The code that it is about, in one line.
        lines: The lines by which a test has to come, to notice.
        source: The module with the change.
    """

    module: str
    where: str
    kind: str
    text: str
    lines: range
    source: str

    @property
    def name(self) -> str:
        return f"{self.module}.{self.where}: {self.kind}: {self.text}"


class Finder(ast.NodeVisitor):
    """Finds what can be dropped, each time as a function that does so in a copy of the tree."""

    def __init__(self) -> None:
        self.found: list[tuple[str, str, ast.AST, str]] = []
        self._where: list[str] = []
        self._handlers = 0

    def _inside(self, node: ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) -> None:
        self._where.append(node.name)
        handlers, self._handlers = self._handlers, 0
        self.generic_visit(node)
        self._handlers = handlers
        self._where.pop()

    visit_FunctionDef = visit_AsyncFunctionDef = visit_ClassDef = _inside

    def _add(self, kind: str, node: ast.AST, text: str) -> None:
        self.found.append((".".join(self._where), kind, node, " ".join(text.split())[:100]))

    def visit_Try(self, node: ast.Try) -> None:
        if node.finalbody:
            self._add("finally", node, ast.unparse(node.finalbody[0]))
        for each in (*node.body, *node.orelse, *node.finalbody):
            self.visit(each)
        self._handlers += 1
        for handler in node.handlers:
            self.visit(handler)
        self._handlers -= 1

    def visit_Raise(self, node: ast.Raise) -> None:
        if self._handlers:
            self._add("raise", node, ast.unparse(node))

    def visit_Expr(self, node: ast.Expr) -> None:
        call = node.value.value if isinstance(node.value, ast.Await) else node.value
        if isinstance(call, ast.Call):
            name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
            if name in UNDOING:
                self._add("reset", node, ast.unparse(node))
        self.generic_visit(node)

    def visit_Delete(self, node: ast.Delete) -> None:
        if not all(isinstance(each, ast.Name) for each in node.targets):  # which only break cycles
            self._add("reset", node, ast.unparse(node))

    def visit_Call(self, node: ast.Call) -> None:
        if any(each.arg == "shield" for each in node.keywords):
            self._add("shield", node, ast.unparse(node))
        self.generic_visit(node)

    def visit_If(self, node: ast.If) -> None:
        leaves = isinstance(node.body[-1], (ast.Return, ast.Raise, ast.Continue, ast.Break))
        if leaves and len(node.body) == 1 and not node.orelse and self._where:
            self._add("guard", node, f"if {ast.unparse(node.test)}: {ast.unparse(node.body[0])}")
        self.generic_visit(node)


class Dropper(ast.NodeTransformer):
    """Makes one change."""

    def __init__(self, kind: str, node: ast.AST) -> None:
        self._kind = kind
        self._node = node

    def visit(self, node: ast.AST) -> ast.AST | list[ast.stmt]:
        if node is not self._node:
            return self.generic_visit(node)
        if isinstance(node, ast.Try):
            last, node.finalbody = node.finalbody, []
            return [node, *last] if node.handlers else [*node.body, *last]
        if self._kind == "shield":
            assert isinstance(node, ast.Call)
            node.keywords = [each for each in node.keywords if each.arg != "shield"]
            return node
        return ast.copy_location(ast.Pass(), node)


def mutations_of(module: str) -> Iterator[Mutation]:
    tree = ast.parse((ROOT / "daglite" / f"{module}.py").read_text(encoding="utf-8"))
    finder = Finder()
    finder.visit(tree)
    for number, (where, kind, node, text) in enumerate(finder.found):
        changed = copy.deepcopy(tree)
        again = Finder()
        again.visit(changed)
        _, _, twin, _ = again.found[number]
        begin, end = node.lineno, node.end_lineno or node.lineno  # type: ignore[attr-defined]
        if isinstance(node, ast.Try):
            begin, end = node.finalbody[0].lineno, node.finalbody[-1].end_lineno or end
        elif isinstance(node, ast.If):
            begin = node.body[0].lineno  # where it is not run, nothing changes
        source = ast.unparse(ast.fix_missing_locations(ast.Module(_changed(changed, kind, twin), [])))
        yield Mutation(module, where, kind, text, range(begin, end + 1), source)


def _changed(tree: ast.Module, kind: str, node: ast.AST) -> list[ast.stmt]:
    Dropper(kind, node).visit(tree)
    return tree.body


class Suite:
    """The tests in copies of the checkout, one for each job."""

    def __init__(self, work: Path, jobs: int) -> None:
        self._work = work
        self._copies: SimpleQueue[Path] = SimpleQueue()
        self._numbers = itertools.count(1_000_000_000)
        for number in range(jobs):
            path = work / f"copy-{number}"
            shutil.copytree(
                ROOT, path, ignore=shutil.ignore_patterns(".git", ".venv", "__pycache__", "site", ".*_cache")
            )
            self._copies.put(path)

    def learn(self) -> None:
        """Run all of it, and note which tests come by which line."""
        path = self._copies.get()
        settings = "[run]\nsource = daglite\nconcurrency = thread\n"
        (path / "contexts.ini").write_text(settings, encoding="utf-8")
        (path / "contexts.py").write_text(CONTEXTS, encoding="utf-8")
        command = ["-m", "coverage", "run", "--rcfile=contexts.ini", f"--data-file={self._work / 'lines'}"]
        done = self._run(path, [*command, "-m", "pytest", "-q", "-p", "contexts", "--timeout=120"], 1800)
        if done is None or done[0] not in (0, 1):  # 1: a few are about memory, or deep stacks, which this changes
            sys.exit(f"the tests do not run as it is:\n{'' if done is None else done[1][-3000:]}")
        self._copies.put(path)

    def tests_of(self, module: str, lines: range) -> list[str]:
        """The tests that come by one of the lines, the quickest first."""
        found, seconds = self._lines_of(module), self._seconds()
        tests = {context for line in lines for context in found.get(line, ()) if "::" in context}
        chosen = sorted(tests, key=lambda test: (seconds.get(test, 0.0), test))
        slow = [test for test in chosen[MOST:] if "test_fault_sweep" in test]  # which look into every corner
        return [*chosen[:MOST], *slow, *ELSEWHERE]

    @cache  # noqa: B019 -- there is one suite
    def _lines_of(self, module: str) -> dict[int, list[str]]:
        data = coverage.CoverageData(str(self._work / "lines"))
        data.read()
        path = next(each for each in data.measured_files() if each.endswith(f"/daglite/{module}.py"))
        return data.contexts_by_lineno(path)

    @cache  # noqa: B019
    def _seconds(self) -> dict[str, float]:
        with sqlite3.connect(self._work / "seconds.db") as database:
            return dict(database.execute("select test, seconds from seconds"))

    def notices(self, mutation: Mutation, tests: list[str]) -> bool:
        """Whether one of the tests fails with the change."""
        path = self._copies.get()
        file = path / "daglite" / f"{mutation.module}.py"
        kept = file.read_text(encoding="utf-8")
        try:
            self._write(file, mutation.source)
            (path / "chosen.txt").write_text("\n".join(tests), encoding="utf-8")
            command = ["-m", "pytest", "-qx", "--tb=no", "--no-header", "-p", "no:cacheprovider"]
            command += ["--timeout=10", "--timeout-method=thread"]  # which ends the process: others would hang as well
            done = self._run(path, [*command, "@chosen.txt"], PATIENCE)
            return done is None or done[0] != 0
        finally:
            self._write(file, kept)
            self._copies.put(path)

    def _write(self, file: Path, source: str) -> None:
        file.write_text(source, encoding="utf-8")
        # Python takes a compiled module for that of a source by its size and the second in which that was written.
        number = next(self._numbers)
        os.utime(file, (number, number))

    def _run(self, path: Path, arguments: list[str], patience: float) -> tuple[int, str] | None:
        """The exit code and what was said, or `None` if it took too long."""
        environment = {**os.environ, "PYTHONPATH": str(path), "DAGLITE_SECONDS": str(self._work / "seconds.db")}
        environment.pop("PYTHONDONTWRITEBYTECODE", None)
        with tempfile.TemporaryFile("w+") as said:  # a pipe would stay open for as long as a forked process has it
            process = subprocess.Popen(
                [sys.executable, *arguments],
                cwd=path,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            try:
                code = process.wait(patience)
            except subprocess.TimeoutExpired:
                return None
            finally:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)  # it, and what it has left
                process.wait()
            said.seek(0)
            return code, said.read()


# A plugin of pytest's that tells coverage which test runs, and notes how long each takes.
CONTEXTS = """
import os, sqlite3
import coverage, pytest

SECONDS = {}

@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item):
    coverage.Coverage.current().switch_context(item.nodeid)
    return (yield)

def pytest_runtest_logreport(report):
    SECONDS[report.nodeid] = SECONDS.get(report.nodeid, 0) + report.duration

def pytest_sessionfinish():
    with sqlite3.connect(os.environ["DAGLITE_SECONDS"]) as database:
        database.execute("create table seconds (test text, seconds real)")
        database.executemany("insert into seconds values (?, ?)", SECONDS.items())
"""


def excuses() -> dict[str, str]:
    """Why some changes may go unnoticed: lines that each name a change, and below them, indented, the reason."""
    found: dict[str, str] = {}
    names: list[str] = []
    for line in EXCUSES.read_text(encoding="utf-8").splitlines() if EXCUSES.exists() else ():
        if line.startswith(" "):
            found.update(dict.fromkeys(names, line.strip()))
        elif not line:
            names = []
        elif not line.startswith("#"):
            names.append(line)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("modules", nargs="*", help="of the lifecycle; all by default")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--list", action="store_true", help="show the changes, and make none")
    parser.add_argument(
        "--lines", type=Path, help="a folder where to keep which tests come by which line, for the next time"
    )
    given = parser.parse_args()
    mutations = [each for module in given.modules or MODULES for each in mutations_of(module)]
    if given.list:
        print(*(each.name for each in mutations), f"{len(mutations)} changes", sep="\n")
        return 0
    excused, wrong = excuses(), 0
    with tempfile.TemporaryDirectory(prefix="daglite-mutations.") as folder:
        suite = Suite(Path(folder), given.jobs)
        kept = given.lines
        if kept is not None and (kept / "lines").exists():
            for name in ("lines", "seconds.db"):
                shutil.copy(kept / name, folder)
        else:
            suite.learn()
            if kept is not None:
                kept.mkdir(exist_ok=True)
                for name in ("lines", "seconds.db"):
                    shutil.copy(Path(folder) / name, kept)

        chosen = [suite.tests_of(each.module, each.lines) for each in mutations]
        with ThreadPoolExecutor(given.jobs) as pool:
            noticed_or_not = pool.map(suite.notices, mutations, chosen)
            for mutation, tests, noticed in zip(mutations, chosen, noticed_or_not, strict=True):
                reason = excused.get(mutation.name)
                if noticed is (reason is not None):
                    wrong += 1
                    said = f"excused, but noticed ({reason})" if noticed else f"not noticed by {len(tests)} tests"
                    print(f"{mutation.name}\n    {said}", flush=True)
    for name in set(excused) - {each.name for each in mutations} if not given.modules else ():
        wrong += 1
        print(f"{name}\n    excused, but there is no such change")
    print(f"{len(mutations)} changes, {len(excused)} of them excused, {wrong} wrong")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
