"""Both event loops for every async test, and a check that no test leaves anything behind."""

import gc
import os
import signal
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import hypothesis
import pytest

# How long an example takes says more about the machine than about the code.
hypothesis.settings.register_profile("daglite", deadline=None)
hypothesis.settings.load_profile("daglite")

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # As in a job that a shell started in the background: the programs that tests interrupt would
    # inherit it, and never notice.
    signal.signal(signal.SIGINT, signal.default_int_handler)

PATIENCE = 2.0
"""Seconds in which what a test started must be gone: a thread takes a moment to end."""

_PASSED = pytest.StashKey[bool]()


@pytest.fixture(scope="module", params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> Any:
    """The event loop of an async test. Both are named: a missing Trio must not halve the suite."""
    return request.param


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


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Any:
    report = yield
    if report.when == "call":
        item.stash[_PASSED] = report.passed
    return report


@dataclass
class Leaks:
    """What a test may have left behind: the process as it was, and the tasks that were found."""

    threads: set[threading.Thread] = field(default_factory=lambda: set(threading.enumerate()))
    children: dict[int, str] = field(default_factory=lambda: child_processes())
    descriptors: dict[int, str] = field(default_factory=lambda: open_descriptors())
    tasks: list[str] = field(default_factory=list)

    def found(self) -> list[str]:
        """One line for each thread, child process and file descriptor that was not there before."""
        threads = [
            f"thread {thread.name!r}"
            for thread in threading.enumerate()
            if thread not in self.threads and not is_parked(thread)
        ]
        children = [
            f"child process {pid} ({command})" for pid, command in child_processes().items() if pid not in self.children
        ]
        descriptors = [
            f"file descriptor {number} ({target})"
            for number, target in open_descriptors().items()
            if self.descriptors.get(number) != target
        ]
        return threads + children + descriptors


@pytest.fixture(autouse=True)
def leaks(request: pytest.FixtureRequest) -> Iterator[Leaks]:
    """Fail the test that leaves a thread, a child process, a descriptor, a stream or a task.

    It is set up before the event loop of an async test and looks when that loop is closed again.
    A stream that was dropped unclosed warns when it is collected, and pytest turns the warning
    into an error of the test that is just ending: hence the collection here.
    """
    seen = Leaks()
    yield seen
    gc.collect()
    # The traceback of a failed test keeps its frames alive, and so its files and streams: it has
    # failed already, and what is left of it would only hide why.
    if not request.node.stash.get(_PASSED, False):
        return
    left = wait_until_none(seen.found) + seen.tasks
    if left:
        pytest.fail("the test left behind: " + ", ".join(left), pytrace=False)


@pytest.fixture(autouse=True)
def _task_leaks(leaks: Leaks, request: pytest.FixtureRequest) -> None:
    # A sync test has no event loop: asking for the async fixture by name would give it one.
    if "anyio_backend" in request.fixturenames:
        request.getfixturevalue("_tasks_left")


@pytest.fixture
async def _tasks_left(leaks: Leaks) -> AsyncIterator[None]:
    before = running_tasks()
    yield
    deadline = time.monotonic() + PATIENCE
    # `time` and not the event loop's clock, which a test may have replaced.
    while (left := running_tasks() - before) and time.monotonic() < deadline:
        await anyio.lowlevel.checkpoint()
        time.sleep(0.001)
    leaks.tasks.extend(f"task {task.name!r}" for task in left)


def running_tasks() -> set[anyio.TaskInfo]:
    """The tasks of this event loop, without the one that anyio makes to step a fixture or test."""
    return {
        task
        for task in anyio.get_running_tasks()
        if getattr(task.coro, "__qualname__", "") != "TestRunner._call_in_runner_task"
    }


def is_parked(thread: threading.Thread) -> bool:
    """Whether a worker thread has nothing to do: it is its event loop's to end."""
    if type(thread).__module__.startswith("anyio."):
        work = getattr(thread, "queue", None)
        return work is not None and not work.unfinished_tasks
    # Trio names a thread after its work for as long as it has some.
    return thread.name.startswith("Trio thread ")


def child_processes() -> dict[int, str]:
    """Commands by process id, also of children that have ended and that nobody has waited for."""
    pids: list[str] = []
    for listing in Path("/proc/self/task").glob("*/children"):
        try:
            pids += listing.read_text().split()
        except OSError:  # the thread has just ended
            continue
    return {int(pid): command_of(pid) for pid in pids}


def command_of(pid: str) -> str:
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return "ended"
    return b" ".join(words).decode(errors="replace").strip()[:80] or "ended, not waited for"


def open_descriptors() -> dict[int, str]:
    """What each descriptor of this process points to; empty where there is no /proc."""
    targets: dict[int, str] = {}
    try:
        numbers = os.listdir("/proc/self/fd")
    except OSError:
        return targets
    for number in numbers:
        try:
            targets[int(number)] = os.readlink(f"/proc/self/fd/{number}")
        except OSError:  # the descriptor that listed the directory
            continue
    return targets


def wait_until_none(found: Callable[[], list[str]]) -> list[str]:
    """What is still there after a bounded wait; usually nothing at once."""
    deadline = time.monotonic() + PATIENCE
    while (left := found()) and time.monotonic() < deadline:
        time.sleep(0.005)
    return left
