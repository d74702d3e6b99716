"""`limit=`: so many attempts at once, in the order in which they come, in all event loops and threads."""

import copy
import gc
import os
import pickle
import signal
import threading
import time
import weakref
from collections.abc import AsyncIterator, Callable, Generator, Iterator
from typing import Any

import anyio
import pytest
from anyio import get_cancelled_exc_class
from anyio.lowlevel import checkpoint

from daglite import (
    AsyncTask,
    Limit,
    SyncTask,
    gather_tasks,
    map_tasks,
    session,
    task,
)
from daglite.events import TaskStarted, TaskSucceeded, TaskWaiting
from daglite.exceptions import LimitError, TaskError, TaskGroupError, TaskTimeoutError
from daglite.limits import Shared

from .test_events import Recorder
from .test_tree import until


class Holder:
    """Calls of a task that hold on until they are let go."""

    def __init__(self, limit: int | Limit = 1) -> None:
        self.held: list[str] = []
        self.task = task(limit=limit)(self.hold)
        self.let_go: dict[str, anyio.Event] = {}

    async def hold(self, name: str) -> str:
        self.held.append(name)
        self.let_go[name] = anyio.Event()
        await self.let_go[name].wait()
        return name


def limit_of(task: Any) -> Limit:
    assert isinstance(task.limit, Limit)
    return task.limit


async def test_no_more_attempts_run_at_once_than_the_limit_says() -> None:
    now, most = 0, 0

    @task(limit=3)
    async def work(number: int) -> int:
        nonlocal now, most
        now += 1
        most = max(most, now)
        for _ in range(number % 4 + 1):
            await checkpoint()
        now -= 1
        return number

    assert await gather_tasks(work, range(30)) == list(range(30))
    assert most == 3
    assert (work.limit.total_tokens, work.limit.available_tokens, work.limit.tasks_waiting) == (3, 3, 0)  # type: ignore[union-attr]


async def test_a_limit_is_shared_by_all_who_name_it() -> None:
    database = Limit("database", 1)
    holder = Holder(database)

    @task(limit=database)
    async def read() -> str:
        return "read"

    async with anyio.create_task_group() as group:
        group.start_soon(holder.task, "a")
        await until(lambda: holder.held == ["a"])
        assert (database.borrowed_tokens, database.available_tokens) == (1, 0)
        group.start_soon(read)
        await until(lambda: database.tasks_waiting == 1)
        holder.let_go["a"].set()
    assert (database.borrowed_tokens, database.tasks_waiting) == (0, 0)


async def test_a_number_is_for_the_function_and_its_copies() -> None:
    holder = Holder()
    copied, other = holder.task.with_options(retries=1), holder.task.with_options(limit=1)
    assert copied.limit is holder.task.limit
    assert other.limit is not holder.task.limit
    assert holder.task.with_options(limit=None).limit is None
    assert limit_of(holder.task).name == "hold"

    class Shelf:
        @task(limit=2)
        async def count(self) -> int:
            return 1

    assert Shelf().count.limit is Shelf().count.limit is Shelf.count.limit


async def test_who_comes_first_is_first() -> None:
    holder = Holder()
    async with anyio.create_task_group() as group:
        for number, name in enumerate("abcdef"):
            group.start_soon(holder.task, name)
            await until(lambda: len(holder.held) + limit_of(holder.task).tasks_waiting == number + 1)  # noqa: B023
        for name in "abcdef":
            await until(lambda: holder.held[-1] == name)  # noqa: B023
            assert holder.held == list("abcdef"[: len(holder.held)])
            holder.let_go[name].set()


async def test_who_has_just_given_back_a_token_does_not_overtake_who_waits() -> None:
    holder = Holder()

    async def twice() -> None:
        await holder.task("a")
        await holder.task("again")

    async with anyio.create_task_group() as group:
        group.start_soon(twice)
        await until(lambda: holder.held == ["a"])
        group.start_soon(holder.task, "other")
        await until(lambda: limit_of(holder.task).tasks_waiting == 1)
        holder.let_go["a"].set()
        await until(lambda: holder.held == ["a", "other"])
        assert limit_of(holder.task).tasks_waiting == 1
        holder.let_go["other"].set()
        await until(lambda: holder.held[-1] == "again")
        holder.let_go["again"].set()


@pytest.mark.parametrize("how", ["waiting", "granted"])
async def test_who_is_cancelled_while_it_waits_loses_nothing(how: str) -> None:
    holder = Holder()
    scope = anyio.CancelScope()

    async def give_up() -> None:
        with scope:
            await holder.task("cancelled")

    async with anyio.create_task_group() as group:
        group.start_soon(holder.task, "first")
        await until(lambda: holder.held == ["first"])
        group.start_soon(give_up)
        await until(lambda: limit_of(holder.task).tasks_waiting == 1)
        group.start_soon(holder.task, "last")
        await until(lambda: limit_of(holder.task).tasks_waiting == 2)
        if how == "granted":
            holder.let_go["first"].set()
            while limit_of(holder.task).tasks_waiting == 2:  # until it has the token, and has not gone on yet
                await checkpoint()
            scope.cancel()
        else:
            scope.cancel()
            await until(lambda: limit_of(holder.task).tasks_waiting == 1)
            holder.let_go["first"].set()
        await until(lambda: len(holder.held) > 1)
        for event in holder.let_go.values():
            event.set()
        await until(lambda: holder.held[-1] == "last")
        holder.let_go["last"].set()
    assert limit_of(holder.task).borrowed_tokens == 0


async def test_a_token_is_not_held_while_a_call_backs_off_and_not_after_a_failure() -> None:
    tries: list[str] = []

    @task(limit=1, retries=1, retry_delay=30)
    async def fail() -> None:
        tries.append("failed")
        raise ValueError("no")

    async with session() as s:
        s.start_soon(fail)
        await until(lambda: [call.state for call in s.tree()] == ["backing off"])
        assert limit_of(fail).available_tokens == 1
        with pytest.raises(TaskError):
            await fail.with_options(retries=0)()
        assert limit_of(fail).available_tokens == 1
        s.cancel()
    assert len(tries) == 2


async def test_waiting_is_told_and_shown_in_the_tree() -> None:
    database = Limit("database", 1)
    holder = Holder(database)
    async with session() as s, s.events() as events:
        s.start_soon(holder.task, "a")
        await until(lambda: holder.held == ["a"])
        s.start_soon(holder.task.with_options(name="second"), "b")
        await until(lambda: database.tasks_waiting == 1)
        calls = {call.metadata.name: call for call in s.tree()}
        assert (calls["hold"].state, calls["hold"].limit) == ("running", None)
        assert (calls["second"].state, calls["second"].limit) == ("waiting for a limit", "database")
        assert str(calls["second"]).startswith("second: waiting for a limit ('database'), ")
        holder.let_go["a"].set()
        await until(lambda: holder.held == ["a", "b"])
        assert [(call.state, call.limit) for call in s.tree()] == [("running", None)]
        holder.let_go["b"].set()
        told: list[tuple[type, str]] = []
        async for event in events:
            if isinstance(event, (TaskStarted, TaskWaiting, TaskSucceeded)):
                told.append((type(event), event.metadata.name))
            if isinstance(event, TaskWaiting):
                assert event.limit == "database"
            if len(told) == 5:
                break
    assert told == [
        (TaskStarted, "hold"),
        (TaskStarted, "second"),
        (TaskWaiting, "second"),
        (TaskSucceeded, "hold"),
        (TaskSucceeded, "second"),
    ]


@pytest.mark.usefixtures("virtual_clock")
async def test_the_wait_is_outside_of_timeout_and_inside_of_total_timeout() -> None:
    holder = Holder()
    quick = task(limit=limit_of(holder.task), timeout=30)(checkpoint)
    late = quick.with_options(timeout=None, total_timeout=0.05)
    async with anyio.create_task_group() as group:
        group.start_soon(holder.task, "a")
        await until(lambda: holder.held == ["a"])
        with pytest.raises(TaskTimeoutError) as caught:
            await late()
        assert (caught.value.scope, caught.value.attempts) == ("total", 1)
        # Also with no time at all for an attempt that waits.
        group.start_soon(quick.with_options(timeout=0.5))
        await until(lambda: limit_of(holder.task).tasks_waiting == 1)
        await anyio.sleep(0.6)
        holder.let_go["a"].set()
    assert limit_of(holder.task).borrowed_tokens == 0


async def test_a_call_cannot_wait_for_a_limit_that_one_around_it_holds() -> None:
    database = Limit("database", 5)
    tries: list[int] = []

    @task(limit=database, retries=3)
    async def inner() -> None:
        tries.append(1)

    @task
    async def between() -> None:
        await inner()

    @task(limit=database)
    async def outer(call: Callable[[], Any]) -> None:
        with pytest.raises(LimitError) as caught:
            await call()
        assert str(caught.value) == (
            "task 'inner' needs a token of limit 'database', of which task 'outer' around it holds one: "
            "they would wait for each other. Give it a limit of its own"
        )
        assert isinstance(caught.value, RuntimeError)

    async def in_session() -> None:
        async with session():
            await inner()

    async def in_fan_out() -> None:
        with pytest.raises(TaskGroupError) as caught:
            await gather_tasks(lambda_(inner), [1])
        raise caught.value.exceptions[0]

    await outer(inner)
    await outer(in_session)
    await outer(in_fan_out)
    with pytest.raises(TaskError, match="Task 'between' failed after 1 attempt with error: LimitError: task 'inner'"):
        await task(limit=database)(between.func)()
    assert tries == []
    assert database.borrowed_tokens == 0
    # What it does in the background waits for a token, and nobody waits for that.
    async with session() as s:

        @task(limit=database.total_tokens)
        async def start() -> None:
            s.start_soon(inner)

        await start.with_options(limit=database)()
    assert tries == [1]


def lambda_(called: AsyncTask[[], None]) -> Callable[[int], Any]:
    """A function of an argument that calls a task in the same position."""

    async def call(_: int) -> None:
        await called()

    return task(name="call", wrap_errors=False)(call)


async def test_threads_and_event_loops_share_a_limit_and_a_released_token_wakes_who_waits() -> None:
    database = Limit("database", 1)
    entered, leave = threading.Event(), threading.Event()

    @task(limit=database)
    def in_thread() -> str:
        entered.set()
        assert leave.wait(30)
        return "thread"

    @task(limit=database)
    async def in_loop() -> str:
        return "loop"

    def elsewhere() -> None:
        results.append(anyio.run(in_loop))

    results: list[str] = []
    async with anyio.create_task_group() as group:
        group.start_soon(in_thread.to_thread)
        await anyio.to_thread.run_sync(entered.wait)
        other = threading.Thread(target=elsewhere)
        other.start()
        await until(lambda: database.tasks_waiting == 1)
        sync = threading.Thread(target=in_thread)
        sync.start()
        await until(lambda: database.tasks_waiting == 2)
        group.start_soon(in_loop)
        await until(lambda: database.tasks_waiting == 3)
        assert results == []
        leave.set()
    await until(lambda: not (other.is_alive() or sync.is_alive()))
    other.join()
    sync.join()
    assert results == ["loop"]
    assert (database.borrowed_tokens, database.tasks_waiting) == (0, 0)


async def test_a_sync_task_in_place_is_refused_on_a_loops_thread_and_waits_in_others() -> None:
    @task(limit=2)
    def count() -> int:
        return 3

    @task(limit=2)
    def items() -> Iterator[int]:
        yield 3

    message = r"task 'count' would block the event loop when it is waiting for a limit \('count'\); write: await count"
    with pytest.raises(RuntimeError, match=message):
        count()
    with pytest.raises(RuntimeError, match=r"write: async for item in items.to_thread\(...\)"):
        next(items())
    assert await count.to_thread() == 3
    assert await count.run_on("inline") == 3
    assert await anyio.to_thread.run_sync(count) == 3
    assert [item async for item in items.to_thread()] == [3]
    assert await anyio.to_thread.run_sync(lambda: list(items())) == [3]
    for each in (count, items):
        assert limit_of(each).available_tokens == 2


async def test_an_abandoned_attempt_gives_its_token_back_at_its_deadline() -> None:
    leave = threading.Event()
    entered: list[int] = []

    @task(limit=1, timeout=0.1)
    def stuck() -> None:
        entered.append(1)
        leave.wait(30)

    try:
        with pytest.raises(TaskTimeoutError):
            await stuck.to_thread()
        assert limit_of(stuck).available_tokens == 1
        with pytest.raises(TaskTimeoutError):
            await anyio.to_thread.run_sync(stuck)
        assert limit_of(stuck).available_tokens == 1
        assert len(entered) == 2
    finally:
        leave.set()


async def test_what_an_abandoned_thread_holds_is_given_back_then() -> None:
    leave, left = threading.Event(), threading.Event()

    @task(limit=1)
    def inner() -> None:
        try:
            leave.wait(30)
        finally:
            left.set()

    @task(timeout=0.1)
    def outer() -> None:
        inner()

    try:
        with pytest.raises(TaskTimeoutError):
            await outer.to_thread()
        assert limit_of(inner).available_tokens == 1
    finally:
        leave.set()
    assert await anyio.to_thread.run_sync(left.wait, 30)
    assert limit_of(inner).available_tokens == 1


@pytest.mark.parametrize("where", ["loop", "session", "plain"])
@pytest.mark.parametrize("why", ["timeout", "total_timeout"])
async def test_a_wait_in_a_thread_ends_with_the_thread_or_in_time(where: str, why: str) -> None:
    holder = Holder()
    options: dict[str, Any] = {"total_timeout": 0.1} if why == "total_timeout" else {}
    inner: SyncTask[[], None] = task(name="inner", limit=limit_of(holder.task), **options)(lambda: None)

    @task(timeout=None if why == "total_timeout" else 0.1)
    def outer() -> None:
        inner()

    async def wait() -> None:
        with pytest.raises(TaskError) as caught:
            if where == "plain":
                await anyio.to_thread.run_sync(outer)
            elif where == "session":
                async with session():
                    await outer.to_thread()
            else:
                await outer.to_thread()
        root = caught.value.root_cause
        assert isinstance(root, TaskTimeoutError)
        assert root.scope == ("total" if why == "total_timeout" else "attempt")

    async with anyio.create_task_group() as group:
        group.start_soon(holder.task, "a")
        await until(lambda: holder.held == ["a"])
        await wait()
        await until(lambda: limit_of(holder.task).tasks_waiting == 0)
        holder.let_go["a"].set()
    assert limit_of(holder.task).available_tokens == 1


async def test_a_thread_that_waits_lets_others_have_its_place() -> None:
    database = Limit("database", 1)
    entered = threading.Event()

    @task(limit=database)
    def holds() -> str:
        return "held"

    @task
    def waits() -> str:
        entered.set()
        return holds()

    async with session(max_threads=1) as s:
        token = Holder(database)
        s.start_soon(token.task, "a")
        await until(lambda: token.held == ["a"])
        waiting = s.start_soon(waits)
        await until(lambda: entered.is_set() and database.tasks_waiting == 1)
        assert await task(lambda: "another").to_thread() == "another"
        held = s.start_soon(holds)
        await until(lambda: database.tasks_waiting == 2)
        token.let_go["a"].set()
        assert (await waiting, await held) == ("held", "held")


def test_sync_code_waits_too_in_a_session_and_without() -> None:
    @task(limit=2)
    def count(number: int) -> int:
        return number

    assert map_tasks(count, range(20)) == list(range(20))
    with session() as s:
        assert count(3) == 3
        assert map_tasks(count, range(20)) == list(range(20))
        assert s.start_soon(count, 4).result() == 4
    with pytest.raises(RuntimeError, match="would block"):
        anyio.run(in_loop_of, count)


async def in_loop_of(count: SyncTask[[int], int]) -> None:
    count(1)


def test_threads_take_turns_without_an_event_loop() -> None:
    now, most = 0, 0
    lock = threading.Lock()

    @task(limit=2)
    def work() -> None:
        nonlocal now, most
        with lock:
            now += 1
            most = max(most, now)
        threading.Event().wait(0.001)
        with lock:
            now -= 1

    def repeat() -> None:
        for _ in range(10):
            work()

    threads = [threading.Thread(target=repeat) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 2
    assert limit_of(work).available_tokens == 2


async def test_a_thread_whose_caller_is_cancelled_stops_waiting() -> None:
    holder = Holder()
    ended: list[BaseException] = []

    @task
    def waits() -> None:
        try:
            task(limit=limit_of(holder.task))(lambda: None)()
        except BaseException as exc:
            ended.append(exc)
            raise

    async with session() as s:
        s.start_soon(holder.task, "a")
        await until(lambda: holder.held == ["a"])
        with anyio.CancelScope() as scope:
            async with anyio.create_task_group() as group:
                group.start_soon(waits.to_thread)
                await until(lambda: limit_of(holder.task).tasks_waiting == 1)
                scope.cancel()
        assert not any(isinstance(exc, Exception) for exc in ended)
        assert len(ended) == 1
        assert limit_of(holder.task).tasks_waiting == 0
        holder.let_go["a"].set()


def streams_of(limit: Limit) -> dict[str, Callable[[], Any]]:
    """The same stream in all the ways in which one can be awaited."""

    @task(limit=limit)
    async def stepped() -> AsyncIterator[int]:
        for number in range(3):
            await checkpoint()
            yield number

    @task(limit=limit)
    def in_thread() -> Iterator[int]:
        yield from range(3)

    return {
        "stepped": stepped,
        "pumped": stepped.with_options(pump=True),
        "timed": stepped.with_options(item_timeout=30),
        "in a thread": in_thread.to_thread,
        "timed in a thread": in_thread.with_options(item_timeout=30).to_thread,
    }


KINDS = list(streams_of(Limit("kinds", 1)))


@pytest.mark.parametrize("kind", KINDS)
async def test_a_stream_holds_its_token_while_it_is_open(kind: str) -> None:
    database = Limit("database", 1)
    rows = streams_of(database)[kind]
    async with session():
        async with rows() as items:
            assert database.borrowed_tokens == 0  # it has taken no step
            assert await items.__anext__() == 0
            assert database.borrowed_tokens == 1
        assert database.borrowed_tokens == 0
        assert [item async for item in rows()] == [0, 1, 2]
        assert database.borrowed_tokens == 0
        unused = rows()
        await unused.aclose()
        assert database.borrowed_tokens == 0


@pytest.mark.parametrize("kind", KINDS)
async def test_the_first_step_of_a_stream_waits(kind: str) -> None:
    database = Limit("database", 1)
    holder, rows = Holder(database), streams_of(database)[kind]
    got: list[int] = []

    async def consume() -> None:
        async for item in rows():
            got.append(item)

    recorder = Recorder()
    async with session() as s:
        s.watch(recorder)
        s.start_soon(holder.task, "a")
        await until(lambda: holder.held == ["a"])
        async with anyio.create_task_group() as group:
            group.start_soon(consume)
            await until(lambda: database.tasks_waiting == 1)
            assert "waiting for a limit" in [call.state for call in s.tree()]
            assert got == []
            holder.let_go["a"].set()
        assert got == [0, 1, 2]
    assert sum(isinstance(event, TaskWaiting) for event in recorder.events) == 1
    assert database.available_tokens == 1


@pytest.mark.parametrize(
    ("kind", "how"),
    [*((kind, "cancelled") for kind in KINDS), ("pumped", "closed elsewhere"), ("timed", "closed elsewhere")],
)
async def test_a_stream_that_waits_can_be_ended(kind: str, how: str) -> None:
    database = Limit("database", 1)
    holder, rows = Holder(database), streams_of(database)[kind]
    async with session() as s:
        s.start_soon(holder.task, "a")
        await until(lambda: holder.held == ["a"])
        items = rows()
        stopped: list[str] = []

        async def consume() -> None:
            try:
                await items.__anext__()
            except StopAsyncIteration:
                stopped.append("stop")
            except get_cancelled_exc_class():
                stopped.append("cancelled")
                raise

        async with anyio.create_task_group() as group:
            group.start_soon(consume)
            await until(lambda: database.tasks_waiting == 1)
            if how == "cancelled":
                group.cancel_scope.cancel()
            else:
                await items.aclose()
        assert stopped == ["cancelled" if how == "cancelled" else "stop"]
        assert database.tasks_waiting == 0
        with pytest.raises(StopAsyncIteration):
            await items.__anext__()
        holder.let_go["a"].set()
    assert database.available_tokens == 1


@pytest.mark.parametrize("kind", KINDS)
async def test_a_stream_cannot_wait_for_a_limit_that_a_call_around_it_holds(kind: str) -> None:
    database = Limit("database", 2)
    rows = streams_of(database)[kind]

    @task(limit=database)
    async def outer() -> None:
        async with rows() as items:
            with pytest.raises(LimitError, match="of limit 'database', of which task 'outer' around it"):
                await items.__anext__()

    async with session():
        await outer()
    assert database.available_tokens == 2


@pytest.mark.parametrize("kind", KINDS)
async def test_a_call_cannot_wait_for_a_limit_that_an_open_stream_in_its_task_holds(kind: str) -> None:
    database = Limit("database", 2)
    rows = streams_of(database)[kind]

    @task(limit=database)
    async def store(row: int) -> int:
        return row

    async with session():
        async with rows() as items:
            await items.__anext__()
            message = (
                r"task 'store' needs a token of limit 'database', of which stream '\w+', which is open in the same task"
            )
            with pytest.raises(LimitError, match=message):
                await store(1)
            async with rows() as others:
                with pytest.raises(LimitError, match="which is open in the same task"):
                    await others.__anext__()
            async with anyio.create_task_group() as group:  # another task does not wait for this one
                group.start_soon(store, 1)
        assert await store(1) == 1
    assert database.available_tokens == 2


def test_a_call_cannot_wait_for_a_limit_that_an_open_stream_in_its_thread_holds() -> None:
    database = Limit("database", 2)

    @task(limit=database)
    def rows() -> Iterator[int]:
        yield 1

    for stream in (rows, rows.with_options(item_timeout=30)):
        for _ in stream():
            with pytest.raises(LimitError, match="which stream 'rows', which is open in the same task, holds one"):
                list(rows())
        assert database.available_tokens == 2


@pytest.mark.parametrize("kind", ["stepped", "in a thread", "timed in a thread"])
async def test_a_stream_that_is_dropped_outside_of_sessions_gives_its_token_back(kind: str) -> None:
    database = Limit("database", 1)
    items = streams_of(database)[kind]()
    assert await items.__anext__() == 0
    if kind == "stepped":
        await items._steps.generator.aclose()  # else the event loop warns
    del items
    gc.collect()
    assert database.available_tokens == 1


def test_streams_of_sync_code_wait_too() -> None:
    database = Limit("database", 1)

    @task(limit=database)
    def rows() -> Iterator[int]:
        yield from range(3)

    for stream in (rows, rows.with_options(item_timeout=30)):
        with stream() as items:
            assert next(items) == 0
            assert database.borrowed_tokens == 1
            taken: list[list[int]] = []
            thread = threading.Thread(target=lambda: taken.append(list(stream())))  # noqa: B023
            thread.start()
            while not database.tasks_waiting:
                threading.Event().wait(0.001)
            assert not taken
        thread.join()
        assert taken == [[0, 1, 2]]
        assert database.available_tokens == 1


async def test_streams_that_are_collected_wait_in_their_thread() -> None:
    @task(limit=2)
    def rows(number: int) -> Iterator[int]:
        yield from range(number)

    async with session(max_threads=3):
        assert await gather_tasks(rows, range(8)) == [list(range(number)) for number in range(8)]
    message = "its limit cannot be waited for by a generator that is collected in the event loop's own thread"
    with pytest.raises(ValueError, match=message):
        await gather_tasks(rows, [1], backend="inline")


async def test_nested_calls_of_limited_tasks_with_limited_threads_finish() -> None:
    @task(limit=2)
    async def leaf(number: int) -> int:
        await checkpoint()
        return number

    @task(limit=2)
    def middle(number: int) -> int:
        return sum(map_tasks(leaf, range(number))) + leaf.from_thread(1)

    @task(limit=3)
    async def top(number: int) -> int:
        return sum(await gather_tasks(middle, [number] * 3))

    async with session(max_threads=2):
        assert await gather_tasks(top, range(5)) == [3 * (sum(range(number)) + 1) for number in range(5)]


def test_a_limit_is_pickled_as_itself() -> None:
    database = Limit("database", 5)
    for same in (pickle.loads(pickle.dumps(database)), copy.copy(database), copy.deepcopy(database)):
        assert same is database
    assert repr(database) == "Limit(name='database', total_tokens=5)"
    stored = pickle.dumps(database)
    gone = weakref.ref(database)
    del database, same
    gc.collect()
    assert gone() is None
    # As in another process, where it counts there, and once.
    one: Shared = pickle.loads(stored)
    assert isinstance(one, Limit)
    assert (one.name, one.total_tokens) == ("database", 5)
    assert pickle.loads(stored) is one


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_forked_child_has_all_tokens() -> None:
    database = Limit("database", 1)

    @task(limit=database)
    def fork() -> int:
        child = os.fork()
        if not child:
            os._exit(database.available_tokens)
        _, status = os.waitpid(child, 0)
        return os.waitstatus_to_exitcode(status)

    assert fork() == 1
    assert database.available_tokens == 1


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_forked_child_waits_for_nobody_of_its_parent() -> None:
    database = Limit("database", 1)

    @task(limit=database)
    def quick() -> None: ...

    @task(limit=database)
    def rows() -> Iterator[int]:
        yield 1

    def in_child() -> None:
        for _ in range(2):  # the token goes to nobody who waited for it in the parent
            quick()
        database._tokens.enter()
        with pytest.raises(TaskTimeoutError):  # and no stream has it
            quick.with_options(total_timeout=0.01)()

    stream = rows()
    next(stream)
    waiting = threading.Thread(target=quick)
    waiting.start()
    while not database.tasks_waiting:
        time.sleep(0.001)
    child = os.fork()
    if not child:
        signal.alarm(20)
        try:
            in_child()
        except BaseException:
            os._exit(1)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    stream.close()
    waiting.join()
    assert status == 0


async def test_what_is_dropped_half_way_gives_its_token_back() -> None:
    @task(limit=1)
    async def paused() -> None:
        await Pause()

    coroutine = paused()
    coroutine.send(None)
    assert limit_of(paused).borrowed_tokens == 1
    coroutine.close()
    assert limit_of(paused).borrowed_tokens == 0


class Pause:
    """Something to wait for that no event loop knows."""

    def __await__(self) -> Generator[None, None, None]:
        yield


@pytest.mark.parametrize(
    ("limit", "error", "message"),
    [
        (0, ValueError, "task 'fetch': limit must be at least 1, not 0"),
        (-3, ValueError, "task 'fetch': limit must be at least 1, not -3"),
        (True, TypeError, "task 'fetch': limit must be a whole number of attempts at once or a Limit, not True"),
        (1.5, TypeError, "not 1.5"),
        (float("nan"), TypeError, "not nan"),
        ("3", TypeError, "task 'fetch': limit must be a whole number of attempts at once or a Limit, not '3'"),
    ],
)
def test_bad_limits_of_a_task_are_refused(limit: Any, error: type[Exception], message: str) -> None:
    async def fetch() -> None: ...

    with pytest.raises(error) as caught:
        task(limit=limit)(fetch)
    assert message in str(caught.value)
    with pytest.raises(error) as caught:
        task(fetch).with_options(limit=limit)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (("db", 0), ValueError, "Limit 'db': total_tokens must be at least 1, not 0"),
        (("db", -1), ValueError, "Limit 'db': total_tokens must be at least 1, not -1"),
        (("db", True), TypeError, "Limit 'db': total_tokens must be a whole number, not True"),
        (("db", "5"), TypeError, "Limit 'db': total_tokens must be a whole number, not '5'"),
        (("db", float("nan")), TypeError, "not nan"),
        ((5, "db"), TypeError, "Limit: name must be a str, not 5"),
        (("", 5), ValueError, "Limit: name must not be empty"),
    ],
)
def test_bad_limits_are_refused(arguments: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error) as caught:
        Limit(*arguments)
    assert message in str(caught.value)
