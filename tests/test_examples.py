"""The examples, run as people run them."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from daglite import load_dataset

EXAMPLES = Path(__file__).parent.parent / "examples"


@pytest.fixture
def census(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    spec = importlib.util.spec_from_file_location("stdlib_census", EXAMPLES / "stdlib_census.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "stdlib_census", module)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def library(tmp_path: Path) -> Path:
    (tmp_path / "package" / "site-packages").mkdir(parents=True)
    (tmp_path / "a.py").write_text("def f(): pass\nasync def g(): pass\n")
    (tmp_path / "package" / "b.py").write_text("class C:\n    def m(self): pass\n")
    (tmp_path / "package" / "broken.py").write_text("def (\n")
    (tmp_path / "package" / "site-packages" / "other.py").write_text("def h(): pass\n")
    (tmp_path / "notes.txt").write_text("def no(): pass\n")
    return tmp_path


async def test_the_census_counts_what_is_in_the_files(census: Any, library: Path) -> None:
    totals, progress = await census.take_census(library, 2)
    assert (totals.files, totals.lines, totals.functions, totals.coroutines, totals.broken) == (3, 5, 2, 1, 1)
    assert (progress.done, progress.failed, progress.retries, totals.failures) == (3, 0, 0, [])
    assert progress.seconds > 0


async def test_the_census_retries_a_file_that_vanishes(
    census: Any, library: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read_bytes = Path.read_bytes
    tries = {"a.py": 0, "b.py": 0}

    def vanishing(path: Path) -> bytes:
        if path.name in tries:
            tries[path.name] += 1
            # One is back at the next look, the other is gone for good.
            if path.name == "b.py" or tries[path.name] == 1:
                raise FileNotFoundError(2, "gone for a moment", str(path))
        return read_bytes(path)

    monkeypatch.setattr(Path, "read_bytes", vanishing)
    totals, progress = await census.take_census(library, 2)
    assert tries == {"a.py": 2, "b.py": 3}
    assert (progress.retries, progress.failed, totals.files) == (3, 1, 2)
    assert "Task 'examine[1]' failed after 3 attempts with error: FileNotFoundError" in str(totals.failures[0])


@pytest.mark.parametrize("event_loop", ["asyncio", "trio"])
@pytest.mark.parametrize("how", [[], ["--sync"]])
def test_the_census_prints_its_table(library: Path, event_loop: str, how: list[str]) -> None:
    script = [sys.executable, "-W", "error", str(EXAMPLES / "stdlib_census.py"), *how]
    done = subprocess.run(
        [*script, "--root", str(library), "--event-loop", event_loop],
        capture_output=True,
        text=True,
        check=False,
        timeout=50,
    )
    assert done.returncode == 0
    progress = [re.sub(r"^census, [\d.]+ s: |, [\d,.]+/s$", "", line) for line in done.stderr.splitlines()]
    assert progress == ["source_files: 1 done, 3 items", "examine: 3 done", "examine > parse: 3 done"]
    assert f"{event_loop}, 8 files at once in threads" in done.stdout
    rows = dict(re.findall(r"^  (\S.*?)  +([\d.,]+)", done.stdout, re.MULTILINE))
    assert {name: rows[name] for name in ("files", "functions", "broken on purpose", "failures")} == {
        "files": "3",
        "functions": "2",
        "broken on purpose": "1",
        "failures": "0",
    }
    assert {"lines", "coroutines", "wall time", "calls/s"} <= set(rows)
    assert "Slowest files" in done.stdout


async def test_a_second_census_with_a_cache_parses_nothing_and_a_third_what_has_changed(
    census: Any, library: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    cache = tmp_path_factory.mktemp("cache")
    (library / "same.py").write_bytes((library / "a.py").read_bytes())
    counted = []
    for _ in range(2):
        totals, progress = await census.take_census(library, 1, cache)
        counted.append((progress.parsed, progress.cached))
        assert (progress.done, totals.files, totals.lines, totals.functions, totals.broken) == (4, 4, 7, 3, 1)
    assert counted == [(3, 1), (0, 4)]
    (library / "moved").mkdir()
    (library / "a.py").rename(library / "moved" / "elsewhere.py")
    (library / "package" / "b.py").write_text("x = 1\n")
    totals, progress = await census.take_census(library, 1, cache)
    assert (progress.parsed, progress.cached, totals.functions) == (1, 3, 2)


def test_the_census_says_that_nothing_was_parsed(library: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    cache = tmp_path_factory.mktemp("cache")
    script = [
        sys.executable,
        "-W",
        "error",
        str(EXAMPLES / "stdlib_census.py"),
        "--root",
        str(library),
        "--cache",
        str(cache),
    ]
    first, second = (subprocess.run(script, capture_output=True, text=True, check=True, timeout=50) for _ in range(2))
    said = "Nothing was parsed: what is in these files was in the cache."
    assert (said in first.stdout, said in second.stdout) == (False, True)
    assert re.search(r"parsed +0\n +in the cache +3\n", second.stdout)
    assert "examine > parse: 3 done, 3 cached" in second.stderr


def test_in_a_terminal_the_census_draws_its_progress(library: Path) -> None:
    screen, terminal = os.openpty()
    script = [sys.executable, "-W", "error", str(EXAMPLES / "stdlib_census.py"), "--root", str(library)]
    with os.fdopen(screen, "rb", buffering=0) as reader:
        try:
            env = {**os.environ, "TERM": "xterm", "COLUMNS": "100", "LINES": "30"}
            done = subprocess.run(
                script, stderr=terminal, stdout=subprocess.PIPE, text=True, env=env, check=True, timeout=50
            )
        finally:
            os.close(terminal)
        shown = b""
        try:
            while part := reader.read(1 << 16):
                shown += part
        except OSError:  # how Linux says that nobody has the terminal any more
            pass
    assert "Slowest files" in done.stdout
    assert re.search(rb"source_files .*\n.*examine .*\n.*  parse .*", shown)
    assert shown.endswith(b"\x1b[?25h")  # the cursor is there again


def test_the_census_saves_its_table(library: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("results") / "2026"
    script = [sys.executable, "-W", "error", str(EXAMPLES / "stdlib_census.py"), "--root", str(library)]
    done = subprocess.run([*script, "--save", str(folder)], capture_output=True, text=True, check=True, timeout=50)
    assert done.stdout.endswith(f"\nSaved as {folder / 'census.json'}.\n")
    table = load_dataset("census.json", dict, store=folder)
    assert (table["files"], table["lines"], table["functions"], table["broken on purpose"]) == (3, 5, 2, 1)
    assert table["wall time"] > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--root", "/no/such/folder"], "--root: there is no folder '/no/such/folder'"),
        (["--cache", __file__], "test_examples.py' is no folder"),
        (["--save", __file__], "--save: '/"),
        (["--limit", "0"], "--limit: at least one file at once, not 0"),
        (["--event-loop", "curio"], "invalid choice: 'curio'"),
    ],
)
def test_the_census_refuses_what_makes_no_sense(arguments: list[str], message: str) -> None:
    done = subprocess.run(
        [sys.executable, EXAMPLES / "stdlib_census.py", *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=50,
    )
    assert done.returncode == 2
    assert message in done.stderr


def test_the_crawler_finds_all_pages_that_answer() -> None:
    script = [sys.executable, "-W", "error", str(EXAMPLES / "trio_crawler.py"), "--pages", "40"]
    done = subprocess.run(script, capture_output=True, text=True, check=True, timeout=50)
    assert done.stderr == ""
    first, *failures = done.stdout.splitlines()
    assert first == "33 pages, 5 retries, 2 failures"  # the six below the one that hangs are not found
    gone, hangs = (re.sub(r"127.0.0.1:\d+|\[\d+\]", "", line) for line in failures)
    assert gone.startswith(
        "  Task 'fetch http:///40' failed after 1 attempt with error: HTTPStatusError: Client error '404"
    )
    assert hangs == "  Task 'fetch http:///5' failed after 1 attempt with error: no result within its timeout of 2 s"


def test_the_crawler_stops_when_its_time_is_over() -> None:
    script = [sys.executable, "-W", "error", str(EXAMPLES / "trio_crawler.py"), "--seconds", "0.000001"]
    done = subprocess.run(script, capture_output=True, text=True, check=True, timeout=50)
    assert (done.stderr, done.stdout) == ("", "0 pages, 0 retries, 0 failures\nNot all of them: 1e-06 s were over.\n")


def test_the_crawler_refuses_what_makes_no_sense() -> None:
    script = [sys.executable, str(EXAMPLES / "trio_crawler.py"), "--limit", "0"]
    done = subprocess.run(script, capture_output=True, text=True, check=False, timeout=50)
    assert done.returncode == 2
    assert "at least one page, one at once, and some time" in done.stderr
