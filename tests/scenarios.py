"""Small programs that come to the same on every event loop, in whatever order that lets tasks run."""

from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager
from contextvars import ContextVar
from typing import Any, TypeAlias

import anyio
from anyio import to_thread
from anyio.lowlevel import checkpoint

from daglite import (
    Backoff,
    Limit,
    Rate,
    check_cancelled,
    current_task,
    gather_tasks,
    map_tasks,
    partition,
    race_tasks,
    remaining,
    report,
    session,
    stream_tasks,
    task,
)
from daglite.cache import MemoryCacheStore
from daglite.exceptions import DatasetError, TaskError

from .test_datasets import Drawer

Scenario: TypeAlias = Callable[[], Coroutine[Any, Any, Any]]

SCENARIOS: list[Scenario] = []

unit: ContextVar[float] = ContextVar("unit", default=1.0)
"""Seconds that the scenarios count in: of virtual time, or little real time where there is none."""


def scenario(func: Scenario) -> Scenario:
    SCENARIOS.append(func)
    return func


async def sleep(units: float) -> None:
    await anyio.sleep(units * unit.get())


def failed(each: TaskError) -> str:
    return f"{type(each).__name__}: {each}"


@task
async def wait(units: float = 1) -> float:
    await sleep(units)
    return units


@task
async def fail(units: float = 0, error: type[BaseException] = ValueError) -> None:
    await sleep(units)
    raise error(f"after {units:g}")


@task
async def fail_while_cancelled(units: float = 100) -> None:
    try:
        await sleep(units)
    finally:
        raise KeyError("while it cleans up")


@task
async def fail_in_a_group() -> None:
    async with anyio.create_task_group() as group:
        group.start_soon(wait, 100)
        group.start_soon(fail_while_cancelled)
        await sleep(1)
        raise LookupError("in the body")


@task
async def swallow() -> str:
    try:
        await sleep(100)
    except anyio.get_cancelled_exc_class():
        return "swallowed"
    return "slept"


@task
async def numbers(to: int = 3, units: float = 0) -> AsyncIterator[int]:
    try:
        for number in range(to):
            await sleep(units)
            yield number
    finally:
        report("closed")


@task
async def broken_at_its_end() -> AsyncIterator[int]:
    try:
        yield 1
        yield 2
    finally:
        await checkpoint()
        raise OSError("cannot close")


@task
def letters(word: str = "abc") -> Iterator[str]:
    for letter in word:
        check_cancelled()
        yield letter


@task
def square(number: int) -> int:
    return number * number


@task
def fail_sync(number: int = 1) -> int:
    raise ZeroDivisionError(f"{number} / 0")


@task
def sum_back(to: int) -> int:
    return sum(numbers.from_thread(to)) + sum(map_tasks(square, range(to))) + int(wait.from_thread(1))


@asynccontextmanager
async def cancelled_after(units: float) -> AsyncIterator[anyio.CancelScope]:
    with anyio.move_on_after(units * unit.get()) as scope:
        yield scope


async def outcome_of(awaitable: Awaitable[Any]) -> str:
    """What an await comes to, as text; a cancellation goes on."""
    try:
        return f"value {await awaitable!r}"
    except Exception as exc:
        return described(exc)


def described(exc: BaseException) -> str:
    if hasattr(exc, "exceptions"):
        inner = ", ".join(sorted(map(described, exc.exceptions)))
        return f"{type(exc).__name__}[{inner}]"
    cause = "" if exc.__cause__ is None else f" from {described(exc.__cause__)}"
    return f"{type(exc).__name__}({exc}){cause}"


# Calls.


@scenario
async def a_value() -> Any:
    return [await wait(1), await square.to_thread(3), await square.run_on("inline", 4), square(5)]


@scenario
async def failures() -> Any:
    return [
        await outcome_of(fail()),
        await outcome_of(fail.with_options(retries=2)()),
        await outcome_of(fail.with_options(wrap_errors=False)()),
        await outcome_of(fail.with_options(retries=3, retry_on=OSError)()),
        await outcome_of(fail_sync.to_thread()),
        await outcome_of(fail_in_a_group()),
    ]


@scenario
async def retries_with_delays() -> Any:
    began = anyio.current_time()
    backoff = Backoff(initial=unit.get(), maximum=3 * unit.get(), jitter=False)
    text = await outcome_of(fail.with_options(retries=3, retry_delay=backoff)())
    return text, round((anyio.current_time() - began) / unit.get())


@scenario
async def timeouts() -> Any:
    quick: Any = {"timeout": 2 * unit.get()}
    return [
        await outcome_of(wait.with_options(**quick)(1)),
        type(await caught(wait.with_options(**quick)(3))).__name__,
        type(await caught(wait.with_options(retries=1, **quick)(3))).__name__,
        await outcome_of(fail.with_options(**quick)(1)),
        await outcome_of(swallow.with_options(**quick)()),
        (await caught(fail_while_cancelled.with_options(**quick)())).root_cause,
    ]


async def caught(awaitable: Awaitable[Any]) -> Any:
    try:
        return await awaitable
    except TaskError as exc:
        return exc


@scenario
async def total_timeouts() -> Any:
    impatient = fail.with_options(retries=9, retry_delay=2 * unit.get(), total_timeout=5 * unit.get())
    error = await caught(impatient())
    return type(error).__name__, error.scope, error.attempts, described(error.__cause__)


@scenario
async def the_outer_deadline_is_the_outers() -> Any:
    said: list[Any] = []
    for outer, inner in ((1, 2), (2, 1), (2, 2)):
        try:
            async with cancelled_after(outer) as scope:
                await wait.with_options(timeout=inner * unit.get())(5)
        except TaskError as exc:
            said.append(type(exc).__name__)
        said.append(scope.cancelled_caught)
    return said


@scenario
async def a_cancellation_is_not_retried() -> Any:
    said = []
    for each in (fail_while_cancelled.with_options(retries=5), swallow.with_options(retries=5)):
        async with cancelled_after(1) as scope:
            said.append(await outcome_of(each()))
        said.append(str(scope.cancelled_caught))
    return said


@scenario
async def what_is_left_of_the_time() -> Any:
    @task(timeout=10 * unit.get())
    async def ask() -> list[int]:
        async with cancelled_after(5):
            inner = remaining()
            await checkpoint()
        await sleep(2)
        return [round(inner / unit.get()), round(remaining() / unit.get())]

    return await ask()


@scenario
async def parents_and_names() -> Any:
    @task(name="leaf {number}")
    async def leaf(number: int) -> str:
        here = current_task()
        assert here is not None
        return f"{here.name} {here.map_index}"

    @task
    async def trunk() -> list[str]:
        return [await leaf(0), *await gather_tasks(leaf, [1, 2])]

    return await trunk()


@scenario
async def calls_that_wait_for_a_limit() -> Any:
    now, most = 0, 0

    @task(limit=Limit("scenario", 2))
    async def limited() -> None:
        nonlocal now, most
        now += 1
        most = max(now, most)
        await sleep(1)
        now -= 1

    began = anyio.current_time()
    async with anyio.create_task_group() as group:
        for _ in range(5):
            group.start_soon(limited)
    return most, now, round((anyio.current_time() - began) / unit.get())


@scenario
async def calls_that_wait_for_a_rate() -> Any:
    began = anyio.current_time()
    paced = square.with_options(rate=Rate(2, per=unit.get() * 2))
    for number in range(4):
        await paced.run_on("inline", number)
    return round((anyio.current_time() - began) / unit.get())


@scenario
async def calls_that_share_what_is_computed() -> Any:
    runs: list[str] = []

    @task(cache=MemoryCacheStore(), version=1, cache_ttl=1000)
    async def work(name: str) -> list[str]:
        runs.append(name)
        await sleep(1)
        if name == "broken":
            raise ValueError(name)
        return [name]

    outcomes = {}

    async def call(who: int, name: str, units: float) -> None:
        with anyio.move_on_after(units * unit.get()):
            outcomes[who] = await outcome_of(work(name))

    async with anyio.create_task_group() as group:
        for who, (name, units) in enumerate([("a", 0.5), ("a", 9), ("a", 9), ("broken", 9), ("broken", 9), ("b", 9)]):
            group.start_soon(call, who, name, units)
            await sleep(0.1)
    return sorted(outcomes.items()), sorted(runs), await work("a"), len(runs)


@scenario
async def calls_that_are_saved() -> Any:
    drawer = Drawer()

    @task(dataset="{number}.json", dataset_store=drawer, retries=1, cache=MemoryCacheStore(), version=1)
    async def work(number: int) -> int:
        await sleep(number)
        if number == 2:
            raise ValueError(number)
        return number

    @task(dataset="{iter_index}.txt", dataset_store=drawer)
    async def rows(to: int) -> AsyncIterator[int]:
        for number in range(to):
            yield number

    outcomes = [await outcome_of(work(number)) for number in (1, 2, 1)]
    drawer.is_full = True
    try:
        await work(3)
    except DatasetError as exc:
        outcomes.append(str(exc))
    drawer.is_full = False
    return outcomes, await items_of(rows(3)), await items_of(rows(2), 1), sorted(drawer.kept.items())


@scenario
async def calls_that_wait_for_each_other_crosswise() -> Any:
    @task(cache=MemoryCacheStore(), version=1)
    async def work(number: int) -> int:
        await sleep(1 + number)
        metadata = current_task()
        if metadata is not None and metadata.parent_id is None:
            await work(1 - number)
        return number

    return await gather_tasks(work, [0, 1])


@scenario
async def nested_limits_are_refused() -> Any:
    limit = Limit("nested", 1)

    @task(limit=limit)
    async def inner() -> None: ...

    @task(limit=limit)
    async def outer() -> None:
        await inner()

    return await outcome_of(outer())


# Streams.


async def items_of(stream: Any, most: int = 100) -> list[Any]:
    items: list[Any] = []
    try:
        async with stream:
            async for item in stream:
                items.append(item)
                if len(items) == most:
                    break
    except Exception as exc:
        items.append(described(exc))
    return items


@scenario
async def streams() -> Any:
    pumped = numbers.with_options(pump=True)
    return [
        await items_of(numbers()),
        await items_of(numbers(), 2),
        await items_of(pumped()),
        await items_of(pumped(), 2),
        await items_of(letters.to_thread()),
        await items_of(letters.to_thread(), 1),
        list(letters("xy")),
        await items_of(broken_at_its_end()),
        await items_of(broken_at_its_end(), 1),
        await items_of(broken_at_its_end.with_options(pump=True)(), 1),
    ]


@scenario
async def streams_with_deadlines() -> Any:
    timed = numbers.with_options(item_timeout=2 * unit.get())
    items: list[Any] = []
    async with timed(2, 1) as stream:
        async for item in stream:
            items.append(item)
            await sleep(3)
    late = await items_of(timed(2, 3))
    return items, late[0].split("(")[0]


@scenario
async def a_stream_that_is_cancelled() -> Any:
    said: list[Any] = []
    for kind in (
        numbers,
        numbers.with_options(pump=True),
        broken_at_its_end,
        broken_at_its_end.with_options(pump=True),
    ):
        try:
            async with cancelled_after(2) as scope:
                async with kind() as stream:
                    async for _ in stream:
                        await sleep(5)
            said.append(scope.cancelled_caught)
        except Exception as exc:
            said.append(described(exc))
    return said


@scenario
async def a_stream_that_is_thrown_into() -> Any:
    said = []
    for kind in (numbers, numbers.with_options(pump=True), broken_at_its_end):
        stream: Any = kind()
        async with stream:
            said.append(await outcome_of(stream.asend(None)))
            said.append(await outcome_of(stream.athrow(KeyError("thrown"))))
            said.append(await outcome_of(anext(stream, "over")))
    return said


@scenario
async def a_stream_that_is_left_to_its_session() -> Any:
    async with session(name="inner"):
        for kind in (numbers, numbers.with_options(pump=True)):
            async for _ in kind():
                break
    return "left"


# Threads.


@scenario
async def threads_that_go_back() -> Any:
    return [await sum_back.to_thread(3), await gather_tasks(sum_back, [1, 2], limit=2)]


@scenario
async def a_thread_whose_caller_is_cancelled() -> Any:
    @task
    def patient() -> str:
        try:
            return wait.from_thread(100)  # type: ignore[return-value]
        finally:
            seen.append("the thread has ended")

    seen: list[str] = []
    async with cancelled_after(2) as scope:
        await patient.to_thread()
    return scope.cancelled_caught, seen


@scenario
async def a_session_in_a_thread() -> Any:
    def body() -> list[Any]:
        with session(name="inner") as s:
            future = s.start_soon(wait, 2)
            return [wait.from_thread(1), future.result(), list(numbers.from_thread(2))]

    return await to_thread.run_sync(body)


# Fan-outs.


@scenario
async def fan_outs() -> Any:
    async def results(**options: Any) -> list[Any]:
        async with stream_tasks(wait, [3, 1, 2], limit=3, **options) as stream:
            return [result async for result in stream]

    return [
        await gather_tasks(wait, [3, 1, 2], limit=2),
        await gather_tasks(wait.call(1), square.call(2), numbers.call(2)),
        await gather_tasks(numbers, [1, 2]),
        await gather_tasks(square, numbers(3)),
        await results(),
        await results(ordered=True),
        await race_tasks(wait.call(3), wait.call(1), wait.call(2)),
        await race_tasks(fail.call(0), wait.call(1)),
    ]


@scenario
async def fan_outs_that_fail() -> Any:
    @task
    async def odd(number: int) -> int:
        await sleep(1 + number)
        if number % 2:
            raise ValueError(number)
        return number

    async def first_of_stream() -> list[Any]:
        said: list[Any] = []
        try:
            async with stream_tasks(odd, [0, 1, 2, 3], limit=4) as results:
                async for result in results:
                    said.append(result)
        except Exception as exc:
            said.append(described(exc))
        return said

    outcomes = await gather_tasks(odd, range(4), errors="collect")
    succeeded, failures = partition(outcomes)
    return [
        await outcome_of(gather_tasks(odd, range(4))),
        succeeded,
        [described(failure) for failure in failures],
        await first_of_stream(),
        await outcome_of(gather_tasks(wait.call(5), fail.call(1), fail_while_cancelled.call())),
        await outcome_of(race_tasks(fail.call(1), fail.call(2))),
    ]


@scenario
async def a_fan_out_that_is_cancelled() -> Any:
    said: list[Any] = []
    for awaitable in (
        lambda: gather_tasks(wait, [1, 3, 5]),
        lambda: gather_tasks(fail_while_cancelled, [7, 8]),
        lambda: gather_tasks(swallow.call(), wait.call(9)),
        lambda: race_tasks(wait.call(5), fail_while_cancelled.call()),
        lambda: gather_tasks(wait, numbers(5, 1), limit=1),
    ):
        async with cancelled_after(2) as scope:
            said.append(await outcome_of(awaitable()))
        said.append(scope.cancelled_caught)
    return said


@scenario
async def sources_that_fail() -> Any:
    async def broken() -> AsyncIterator[int]:
        yield 1
        await sleep(2)
        raise OSError("no more")

    def broken_sync() -> Iterator[int]:
        yield 1
        raise OSError("no more")

    return [
        await outcome_of(gather_tasks(wait, broken())),
        await outcome_of(gather_tasks(wait, broken_sync(), limit=1)),
        await outcome_of(gather_tasks(square, broken_at_its_end(), limit=1, backend="inline")),
    ]


# Sessions.


@scenario
async def background_calls() -> Any:
    async with session(name="inner") as s:
        handles: list[Any] = [s.start_soon(wait, 2), s.start_soon(square, 3), s.start_soon(numbers, 2)]
        s.start_service(wait, 1000)
        values: list[Any] = [await handle for handle in handles]
    stats = s.stats()
    return values, stats.succeeded, stats.cancelled


@scenario
async def background_calls_that_fail() -> Any:
    async def raises(*errors: type[BaseException], body: BaseException | None = None, **options: Any) -> str:
        async def run() -> str:
            async with session(name="inner", **options) as s:
                for error in errors:
                    s.start_soon(fail, 1, error)
                s.start_soon(wait, 100 if options == {} else 3)
                if body is not None:
                    await sleep(1)
                    raise body
            return "left"

        return await outcome_of(run())

    async def caught_in_the_body() -> str:
        async with session(name="inner", on_background_error="log") as s:
            return await outcome_of(s.start_soon(fail, 1))
        return "never"

    return [
        await raises(ValueError),
        await raises(ValueError, OSError, on_background_error="log"),
        await raises(body=KeyError("of the body")),
        await caught_in_the_body(),
    ]


@scenario
async def a_session_that_is_cancelled() -> Any:
    said: list[Any] = []
    async with cancelled_after(2) as scope:
        async with session(name="inner") as s:
            s.start_soon(wait, 100)
            s.start_soon(numbers, 3, 5)
            await wait(50)
    said.append(scope.cancelled_caught)
    async with session(name="other") as s:
        handle = s.start_soon(wait, 100)
        kept = s.start_soon(wait, 3)
        await sleep(1)
        handle.cancel()
        said.append(await outcome_of(handle))
        said.append(await kept)
        s.start_soon(wait, 100)
        await sleep(1)
        s.cancel()
    return said


@scenario
async def failures_while_a_session_is_cancelled() -> Any:
    async def run() -> None:
        async with session(name="inner") as s:
            s.start_soon(fail_while_cancelled)
            await sleep(100)

    said: list[Any] = []
    async with cancelled_after(2) as scope:
        said.append(await outcome_of(run()))
    return said, scope.cancelled_caught


@scenario
async def binds_and_inner_sessions() -> Any:
    async with session(name="inner") as s:

        async def request(number: int) -> None:
            async with s.bind():
                said.append(await wait(number))
                async for _ in numbers():
                    break

        said: list[float] = []
        async with anyio.create_task_group() as group:
            group.start_soon(request, 2)
            group.start_soon(request, 1)
        async with session(name="innermost"):
            await wait(1)
    return said
