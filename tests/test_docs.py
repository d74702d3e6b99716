"""Every example in the README and in the docstrings runs, and what is public is what is said to be."""

import ast
import importlib
import inspect
import pkgutil
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import daglite
import daglite.plugins

ROOT = Path(__file__).parent.parent
FENCE = re.compile(r"^( *)```python\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)
MODULES = [
    "daglite.composers",
    "daglite.events",
    "daglite.exceptions",
    "daglite.plugins",
    "daglite.sessions",
    "daglite.settings",
    "daglite.tasks",
]


def snippets() -> list[Any]:
    found = [pytest.param(code, id="README") for _, code in FENCE.findall((ROOT / "README.md").read_text())]
    for path in sorted((ROOT / "daglite").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
                for _, code in FENCE.findall(inspect.cleandoc(ast.get_docstring(node) or "")):
                    found.append(pytest.param(code, id=f"{path.stem}.{node.name}"))
    return found


@pytest.mark.parametrize("code", snippets())
def test_every_snippet_runs(code: str, tmp_path: Path) -> None:
    (tmp_path / "notes.md").write_text("# Notes\n")
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        capture_output=True,
        text=True,
        check=False,
        timeout=50,
        cwd=tmp_path,
    )
    assert (done.returncode, done.stderr) == (0, "")


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
