"""What needs a package that not everybody has says which."""

import subprocess
import sys

import pytest

import daglite.plugins


@pytest.mark.parametrize(
    ("name", "module", "package", "extra"),
    [
        ("OpenTelemetryPlugin", "opentelemetry", "OpenTelemetry's API", "otel"),
        ("ProgressPlugin", "rich", "Rich", "cli"),
    ],
)
def test_a_plugin_whose_package_is_missing_says_what_to_install(
    name: str, module: str, package: str, extra: str
) -> None:
    program = f"""
import sys
sys.modules[{module!r}] = None
import daglite.plugins
daglite.plugins.RecordPlugin
try:
    daglite.plugins.{name}
except ImportError as exc:
    print(exc)
"""
    command = [sys.executable, "-W", "error", "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=50)
    assert done.stdout == f"daglite.plugins.{name} needs {package}: pip install 'daglite[{extra}]'\n"


def test_other_names_are_not_there() -> None:
    with pytest.raises(AttributeError, match="module 'daglite.plugins' has no attribute 'Nothing'"):
        daglite.plugins.Nothing
