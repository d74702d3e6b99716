"""Both event loops for every async test, and a check that no test leaves anything behind."""

import gc
import os
import signal
import tempfile
from collections.abc import Iterator
from typing import Any

import hypothesis
import pytest

# How long an example takes says more about the machine than about the code.
hypothesis.settings.register_profile("daglite", deadline=None)
hypothesis.settings.load_profile("daglite")

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # As in a job that a shell started in the background: the programs that tests interrupt would
    # inherit it, and never notice.
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="module", params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> Any:
    """The event loop of an async test. Both are named: a missing Trio must not halve the suite."""
    return request.param


def pytest_configure(config: pytest.Config) -> None:
    """Let the programs that tests start share what Python has compiled of the modules that they import."""
    folder = tempfile.TemporaryDirectory(prefix="daglite-tests.")
    config.add_cleanup(folder.cleanup)
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    os.environ["PYTHONPYCACHEPREFIX"] = folder.name


def pytest_collection_finish() -> None:
    keep_what_is_left()


@pytest.fixture(scope="module", autouse=True)
def _modules_stay() -> Iterator[None]:
    yield
    keep_what_is_left()


def keep_what_is_left() -> None:
    """Leave out what is there by now, such as modules: the collection after each test is cheap."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _no_leaks(no_leaks: None) -> None:
    """No test of ours leaves anything behind."""
