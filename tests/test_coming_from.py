"""The programs of the "Coming from" pages: what is written for another library, and for daglite, prints the same."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

PAGES = sorted((Path(__file__).parent.parent / "docs" / "coming-from").glob("*.md"))
PROGRAM = re.compile(r'^```python title="([^"]+)"\n(.*?)^```\n', re.MULTILINE | re.DOTALL)
OUTPUT = re.compile(r"^```text\n(.*?)^```\n", re.MULTILINE | re.DOTALL)


def programs() -> list[Any]:
    found = []
    for page in PAGES:
        text = page.read_text()
        (output,) = OUTPUT.findall(text)
        sides = PROGRAM.findall(text)
        assert len(sides) >= 2, page
        assert sides[-1][0] == "daglite", page
        found += [pytest.param(name, code, output, id=f"{page.stem}: {name}") for name, code in sides]
    return found


@pytest.mark.parametrize(("name", "code", "output"), programs())
def test_both_sides_run_and_print_the_same(name: str, code: str, output: str, tmp_path: Path) -> None:
    python = sys.executable
    if name == "daglite 0.9":  # it has the same name, and so needs an environment of its own
        python = os.environ.get("DAGLITE_09_PYTHON", "")
        if not python:
            pytest.skip("DAGLITE_09_PYTHON names no Python that has daglite 0.9, as .ci/run lets it do")
    done = subprocess.run(
        [python, "-W", "error", "-c", code], capture_output=True, text=True, check=False, timeout=50, cwd=tmp_path
    )
    assert (done.returncode, done.stdout) == (0, output), done.stderr
