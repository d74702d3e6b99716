"""Log records say which call they were made in, and are events."""

import logging
from collections.abc import Iterator
from typing import Any

import anyio
import pytest

from daglite import gather_tasks, session, task
from daglite.events import Event, LogRecorded
from daglite.plugins import LoggingPlugin

log = logging.getLogger("app.work")


@pytest.fixture(autouse=True)
def _logging(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    factory = logging.getLogRecordFactory()
    with caplog.at_level(logging.DEBUG, "app"):
        yield
    assert logging.getLogRecordFactory() is factory


class Logs:
    """Keeps what is logged."""

    def __init__(self) -> None:
        self.events: list[LogRecorded] = []

    async def consume(self, events: Any) -> None:
        async for event in events:
            if isinstance(event, LogRecorded):
                self.events.append(event)


@task
async def work(number: int) -> None:
    log.info("working on %d", number)


@task
def sync_work(number: int) -> None:
    log.info("working on %d", number)


def marks(caplog: pytest.LogCaptureFixture) -> list[Any]:
    return [(getattr(each, "daglite_task_name", None), each.getMessage()) for each in caplog.records]


async def test_a_record_has_the_name_and_id_of_its_call(caplog: pytest.LogCaptureFixture) -> None:
    logs = Logs()
    async with session(plugins=[LoggingPlugin(), logs]) as s:
        log.warning("before")
        await work(1)
        await sync_work.to_thread(2)
        await gather_tasks(sync_work, [3], backend="inline")
    log.warning("after")
    assert marks(caplog) == [
        ("-", "before"),
        ("work", "working on 1"),
        ("sync_work", "working on 2"),
        ("sync_work[0]", "working on 3"),
        (None, "after"),
    ]
    events = logs.events
    assert [(each.logger, each.level, each.message) for each in events] == [
        ("app.work", logging.WARNING, "before"),
        ("app.work", logging.INFO, "working on 1"),
        ("app.work", logging.INFO, "working on 2"),
        ("app.work", logging.INFO, "working on 3"),
    ]
    assert {each.session_id for each in events} == {s.id}
    assert events[0].metadata is None
    for event, record in zip(events[1:], caplog.records[1:], strict=False):
        assert event.metadata is not None
        assert record.__dict__["daglite_task_id"] == str(event.metadata.id)
        assert event.time == record.created


async def test_an_error_that_is_logged_is_told_of_as_text(caplog: pytest.LogCaptureFixture) -> None:
    logs = Logs()

    @task
    async def clumsy() -> None:
        try:
            raise ValueError("no")
        except ValueError:
            log.exception("it failed")

    async with session(plugins=[LoggingPlugin(), logs]):
        await clumsy()
    (event,) = logs.events
    assert (event.message, event.error) == ("it failed", "ValueError: no")


async def test_records_below_the_level_are_marked_and_not_published(caplog: pytest.LogCaptureFixture) -> None:
    logs = Logs()
    async with session(plugins=[LoggingPlugin(logging.WARNING), logs]):
        await work(1)
    assert marks(caplog) == [("work", "working on 1")]
    assert logs.events == []


async def test_loggers_that_do_not_propagate_and_inner_sessions_are_seen() -> None:
    logs = Logs()
    alone = logging.getLogger("app.alone")
    alone.propagate = False
    alone.addHandler(logging.NullHandler())

    @task
    async def whisper() -> None:
        alone.info("psst")

    async with session(plugins=[LoggingPlugin(), logs]), session(name="inner"):
        await whisper()
    assert [event.message for event in logs.events] == ["psst"]


async def test_other_sessions_are_not_told_of_and_hooks_log_in_peace(caplog: pytest.LogCaptureFixture) -> None:
    logs = Logs()
    ready, done = anyio.Event(), anyio.Event()

    async def other() -> None:
        await ready.wait()
        async with session(plugins=[logs]):
            await work(7)
        done.set()

    async with anyio.create_task_group() as tg:
        tg.start_soon(other)
        async with session(plugins=[LoggingPlugin()]):
            ready.set()
            await done.wait()
    assert logs.events == []
    assert marks(caplog) == [("work", "working on 7")]


async def test_a_record_factory_that_comes_later_stays(caplog: pytest.LogCaptureFixture) -> None:
    before = logging.getLogRecordFactory()
    for _ in range(2):
        async with session(plugins=[LoggingPlugin()]):
            inner = logging.getLogRecordFactory()

            def factory(*args: Any, inner: Any = inner, **kwargs: Any) -> logging.LogRecord:
                record: logging.LogRecord = inner(*args, **kwargs)
                record.extra = 1
                return record

            logging.setLogRecordFactory(factory)
            await work(1)
        await work(2)
        assert logging.getLogRecordFactory() is factory
    logging.setLogRecordFactory(before)
    assert [record.__dict__["extra"] for record in caplog.records] == [1] * 4
    assert [name for name, _ in marks(caplog)] == ["work", None] * 2


async def test_a_message_that_cannot_be_formatted_harms_nobody() -> None:
    logs = Logs()
    logging.getLogger("app.quiet").propagate = False
    async with session(plugins=[LoggingPlugin(), logs]):
        record = logging.getLogRecordFactory()("app.quiet", 10, "x.py", 1, "%d", ("one",), None)
        assert record.__dict__["daglite_task_name"] == "-"
    assert [event.message for event in logs.events] == ["<a message of app.quiet that could not be formatted>"]


async def test_a_record_from_elsewhere_is_not_published() -> None:
    kept: list[Event] = []

    class All:
        async def consume(self, events: Any) -> None:
            kept.extend([event async for event in events])

    async with session(plugins=[LoggingPlugin(), All()]):
        record = logging.makeLogRecord({"msg": "from another process"})
    assert record.__dict__["daglite_task_name"] == "-"
    assert len(kept) == 2


def test_a_level_that_is_no_number_is_refused() -> None:
    with pytest.raises(TypeError, match="level must be a number such as logging.INFO, not 'INFO'"):
        LoggingPlugin("INFO")  # type: ignore[arg-type]
