"""The fixtures of `daglite.testing`, for pytest.

A module of its own, because pytest imports the plugins of all that is installed: daglite itself is imported by the first test
that asks for one of these.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from daglite.testing import EventRecorder, Faults, VirtualClock
    from daglite.testing._leaks import Leaks

_HAS_PASSED = pytest.StashKey[bool]()


@pytest.fixture
async def virtual_clock() -> AsyncIterator[VirtualClock]:
    """A `daglite.testing.VirtualClock` for the event loop of an async test."""
    from daglite.testing import VirtualClock

    with VirtualClock() as clock:
        yield clock


@pytest.fixture
def recorded_events() -> Iterator[EventRecorder]:
    """A `daglite.testing.EventRecorder` of all sessions that are entered in a test."""
    from daglite.testing import EventRecorder

    with EventRecorder() as recorder:
        yield recorder


@pytest.fixture
def faults() -> Iterator[Faults]:
    """A `daglite.testing.Faults` for the time of a test."""
    from daglite.testing import Faults

    with Faults() as faults:
        yield faults


@pytest.fixture(name="no_waits")
def _no_waits() -> Iterator[None]:
    """Retries without their delays for the time of a test: `daglite.testing.no_waits`."""
    from daglite.testing import no_waits

    with no_waits():
        yield


@pytest.fixture
def no_leaks(_daglite_leaks: Leaks, request: pytest.FixtureRequest) -> None:
    """Fails a test that leaves a thread, a task, a child process or a file descriptor behind.

    Files and streams that were dropped unclosed are collected, and warn: `filterwarnings = error` makes that fail the test as
    well. The idle worker threads of an event loop are no leak, nor is what a test that has failed leaves.
    """
    # A sync test has no event loop: asking for the async fixture by name would give it one.
    if "anyio_backend" in request.fixturenames:
        request.getfixturevalue("_daglite_tasks")


@pytest.fixture
def _daglite_leaks(request: pytest.FixtureRequest) -> Iterator[Leaks]:
    # It is set up before the event loop of an async test, and looks when that is closed again.
    from daglite.testing._leaks import Leaks

    leaks = Leaks()
    yield leaks
    left = leaks.left()
    # The traceback of a failed test keeps its frames alive, and so its files and streams: it has failed already, and what is left
    # of it would only hide why.
    if left and request.node.stash.get(_HAS_PASSED, False):
        pytest.fail("the test left behind: " + ", ".join(left), pytrace=False)


@pytest.fixture
async def _daglite_tasks(_daglite_leaks: Leaks) -> AsyncIterator[None]:
    async for _ in _daglite_leaks.watch_tasks():
        yield


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Any:
    """Note whether a test has passed, for `no_leaks`."""
    report = yield
    if report.when == "call":
        item.stash[_HAS_PASSED] = report.passed
    return report
