"""Every event of a session in a file, as lines of JSON."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator
from io import FileIO
from typing import TYPE_CHECKING, Any

import anyio
import anyio.to_thread

from daglite import _checks
from daglite._json import as_json, fields_of

if TYPE_CHECKING:
    from daglite._bus import Subscription
    from daglite.events import Event

__all__ = ["RecordPlugin", "read_records"]

BATCH = 200  # events that are written at once: as many as take a few milliseconds


class RecordPlugin:
    """Writes every event of a session to a file, as one line of JSON each, so that it can be read after a crash.

    ```python
    import os
    import tempfile
    import anyio
    from daglite import session, task
    from daglite.plugins import RecordPlugin, read_records


    @task
    async def double(number: int) -> int:
        return 2 * number


    async def main(path: str) -> None:
        async with session(plugins=[RecordPlugin(path)]):
            await double(21)


    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "events.jsonl")
        anyio.run(main, path)
        events = [record["event"] for record in read_records(path)]
    assert events == ["SessionStarted", "TaskStarted", "TaskSucceeded", "SessionEnded"]
    ```

    A line has the name of the event's class as `event`, and the fields of the event, among them `metadata`, the call. What JSON has
    no word for is written as its `repr`.

    It writes in a thread, one write for all events that wait, and the calls do not wait for it. A line is handed to the operating system as
    a whole: when the process is killed, lines written before are there. A line that was cut off, by a full disk or a power failure, is
    finished when the file is next opened, and `read_records` passes over it. If the file cannot be written any more, that is logged, and
    no call notices. Several sessions, and several processes, may write to one file.

    Args:
        path: The file. It is created if there is none, and added to if there is.
        inputs: Whether the arguments of calls are written, as the redaction of the settings leaves them.

    Raises:
        TypeError: An argument has the wrong type.
        OSError: The file cannot be opened.
    """

    def __init__(self, path: str | os.PathLike[str], *, inputs: bool = False) -> None:
        if not isinstance(path, (str, os.PathLike)):
            raise TypeError(f"RecordPlugin: path must be a str or a path, not {path!r:.80}")
        self._path = os.path.abspath(path)  # whatever the current folder is when the session begins
        self._inputs = _checks.flag("RecordPlugin: inputs", inputs)
        Lines(self._path).close()

    async def consume(self, events: Subscription) -> None:
        """Write the events of a session, until it has ended."""
        lines = Lines(self._path)
        # Not one of the threads that others wait for, such as those of a web framework.
        limiter = anyio.CapacityLimiter(1)
        try:
            async for first in events:
                batch = [first, *events._taken(BATCH - 1)]
                text = "".join(map(self._line, batch)).encode()
                # A disk may hang: then the session ends all the same, and the thread when it can.
                await anyio.to_thread.run_sync(lines.write, text, abandon_on_cancel=True, limiter=limiter)
        finally:
            lines.close()

    def _line(self, event: Event) -> str:
        return as_json(fields_of(event, inputs=self._inputs)) + "\n"


class Lines:
    """A file that lines are added to.

    Args:
        path: Where it is.

    Raises:
        OSError: It cannot be opened.
    """

    def __init__(self, path: str) -> None:
        self._lock = threading.Lock()
        self._closing = False
        self._file = FileIO(path, "a+")
        try:
            if self._ends_within_a_line():
                self._file.write(b"\n")
        except BaseException:
            self._file.close()
            raise

    def _ends_within_a_line(self) -> bool:
        """Whether the last line was cut off, by a crash."""
        if not self._file.seekable():  # a pipe, say, has no last line
            return False
        size = self._file.seek(0, os.SEEK_END)
        if not size:
            return False
        self._file.seek(size - 1)
        return self._file.read(1) not in (b"\n", b"")

    def write(self, text: bytes) -> None:
        """Write some lines, in whatever thread."""
        left = memoryview(text)
        with self._lock:
            while left and not self._closing:
                left = left[self._file.write(left) :]
        if self._closing:
            self.close()

    def close(self) -> None:
        """Close the file, or let the thread that is writing to it do so."""
        self._closing = True
        if self._lock.acquire(blocking=False):
            try:
                self._file.close()
            finally:
                self._lock.release()


def read_records(path: str | os.PathLike[str]) -> Iterator[dict[str, Any]]:
    """The events that a `RecordPlugin` has written, oldest first: also while it writes, or after a crash.

    Lines that are no records, such as one that was cut off in the middle, are passed over.

    Args:
        path: The file.

    Returns:
        For each event a dictionary, with `event`, the name of its class, and its fields.

    Raises:
        OSError: The file cannot be read.
    """
    with open(path, "rb") as file:
        for line in file:
            try:
                record = json.loads(line)
            except ValueError:
                continue
            if isinstance(record, dict) and "event" in record:
                yield record
