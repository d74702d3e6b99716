"""Every example in the documentation, the README and the docstrings runs, and what is public is what is said to be."""

import ast
import importlib
import importlib.util
import pkgutil
import re
import subprocess
import sys
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

import pytest

import daglite
import daglite.plugins

ROOT = Path(__file__).parent.parent
PAGES = sorted((ROOT / "docs").rglob("*.md"))
FENCE = re.compile(r"^```(\w+)[^\n]*\n(.*?)^```\n", re.MULTILINE | re.DOTALL)
NAMED_OTHERWISE = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}|\d+\.\d+(?= s\b)| at 0x[0-9a-f]+")
CUT = "-- the end of a block --"
MODULES = [
    "daglite.asgi",
    "daglite.cache",
    "daglite.composers",
    "daglite.datasets",
    "daglite.events",
    "daglite.exceptions",
    "daglite.limits",
    "daglite.plugins",
    "daglite.sessions",
    "daglite.settings",
    "daglite.tasks",
    "daglite.testing",
    "daglite.workflows",
]


@dataclass(frozen=True)
class Block:
    """Python code of a text, what that says that it prints, if it does, and the line that it begins in."""

    code: str
    output: str | None
    line: int


def blocks_of(text: str) -> list[Block]:
    """The fenced Python code of a text. What a block of text right after it says is what it prints."""
    found = list(FENCE.finditer(text))
    blocks = []
    for fence, after in zip_longest(found, found[1:]):
        if fence[1] == "python":
            follows = after and after[1] == "text" and not text[fence.end() : after.start()].strip()
            blocks.append(Block(fence[2], after[2] if follows else None, text.count("\n", 0, fence.start(2))))
    return blocks


def programs() -> list[Any]:
    """Every block of the README and of docstrings for itself; those of a page of the documentation one after another."""
    found = [pytest.param([block], id=f"README:{block.line}") for block in blocks_of((ROOT / "README.md").read_text())]
    pages = [page for page in PAGES if page.parent.name != "coming-from" and blocks_of(page.read_text())]
    found += [pytest.param(blocks_of(page.read_text()), id=page.stem) for page in pages]
    for path in sorted((ROOT / "daglite").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
                for block in blocks_of((ast.get_docstring(node) or "") + "\n"):
                    found.append(pytest.param([block], id=f"{path.stem}.{getattr(node, 'name', '')}"))
    return found


@pytest.mark.parametrize("blocks", programs())
def test_every_example_runs_and_prints_what_is_said(blocks: list[Block], tmp_path: Path) -> None:
    (tmp_path / "notes.md").write_text("# Notes\n")
    program = ""
    for block in blocks:
        program += "\n" * (block.line - program.count("\n"))  # each in its own line, as tracebacks tell it
        program += f"{block.code}print({CUT!r})\n"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        capture_output=True,
        text=True,
        check=False,
        timeout=50,
        cwd=tmp_path,
    )
    assert (done.returncode, done.stderr) == (0, "")
    outputs = done.stdout.split(f"{CUT}\n")
    assert outputs.pop() == ""
    for block, output in zip(blocks, outputs, strict=True):
        if block.output is not None:
            assert NAMED_OTHERWISE.sub("…", output) == NAMED_OTHERWISE.sub("…", block.output)


def test_all_that_is_public_is_in_the_reference() -> None:
    pages = "".join(page.read_text() for page in PAGES if page.parent.name == "reference")
    described = re.findall(r"^::: (\S+)$", pages, re.MULTILINE)
    assert len(described) == len(set(described))
    names = {f"{module}.{name}" for module in MODULES for name in importlib.import_module(module).__all__}
    own = {f"daglite.{name}" for name in daglite.__all__ if getattr(daglite, name).__module__ == "daglite"}
    assert set(described) - set(MODULES) == names | own


def test_tables_say_what_the_code_says() -> None:
    spec = importlib.util.spec_from_file_location("tables", ROOT / "scripts" / "tables.py")
    assert spec is not None
    assert spec.loader is not None
    tables = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tables)
    for name, (page, table) in tables.TABLES.items():
        text = (ROOT / "docs" / "reference" / page).read_text()
        assert text == tables.with_table(text, name, table()), f"run scripts/tables.py: {name}"


def test_every_page_can_be_found() -> None:
    listed = re.findall(r": (\S+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE)
    assert sorted(listed) == sorted(str(page.relative_to(ROOT / "docs")) for page in PAGES)


def public() -> list[Any]:
    found = [(daglite, name) for name in daglite.__all__]
    for module in map(importlib.import_module, MODULES):
        found += [(module, name) for name in module.__all__]
    return [pytest.param(getattr(module, name), module, id=f"{module.__name__}.{name}") for module, name in found]


@pytest.mark.parametrize(("thing", "module"), public())
def test_public_names_are_documented_and_say_where_they_are(thing: Any, module: Any) -> None:
    assert thing.__doc__
    if thing is daglite.plugins.hook_impl:
        return  # a mark of pluggy's
    assert thing.__module__ == "daglite" or thing.__module__ in MODULES
    for name, member in vars(thing).items() if isinstance(thing, type) else ():
        if not name.startswith("_") and callable(member):
            assert member.__doc__, name


def test_all_other_modules_are_private() -> None:
    names = [module.name for module in pkgutil.walk_packages(daglite.__path__, "daglite.")]
    assert [name for name in names if not name.split(".")[-1].startswith("_")] == MODULES


def test_importing_daglite_does_not_import_an_event_loop() -> None:
    code = "import sys, daglite; print([name for name in ('asyncio', 'trio', 'logging') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=50)
    assert done.stdout.strip() == "[]"


def test_the_readme_has_its_two_commands() -> None:
    text = (ROOT / "README.md").read_text()
    for name in ("census command", "test command"):
        assert re.search(rf"<!-- {name} -->\n\n```sh\n[^\n]+\n```\n", text), name
