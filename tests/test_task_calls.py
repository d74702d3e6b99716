"""`t.call(...)`: calls that are given to `gather_tasks`, `map_tasks` and `race_tasks`."""

import gc
import threading
from collections.abc import AsyncIterator, Iterator
from typing import Any

import anyio
import pytest
from anyio import get_cancelled_exc_class
from anyio.lowlevel import checkpoint

from daglite import (
    Limit,
    Outcome,
    current_task,
    gather_tasks,
    map_tasks,
    race_tasks,
    session,
    stream_tasks,
    task,
)
from daglite.events import TaskCancelled, TaskFailed, TaskSucceeded
from daglite.exceptions import CallCancelledError, SessionError, TaskError, TaskGroupError

from .journal import told_of
from .test_events import Recorder


@task
async def double(number: int, *, plus: int = 0) -> int:
    await checkpoint()
    return 2 * number + plus


@task
def shout(text: str) -> str:
    return text.upper()


@task
async def count(to: int) -> AsyncIterator[int]:
    for number in range(to):
        yield number


@task
def letters(text: str) -> Iterator[str]:
    yield from text


@task
async def fail(text: str) -> None:
    raise ValueError(text)


@task
async def hang() -> None:
    await anyio.sleep_forever()


async def test_different_calls_give_a_tuple_of_their_results() -> None:
    results = await gather_tasks(double.call(2, plus=1), shout.call("a"), count.call(3), letters.call("xy"))
    assert results == (5, "A", [0, 1, 2], ["x", "y"])
    assert await gather_tasks(double.call(1)) == (2,)
    assert await gather_tasks() == ()
    assert await gather_tasks(*(double.call(number) for number in range(5)), limit=2) == (0, 2, 4, 6, 8)


def test_sync_code_makes_different_calls_too() -> None:
    assert map_tasks(double.call(2), shout.call("a"), letters.call("xy")) == (4, "A", ["x", "y"])
    assert map_tasks() == ()
    with session():
        assert map_tasks(double.call(2), shout.call("a")) == (4, "A")


async def test_a_call_may_be_made_more_than_once_and_is_another_each_time() -> None:
    @task
    async def who() -> Any:
        metadata = current_task()
        assert metadata is not None
        return metadata.map_index, metadata.id

    call = who.call()
    async with session():
        (first, one), (second, other), (again, third) = await gather_tasks(call, call, call)
    assert (first, second, again) == (0, 1, 2)
    assert len({one, other, third}) == 3
    assert repr(call) == "<call of task 'who'>"
    assert (call.task, call.args, call.kwargs) == (who, (), {})


async def test_calls_of_methods_partials_and_copies_are_calls_of_those() -> None:
    class Shelf:
        def __init__(self, books: int) -> None:
            self.books = books

        @task
        async def count(self, more: int = 0) -> int:
            return self.books + more

    shelf = Shelf(3)
    assert await gather_tasks(shelf.count.call(more=2), Shelf.count.call(shelf), double.partial(4).call()) == (5, 3, 8)
    names = await gather_tasks(task(name="other")(lambda: current_task()).call(), limit=1)
    assert [metadata.name for metadata in names if metadata is not None] == ["other[0]"]


async def test_partials_are_fanned_out_and_keep_their_limit() -> None:
    limited = double.with_options(limit=Limit("few", 2)).partial(plus=1)
    assert limited.limit is not None
    assert await gather_tasks(limited, range(5)) == [1, 3, 5, 7, 9]
    async with stream_tasks(limited, range(5), ordered=True) as results:
        assert [result async for result in results] == [1, 3, 5, 7, 9]
    assert limited.limit.available_tokens == 2


async def test_the_first_failure_of_calls_cancels_the_others() -> None:
    said: list[str] = []

    @task
    async def work() -> None:
        async with told_of(said):
            started.set()
            await anyio.sleep_forever()

    @task
    async def fail_then() -> None:
        await started.wait()
        raise ValueError("no")

    started = anyio.Event()
    with pytest.raises(TaskGroupError) as caught:
        await gather_tasks(work.call(), fail_then.call(), hang.call())
    assert caught.value.message == "Calls of tasks 'work', 'fail_then' and 'hang' failed"
    assert [str(error) for error in caught.value.exceptions] == [
        "Task 'fail_then[1]' failed after 1 attempt with error: ValueError: no"
    ]
    assert said == ["cancelled", "cleaned up"]


async def test_outcomes_of_calls_are_collected() -> None:
    good, bad = await gather_tasks(double.call(1), fail.call("no"), errors="collect")
    assert good == Outcome(0, 2)
    assert (bad.index, bad.value) == (1, None)
    assert isinstance(bad.error, TaskError)
    assert isinstance(bad.error.root_cause, ValueError)
    many = await gather_tasks(*[double.call(1)] * 6, errors="collect")
    assert [outcome.value for outcome in many] == [2] * 6


async def test_a_backend_is_for_the_sync_ones_among_calls() -> None:
    here = task(threading.get_ident)
    assert (await gather_tasks(here.call(), double.call(1), backend="inline"))[0] == threading.get_ident()
    assert (await gather_tasks(here.call(), double.call(1)))[0] != threading.get_ident()
    with pytest.raises(
        ValueError, match="of tasks 'double' and 'hang': backend='thread' is for sync functions; these are"
    ):
        await gather_tasks(double.call(1), hang.call(), backend="thread")


def test_wrong_arguments_are_errors_at_once() -> None:
    wrong: list[tuple[Any, str]] = [
        (lambda: double.call(), "task 'double': missing a required argument: 'number'"),  # type: ignore[call-arg]
        (lambda: shout.call("a", "b"), "task 'shout': too many positional arguments"),  # type: ignore[call-arg]
        (lambda: count.call(too=1), "task 'count': "),  # type: ignore[call-arg]
        (lambda: letters.call(), "task 'letters': missing a required argument: 'text'"),  # type: ignore[call-arg]
    ]
    for make, message in wrong:
        with pytest.raises(TypeError, match=message):
            make()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: gather_tasks(double.call(1), double),  # type: ignore[call-overload]
            "gather_tasks: argument 2 is <AsyncTask 'double'>, and no call as the others are; make one with t.call(...)",
        ),
        (
            lambda: gather_tasks(double.call(1), [2]),  # type: ignore[call-overload]
            "gather_tasks: argument 2 is [2], and no call as the others are",
        ),
        (
            lambda: gather_tasks(double, double.call(1)),  # type: ignore[call-overload]
            "iterable 1 is <call of task 'double'>, which cannot be iterated",
        ),
        (
            lambda: race_tasks(hang.call(), 3),  # type: ignore[call-overload]
            "race_tasks: argument 2 is 3, and no call as the others are",
        ),
        (
            lambda: race_tasks(hang.call(), count.call(2)),
            "race_tasks: argument 2 is <call of task 'count'>, which is a stream and has no result that could be the first",
        ),
        (
            lambda: race_tasks(letters.call("a")),
            "race_tasks: argument 1 is <call of task 'letters'>, which is a stream",
        ),
    ],
)
async def test_what_is_no_call_is_refused(make: Any, message: str) -> None:
    with pytest.raises(TypeError) as caught:
        await make()
    assert message in str(caught.value)


async def test_streams_of_results_take_no_calls() -> None:
    message = "stream_tasks takes a task and its iterables, not <call of task 'double'>; calls are for gather_tasks"
    with pytest.raises(TypeError, match=message):
        stream_tasks(double.call(1))  # type: ignore[call-overload]


async def test_an_unbegun_call_is_not_awaited() -> None:
    with pytest.raises(TypeError):
        await double.call(1)  # type: ignore[misc]


async def test_a_race_gives_the_first_success_and_joins_the_losers() -> None:
    said: list[str] = []

    @task
    async def lose() -> str:
        async with told_of(said):
            await anyio.sleep_forever()
        return "lost"

    @task
    async def win(*, after: int) -> str:
        for _ in range(after):
            await checkpoint()
        return "won"

    recorder = Recorder()
    async with session() as s:
        s.watch(recorder)
        assert await race_tasks(lose.call(), win.call(after=50), lose.call()) == "won"
        assert s.stats().running == 0
    assert sorted(said) == ["cancelled", "cancelled", "cleaned up", "cleaned up"]
    assert len(recorder.of(TaskCancelled)) == 2
    assert [event.metadata.name for event in recorder.of(TaskSucceeded)] == ["win[1]"]
    assert await race_tasks(double.call(1)) == 2
    assert await race_tasks(shout.call("a"), hang.call()) == "A"


async def test_a_failure_does_not_end_a_race() -> None:
    recorder = Recorder()
    async with session() as s:
        s.watch(recorder)
        assert await race_tasks(fail.call("a"), fail.call("b"), double.call(3)) == 6
    assert len(recorder.of(TaskFailed)) + len(recorder.of(TaskCancelled)) == 2


async def test_a_race_that_nobody_wins_raises_all_failures() -> None:
    with pytest.raises(TaskGroupError) as caught:
        await race_tasks(fail.call("a"), fail.call("b"))
    assert caught.value.message == "All calls of task 'fail' failed"
    assert {str(error.__cause__) for error in caught.value.exceptions} == {"a", "b"}
    with pytest.raises(ValueError, match="race_tasks: there is no call that could succeed"):
        await race_tasks()


async def test_what_a_loser_fails_with_while_it_is_cancelled_is_dropped() -> None:
    @task
    async def bad_loser() -> None:
        try:
            started.set()
            await anyio.sleep_forever()
        finally:
            raise ValueError("in cleanup")

    @task
    async def bad_group() -> None:
        async with anyio.create_task_group() as group:
            group.start_soon(bad_loser.func)
            await anyio.sleep_forever()

    @task
    async def win() -> str:
        await started.wait()
        await checkpoint()
        return "won"

    started = anyio.Event()
    assert await race_tasks(bad_loser.call(), bad_group.call(), win.call()) == "won"


@pytest.mark.usefixtures("virtual_clock")
async def test_a_cancelled_race_cancels_all() -> None:
    said: list[str] = []

    @task
    async def work() -> None:
        async with told_of(said):
            await anyio.sleep_forever()

    with anyio.move_on_after(0.05) as scope:
        await race_tasks(work.call(), work.call())
    assert scope.cancelled_caught
    assert said.count("cleaned up") == 2


class Fatal(BaseException):
    """What ends a program."""


async def test_what_ends_a_program_ends_a_race_bare() -> None:
    @task
    async def fatal() -> None:
        raise Fatal

    with pytest.raises(Fatal):
        await race_tasks(hang.call(), fatal.call())


async def test_calls_that_were_cancelled_each_by_itself_do_not_win() -> None:
    async with session() as s:

        @task
        async def cancelled() -> None:
            metadata = current_task()
            assert metadata is not None
            s.cancel(under=metadata.id)
            await checkpoint()

        with pytest.raises(TaskGroupError) as caught:
            await race_tasks(cancelled.call(), cancelled.call())
    assert isinstance(caught.value.exceptions[0], CallCancelledError)


async def test_a_race_in_a_session_that_has_ended_is_refused() -> None:
    async def race() -> None:
        await left.wait()
        with pytest.raises(SessionError, match="tasks 'double' and 'hang' were called"):
            await race_tasks(double.call(1), hang.call())

    left = anyio.Event()
    async with anyio.create_task_group() as group:
        async with session():
            group.start_soon(race)
        left.set()


async def test_failures_leave_no_cycles() -> None:
    async def once() -> None:
        with pytest.raises(TaskGroupError):
            await race_tasks(fail.call("a"), fail.call("b"))
        await gather_tasks(fail.call("a"), double.call(1), errors="collect")

    await once()
    gc.collect()
    gc.disable()
    try:
        await once()
        found = gc.collect()
    finally:
        gc.enable()
    assert found == 0


async def test_a_call_that_is_cancelled_with_its_race_is_not_a_loser() -> None:
    seen: list[str] = []

    @task
    async def work() -> None:
        try:
            await anyio.sleep_forever()
        except get_cancelled_exc_class():
            seen.append("cancelled")
            raise

    async with anyio.create_task_group() as group:
        group.start_soon(race_tasks, work.call(), work.call())
        await anyio.wait_all_tasks_blocked()
        group.cancel_scope.cancel()
    assert seen == ["cancelled"] * 2
