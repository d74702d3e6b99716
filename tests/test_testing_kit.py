"""`daglite.testing` but for its clock: events, faults and retries without waits."""

import threading
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import anyio
import pytest

from daglite import gather_tasks, session, task
from daglite.events import Event, ItemYielded, SessionEnded, SessionStarted, TaskRetrying, TaskStarted, TaskSucceeded
from daglite.exceptions import TaskError
from daglite.testing import EventRecorder, Faults, VirtualClock, no_waits


@task
async def fetch(number: int = 1) -> int:
    return number


@task
def square(number: int) -> int:
    return number * number


closed: list[str] = []


@task
async def rows(to: int = 3) -> AsyncIterator[int]:
    try:
        for number in range(to):
            yield number
    finally:
        closed.append("rows")


@task
def rows_sync(to: int = 3) -> Iterator[int]:
    try:
        yield from range(to)
    finally:
        closed.append("rows_sync")


class Client:
    @task(retries=1)
    async def get(self, number: int) -> int:
        return number


def kinds(events: Any) -> list[type[Event]]:
    return [type(event) for event in events]


async def test_a_recorder_has_the_events_of_every_session_at_once(recorded_events: EventRecorder) -> None:
    async with session():
        await fetch()
        assert kinds(recorded_events) == [SessionStarted, TaskStarted, TaskSucceeded]
        async with session():
            await fetch()
    async with session():
        pass
    assert kinds(recorded_events) == [
        *(SessionStarted, TaskStarted, TaskSucceeded),
        *(SessionStarted, TaskStarted, TaskSucceeded, SessionEnded),
        *(SessionEnded, SessionStarted, SessionEnded),
    ]
    assert len(recorded_events) == len(recorded_events.events) == 10
    assert kinds(recorded_events.of(TaskStarted)) == [TaskStarted] * 2
    recorded_events.clear()
    assert list(recorded_events) == []


def test_a_recorder_hears_of_threads_and_of_sync_sessions(recorded_events: EventRecorder) -> None:
    with session():
        assert square(3) == 9
        assert fetch.from_thread(4) == 4
    assert [event.metadata.name for event in recorded_events.of(TaskSucceeded)] == ["square", "fetch"]


async def test_a_recorder_hears_nothing_outside_of_its_time() -> None:
    async with session():
        with EventRecorder() as recorder:
            await fetch()  # of a session that was there before
            inner = session()
            await inner.__aenter__()
        await fetch()
        await inner.__aexit__(None, None, None)
    assert kinds(recorder) == []
    with EventRecorder() as recorder:
        outer = session()
        await outer.__aenter__()
    await fetch()
    await outer.__aexit__(None, None, None)
    assert kinds(recorder) == [SessionStarted]


async def test_a_fault_takes_the_place_of_the_function(faults: Faults) -> None:
    error = ConnectionError("refused")
    fault = faults.fail(fetch, error, times=2)
    for _ in range(2):
        with pytest.raises(TaskError, match="refused") as caught:
            await fetch()
        assert caught.value.__cause__ is error
    assert await fetch(3) == 3
    assert fault.hits == 2


async def test_each_attempt_counts_and_a_class_gives_a_new_error_each_time(faults: Faults) -> None:
    fault = faults.fail(fetch, ConnectionError, times=None, after=1)
    patient = fetch.with_options(retries=2)
    assert await patient() == 1
    errors = []
    for _ in range(2):
        with pytest.raises(TaskError) as caught:
            await patient()
        errors.append(caught.value.__cause__)
    assert errors[0] is not errors[1]
    assert fault.hits == 6


async def test_a_fault_is_of_every_task_of_the_function(faults: Faults) -> None:
    client = Client()
    method = client.get  # which is bound before
    fault = faults.fail(Client.get, ConnectionError, times=3)
    assert await gather_tasks(method, [1, 2, 3]) == [1, 2, 3]  # by retries
    assert fault.hits == 3
    faults.fail(client.get, ConnectionError, times=1)
    assert await Client().get(4) == 4
    faults.fail(fetch, ConnectionError, times=None)
    for each in (fetch.partial(3), fetch.with_options(name="other")):
        with pytest.raises(TaskError):
            await each()


@pytest.mark.parametrize("where", ["in place", "thread", "session"])
async def test_sync_tasks_fail_where_they_run(faults: Faults, where: str) -> None:
    faults.fail(square, ZeroDivisionError)

    async def call() -> int:
        return square(3) if where == "in place" else await square.to_thread(3)

    async def calls() -> None:
        with pytest.raises(TaskError, match="ZeroDivisionError"):
            await call()
        assert await call() == 9

    if where == "session":
        async with session():
            await calls()
    else:
        await calls()


@pytest.mark.parametrize("kind", [rows, rows.with_options(pump=True), rows_sync, rows_sync.to_thread])
async def test_a_stream_fails_at_a_step_and_its_generator_is_closed(faults: Faults, kind: Any) -> None:
    closed.clear()
    faults.fail(rows, ConnectionError, after=2)
    faults.fail(rows_sync, ConnectionError, after=2)
    items: list[int] = []
    stream = kind()
    with pytest.raises(TaskError, match="ConnectionError"):
        if kind is rows_sync:
            for item in stream:
                items.append(item)
        async with stream:
            async for item in stream:
                items.append(item)
    assert items == [0, 1]
    assert len(closed) == 1


async def test_a_stream_is_delayed_at_each_step(faults: Faults, virtual_clock: VirtualClock) -> None:
    faults.delay(rows, 60)
    assert [item async for item in rows()] == [0, 1, 2]
    assert virtual_clock.time() == 4 * 60  # the last finds that there are no more
    async with rows.with_options(item_timeout=30)() as stream:
        with pytest.raises(TimeoutError):
            await anext(stream)
    async with rows() as stream:
        assert await stream.asend(None) == 0
        with pytest.raises(KeyError, match="thrown in"):
            await stream.athrow(KeyError("thrown in"))


def test_a_sync_stream_keeps_what_a_generator_can_do(faults: Faults) -> None:
    closed.clear()
    faults.delay(rows_sync, 0.0001)
    with rows_sync() as stream:
        assert next(stream) == 0
        assert stream.send(None) == 1
    assert closed == ["rows_sync"]


async def test_delays_and_failures_of_a_task_happen_one_after_another(
    faults: Faults, virtual_clock: VirtualClock
) -> None:
    faults.delay(fetch, 60)
    faults.delay(fetch, 30, times=1)
    faults.fail(fetch, KeyError)
    faults.fail(fetch, OSError)
    for error in ("KeyError", "OSError"):
        with pytest.raises(TaskError, match=error):
            await fetch()
    assert await fetch() == 1
    assert virtual_clock.time() == 60 * 3 + 30
    with pytest.raises(TimeoutError):
        await fetch.with_options(timeout=59)()


def test_a_sync_function_is_delayed_in_its_thread(faults: Faults) -> None:
    faults.delay(square, 0.02)
    began = time.perf_counter()
    assert square(2) == 4
    assert time.perf_counter() - began > 0.015


async def test_without_faults_tasks_are_what_they_were() -> None:
    func = fetch.func
    with Faults() as faults:
        faults.fail(fetch, ConnectionError, times=None)
        assert fetch.func == func
        with Faults() as others:
            others.fail(square, ConnectionError)
        copy = fetch.with_options(retries=1)
    assert fetch.func is func
    assert await fetch() == await copy() == 1
    assert square(2) == 4
    assert "func" not in vars(type(fetch._spec))


def test_a_fault_that_cannot_be_is_an_error_at_once(faults: Faults) -> None:
    class Demanding(Exception):
        def __init__(self, code: int) -> None:
            super().__init__(code)

    wrong: Any = Faults()
    for where, match in (
        (lambda: faults.fail(fetch, Demanding), "give an exception, and not the class Demanding"),
        (lambda: faults.fail(fetch, wrong), "must be an exception or a class of exceptions"),
        (lambda: faults.fail(len, KeyError), "is no task"),  # type: ignore[arg-type]
        (lambda: faults.fail(fetch, KeyError, times=0), "faults.fail: times must be at least 1"),
        (lambda: faults.fail(fetch, KeyError, after=-1), "faults.fail: after must be at least 0"),
        (lambda: faults.delay(fetch, -1), "faults.delay: seconds must be at least 0"),
        (lambda: wrong.fail(fetch, KeyError), "with Faults() as faults"),
    ):
        with pytest.raises((TypeError, ValueError, RuntimeError)) as caught:
            where()
        assert match in str(caught.value)


async def test_retries_follow_at_once_and_tell_of_their_delays(recorded_events: EventRecorder) -> None:
    attempts: list[int] = []

    @task(retries=3, retry_delay=3600)
    async def flaky() -> int:
        attempts.append(1)
        if len(attempts) < 4:
            raise ConnectionError
        return len(attempts)

    with no_waits():
        async with session():
            assert await flaky() == 4
    assert [event.delay for event in recorded_events.of(TaskRetrying)] == [3600] * 3


def test_retries_follow_at_once_in_threads(no_waits: None) -> None:
    attempts: list[int] = []

    @task(retries=3, retry_delay=3600, total_timeout=1800)
    def flaky() -> int:
        attempts.append(threading.get_ident())
        if len(attempts) % 4:
            raise ConnectionError
        return len(attempts)

    assert flaky() == 4

    async def main() -> None:
        with pytest.raises(RuntimeError, match="to_thread"):
            flaky()  # on an event loop's thread a delay is refused all the same
        attempts.clear()
        assert await flaky.to_thread() == 4

    anyio.run(main)


async def test_a_retry_without_a_wait_can_still_be_cancelled(no_waits: None) -> None:
    @task(retries=1000, retry_delay=3600)
    async def flaky() -> None:
        raise ConnectionError

    async def cancel() -> None:
        group.cancel_scope.cancel()

    async with anyio.create_task_group() as group:
        group.start_soon(cancel)
        await flaky()
    assert group.cancel_scope.cancel_called


async def test_items_that_are_recorded_tell_where_they_are(recorded_events: EventRecorder) -> None:
    async with session():
        assert [item async for item in rows()] == [0, 1, 2]
    assert [event.index for event in recorded_events.of(ItemYielded)] == [0, 1, 2]
