"""Every event of a session in a file, which can be read after a crash."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from daglite import gather_tasks, report, save_dataset, session, task
from daglite.events import Event, TaskEvent
from daglite.exceptions import TaskError
from daglite.plugins import LoggingPlugin, RecordPlugin, read_records
from daglite.testing import EventRecorder


@task
async def double(number: int) -> int:
    return 2 * number


class Mute:
    def __repr__(self) -> str:
        raise RuntimeError


def kinds(path: Path) -> list[str]:
    return [record["event"] for record in read_records(path)]


async def test_every_event_is_a_line(tmp_path: Path, recorded_events: EventRecorder) -> None:
    @task(retries=1, cache=True)
    async def fail(number: int) -> None:
        report("progress", {"done": 1})
        save_dataset("a.json", [number])
        raise ValueError("wrong")

    @task
    async def rows() -> AsyncIterator[int]:
        yield 1

    path = tmp_path / "events.jsonl"
    async with session(
        plugins=[RecordPlugin(path), LoggingPlugin()], cache_store="memory://recorded", dataset_store=tmp_path
    ):
        await gather_tasks(double, [1, 2])
        async for _ in rows():
            pass
        with pytest.raises(TaskError):
            await fail(3)
    records = [json.loads(line) for line in path.read_text().splitlines()]
    assert list(read_records(path)) == records
    # All of them, in the order in which they were published.
    assert [record["event"] for record in records] == [type(event).__name__ for event in recorded_events.events]
    for record, event in zip(records, recorded_events.events, strict=True):
        assert list(record) == ["event", *(each.name for each in fields(event))]
        assert (record["session_id"], record["time"]) == (str(event.session_id), event.time)
        if isinstance(event, TaskEvent):
            assert record["metadata"]["id"] == str(event.metadata.id)
            assert record["metadata"]["name"] == event.metadata.name
            assert "inputs" not in record["metadata"]
    [reported, *_] = [record for record in records if record["event"] == "TaskReported"]
    assert reported["data"] == {"done": 1}


async def test_what_json_has_no_word_for_is_text(tmp_path: Path) -> None:
    @task
    async def tell(*values: Any) -> None:
        report("values", {"nan": float("nan"), "bytes": b"\xff", 3: {4}, "mute": Mute(), "text": "\ud800\n"})

    path = tmp_path / "events.jsonl"
    async with session(plugins=[RecordPlugin(path, inputs=True)]):
        await tell({1}, "a")
    records = list(read_records(path))
    [data] = [record["data"] for record in records if record["event"] == "TaskReported"]
    assert data == {"nan": "nan", "bytes": "b'\\xff'", "3": "{4}", "mute": "<Mute>", "text": "\ud800\n"}
    assert {str(record["metadata"]["inputs"]) for record in records if "metadata" in record} == {
        "{'values': \"({1}, 'a')\"}"
    }


def test_a_line_that_was_cut_off_is_passed_over_and_finished(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    with session(plugins=[RecordPlugin(path)]):
        double.from_thread(1)
    whole = kinds(path)
    assert whole == ["SessionStarted", "TaskStarted", "TaskSucceeded", "SessionEnded"]
    os.truncate(path, path.stat().st_size - 20)
    assert kinds(path) == whole[:-1]
    with session(plugins=[RecordPlugin(path)]):
        pass
    assert kinds(path) == [*whole[:-1], "SessionStarted", "SessionEnded"]
    path.write_bytes(b'\xff\n[1]\n{"a": 1}\nnull\n' + path.read_bytes())
    assert kinds(path) == [*whole[:-1], "SessionStarted", "SessionEnded"]


def test_what_was_written_is_there_after_a_kill(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    program = f"""
import os, signal
import anyio
from daglite import session, task
from daglite.plugins import RecordPlugin, read_records

@task
async def work(number):
    pass

async def main():
    async with session(plugins=[RecordPlugin({str(path)!r})]):
        for number in range(1000):
            await work(number)
        while sum(1 for _ in read_records({str(path)!r})) < 2001:
            await anyio.sleep(0)
        os.kill(os.getpid(), signal.SIGKILL)

anyio.run(main)
"""
    done = subprocess.run([sys.executable, "-c", program], timeout=50, check=False)
    assert done.returncode == -signal.SIGKILL
    assert kinds(path) == ["SessionStarted", *["TaskStarted", "TaskSucceeded"] * 1000]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no device that is always full")
async def test_a_full_disk_harms_no_call(caplog: pytest.LogCaptureFixture) -> None:
    async with session(plugins=[RecordPlugin("/dev/full")]) as s:
        assert await gather_tasks(double, range(50)) == [2 * number for number in range(50)]
    assert s.stats().succeeded == 50
    assert "plugin RecordPlugin failed to watch it" in caplog.text
    assert "No space left on device" in caplog.text


async def test_a_disk_that_hangs_does_not_keep_the_session(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)  # which takes 64 KiB, until somebody reads it
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        async with session(plugins=[RecordPlugin(path)], grace=0.2) as s:
            assert await gather_tasks(double, range(1000))
        assert s.stats().succeeded == 1000
        assert "plugin RecordPlugin had not seen all events after 0.2 s" in caplog.text
        while True:  # the thread goes on now, and closes the file
            try:
                if not os.read(reader, 1 << 16):
                    break
            except BlockingIOError:
                pass
    finally:
        os.close(reader)


async def test_sessions_may_share_a_file(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    plugin = RecordPlugin(path)
    async with session(plugins=[plugin]):
        async with session(plugins=[plugin]):  # it is the same plugin: it hears of each call once
            await double(1)
    async with session(plugins=[RecordPlugin(path)]):
        await double(1)
    assert len(kinds(path)) == 6 + 4


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ((3,), TypeError, "RecordPlugin: path must be a str or a path, not 3"),
        (("/nowhere/events.jsonl",), FileNotFoundError, "No such file"),
        (("/",), IsADirectoryError, "Is a directory"),
    ],
)
def test_what_cannot_be_written_is_refused_at_once(arguments: Any, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        RecordPlugin(*arguments)
    with pytest.raises(TypeError, match="RecordPlugin: inputs must be"):
        RecordPlugin("x", inputs="yes")  # type: ignore[arg-type]


def test_all_events_can_be_written() -> None:
    from daglite import events
    from daglite._json import as_json, fields_of

    for name in events.__all__:
        kind = getattr(events, name)
        event: Event = kind(*[None] * len(fields(kind)))
        assert json.loads(as_json(fields_of(event, inputs=True)))["event"] == name
