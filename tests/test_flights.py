"""Single-flight: calls with one key in one event loop compute once, and none of them is lost, or waits for itself."""

import gc
import logging
import os
import threading
import traceback
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import anyio
import pytest
from anyio.lowlevel import checkpoint

from daglite import Limit, _circles, _flights, current_task, gather_tasks, session, task
from daglite._call import Call
from daglite._context import OUTSIDE
from daglite.cache import FileCacheStore, MemoryCacheStore, refresh_cache
from daglite.events import CacheHit, CacheMissed, TaskEvent, TaskFailed, TaskStarted
from daglite.exceptions import BackendError, LimitError, TaskError, TaskTimeoutError
from daglite.plugins import hook_impl
from daglite.testing import EventRecorder, VirtualClock

from .test_cache import Shelf, fresh
from .test_tree import until

FOLLOWING = "following another's computation"


class Slow:
    """A task that computes until it is let go, and counts how often it does."""

    def __init__(self, store: Any = None, **options: Any) -> None:
        self.runs = 0
        self.let_go = anyio.Event()
        self.results: dict[int, Any] = {}
        self.error: Exception | None = None
        self.task = task(cache=store or MemoryCacheStore(), version=1, **options)(self.compute)

    def __cache_key__(self) -> None: ...

    async def compute(self, number: int) -> list[int]:
        self.runs += 1
        await self.let_go.wait()
        if self.error is not None:
            raise self.error
        return [number]

    async def call(self, who: int, number: int = 1) -> None:
        try:
            self.results[who] = await self.task(number)
        except Exception as exc:
            self.results[who] = exc

    def start(self, group: Any, who: int) -> anyio.CancelScope:
        """Call it in a task of its own, which the scope cancels."""
        scope = anyio.CancelScope()

        async def call() -> None:
            with scope:
                await self.call(who)

        group.start_soon(call)
        return scope


async def settle() -> None:
    for _ in range(10):
        await checkpoint()


@pytest.fixture(autouse=True)
def _nothing_is_left() -> Iterator[None]:
    yield
    assert not _flights._running
    assert not _circles._of_tasks


@pytest.fixture(params=["memory", "blocking"])
def store(request: pytest.FixtureRequest) -> Any:
    return MemoryCacheStore() if request.param == "memory" else Shelf()


async def following(s: Any, count: int) -> None:
    await until(lambda: [call.state for call in s.tree()].count(FOLLOWING) == count)


async def test_concurrent_calls_compute_once(store: Any, recorded_events: EventRecorder) -> None:
    slow = Slow(store)
    async with session() as s:
        async with anyio.create_task_group() as group:
            for who in range(4):
                group.start_soon(slow.call, who)
            await following(s, 3)
            assert s.stats().running == 4
            slow.let_go.set()
        assert slow.runs == 1
        assert slow.results == {who: [1] for who in range(4)}
        assert len({id(result) for result in slow.results.values()}) == 4
        assert await slow.task(1) == [1]
        assert s.stats().started == 1
    hits = recorded_events.of(CacheHit)
    assert [hit.shared for hit in hits] == [True, True, True, False]
    assert len(recorded_events.of(CacheMissed)) == len(recorded_events.of(TaskStarted)) == 1


async def test_a_fan_out_over_equal_items_computes_each_once() -> None:
    slow = Slow()
    slow.let_go.set()
    assert await gather_tasks(slow.task, [1, 2, 1, 2, 1]) == [[1], [2], [1], [2], [1]]
    assert slow.runs == 2


async def test_calls_through_threads_share_a_computation_and_calls_in_place_do_not() -> None:
    runs, gate = [], threading.Event()

    @task(cache=fresh(), version=1)
    def work(number: int) -> int:
        runs.append(number)
        assert gate.wait(30)
        return number

    async with anyio.create_task_group() as group:
        for _ in range(3):
            group.start_soon(work.to_thread, 1)
        await until(lambda: runs == [1])
        await settle()
        group.start_soon(anyio.to_thread.run_sync, work, 1)
        await until(lambda: runs == [1, 1])
        gate.set()
    assert runs == [1, 1]


async def test_a_value_that_does_not_pickle_is_shared_as_it_is() -> None:
    let_go, results = anyio.Event(), []

    @task(cache=fresh(), version=1)
    async def work() -> Callable[[], int]:
        await let_go.wait()
        return lambda: 1

    async def call() -> None:
        results.append(await work())

    async with anyio.create_task_group() as group:
        for _ in range(3):
            group.start_soon(call)
        await settle()
        let_go.set()
    assert len({id(result) for result in results}) == 1


async def test_a_value_that_pickles_and_does_not_load_is_shared_as_it_is() -> None:
    let_go, results = anyio.Event(), []

    class Odd:
        def __reduce__(self) -> Any:
            return int, ("no number",)

    @task(cache=fresh(), version=1)
    async def work() -> Any:
        await let_go.wait()
        return Odd()

    async def call() -> None:
        results.append(await work())

    async with anyio.create_task_group() as group:
        for _ in range(2):
            group.start_soon(call)
        await settle()
        let_go.set()
    assert len({id(result) for result in results}) == 1


async def test_followers_have_the_value_before_it_is_kept_and_before_the_leader_may_change_it() -> None:
    shelf = Shelf()
    slow = Slow(shelf)
    results: list[list[int]] = []

    async def call() -> None:
        results.append(await slow.task(1))
        results[-1].append(0)

    async with session() as s:
        async with anyio.create_task_group() as group:
            group.start_soon(call)
            group.start_soon(call)
            await following(s, 1)
            shelf.gate = threading.Event()
            slow.let_go.set()
            await until(lambda: len(results) == 1)
            await until(lambda: shelf.told[-1] == "put")
            assert [each.state for each in s.tree()] == ["keeping its result"]
            shelf.told.clear()
            gate, shelf.gate = shelf.gate, None
            group.start_soon(call)  # it finds nothing in the store, and the result with those who keep it
            await until(lambda: len(results) == 2)
            assert shelf.told == ["get"]
            gate.set()
    assert results == [[1, 0]] * 3
    assert slow.runs == 1


# Three waiters.


@pytest.mark.parametrize("cancelled", [[0], [1], [0, 1], [0, 2], [1, 2], [0, 1, 2]])
async def test_who_is_cancelled_leaves_the_others_their_result(
    cancelled: list[int], store: Any, recorded_events: EventRecorder
) -> None:
    """Three wait for one key, of whom the first leads."""
    slow = Slow(store)
    async with session() as s:
        async with anyio.create_task_group() as group:
            scopes = []
            for who in range(3):
                scopes.append(slow.start(group, who))
                await until(lambda who=who: len([*s.tree()]) == who + 1 and not _looking(s))  # type: ignore[misc]
            for who in cancelled:
                scopes[who].cancel()
                await settle()
            slow.let_go.set()
        left = [who for who in range(3) if who not in cancelled]
        assert slow.results == {who: [1] for who in left}
        leaders = 1
        for who in cancelled:  # each time that the one who leads is cancelled another does
            leaders += who == leaders - 1 and any(other not in cancelled or other > who for other in range(leaders, 3))
        assert slow.runs == leaders
        assert s.stats().running == 0
        assert s.stats().cancelled == len(cancelled)
        if not left:
            slow.let_go = anyio.Event()
            slow.let_go.set()
            assert await slow.task(1) == [1]  # nothing ran on, and nothing was kept
            assert slow.runs == leaders + 1
    started = [event.metadata.id for event in recorded_events.of(TaskStarted)]
    assert len(started) == len(set(started))


def _looking(s: Any) -> bool:
    return any(call.state == "looking in its cache" for call in s.tree())


async def test_a_flight_that_was_handed_over_is_followed_by_others() -> None:
    slow = Slow()
    async with session() as s:
        async with anyio.create_task_group() as group:
            first = slow.start(group, 0)
            await until(lambda: slow.runs == 1)
            slow.start(group, 1)
            await following(s, 1)
            first.cancel()
            await until(lambda: slow.runs == 2)
            slow.start(group, 2)
            await following(s, 1)
            slow.let_go.set()
    assert slow.results == {1: [1], 2: [1]}
    assert slow.runs == 2


def test_who_was_evicted_is_not_given_the_lead() -> None:
    async def main() -> None:
        leader, one, other = (Call(task(lambda: None)._spec, (), {}, OUTSIDE) for _ in range(3))
        flight = _flights.Flight(("here", "key"), None, leader)
        followers = [_flights.Follower.of(call) for call in (one, other)]
        for follower in followers:
            flight.join(follower)
        flight.evict(one)
        flight.pass_on()
        assert flight.leader is other
        assert [(each.is_evicted, each.is_admitted) for each in followers] == [(True, False), (False, True)]

    anyio.run(main)


async def test_a_follower_that_is_given_the_lead_and_cancelled_in_the_same_moment_passes_it_on() -> None:
    slow = Slow()
    async with anyio.create_task_group() as group:
        scopes = []
        for who in range(4):
            scopes.append(slow.start(group, who))
            await settle()
        for scope in scopes[:3]:
            scope.cancel()
        await settle()
        slow.let_go.set()
    assert slow.results == {3: [1]}


async def test_when_all_are_cancelled_in_the_same_moment_the_next_call_computes() -> None:
    slow = Slow()
    async with anyio.create_task_group() as group:
        scopes = []
        for who in range(3):
            scopes.append(slow.start(group, who))
            await settle()
        for scope in scopes:
            scope.cancel()
    assert slow.results == {}
    slow.let_go.set()
    with anyio.fail_after(30):
        assert await slow.task(1) == [1]
    assert slow.runs == 2


# A leader that fails.


@pytest.mark.parametrize("wrap", [True, False])
async def test_a_failure_is_that_of_all_who_wait(
    wrap: bool, store: Any, recorded_events: EventRecorder, caplog: pytest.LogCaptureFixture
) -> None:
    slow = Slow(store, wrap_errors=wrap, retries=1)
    slow.error = ValueError("no")
    errors = []
    store_error = slow.error

    class Plugin:
        @hook_impl
        def on_node_error(self, error: Exception) -> None:
            errors.append(error)

    async with session(plugins=[Plugin()]) as s:
        async with anyio.create_task_group() as group:
            for who in range(3):
                group.start_soon(slow.call, who)
            await following(s, 2)
            slow.let_go.set()
        assert s.stats().failed == 3
    assert slow.runs == 2
    if wrap:
        assert all(isinstance(each, TaskError) and each.__cause__ is slow.error for each in slow.results.values())
        assert len({id(each) for each in slow.results.values()}) == 3
        assert len({each.metadata.id for each in slow.results.values()}) == 3
        assert {str(each) for each in slow.results.values()} == {
            "Task 'compute' failed after 2 attempts with error: ValueError: no"
        }
    else:
        assert all(each is slow.error for each in slow.results.values())
        assert getattr(slow.error, "__notes__", []) == ["Raised by task 'compute' after 2 attempts."]
    assert errors == [slow.error] * 3
    if wrap:  # else it comes out of the last of them, and says so
        assert "outcome_of" not in [frame.name for frame in traceback.extract_tb(store_error.__traceback__)]
    failed = recorded_events.of(TaskFailed)
    assert [(each.attempts, each.error) for each in failed] == [(2, "ValueError: no")] * 3
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
    slow.error = None
    assert await slow.task(1) == [1]


async def test_a_copy_that_does_not_wrap_errors_notes_a_shared_one_once() -> None:
    slow = Slow()
    slow.error = ValueError("no")
    bare = slow.task.with_options(wrap_errors=False, name="bare")

    async def call(who: int) -> None:
        with pytest.raises(ValueError, match="no"):
            await bare(1)

    async with anyio.create_task_group() as group:
        group.start_soon(slow.call, 0)
        await settle()
        for who in range(2):
            group.start_soon(call, who)
        await settle()
        slow.let_go.set()
    notes = getattr(slow.error, "__notes__", [])
    assert notes == ["Raised by task 'bare' after 1 attempt."]


async def test_a_timeout_of_the_leader_is_one_of_all(virtual_clock: VirtualClock) -> None:
    slow = Slow(timeout=5)
    async with anyio.create_task_group() as group:
        for who in range(3):
            group.start_soon(slow.call, who)
    assert slow.runs == 1
    for error in slow.results.values():
        assert isinstance(error, TaskTimeoutError)
        assert (error.scope, error.limit, error.__cause__) == ("attempt", 5, None)
        assert str(error) == "Task 'compute' failed after 1 attempt with error: no result within its timeout of 5 s"
    assert len({id(each) for each in slow.results.values()}) == 3


async def test_a_leader_whose_own_time_is_up_hands_over(virtual_clock: VirtualClock) -> None:
    slow = Slow()
    hasty = slow.task.with_options(total_timeout=5)

    async def call() -> None:
        with pytest.raises(TaskTimeoutError, match="total_timeout of 5 s"):
            await hasty(1)

    async with anyio.create_task_group() as group:
        group.start_soon(call)
        await settle()
        for who in range(2):
            group.start_soon(slow.call, who)
        await anyio.sleep(6)
        assert slow.runs == 2
        slow.let_go.set()
    assert slow.results == {0: [1], 1: [1]}


async def test_a_follower_whose_own_time_is_up_leaves_the_others_alone(
    virtual_clock: VirtualClock, recorded_events: EventRecorder
) -> None:
    slow = Slow()
    hasty = slow.task.with_options(total_timeout=5, name="hasty")
    async with session():
        async with anyio.create_task_group() as group:
            group.start_soon(slow.call, 0)
            await settle()
            with pytest.raises(
                TaskTimeoutError, match="Task 'hasty' failed after 1 attempt with error: .*total_timeout of 5 s"
            ):
                await hasty(1)
            slow.let_go.set()
    assert (slow.runs, slow.results) == (1, {0: [1]})
    told = [type(event) for event in recorded_events.of(TaskEvent) if event.metadata.name == "hasty"]
    assert told == [TaskStarted, TaskFailed]


async def test_a_leader_that_fails_while_it_is_cancelled_hands_over() -> None:
    runs: list[int] = []
    store = MemoryCacheStore()

    @task(cache=store, version=1)
    async def work() -> int:
        runs.append(0)
        if len(runs) > 1:
            return len(runs)
        try:
            await anyio.sleep_forever()
        finally:
            raise ValueError("the cleanup has failed")

    results = []

    async def follow() -> None:
        results.append(await work())

    async with anyio.create_task_group() as group:
        scope = anyio.CancelScope()

        async def lead() -> None:
            with pytest.raises(TaskError, match="the cleanup has failed"):
                with scope:
                    await work()

        group.start_soon(lead)
        await settle()
        group.start_soon(follow)
        await settle()
        scope.cancel()
    assert results == [2]


async def test_a_leader_without_a_thread_hands_over() -> None:
    """A `BackendError` is of who has no thread, and not of the result."""
    gate = threading.Event()
    runs: list[str] = []

    @task(timeout=0.05)
    def stuck() -> None:
        assert gate.wait(30)

    @task(cache=fresh(), version=1)
    def work() -> str:
        runs.append("")
        return "done"

    results: list[Any] = []

    async with session(max_threads=1) as s:
        with pytest.raises(TaskTimeoutError):
            await stuck.to_thread()
        with pytest.raises(BackendError):
            await work.to_thread()
        assert not runs
        assert work() == "done"
        results.append(s.stats().failed)
        gate.set()
    assert results == [2]


# Limits.


async def test_limits_are_taken_and_retries_made_by_the_leader_alone() -> None:
    limit = Limit("one", 1)
    failures = [OSError()]
    most = []
    let_go = anyio.Event()

    @task(cache=fresh(), limit=limit, retries=1, version=1)
    async def work() -> int:
        await let_go.wait()
        most.append(limit.borrowed_tokens)
        while failures:
            raise failures.pop()
        return 1

    async with session() as s:
        calls = [s.start_soon(work) for _ in range(3)]
        await following(s, 2)
        assert limit.tasks_waiting == 0
        let_go.set()
        assert [await call for call in calls] == [1, 1, 1]
    assert most == [1, 1]


# Anew.


async def test_what_is_invalidated_while_it_is_computed_is_not_kept(store: Any) -> None:
    slow = Slow(store)
    async with session() as s:
        async with anyio.create_task_group() as group:
            group.start_soon(slow.call, 0)
            await until(lambda: slow.runs == 1)
            group.start_soon(slow.call, 1)
            await following(s, 1)
            await slow.task.invalidate(1)
            group.start_soon(slow.call, 2)  # it begins anew, and does not follow
            await until(lambda: slow.runs == 2)
            await slow.task.invalidate(1)
            slow.let_go.set()
    assert slow.results == {0: [1], 1: [1], 2: [1]}
    assert slow.runs == 2
    await slow.task(1)
    assert slow.runs == 3


async def test_what_is_invalidated_while_it_is_being_kept_is_not_kept() -> None:
    shelf = Shelf()
    slow = Slow(shelf)
    slow.let_go.set()
    shelf.gate = threading.Event()
    async with anyio.create_task_group() as group:
        with refresh_cache():
            group.start_soon(slow.call, 0)
        await until(lambda: shelf.told == ["put"])
        gate, shelf.gate = shelf.gate, None
        await slow.task.invalidate(1)
        gate.set()
    assert shelf.told == ["put", "delete", "delete"]
    assert shelf.kept == {}


async def test_what_is_invalidated_from_a_thread_or_another_event_loop_is_not_kept(anyio_backend_name: str) -> None:
    slow = Slow()

    async def invalidate() -> None:
        await slow.task.invalidate(1)

    for elsewhere in (anyio.run, anyio.from_thread.run):
        slow.let_go = anyio.Event()
        runs = slow.runs
        async with anyio.create_task_group() as group:
            group.start_soon(slow.call, 0)
            await until(lambda: slow.runs == runs + 1)  # noqa: B023
            await anyio.to_thread.run_sync(elsewhere, invalidate)
            slow.let_go.set()
    assert slow.runs == 2


def test_what_a_thread_computes_in_place_is_not_kept_when_it_is_invalidated() -> None:
    runs: list[int] = []

    @task(cache=fresh(), version=1)
    def work() -> int:
        runs.append(0)
        if len(runs) == 1:
            work.invalidate()
        return len(runs)

    assert [work(), work(), work()] == [1, 2, 2]


async def test_a_refresh_does_not_wait_for_what_had_begun_before_and_others_wait_for_it(store: Any) -> None:
    slow = Slow(store)
    async with session() as s:
        async with anyio.create_task_group() as group:
            group.start_soon(slow.call, 0)
            await until(lambda: slow.runs == 1)
            with refresh_cache():
                group.start_soon(slow.call, 1)
                await until(lambda: slow.runs == 2)
                group.start_soon(slow.call, 2)  # it shares that of the same refresh
            await following(s, 1)
            group.start_soon(slow.call, 3)  # and so do those outside
            await following(s, 2)
            slow.let_go.set()
    assert slow.runs == 2
    assert slow.results == {who: [1] for who in range(4)}
    await slow.task(1)
    assert slow.runs == 2


# Lookups.


async def test_a_call_that_missed_looks_again_if_a_computation_ended_meanwhile() -> None:
    class Lagging(Shelf):
        """It answers with what it had when it was asked."""

        held: threading.Event | None = None

        def get(self, key: str) -> Any:
            found = super().get(key)
            held, self.held = self.held, None
            if held is not None:
                assert held.wait(30)
            return found

    shelf = Lagging()
    slow = Slow(shelf)
    shelf.held = held = threading.Event()
    async with anyio.create_task_group() as group:
        group.start_soon(slow.call, 0)
        await until(lambda: shelf.told == ["get"])
        slow.let_go.set()
        await slow.call(1)
        held.set()
    assert slow.results == {0: [1], 1: [1]}
    assert slow.runs == 1
    assert shelf.told == ["get", "get", "put", "get"]


async def test_two_stores_of_one_folder_are_one(tmp_path: Any) -> None:
    slow = Slow(FileCacheStore(tmp_path))
    other = slow.task.with_options(cache=FileCacheStore(str(tmp_path)))
    results = []

    async def call() -> None:
        results.append(await other(1))

    async with session() as s:
        async with anyio.create_task_group() as group:
            group.start_soon(slow.call, 0)
            await until(lambda: slow.runs == 1)
            group.start_soon(call)
            await following(s, 1)
            slow.let_go.set()
    assert (slow.runs, results, slow.results) == (1, [[1]], {0: [1]})


# Circles.


async def test_a_call_that_calls_itself_with_the_same_arguments_is_an_error() -> None:
    @task(cache=fresh(), version=1)
    async def work(number: int) -> int:
        return number and await work(number - (number != 5)) + 1

    @task(cache=fresh(), version=2)
    def here(number: int) -> int:
        return number and here(number - (number != 5)) + 1

    assert await work(3) == here(3) == 3
    calls: list[Callable[[], Any]] = [lambda: work(5), lambda: here.to_thread(5)]
    for call in calls:
        with pytest.raises(TaskError) as caught:
            await call()
        assert isinstance(caught.value.root_cause, RuntimeError)
        assert "calls itself with the same arguments, and would wait for itself" in str(caught.value)
    with pytest.raises(TaskError, match="calls itself with the same arguments"):
        here(5)


async def test_what_a_call_has_left_open_is_not_inside_it() -> None:
    runs: list[int] = []

    @task
    async def rows() -> AsyncIterator[int]:
        yield 1
        yield await work[0]()

    async def compute() -> Any:
        runs.append(0)
        if len(runs) > 1:
            return len(runs)
        stream = rows()
        assert await stream.__anext__() == 1  # it has begun in here
        return stream

    work = [task(cache=MemoryCacheStore(), version=1)(compute)]
    async with await work[0]() as items:
        assert [item async for item in items] == [2]


def test_what_a_call_in_place_has_left_open_is_not_inside_it() -> None:
    runs: list[int] = []

    @task
    def rows() -> Iterator[int]:
        yield 1
        yield work[0]()

    def compute() -> Any:
        runs.append(0)
        if len(runs) > 1:
            return len(runs)
        stream = rows()
        assert next(stream) == 1  # it has begun in here
        return stream

    work = [task(cache=MemoryCacheStore(), version=1)(compute)]
    with work[0]() as items:
        assert list(items) == [2]


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
def test_a_forked_process_computes_nothing_and_waits_for_nothing_of_its_parent() -> None:
    call = Call(task(lambda: None)._spec, (), {}, OUTSIDE)
    flight = _flights.Flight(("here", "key"), None, call)
    with flight, _circles.Blocked(call, flight), _circles._lock, _flights._lock:
        child = os.fork()
        if not child:
            try:
                free = _circles._lock.acquire(timeout=5) and _flights._lock.acquire(timeout=5)
                os._exit(0 if free and not _circles._of_tasks and not _flights._running else 1)
            finally:
                os._exit(2)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status == 0


async def test_a_background_call_does_not_block_who_has_started_it() -> None:
    runs: list[int] = []
    store = MemoryCacheStore()

    async with session() as s:

        @task(cache=store, version=1)
        async def work() -> int:
            runs.append(0)
            if len(runs) == 1:
                s.start_soon(itself[0])
                await settle()
            return len(runs)

        itself = [work]
        assert await work() == 1
    assert len(runs) == 1


async def test_two_keys_that_wait_for_each_other_crosswise_do_not_deadlock() -> None:
    both = anyio.Event()
    runs: list[int] = []

    @task(cache=fresh(), version=1)
    async def work(number: int, *, inner: bool = True) -> int:
        runs.append(number)
        if len(runs) == 2:
            both.set()
        await both.wait()
        other = current_task()
        assert other is not None
        if other.parent_id is None:
            await work(1 - number)
        return number

    with anyio.fail_after(30):
        async with anyio.create_task_group() as group:
            group.start_soon(work, 0)
            group.start_soon(work, 1)
    assert sorted(runs) in ([0, 0, 1], [0, 1, 1], [0, 0, 1, 1])


async def test_a_ring_of_three_does_not_deadlock() -> None:
    ready: list[int] = []
    outer: list[str] = []

    @task(cache=fresh(), version=1)
    async def work(number: int) -> int:
        ready.append(number)
        with anyio.fail_after(30):
            while len(set(ready)) < 3:
                await checkpoint()
        metadata = current_task()
        assert metadata is not None
        if metadata.parent_id is None:
            outer.append(metadata.name)
            await work((number + 1) % 3)
        return number

    with anyio.fail_after(30):
        async with anyio.create_task_group() as group:
            for number in range(3):
                group.start_soon(work, number)
    assert len(outer) == 3
    assert len(ready) <= 5


async def test_a_holder_of_a_limit_that_follows_a_leader_waiting_for_it_does_not_deadlock() -> None:
    limit = Limit("one", 1)
    store = MemoryCacheStore()
    holding, waiting = anyio.Event(), anyio.Event()
    runs: list[str] = []
    errors: list[BaseException] = []

    @task(cache=store, version=1)
    async def shared(first: bool = True) -> str:
        runs.append("shared")
        if len(runs) == 1:
            return await bounded()
        return "by itself"

    @task(limit=limit)
    async def bounded() -> str:
        return "bounded"

    @task(limit=limit)
    async def holder() -> str:
        holding.set()
        await waiting.wait()
        return await shared()

    async with session() as s:
        held = s.start_soon(holder)
        await holding.wait()
        leader = s.start_soon(shared)
        await until(lambda: limit.tasks_waiting == 1)
        waiting.set()
        with anyio.fail_after(30):
            assert await held == "by itself"
            assert await leader == "bounded"
    assert not errors


async def test_a_follower_that_holds_what_its_leader_comes_to_wait_for_computes_for_itself() -> None:
    limit = Limit("one", 1)
    store = MemoryCacheStore()
    go_on = anyio.Event()
    runs: list[str] = []

    @task(cache=store, version=1)
    async def shared() -> str:
        runs.append("shared")
        if len(runs) == 1:
            await go_on.wait()
            return await bounded()
        return "by itself"

    @task(limit=limit)
    async def bounded() -> str:
        return "bounded"

    @task(limit=limit)
    async def holder() -> str:
        return await shared()

    async with session() as s:
        leader = s.start_soon(shared)
        await until(lambda: len(runs) == 1)
        held = s.start_soon(holder)
        await following(s, 1)
        go_on.set()
        with anyio.fail_after(30):
            assert await held == "by itself"
            assert await leader == "bounded"
    assert limit._tokens.blocked == {}


async def test_a_follower_that_holds_the_limit_of_the_key_itself_is_told_so() -> None:
    limit = Limit("one", 1)
    holding, go_on = anyio.Event(), anyio.Event()

    @task(cache=fresh(), limit=limit, version=1)
    async def shared() -> str:
        return "shared"

    @task(limit=limit)
    async def holder() -> str:
        holding.set()
        await go_on.wait()
        return await shared()

    async with session(on_background_error="log") as s:
        held = s.start_soon(holder)
        await holding.wait()
        leader = s.start_soon(shared)
        await until(lambda: limit.tasks_waiting == 1)
        go_on.set()
        with anyio.fail_after(30):
            with pytest.raises(TaskError) as caught:
                await held
            assert await leader == "shared"
    assert isinstance(caught.value.root_cause, LimitError)


async def test_a_follower_that_is_to_compute_for_itself_does_so_also_if_its_leader_fails_in_the_same_moment() -> None:
    slow = Slow()
    slow.error = ValueError("no")
    async with anyio.create_task_group() as group:
        group.start_soon(slow.call, 0)
        await settle()
        group.start_soon(slow.call, 1)
        await settle()
        (flight,) = _flights.flights_here()._flights.values()
        (follower,) = flight._followers
        slow.let_go.set()
        flight.evict(follower.call)
    assert slow.runs == 2
    assert all(isinstance(each, TaskError) for each in slow.results.values())


async def test_an_open_stream_that_holds_a_limit_is_a_holder_too() -> None:
    limit = Limit("one", 1)
    runs: list[str] = []
    go_on = anyio.Event()

    @task(limit=limit)
    async def rows() -> Any:
        yield 1
        yield 2

    @task(cache=fresh(), version=1)
    async def shared() -> str:
        runs.append("shared")
        if len(runs) == 1:
            await go_on.wait()
            return await bounded()
        return "by itself"

    @task(limit=limit)
    async def bounded() -> str:
        return "bounded"

    results: list[str] = []

    async def consume() -> None:
        async with rows() as items:
            async for _ in items:
                results.append(await shared())
                break

    with anyio.fail_after(30):
        async with session() as s:
            leader = s.start_soon(shared)
            await until(lambda: len(runs) == 1)
            async with anyio.create_task_group() as group:
                group.start_soon(consume)
                await following(s, 1)
                go_on.set()
            assert await leader == "bounded"
    assert results == ["by itself"]


async def test_ten_thousand_followers_of_one_key_cost_little_each() -> None:
    slow = Slow()
    async with anyio.create_task_group() as group:
        for who in range(10_000):
            group.start_soon(slow.call, who)
        await settle()
        slow.let_go.set()
    assert slow.runs == 1
    assert len(slow.results) == 10_000


async def test_nothing_is_left_of_a_flight() -> None:
    shelf = Shelf()
    slow = Slow(shelf)
    slow.error = ValueError("no")
    gc.collect()
    gc.disable()
    try:
        async with session() as s:
            async with anyio.create_task_group() as group:
                for who in range(3):
                    group.start_soon(slow.call, who)
                await following(s, 2)
                slow.let_go.set()
            slow.error = None
            slow.results.clear()
            await slow.task(2)
            shelf.gate = threading.Event()
            with anyio.move_on_after(0.05):
                await slow.task(2)
            shelf.gate.set()
        flights = _flights.flights_here()
        assert not flights._flights
        assert not flights._looks
        assert not [each for each in gc.get_objects() if type(each) is _flights.Flight]
    finally:
        gc.enable()


async def test_an_interrupt_of_the_leader_hands_over() -> None:
    class Stop(BaseException):
        pass

    runs: list[int] = []
    results = []

    @task(cache=fresh(), version=1)
    async def work() -> int:
        runs.append(0)
        await settle()
        if len(runs) == 1:
            raise Stop
        return 1

    async def lead() -> None:
        with pytest.raises(Stop):
            await work()

    async def follow() -> None:
        results.append(await work())

    async with anyio.create_task_group() as group:
        group.start_soon(lead)
        await checkpoint()
        await checkpoint()
        group.start_soon(follow)
        group.start_soon(follow)
    assert results == [1, 1]
    assert len(runs) == 2
