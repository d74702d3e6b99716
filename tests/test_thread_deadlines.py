"""Threads that have a deadline: released callers, abandoned threads, and how many of them there may be."""

import contextlib
import threading
import time
import warnings
from collections.abc import Iterator
from typing import Any

import anyio
import pytest
from anyio.lowlevel import checkpoint

from daglite import check_cancelled, current_task, gather_tasks, report, session, stream_tasks, task
from daglite.events import TaskCancelled, TaskFailed, TaskReported, TaskRetrying, TaskStarted, TaskSucceeded
from daglite.exceptions import BackendError, TaskError, TaskTimeoutError
from daglite.settings import Settings, set_settings
from tests.test_events import Recorder

SOON = 0.05  # seconds: a deadline that passes while a thread waits for its gate
LONG = 30.0  # seconds: a deadline that never does


class Gate:
    """Holds threads until it is opened, and tells when they have ended."""

    def __init__(self) -> None:
        self.opened = threading.Event()
        self.entered = threading.Semaphore(0)
        self.ended = threading.Semaphore(0)

    def hold(self) -> str:
        self.entered.release()
        try:
            assert self.opened.wait(25)
            return "held"
        finally:
            self.ended.release()


@pytest.fixture
def gate() -> Iterator[Gate]:
    """A gate that is opened when the test has ended: no thread outlives it."""
    gate = Gate()
    yield gate
    gate.opened.set()


async def test_the_caller_is_released_at_the_deadline(gate: Gate) -> None:
    hold = task(name="hold", timeout=SOON)(gate.hold)
    with pytest.raises(TaskTimeoutError) as caught:
        await hold.to_thread()
    assert not gate.opened.is_set()
    error = caught.value
    assert str(error) == "Task 'hold' failed after 1 attempt with error: no result within its timeout of 0.05 s"
    assert (error.scope, error.limit, error.attempts) == ("attempt", SOON, 1)
    assert error.__cause__ is None


async def test_a_result_in_time_is_returned(gate: Gate) -> None:
    gate.opened.set()
    hold = task(timeout=LONG)(gate.hold)
    assert await hold.to_thread() == "held"
    async with session():
        assert await hold.to_thread() == "held"
        assert await gather_tasks(task(timeout=LONG)(lambda _: gate.hold()), range(3)) == ["held"] * 3

    def fail() -> None:
        raise ValueError("no")

    with pytest.raises(TaskError, match="ValueError: no"):
        await task(timeout=LONG)(fail).to_thread()


async def test_a_timed_out_attempt_is_retried_in_another_thread(gate: Gate) -> None:
    threads: list[int] = []

    @task(timeout=SOON, retries=2, retry_on=TimeoutError)
    def hold_twice() -> str:
        threads.append(threading.get_ident())
        return gate.hold() if len(threads) < 3 else "done"

    assert await hold_twice.to_thread() == "done"
    assert len(set(threads)) == 3


async def test_an_outer_deadline_that_is_earlier_is_the_outers_and_abandons_the_thread(gate: Gate) -> None:
    hold = task(timeout=LONG, retries=3)(gate.hold)
    async with session(max_threads=1):
        with anyio.move_on_after(SOON) as scope:
            await hold.to_thread()
        assert scope.cancelled_caught
        with pytest.raises(BackendError):
            await hold.to_thread()
        gate.opened.set()


async def test_the_slot_of_an_abandoned_thread_is_free_at_once(gate: Gate) -> None:
    hold = task(timeout=SOON)(gate.hold)
    quick = task(threading.get_ident)
    async with session(max_threads=2):
        with pytest.raises(TaskTimeoutError):
            await hold.to_thread()
        both = threading.Barrier(2)
        meet = task(lambda _: both.wait(20))
        assert sorted(await gather_tasks(meet, range(2))) == [0, 1]  # two run at once all the same
        assert await quick.to_thread()
        gate.opened.set()


async def test_when_all_threads_are_stuck_another_call_is_refused_and_names_the_tasks(gate: Gate) -> None:
    attempts = 0
    seen = Recorder()

    @task(retries=5)
    def quick() -> None:
        nonlocal attempts
        attempts += 1

    @task
    async def outer() -> None:
        await quick.to_thread()

    async with session(name="small", max_threads=2) as s:
        s.watch(seen.watch)
        for name in ("b", "a"):
            with pytest.raises(TaskTimeoutError):
                await task(name=name, timeout=SOON)(gate.hold).to_thread()
        with pytest.raises(BackendError) as caught:
            await quick.to_thread()
        assert str(caught.value) == (
            "task 'quick' cannot have a thread: 2 of session 'small''s threads are stuck past their deadlines in 'a', 'b'"
        )
        assert type(caught.value) is BackendError
        with pytest.raises(TaskError, match="Task 'outer' failed after 1 attempt with error: BackendError"):
            await outer()
        gate.opened.set()
        for _ in range(2):
            assert await anyio.to_thread.run_sync(gate.ended.acquire, True, 20)
        while True:  # the last steps of the two threads
            with contextlib.suppress(BackendError):
                await quick.to_thread()
                break
            await checkpoint()
    assert attempts == 1
    assert not seen.of(TaskRetrying)


async def test_a_call_that_waits_for_a_thread_is_refused_when_all_get_stuck(gate: Gate) -> None:
    hold = task(name="hold", timeout=0.5)(gate.hold)
    refused: list[BackendError] = []

    async def time_out() -> None:
        with pytest.raises(TaskTimeoutError):
            await hold.to_thread()

    async def wait_for_a_thread() -> None:
        try:
            await task(threading.get_ident).to_thread()
        except BackendError as error:
            refused.append(error)

    async with session(max_threads=1):
        async with anyio.create_task_group() as group:
            group.start_soon(time_out)
            await anyio.to_thread.run_sync(gate.entered.acquire, True, 20)
            group.start_soon(wait_for_a_thread)
        gate.opened.set()
    assert len(refused) == 1


async def test_what_an_abandoned_thread_does_later_is_not_heard_of(gate: Gate) -> None:
    seen = Recorder()
    late: list[Any] = []
    done = threading.Event()

    @task
    def late_call() -> None:
        late.append(current_task())

    @task
    def begun_before() -> None:
        gate.hold()
        report("late", 1)

    @task
    def rows() -> Iterator[int]:
        yield 1
        yield 2

    @task(timeout=SOON)
    def work() -> None:
        stream = rows()
        next(stream)
        begun_before()
        report("late", 2)
        late_call()
        next(stream)
        done.set()

    async with session() as s:
        s.watch(seen.watch)
        with pytest.raises(TaskTimeoutError):
            await work.to_thread()
        gate.opened.set()
        assert await anyio.to_thread.run_sync(done.wait, 20)
    assert len(late) == 1
    assert seen.of(TaskReported) == []
    told = [event for event in seen.told if not event.startswith("ItemYielded")]
    assert told[:3] == ["TaskStarted work", "TaskStarted rows", "TaskStarted begun_before"]
    assert sorted(told[3:5]) == ["TaskCancelled begun_before", "TaskCancelled rows"]
    assert told[5:] == ["TaskFailed work", "SessionEnded"]
    assert len(seen.of(TaskFailed)) == 1
    assert len(seen.of(TaskCancelled)) == 2
    assert seen.of(TaskSucceeded) == []
    assert len(seen.of(TaskStarted)) == 3


async def test_a_call_in_a_given_up_thread_is_not_retried(gate: Gate) -> None:
    attempts = 0
    done = threading.Event()

    @task(retries=5)
    def flaky() -> None:
        nonlocal attempts
        attempts += 1
        gate.hold()
        raise ValueError

    @task(timeout=SOON)
    def work() -> None:
        try:
            flaky()
        finally:
            done.set()

    with pytest.raises(TaskTimeoutError):
        await work.to_thread()
    gate.opened.set()
    assert await anyio.to_thread.run_sync(done.wait, 20)
    assert attempts == 1


@pytest.mark.parametrize("timeout", [SOON, LONG], ids=["deadline", "cancelled"])
async def test_check_cancelled_ends_an_abandoned_thread(timeout: float) -> None:
    ended, started = threading.Event(), threading.Event()

    @task(timeout=timeout)
    def spin() -> None:
        started.set()
        try:
            while True:
                check_cancelled()
                time.sleep(0.001)
        finally:
            ended.set()

    async with session():
        if timeout == SOON:
            with pytest.raises(TaskTimeoutError):
                await spin.to_thread()
        else:
            with anyio.CancelScope() as scope:
                async with anyio.create_task_group() as group:
                    group.start_soon(spin.to_thread)
                    await anyio.to_thread.run_sync(started.wait, 20)
                    scope.cancel()
        assert await anyio.to_thread.run_sync(ended.wait, 20)


async def test_check_cancelled_ends_a_thread_that_is_waited_for() -> None:
    started = threading.Event()

    @task(retries=3)
    def spin() -> None:
        started.set()
        while True:
            check_cancelled()
            time.sleep(0.001)

    with anyio.CancelScope() as scope:
        async with anyio.create_task_group() as group:
            group.start_soon(spin.to_thread)
            await anyio.to_thread.run_sync(started.wait, 20)
            scope.cancel()
    assert scope.cancelled_caught


async def test_check_cancelled_ends_the_step_of_a_stream_in_a_thread() -> None:
    started = threading.Event()
    closed: list[bool] = []
    seen = Recorder()

    @task
    def spin() -> Iterator[int]:
        try:
            yield 1
            started.set()
            while True:
                check_cancelled()
                time.sleep(0.001)
        finally:
            closed.append(True)

    async def read() -> None:
        async for _ in spin.to_thread():
            pass

    async with session() as s:
        s.watch(seen.watch)
        with anyio.CancelScope() as scope:
            async with anyio.create_task_group() as group:
                group.start_soon(read)
                await anyio.to_thread.run_sync(started.wait, 20)
                scope.cancel()
        assert scope.cancelled_caught
    assert closed == [True]
    assert seen.told == ["TaskStarted spin", "ItemYielded spin", "TaskCancelled spin", "SessionEnded"]


async def test_check_cancelled_does_nothing_where_nobody_was_cancelled() -> None:
    check_cancelled()
    task(check_cancelled)()
    await task(check_cancelled).to_thread()
    await anyio.to_thread.run_sync(check_cancelled)


async def test_a_session_warns_of_threads_that_outlive_it(gate: Gate) -> None:
    hold = task(name="hold", timeout=SOON)(gate.hold)
    with pytest.warns(ResourceWarning, match="session 'brief' has ended while threads of it still run.*in 'hold'"):
        async with session(name="brief", grace=0.01):
            with pytest.raises(TaskTimeoutError):
                await hold.to_thread()


async def test_a_session_waits_within_grace_for_abandoned_threads(gate: Gate) -> None:
    hold = task(timeout=SOON)(gate.hold)

    async def open_gate() -> None:
        await anyio.wait_all_tasks_blocked()
        gate.opened.set()

    with warnings.catch_warnings(record=True) as caught:
        async with anyio.create_task_group() as group:
            async with session(grace=20):
                with pytest.raises(TaskTimeoutError):
                    await hold.to_thread()
                group.start_soon(open_gate)
    assert caught == []


async def test_a_task_with_a_timeout_is_not_called_in_place_on_an_event_loop(gate: Gate) -> None:
    hold = task(name="hold {map_index}", timeout=3)(gate.hold)
    seen = Recorder()
    async with session() as s:
        s.watch(seen.watch)
        with pytest.raises(RuntimeError) as caught:
            hold()
    assert str(caught.value) == (
        "task 'hold {map_index}' would block the event loop for its timeout of 3 s; write: await hold.to_thread(...)"
    )
    assert seen.told == ["SessionEnded"]


def test_in_place_in_a_plain_thread_the_deadline_holds(gate: Gate) -> None:
    hold = task(name="hold", timeout=SOON)(gate.hold)
    with pytest.raises(TaskTimeoutError, match="'hold' failed after 1 attempt"):
        hold()
    gate.opened.set()
    assert hold.with_options(timeout=LONG)() == "held"

    def fail() -> None:
        raise ValueError("no")

    with pytest.raises(TaskError, match="ValueError: no"):
        task(timeout=LONG)(fail)()


def test_threads_of_calls_in_place_are_bounded_for_the_process(gate: Gate, monkeypatch: pytest.MonkeyPatch) -> None:
    from daglite import _bridge
    from daglite._threads import Stuck

    monkeypatch.setattr(_bridge, "_stuck", Stuck("this process' threads"))  # without those of other tests
    hold = task(name="hold", timeout=SOON)(gate.hold)
    set_settings(Settings(max_threads=2))
    try:
        for _ in range(2):
            with pytest.raises(TaskTimeoutError):
                hold()
        with pytest.raises(BackendError, match="2 of this process' threads are stuck past their deadlines in 'hold'"):
            hold()
    finally:
        set_settings(None)


async def test_threads_of_calls_in_place_in_a_session_are_the_sessions(gate: Gate) -> None:
    hold = task(name="hold", timeout=SOON)(gate.hold)

    @task
    def outer() -> list[type[Exception]]:
        errors: list[type[Exception]] = []
        for _ in range(2):
            try:
                hold()
            except (TaskTimeoutError, BackendError) as error:
                errors.append(type(error))
        return errors

    with pytest.warns(ResourceWarning, match="threads of it still run, past their deadlines: in 'hold'"):
        async with session(max_threads=1, grace=0.01) as s:
            assert await outer.to_thread() == [TaskTimeoutError, BackendError]
            assert "hold: stuck in an abandoned thread" in str(s.tree())


async def test_run_on_and_the_backend_of_fan_outs() -> None:
    here = threading.get_ident()

    @task
    def where(_: int = 0) -> tuple[int, str]:
        metadata = current_task()
        assert metadata is not None
        return threading.get_ident(), metadata.backend

    assert await where.run_on("inline") == (here, "inline")
    thread, backend = await where.run_on("thread", 1)
    assert (thread != here, backend) == (True, "thread")
    assert await gather_tasks(where, [1, 2], backend="inline") == [(here, "inline")] * 2
    assert await gather_tasks(where.with_options(backend="inline"), [1]) == [(here, "inline")]
    assert (await gather_tasks(where.with_options(backend="inline"), [1], backend="thread"))[0][1] == "thread"
    async with stream_tasks(where, [1], backend="inline") as results:
        assert [result async for result in results] == [(here, "inline")]
    async with session(backend="inline") as s:
        assert await gather_tasks(where, [1]) == [(here, "inline")]
        assert await s.start_soon(where) == (here, "inline")
        async with session():
            assert await gather_tasks(where, [1]) == [(here, "inline")]
        assert (await where.to_thread())[1] == "thread"

    @task
    def rows(_: int) -> Iterator[int]:
        yield threading.get_ident()

    assert await gather_tasks(rows, [1], backend="inline") == [[here]]
    assert await gather_tasks(rows, [1]) != [[here]]


async def test_backends_that_are_none_or_do_not_fit_are_refused() -> None:
    async def coroutine_function(_: int) -> None: ...

    quick = task(name="quick")(lambda _: None)
    timed = task(name="timed", timeout=3)(lambda _: None)
    unknown = "there is no backend 'process'; there are 'inline', 'thread'"
    with pytest.raises(ValueError, match=f"task 'quick': {unknown}"):
        await quick.run_on("process", 1)
    with pytest.raises(TypeError, match="task 'quick': backend must be a str, not 3"):
        await quick.run_on(3, 1)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=f"task 'quick': {unknown}"):
        await gather_tasks(quick, [1], backend="process")
    with pytest.raises(ValueError, match=unknown):
        quick.with_options(backend="process")
    with pytest.raises(TypeError, match="backend must be a str, not True"):
        task(backend=True)(print)  # type: ignore[call-overload]
    with pytest.raises(ValueError, match="'coroutine_function': backend='thread' is for sync functions"):
        task(backend="thread")(coroutine_function)
    with pytest.raises(ValueError, match="of task 'coroutine_function': backend='thread' is for sync functions"):
        await gather_tasks(coroutine_function, [1], backend="thread")
    with pytest.raises(ValueError, match="'timed': timeout=3.0 cannot be enforced on the backend 'inline'"):
        timed.with_options(backend="inline")
    with pytest.raises(
        ValueError, match="task 'timed': its timeout of 3 s cannot end a function that runs in the event"
    ):
        await timed.run_on("inline", 1)
    async with session(backend="inline") as s:
        with pytest.raises(ValueError, match="its timeout of 3 s cannot end"):
            await gather_tasks(timed, [1])
        with pytest.raises(ValueError, match="its timeout of 3 s cannot end"):
            s.start_soon(timed, 1)


async def test_a_fan_out_of_threads_past_their_deadlines_ends(gate: Gate) -> None:
    hold = task(name="hold", timeout=SOON)(lambda _: gate.hold())
    async with session(max_threads=3):
        outcomes = await gather_tasks(hold, range(6), limit=1, errors="collect")
        gate.opened.set()
    kinds = [type(outcome.error) for outcome in outcomes]
    assert kinds == [TaskTimeoutError] * 3 + [BackendError] * 3


async def test_a_thread_that_notices_its_deadline_first_has_timed_out_all_the_same() -> None:
    """Others keep the event loop busy just when the time is up, and the thread asks whether it is."""
    attempts = 0

    @task(timeout=SOON)
    def ask() -> None:
        while True:
            check_cancelled()
            time.sleep(0.0002)

    async def block(seconds: float) -> None:
        await anyio.sleep(seconds)
        time.sleep(0.003)

    for _ in range(10):
        async with anyio.create_task_group() as group:
            for number in range(12):
                group.start_soon(block, SOON + number * 0.0002)
            with pytest.raises(TaskTimeoutError):
                await ask.to_thread()
            attempts += 1
    assert attempts == 10
