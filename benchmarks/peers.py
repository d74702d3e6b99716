"""The same work with daglite, the bare event loop and other libraries: tables and plots for `docs/benchmarks.md`.

    python benchmarks/peers.py                        everything, in a quarter of an hour
    python benchmarks/peers.py --rounds 3 --only call retry --no-page

Makes an environment for each side, in a temporary folder or in one that is named and kept with `--environments`. In every
round each kind of work is done once on every side, the sides in a random order, and each ratio is to bare asyncio of the
same round; what is shown are the medians over the rounds. So what else the machine does meets all alike.
"""

import argparse
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

HERE = Path(__file__).parent
ROOT = HERE.parent
PAGE = ROOT / "docs" / "benchmarks.md"
PLOTS = ROOT / "docs" / "assets" / "benchmarks"
BARE = "asyncio"
IMPORTS = 12


@dataclass(frozen=True)
class Side:
    """What is compared.

    Args:
        name: What it is called.
        module: In `sides`.
        requirements: What its environment holds.
        imports: The module of which the import is timed.
        color: In plots.
    """

    name: str
    module: str
    requirements: list[str] = field(default_factory=list)
    imports: str | None = None
    color: str = "#9e9e9e"


SIDES = [
    Side("asyncio", "bare", [], "asyncio"),
    Side("daglite", "daglite_now", [str(ROOT)], "daglite", "#009688"),
    Side("daglite 0.9", "daglite_09", ["daglite==0.9.0b6"], "daglite", "#80cbc4"),
    Side("tenacity", "with_tenacity", ["tenacity==9.2.1"], "tenacity", "#ffb74d"),
    Side("stamina", "with_stamina", ["stamina==26.1.0"], "stamina", "#ff8a65"),
    Side("aiometer", "with_aiometer", ["aiometer==1.0.0"], "aiometer", "#7986cb"),
    Side("aiostream", "with_aiostream", ["aiostream==0.8.1"], "aiostream", "#ba68c8"),
    Side("Prefect", "with_prefect", ["prefect>=3,<4"], "prefect", "#e57373"),
]
PLOTS_SIDE = Side("the plots", "plots", ["matplotlib==3.11.2"])
TITLES = {
    "call": "A call that succeeds, with a policy to retry",
    "retry": "A call that fails twice, then succeeds, without waits",
    "fan-out": "A call of a fan-out of 2,000, 100 at once",
    "stream": "An item of an async generator",
    "threads": "A function in a worker thread, 8 at once",
    "cancellation": "Cancelling a call, one of 1,000 that sleep",
    "memory": "Memory, of 1,000,000 calls, 100 at once",
    "import": "Importing it",
}


@dataclass
class Result:
    """What one way of doing a kind of work came to."""

    side: str
    value: float | None  # in seconds, or in bytes
    ratio: float | None  # to the bare one
    note: str = ""


def main() -> int:
    parser = argparse.ArgumentParser(description="The same work with daglite and with others.")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--environments", type=Path, help="a folder in which they are kept")
    parser.add_argument("--only", nargs="+", choices=list(TITLES), default=list(TITLES))
    parser.add_argument("--no-page", action="store_true", help="print, and leave the documentation alone")
    given = parser.parse_args()
    with ExitStack() as stack:
        folder = given.environments or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="daglite-peers.")))
        pythons = {side.name: environment(folder, side) for side in SIDES}
        results: dict[str, dict[str, Result]] = {}
        timed = [kind for kind in given.only if kind not in ("memory", "import")]
        if timed:
            results |= in_rounds(pythons, timed, given.rounds, folder)
        if "import" in given.only:
            results["import"] = imports(pythons)
        if "memory" in given.only:
            results["memory"] = memory(pythons)
        for kind, ways in results.items():
            print(f"\n{TITLES[kind]}\n" + "\n".join(table(kind, ways)))
        if not given.no_page:
            plot(folder, results)
            write(pythons, results, given.rounds)
    return 0


def environment(folder: Path, side: Side) -> Path:
    """The Python that has the side's library, made if it is not there."""
    python = folder / side.module / "bin" / "python"
    if not python.exists():
        print(f"an environment for {side.name} ...", file=sys.stderr)
        subprocess.run([sys.executable, "-m", "venv", folder / side.module], check=True)
    if side.requirements:
        subprocess.run([python, "-m", "pip", "install", "-q", *side.requirements], check=True)
    return python


def quiet(folder: Path) -> dict[str, str]:
    """The environment variables of a worker: what would send something somewhere, or print, is off."""
    return {
        **os.environ,
        "PREFECT_HOME": str(folder / "prefect"),
        "PREFECT_LOGGING_LEVEL": "CRITICAL",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_SERVER_ALLOW_EPHEMERAL_MODE": "true",
        "DO_NOT_TRACK": "1",
    }


class Worker:
    """A process that does the work of a side."""

    def __init__(self, side: Side, process: "subprocess.Popen[str]") -> None:
        self.side = side
        assert process.stdin is not None
        assert process.stdout is not None
        self._to: IO[str] = process.stdin
        self._from: IO[str] = process.stdout
        self.kinds: dict[str, list[str]] = json.loads(self._from.readline())

    def do(self, kind: str) -> dict[str, float]:
        """Seconds of each way of doing that."""
        print(kind, file=self._to, flush=True)
        done: dict[str, float] = json.loads(self._from.readline())
        return done


@contextmanager
def worker(side: Side, python: Path, folder: Path) -> Iterator[Worker]:
    with subprocess.Popen(
        [python, HERE / "worker.py", side.module],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=quiet(folder),
    ) as process:
        yield Worker(side, process)
        process.stdin.close()  # type: ignore[union-attr]


def in_rounds(pythons: dict[str, Path], kinds: list[str], rounds: int, folder: Path) -> dict[str, dict[str, Result]]:
    """The medians over rounds in which everything is done once, after one that warms up."""
    seconds: dict[str, dict[str, list[float]]] = {kind: {} for kind in kinds}
    whose: dict[str, str] = {}
    with ExitStack() as stack:
        workers = [stack.enter_context(worker(side, pythons[side.name], folder)) for side in SIDES]
        for number in range(rounds + 1):
            print(f"round {number} of {rounds}", file=sys.stderr)
            for kind in kinds:
                for each in random.sample(workers, len(workers)):
                    if kind in each.kinds:
                        for way, took in each.do(kind).items():
                            whose[way] = each.side.name
                            if number:  # the first round warms up
                                seconds[kind].setdefault(way, []).append(took)
    return {
        kind: {way: ratios(whose[way], of, ways[BARE]) for way, of in ways.items()} for kind, ways in seconds.items()
    }


def ratios(side: str, took: list[float], bare: list[float]) -> Result:
    ratio = statistics.median(one / other for one, other in zip(took, bare, strict=True))
    return Result(side, statistics.median(took), ratio)


def imports(pythons: dict[str, Path]) -> dict[str, Result]:
    """Seconds that an import adds to the start of the interpreter, from what is compiled already."""
    seconds: dict[str, list[float]] = {side.name: [] for side in SIDES}
    code = "import time; began = time.perf_counter(); import {}; print(time.perf_counter() - began)"
    for number in range(IMPORTS + 1):
        for side in random.sample(SIDES, len(SIDES)):
            command: list[str | Path] = [pythons[side.name], "-c", code.format(side.imports)]
            environ = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
            done = subprocess.run(command, cwd=HERE, check=True, capture_output=True, text=True, env=environ)
            if number:
                seconds[side.name].append(float(done.stdout))
    return {name: ratios(name, took, seconds[BARE]) for name, took in seconds.items()}


def memory(pythons: dict[str, Path]) -> dict[str, Result]:
    """Bytes by which a process grows that makes a million calls; each in one of its own, once."""
    results: dict[str, Result] = {}
    for side in SIDES:
        code = f"import sides.{side.module} as side; print(*side.WORK.get('memory', ()), sep='\\n')"
        lister: list[str | Path] = [pythons[side.name], "-c", code]
        ways = subprocess.run(lister, cwd=HERE, check=True, capture_output=True, text=True).stdout.split("\n")
        for way in filter(None, ways):
            print(f"memory: {way}", file=sys.stderr)
            results[way] = memory_of(side, pythons[side.name], way)
    bare = results[BARE].value
    for result in results.values():
        result.ratio = None if result.value is None or bare is None else result.value / bare
    return results


def memory_of(side: Side, python: Path, way: str) -> Result:
    command: list[str | Path] = [python, HERE / "worker.py", side.module, "memory", way]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=400)
    except subprocess.TimeoutExpired:
        return Result(side.name, None, None, "not done after 400 s")
    if "MemoryError" in done.stderr:
        return Result(side.name, None, None, "needs more than 3 GB")
    if done.returncode:
        raise RuntimeError(f"{way}: {done.stderr}")
    return Result(side.name, float(done.stdout), None)


def shown(kind: str, value: float) -> str:
    if kind == "memory":
        return f"{value / 1e6:,.1f} MB"
    if kind == "import":
        return f"{value * 1e3:,.1f} ms"
    return f"{value * 1e6:,.2f} µs" if value < 1e-4 else f"{value * 1e6:,.0f} µs"


def in_order(ways: dict[str, Result]) -> list[tuple[str, Result]]:
    """The quickest first, and at the end what could not be measured."""
    return sorted(ways.items(), key=lambda item: float("inf") if item[1].value is None else item[1].value)


def table(kind: str, ways: dict[str, Result]) -> list[str]:
    lines = ["| | | of asyncio |", "|---|---:|---:|"]
    for way, result in in_order(ways):
        value = result.note if result.value is None else shown(kind, result.value)
        ratio = "–" if result.ratio is None else f"{result.ratio:,.{2 if result.ratio < 100 else 0}f} ×"
        name = f"**{way}**" if result.side == "daglite" else way
        lines.append(f"| {name} | {value} | {ratio} |")
    return lines


def write(pythons: dict[str, Path], results: dict[str, dict[str, Result]], rounds: int) -> None:
    """Put the tables and plots into the documentation."""
    text = PAGE.read_text()
    for kind, ways in results.items():
        text = replaced(text, kind, table(kind, ways))
    versions = [f"{side.imports} {version_of(pythons[side.name], side)}" for side in SIDES if side.requirements]
    machine = f"CPython {platform.python_version()}, {os.cpu_count()} cores, {platform.system()}; {', '.join(versions)}; {rounds} rounds."
    PAGE.write_text(replaced(text, "machine", [machine]))


def replaced(text: str, name: str, lines: list[str]) -> str:
    """A page with other lines between the marks of that name."""
    begin, end = f"<!-- {name}: made by benchmarks/peers.py -->", f"<!-- end of {name} -->"
    before, begun, rest = text.partition(begin)
    _, ended, after = rest.partition(end)
    if not (begun and ended):
        raise ValueError(f"{PAGE} has no place for {name}: {begin} {end}")
    return "\n".join([before + begin, "", *lines, "", end + after])


def version_of(python: Path, side: Side) -> str:
    code = f"import importlib.metadata; print(importlib.metadata.version({side.imports!r}))"
    return subprocess.run([python, "-c", code], cwd=HERE, check=True, capture_output=True, text=True).stdout.strip()


def plot(folder: Path, results: dict[str, dict[str, Result]]) -> None:
    """Draw them, in an environment of its own."""
    python = environment(folder, PLOTS_SIDE)
    colors = {side.name: side.color for side in SIDES}
    bars = {
        kind: [
            (way, result.value, shown(kind, result.value), colors[result.side])
            for way, result in in_order(ways)
            if result.value is not None
        ]
        for kind, ways in results.items()
    }
    subprocess.run([python, HERE / "plots.py", PLOTS], input=json.dumps(bars), text=True, check=True)


if __name__ == "__main__":
    sys.exit(main())
