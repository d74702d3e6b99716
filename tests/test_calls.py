"""One call: results, retries, errors."""

import contextvars
import itertools
import pickle
from typing import Any
from uuid import UUID

import anyio
import pytest

from daglite import TaskMetadata, current_task, task
from daglite.exceptions import DagliteError, TaskError, TaskGroupError, TaskTimeoutError


class Flaky:
    """Fails so many times, then answers."""

    def __init__(self, failures: int, error: Exception | None = None) -> None:
        self.failures = failures
        self.error = error or ValueError("no luck")
        self.calls = 0

    def __call__(self) -> int:
        self.calls += 1
        if self.calls <= self.failures:
            raise self.error
        return self.calls


async def call(flaky: Any, sync: bool, **options: Any) -> Any:
    """Run it as a task of either kind."""
    if sync:
        return task(**options)(flaky)()

    async def flaky_async() -> Any:
        return flaky()

    return await task(**options)(flaky_async)()


both = pytest.mark.parametrize("sync", [False, True], ids=["async", "sync"])


async def test_a_call_returns_what_the_function_returns() -> None:
    @task
    async def double(number: int) -> int:
        return 2 * number

    @task
    def half(number: int) -> float:
        return number / 2

    assert await double(21) == 42
    assert half(21) == 10.5


@both
async def test_a_failed_call_raises_a_task_error_with_all_there_is_to_know(sync: bool) -> None:
    flaky = Flaky(9)
    with pytest.raises(TaskError) as caught:
        await call(flaky, sync, name="try", retries=2)
    error = caught.value
    assert str(error) == "Task 'try' failed after 3 attempts with error: ValueError: no luck"
    assert error.__cause__ is error.root_cause is flaky.error
    assert error.attempts == flaky.calls == 3
    assert isinstance(error.metadata, TaskMetadata)
    assert error.metadata.name == "try"


@both
async def test_a_call_is_retried_until_it_succeeds(sync: bool) -> None:
    assert await call(Flaky(2), sync, retries=2) == 3
    assert await call(Flaky(2), sync, retries=5) == 3


@both
async def test_only_the_errors_of_retry_on_are_retried(sync: bool) -> None:
    for retry_on, calls in [(OSError, 1), (ValueError, 4), ((OSError, ValueError), 4), (Exception, 4)]:
        flaky = Flaky(9)
        with pytest.raises(TaskError, match="attempt"):
            await call(flaky, sync, retries=3, retry_on=retry_on)
        assert flaky.calls == calls


async def test_retry_on_looks_into_the_error_of_a_nested_task() -> None:
    flaky = Flaky(2, KeyError("inner"))
    inner = task(flaky)

    @task(retries=3, retry_on=KeyError)
    async def outer() -> int:
        return inner()

    assert await outer() == 3


@both
async def test_a_predicate_decides_what_is_retried_and_when(sync: bool) -> None:
    seen: list[Exception] = []

    def wanted(error: Exception) -> bool | float:
        seen.append(error)
        return 0.0 if len(seen) == 1 else len(seen) < 3

    flaky = Flaky(9)
    with pytest.raises(TaskError):
        await call(flaky, sync, retries=9, retry_on=wanted)
    assert seen == [flaky.error] * 3
    assert flaky.calls == 3


@both
@pytest.mark.parametrize("answer", [None, "yes", -1, float("nan")])
async def test_a_predicate_that_answers_nonsense_is_named(sync: bool, answer: Any) -> None:
    with pytest.raises(TaskError, match="task 'pick': .*retry_on") as caught:
        await call(Flaky(9), sync, name="pick", retries=3, retry_on=lambda error: answer)
    assert isinstance(caught.value.root_cause, (TypeError, ValueError))


@pytest.mark.usefixtures("virtual_clock")
async def test_retry_delay_is_waited_for() -> None:
    times: list[float] = []

    @task(retries=2, retry_delay=0.02)
    async def fail() -> None:
        times.append(anyio.current_time())
        raise ValueError

    with pytest.raises(TaskError):
        await fail()
    assert len(times) == 3
    assert all(later - earlier >= 0.019 for earlier, later in itertools.pairwise(times))


def test_a_sync_task_waits_in_a_thread_without_event_loop() -> None:
    assert task(retries=2, retry_delay=0.001)(Flaky(2))() == 3


async def test_a_sync_task_that_would_block_the_event_loop_is_refused() -> None:
    flaky = Flaky(1)
    waits = task(name="waits", retries=1, retry_delay=0.5)(flaky)
    with pytest.raises(RuntimeError, match=r"'waits' would block the event loop for its retry_delay of 0\.5 s.*to_thr"):
        waits()
    assert flaky.calls == 0
    with pytest.raises(RuntimeError, match="would block the event loop"):
        task(retries=1, retry_on=lambda error: 0.5)(flaky)()
    assert task(retry_delay=0.5)(flaky)() == 2


@both
async def test_wrong_arguments_are_pythons_own_type_error(sync: bool) -> None:
    calls = 0

    @task(retries=3)
    def add(a: int, b: int) -> int:
        nonlocal calls
        calls += 1
        return a + b

    add_async = task(retries=3)(_add)
    with pytest.raises(TypeError, match="missing 1 required positional argument: 'b'") as caught:
        add(1) if sync else await add_async(1)  # type: ignore[call-arg]
    assert type(caught.value) is TypeError
    assert calls == 0


async def _add(a: int, b: int) -> int:
    return a + b


@both
async def test_a_type_error_of_the_function_itself_is_wrapped_and_retried(sync: bool) -> None:
    flaky = Flaky(9, TypeError("inside"))
    with pytest.raises(TaskError, match="after 2 attempts with error: TypeError: inside"):
        await call(flaky, sync, retries=1)


@both
async def test_errors_need_not_be_wrapped(sync: bool) -> None:
    flaky = Flaky(9, LookupError("mine"))
    with pytest.raises(LookupError, match="mine") as caught:
        await call(flaky, sync, name="look", retries=1, wrap_errors=False)
    assert caught.value is flaky.error
    assert caught.value.__notes__ == ["Raised by task 'look' after 2 attempts."]


async def test_nested_tasks_keep_the_first_error_as_root_cause() -> None:
    @task
    def inner() -> None:
        raise ZeroDivisionError("first") from OSError("what it was raised from")

    @task
    async def outer() -> None:
        inner()

    with pytest.raises(TaskError) as caught:
        await outer()
    assert isinstance(caught.value.__cause__, TaskError)
    assert isinstance(caught.value.root_cause, ZeroDivisionError)


@both
@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, GeneratorExit])
async def test_what_ends_a_program_is_neither_wrapped_nor_retried(sync: bool, error: Any) -> None:
    flaky = Flaky(9, error("stop"))
    with pytest.raises(error, match="stop"):
        await call(flaky, sync, retries=3)
    assert flaky.calls == 1


async def test_current_task_describes_the_running_call() -> None:
    @task(name="load {path}", description="Reads.")
    async def load(path: str, times: int = 2) -> TaskMetadata | None:
        return current_task()

    @task
    async def outer() -> list[Any]:
        return [current_task(), await load("a"), current_task(), await load("b")]

    assert current_task() is None
    first, a, again, b = await outer()
    assert current_task() is None
    assert first is again
    assert (a.name, a.inputs, a.description) == ("load a", {"path": "a", "times": 2}, "Reads.")
    assert a.parent_id == b.parent_id == first.id
    assert first.parent_id is None
    assert isinstance(a.id, UUID)
    assert a.id != b.id
    assert (a.is_async, a.is_generator, a.is_background, a.backend) == (True, False, False, "inline")


async def test_a_name_survives_what_its_arguments_do() -> None:
    class Rude:
        def __str__(self) -> str:
            raise RuntimeError

    @task(name="see {thing}")
    def see(thing: Any) -> TaskMetadata | None:
        return current_task()

    assert see(Rude()).name == "see <Rude>"  # type: ignore[union-attr]


async def test_inputs_leave_out_self_and_hold_what_is_fixed() -> None:
    class Shop:
        @task
        def sell(self, item: str, *, count: int = 1) -> TaskMetadata | None:
            return current_task()

    assert Shop().sell("pen").inputs == {"item": "pen", "count": 1}  # type: ignore[union-attr]
    assert Shop().sell.partial(count=3)("pen").inputs == {"item": "pen", "count": 3}  # type: ignore[union-attr]


async def test_a_coroutine_that_is_closed_in_another_context_leaves_no_trace() -> None:
    @task
    async def wait() -> None:
        await anyio.sleep_forever()

    waiting = wait()
    started = contextvars.copy_context().run(waiting.send, None)
    waiting.close()
    assert started is not None
    assert current_task() is None


def unpicklable() -> Any:
    return lambda: None


class Demanding(Exception):
    def __init__(self, *, code: int) -> None:
        super().__init__(f"code {code}")
        self.code = code


@pytest.mark.parametrize("cause", [ValueError("x"), Demanding(code=3), OSError(2, "gone", "file")])
async def test_every_error_pickles_with_its_cause(cause: Exception) -> None:
    @task(retries=1)
    async def fail(with_: Any) -> None:
        raise cause

    with pytest.raises(TaskError) as caught:
        await fail(unpicklable())
    copy = pickle.loads(pickle.dumps(caught.value))
    assert type(copy) is TaskError
    assert str(copy) == str(caught.value)
    assert copy.attempts == 2
    assert copy.metadata.id == caught.value.metadata.id  # type: ignore[union-attr]
    assert type(copy.__cause__) is type(cause)
    assert str(copy.__cause__) == str(cause)
    assert vars(copy.__cause__) == vars(cause)


def test_groups_and_timeouts_pickle() -> None:
    timeout = TaskTimeoutError("late", scope="attempt", limit=2.5, attempts=1)
    copy = pickle.loads(pickle.dumps(timeout))
    assert (copy.scope, copy.limit, copy.attempts, str(copy)) == ("attempt", 2.5, 1, "late")
    group = TaskGroupError("2 calls failed", [timeout, ValueError("x")])
    copy = pickle.loads(pickle.dumps(group))
    assert type(copy) is TaskGroupError
    assert (copy.message, copy.metadata) == ("2 calls failed", None)
    assert [type(error) for error in copy.exceptions] == [TaskTimeoutError, ValueError]


def test_a_group_is_taken_whole_by_except_star() -> None:
    group = TaskGroupError("failed", [TaskError("a"), ValueError("b")])
    assert group.split(TaskError) == (group, None)  # which is what `except* TaskError` asks
    matched, rest = group.split(ValueError)
    assert type(matched) is type(rest) is TaskGroupError
    assert isinstance(group, DagliteError)


def test_an_error_that_cannot_travel_arrives_as_text() -> None:
    class Local(Exception):
        pass

    error = TaskError("failed")
    error.__cause__ = Local("with details")
    copy = pickle.loads(pickle.dumps(error))
    assert "with details" in str(copy.__cause__)
