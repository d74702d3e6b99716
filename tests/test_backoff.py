"""Waits before retries: how long, and that they are waited for."""

import dataclasses
import math
import pickle
import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from daglite import Backoff, session, task
from daglite.events import TaskRetrying
from daglite.exceptions import TaskError
from tests.tasks_for_pickle import double
from tests.test_calls import Flaky, both, call
from tests.test_events import Recorder


def test_waits_grow_up_to_the_maximum() -> None:
    assert [Backoff(jitter=False)(retry) for retry in range(1, 9)] == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0]
    assert [Backoff(3, 30, 3, jitter=False)(retry) for retry in (1, 2, 3, 4)] == [3, 9, 27, 30]
    assert Backoff(factor=1, jitter=False)(10**9) == 0.1
    assert Backoff(0, jitter=False)(10**9) == 0


def test_jitter_is_a_random_part_of_it() -> None:
    random.seed(1)
    waits = [Backoff(1, 8)(3) for _ in range(200)]
    assert 2 <= min(waits) < 2.2
    assert 3.8 < max(waits) <= 4
    assert len(set(waits)) > 100


@given(st.floats(0, 1e300), st.floats(0, 1e300), st.floats(1, 1e300), st.booleans(), st.integers(1, 10**6))
def test_no_wait_exceeds_the_maximum(initial: float, more: float, factor: float, jitter: bool, retry: int) -> None:
    backoff = Backoff(initial, initial + more, factor, jitter)
    wait = backoff(retry)
    assert math.isfinite(wait)
    assert 0 <= wait <= backoff.maximum
    assert wait >= initial / 2


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"initial": -1}, ValueError, "Backoff: initial must be at least 0, not -1"),
        ({"initial": True}, TypeError, "Backoff: initial must be a number, not True"),
        ({"initial": math.nan}, ValueError, "Backoff: initial must be finite, not nan"),
        ({"maximum": 0.05}, ValueError, "Backoff: maximum must be at least 0.1, not 0.05"),
        ({"maximum": math.inf}, ValueError, "Backoff: maximum must be finite, not inf"),
        ({"factor": 0.5}, ValueError, "Backoff: factor must be at least 1, not 0.5"),
        ({"factor": "2"}, TypeError, "Backoff: factor must be a number, not '2'"),
        ({"jitter": 0.5}, TypeError, "Backoff: jitter must be a bool, not 0.5"),
    ],
)
def test_bad_waits_are_refused(given: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        Backoff(**given)


def test_it_never_changes_and_is_a_value() -> None:
    assert Backoff() == Backoff(0.1, 5.0, 2.0, True)
    assert hash(Backoff()) == hash(Backoff())
    with pytest.raises(dataclasses.FrozenInstanceError):
        Backoff().initial = 3  # type: ignore[misc]
    assert pickle.loads(pickle.dumps(double.with_options(retry_delay=Backoff(1)))).retry_delay == Backoff(1)


async def delays_of(options: dict[str, Any], sync: bool = False) -> list[float]:
    """The waits that a task that always fails has told of."""
    recorder = Recorder()
    flaky = Flaky(99)

    async def fail() -> int:
        return flaky()

    tried: Any = task(**options)(flaky if sync else fail)
    async with session() as s:
        s.watch(recorder.watch)
        with pytest.raises(TaskError):
            await (tried.to_thread() if sync else tried())
    return [event.delay for event in recorder.of(TaskRetrying)]


@pytest.mark.usefixtures("virtual_clock")
@both
async def test_a_task_waits_as_its_backoff_says(sync: bool) -> None:
    backoff = Backoff(0.001, 0.003, 2, jitter=False)
    assert await delays_of({"retries": 4, "retry_delay": backoff}, sync) == [0.001, 0.002, 0.003, 0.003]


@both
async def test_a_function_of_the_retrys_number_says_how_long(sync: bool) -> None:
    numbers: list[int] = []

    def delay(retry: int) -> float:
        numbers.append(retry)
        return retry / 1000

    assert await delays_of({"retries": 3, "retry_delay": delay}, sync) == [0.001, 0.002, 0.003]
    assert numbers == [1, 2, 3]


async def test_a_server_that_says_when_is_asked_then() -> None:
    class Busy(Exception):
        retry_after = 0.002

    answers: list[bool | float] = [0.002, True, 0.0, False]

    def decide(error: Exception) -> bool | float:
        return answers.pop(0)

    delays = await delays_of({"retries": 9, "retry_on": decide, "retry_delay": Backoff(0.001, jitter=False)})
    assert delays == [0.002, 0.002, 0.0]  # the second by the backoff, for the second retry


@both
@pytest.mark.parametrize("answer", [None, "1", True, -1, math.inf, math.nan])
async def test_a_function_that_answers_nonsense_is_named(sync: bool, answer: Any) -> None:
    def say(retry: int) -> Any:
        return answer

    flaky = Flaky(9)

    async def fail() -> int:
        return flaky()

    tried: Any = task(name="pick", retries=3, retry_delay=say)(flaky if sync else fail)
    with pytest.raises(TaskError, match="task 'pick': the result of retry_delay must be") as caught:
        await (tried.to_thread() if sync else tried())
    assert isinstance(caught.value.root_cause, (TypeError, ValueError))
    assert flaky.calls == 1


@pytest.mark.parametrize("delay", ["1", None, True, -1, math.inf, [1]])
def test_what_is_no_delay_is_refused_at_decoration(delay: Any) -> None:
    with pytest.raises((TypeError, ValueError), match="task 'flaky': retry_delay must be"):
        task(name="flaky", retries=1, retry_delay=delay)(lambda: None)


def test_a_coroutine_function_is_no_delay() -> None:
    async def delay(retry: int) -> float:
        return 1

    with pytest.raises(TypeError, match="a Backoff or a plain function of the retry's number"):
        task(retries=1, retry_delay=delay)(lambda: None)  # type: ignore[arg-type]


async def test_in_place_on_an_event_loop_no_task_waits() -> None:
    for delay in (Backoff(), lambda retry: 0.0):
        with pytest.raises(
            RuntimeError, match=r"would block the event loop for its retry_delay of .*to_thread\(\.\.\.\)"
        ):
            await call(Flaky(1), True, retries=1, retry_delay=delay)
    assert await call(Flaky(0), True, retries=0, retry_delay=Backoff()) == 1


def test_in_place_in_a_plain_thread_a_task_waits() -> None:
    assert task(retries=3, retry_delay=Backoff(0.001))(Flaky(3))() == 4
