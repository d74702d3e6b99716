"""What a test may leave behind: threads, tasks, child processes, files and streams."""

from __future__ import annotations

import gc
import os
import threading
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path

import anyio
import anyio.lowlevel

__all__ = ["Leaks"]

PATIENCE = 2.0
"""Real seconds in which what a test started must be gone: a thread takes a moment to end."""


@dataclass
class Leaks:
    """What a test may have left behind: the process as it was, and the tasks that were found."""

    threads: set[threading.Thread] = field(default_factory=lambda: working_threads())
    children: dict[int, str] = field(default_factory=lambda: child_processes())
    descriptors: dict[int, str] = field(default_factory=lambda: open_descriptors())
    tasks: list[str] = field(default_factory=list)

    def found(self) -> list[str]:
        """One line for each thread, child process and file descriptor that was not there before."""
        threads = [f"thread {thread.name!r}" for thread in working_threads() - self.threads]
        children = [
            f"child process {pid} ({command})" for pid, command in child_processes().items() if pid not in self.children
        ]
        descriptors = [
            f"file descriptor {number} ({target})"
            for number, target in open_descriptors().items()
            if self.descriptors.get(number) != target
        ]
        return threads + children + descriptors

    def left(self) -> list[str]:
        """What is still there after a bounded wait; usually nothing at once.

        A stream that was dropped unclosed warns when it is collected: hence the collection here.
        """
        gc.collect()
        return wait_until_none(self.found) + self.tasks

    async def watch_tasks(self) -> AsyncIterator[None]:
        """Note the tasks that are there when it is stepped again, and were not when it was stepped first."""
        before = running_tasks()
        yield
        deadline = time.monotonic() + PATIENCE
        # `time` and not the event loop's clock, which a test may have replaced.
        while (left := running_tasks() - before) and time.monotonic() < deadline:
            await anyio.lowlevel.checkpoint()
            time.sleep(0.001)  # noqa: ASYNC251 -- nobody else is to run but what is about to end
        self.tasks.extend(f"task {task.name!r}" for task in left)


def running_tasks() -> set[anyio.TaskInfo]:
    """The tasks of this event loop, without the one that anyio makes to step a fixture or test."""
    return {
        task
        for task in anyio.get_running_tasks()
        if getattr(task.coro, "__qualname__", "") != "TestRunner._call_in_runner_task"
    }


def working_threads() -> set[threading.Thread]:
    """The threads that have something to do; Trio gives an idle one to whoever needs one next."""
    return {thread for thread in threading.enumerate() if not is_parked(thread)}


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
