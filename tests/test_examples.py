"""The examples, run as people run them."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

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
    assert (done.returncode, done.stderr) == (0, "")
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


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--root", "/no/such/folder"], "--root: there is no folder '/no/such/folder'"),
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
