"""The n-th hook, subscriber, source or function fails, for every n: nothing else does, and nothing is left."""

import sys
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any

import anyio
import pytest
from anyio.lowlevel import checkpoint

from daglite import (
    Limit,
    Rate,
    aload_dataset,
    asave_dataset,
    gather_tasks,
    map_tasks,
    report,
    session,
    stream_tasks,
    task,
)
from daglite.cache import MemoryCacheStore
from daglite.events import TaskStarted
from daglite.exceptions import DatasetError, TaskError, TaskGroupError
from daglite.plugins import hook_impl
from daglite.sessions import Subscription
from daglite.testing import Faults
from tests import sweep
from tests.test_cache import Shelf
from tests.test_datasets import Drawer

if sys.version_info < (3, 11):
    from exceptiongroup import BaseExceptionGroup

LIMIT = Limit("fault sweep", 2)
RATE = Rate(1_000_000)


class Mine(Exception):
    """Something of ours that fails."""


class Interrupt(BaseException):
    """What ends a program. (A real one would end the event loop of asyncio, and pytest with it.)"""


@task
async def plain(number: int) -> int:
    await checkpoint()
    report("half", number)
    return number


@task(retries=1)
async def flaky(number: int) -> int:
    if number % 2:
        raise ValueError(number)
    return number


@task(limit=LIMIT, rate=RATE)
def square(number: int) -> int:
    return number * number


@task
async def rows(to: int) -> AsyncIterator[int]:
    for number in range(to):
        yield number


@task
def rows_sync(to: int) -> Iterator[int]:
    yield from range(to)


async def program() -> list[Any]:
    """Some of everything, and what it comes to."""
    async with session(name="inner") as s:
        handle = s.start_soon(plain, 1)
        results: list[Any] = [await handle]
        results.append([item async for item in rows(2)])
        async for item in rows.with_options(pump=True)(3):
            results.append(item)
            break
        results.append([item async for item in rows_sync.to_thread(2)])
        results.append(list(rows_sync(2)))
        results.append(await gather_tasks(square, [1, 2], limit=1))
        cached = plain.with_options(cache=MemoryCacheStore(), version=1)
        results.append([await cached(1), await cached(1)])
        results.append([outcome.value for outcome in await gather_tasks(flaky, [1, 2], errors="collect")])
        try:
            await flaky(1)
        except TaskError as exc:
            results.append(str(exc))
        with anyio.CancelScope() as scope:
            scope.cancel()
            await plain(2)
        async with stream_tasks(plain, [1, 2], ordered=True) as stream:
            results.append([result async for result in stream])
    return results


async def program_of_datasets() -> list[Any]:
    """All that saves and loads, and what it comes to."""
    drawer = Drawer()
    saved: Any = {"dataset": "{name}/{iter_index}.json", "dataset_store": drawer}
    results: list[Any] = [[item async for item in rows.with_options(**saved)(1)]]
    results.append([item async for item in rows_sync.with_options(**saved).to_thread(1)])
    results.append(await square.with_options(dataset="a.json", dataset_store=drawer).to_thread(4))
    return [*results, await aload_dataset("a.json", store=drawer), sorted(drawer.kept)]


PROGRAMS = {program: 50, program_of_datasets: 15}  # and how many hooks are called, at least


class Unruly:
    """A plugin of whose hooks the so manieth that is called fails."""

    def __init__(self, number: int, error: type[BaseException]) -> None:
        self.left = number
        self.error = error

    def called(self) -> None:
        self.left -= 1
        if self.left == -1:
            raise self.error

    @hook_impl
    @contextmanager
    def activate(self) -> Iterator[None]:
        self.called()
        try:
            yield
        finally:
            self.called()


def _hook(name: str) -> Any:
    def hook(self: Unruly) -> None:
        self.called()

    hook.__name__ = name
    return hook_impl(hook)


for _name in (
    *("before_session_start", "after_session_end", "before_node_execute", "after_node_execute", "on_node_error"),
    *("on_node_cancelled", "before_node_retry", "after_node_retry", "node_iteration", "on_cache_hit", "on_cache_miss"),
    *("before_dataset_save", "after_dataset_save", "before_dataset_load", "after_dataset_load"),
):
    setattr(Unruly, _name, _hook(_name))


@pytest.mark.parametrize(("program", "least"), PROGRAMS.items())
async def test_a_hook_that_fails_changes_nothing(
    program: Callable[[], Coroutine[Any, Any, list[Any]]], least: int, caplog: pytest.LogCaptureFixture
) -> None:
    expected = await program()
    for number in range(sweep.MOST):
        caplog.clear()
        plugin = Unruly(number, Mine)
        results: list[Any] = []

        async def run(results: list[Any] = results) -> bool:
            results += await program()
            return True

        await sweep.Watch(LIMIT, RATE, plugin).in_session(run)
        assert results == expected, number
        if plugin.left >= 0:
            break
        (record,) = caplog.records
        assert "Unruly" in record.getMessage()
        assert record.exc_info
        assert isinstance(record.exc_info[1], Mine)
    assert least < number < sweep.MOST - 1


def flattened(error: BaseException) -> list[BaseException]:
    """The errors in a group, and in the groups in that."""
    if isinstance(error, BaseExceptionGroup):
        return [each for inner in error.exceptions for each in flattened(inner)]
    return [error]


@pytest.mark.parametrize(("program", "least"), PROGRAMS.items())
async def test_what_ends_a_program_comes_out_of_every_hook(
    program: Callable[[], Coroutine[Any, Any, list[Any]]], least: int, caplog: pytest.LogCaptureFixture
) -> None:
    async def run() -> bool:
        await program()
        return True

    for number in range(sweep.MOST):
        plugin = Unruly(number, Interrupt)
        watch = sweep.Watch(LIMIT, RATE, plugin)
        try:
            with watch.recorder:
                async with session(plugins=[watch.balance, plugin]):
                    await program()
        except BaseException as exc:
            assert {type(each) for each in flattened(exc)} == {Interrupt}, number
        else:
            break
        watch.assert_nothing_is_left()
    assert plugin.left >= 0
    assert least < number < sweep.MOST - 1
    assert caplog.records == []


async def test_a_subscriber_that_fails_changes_nothing(caplog: pytest.LogCaptureFixture) -> None:
    expected = await program()
    for number in range(sweep.MOST):
        caplog.clear()
        left = number

        async def consume(events: Subscription) -> None:
            nonlocal left
            async for _ in events:
                left -= 1
                if left == -1:
                    raise Mine

        async def run(consume: Any = consume) -> bool:
            async with session() as s:
                s.watch(consume)
                assert await program() == expected
            return True

        await sweep.Watch(LIMIT, RATE).in_session(run)
        if left >= 0:
            break
        (record,) = caplog.records
        assert record.exc_info
        assert isinstance(record.exc_info[1], Mine)
    assert 40 < number < sweep.MOST - 1


class Rusty(Shelf):
    """A store of whose methods the so manieth that is called fails."""

    def __init__(self, number: int, error: type[BaseException], *, blocking: bool) -> None:
        super().__init__(blocking=blocking)
        self.left = number
        self.fault = error

    def _come(self, what: str) -> None:
        self.left -= 1
        if self.left == -1:
            raise self.fault


async def use(store: Rusty) -> list[Any]:
    """Everything that asks a store, and what it comes to."""
    cached, here = plain.with_options(cache=store, version=1), square.with_options(cache=store, version=1)
    results: list[Any] = [await cached(2), await cached(2), await gather_tasks(cached, [1, 1, 2])]
    return [*results, await here.to_thread(3), here.with_options(limit=None, rate=None)(3)]


@pytest.mark.parametrize("blocking", [True, False])
async def test_a_store_that_fails_changes_nothing(blocking: bool, caplog: pytest.LogCaptureFixture) -> None:
    expected = [2, 2, [1, 1, 2], 9, 9]
    for number in range(sweep.MOST):
        caplog.clear()
        store = Rusty(number, Mine, blocking=blocking)

        async def run(store: Rusty = store) -> bool:
            assert await use(store) == expected
            return True

        await sweep.Watch(LIMIT, RATE).in_session(run)
        if store.left >= 0:
            break
        (record,) = caplog.records
        assert "Mine" in record.getMessage()
    assert 8 < number < sweep.MOST - 1


@pytest.mark.parametrize("blocking", [True, False])
async def test_what_ends_a_program_comes_out_of_every_store(blocking: bool, caplog: pytest.LogCaptureFixture) -> None:
    for number in range(sweep.MOST):
        store = Rusty(number, Interrupt, blocking=blocking)
        watch = sweep.Watch(LIMIT, RATE)
        try:
            with watch.recorder:
                async with session(plugins=[watch.balance]):
                    await use(store)
        except BaseException as exc:
            assert {type(each) for each in flattened(exc)} == {Interrupt}, number
        else:
            break
        watch.assert_nothing_is_left()
    assert 8 < number < sweep.MOST - 1
    assert caplog.records == []


class Leaky(Drawer):
    """A store of datasets of whose methods the so manieth that is called fails."""

    def __init__(self, number: int, error: type[BaseException]) -> None:
        super().__init__()
        self.left = number
        self.fault = error

    def save(self, key: str, *args: Any, **kwargs: Any) -> None:
        self.left -= 1
        if self.left == -1:
            raise self.fault
        super().save(key, *args, **kwargs)


async def use_datasets(store: Leaky, results: list[Any]) -> None:
    """Everything that saves, as far as it comes."""
    saved: Any = {"dataset": "{name}.json", "dataset_store": store}
    items: Any = {"dataset": "{name}/{iter_index}.json", "dataset_store": store}
    cached = plain.with_options(cache=MemoryCacheStore(), version=1, **saved)
    results.append(await flaky.with_options(**saved)(2))
    results.append(await cached(2))
    results.append(await square.with_options(**saved).to_thread(3))
    results.append([item async for item in rows.with_options(**items)(2)])
    async with rows.with_options(pump=True, **items)(1) as stream:
        results.append([item async for item in stream])
    results.append([item async for item in rows_sync.with_options(**items).to_thread(1)])
    results.append(list(rows_sync.with_options(**items)(1)))
    results.append(await gather_tasks(cached, [2, 3, 3], limit=1))
    await asave_dataset("a.json", 1, store=store)


@pytest.mark.parametrize("fault", [Mine, Interrupt])
async def test_a_dataset_that_cannot_be_saved_fails_what_saves_it_and_nothing_is_left(
    fault: type[BaseException], caplog: pytest.LogCaptureFixture
) -> None:
    expected = [2, 2, 9, [0, 1], [0], [0], [0], [2, 3, 3]]
    for number in range(sweep.MOST):
        store, results = Leaky(number, fault), []  # type: ignore[var-annotated]
        watch = sweep.Watch(LIMIT, RATE)
        try:
            with watch.recorder:
                async with session(plugins=[watch.balance]):
                    await use_datasets(store, results)
        except BaseException as exc:
            (error,) = flattened(exc)
            if isinstance(error, DatasetError):
                error = error.__cause__ or error
            assert type(error) is fault, number
            assert results == expected[: len(results)]
            assert "a.json" not in store.kept  # which comes last
        else:
            break
        watch.assert_nothing_is_left()
    assert results == expected
    assert number == 10
    assert caplog.records == []


def sync_source(fails_at: int, error: type[BaseException]) -> Iterator[int]:
    for number in range(6):
        if number == fails_at:
            raise error
        yield number


async def async_source(fails_at: int, error: type[BaseException]) -> AsyncIterator[int]:
    for number in range(6):
        await checkpoint()
        if number == fails_at:
            raise error
        yield number


class Iterators:
    """An async iterator that is no generator."""

    def __init__(self, fails_at: int, error: type[BaseException]) -> None:
        self._numbers = sync_source(fails_at, error)

    def __aiter__(self) -> Any:
        return self

    async def __anext__(self) -> int:
        for number in self._numbers:
            return number
        raise StopAsyncIteration


async def gathered(source: Any) -> Any:
    return await gather_tasks(plain, source, limit=2)


async def streamed(source: Any) -> Any:
    async with stream_tasks(plain, source, limit=2) as results:
        return sorted([result async for result in results])


async def streamed_in_order(source: Any) -> Any:
    async with stream_tasks(square, source, limit=2, ordered=True, buffer=1) as results:
        return [result async for result in results]


async def mapped(source: Any) -> Any:
    if hasattr(source, "__aiter__"):
        return await gathered(source)

    @task
    def in_a_thread() -> list[int]:
        return map_tasks(plain, source, limit=2)

    return await in_a_thread.to_thread()


@pytest.mark.parametrize("error", [Mine, Interrupt])
@pytest.mark.parametrize("source", [sync_source, async_source, Iterators])
@pytest.mark.parametrize("fan_out", [gathered, streamed, streamed_in_order, mapped])
async def test_a_source_that_fails_comes_out_as_it_is(
    fan_out: Callable[[Any], Coroutine[Any, Any, Any]],
    source: Callable[[int, type[BaseException]], Any],
    error: type[BaseException],
) -> None:
    for number in range(7):

        async def run(number: int = number) -> bool:
            try:
                await fan_out(source(number, error))
            except (Mine, Interrupt, TaskError) as exc:
                failure = exc.__cause__ if isinstance(exc, TaskError) else exc  # of the task that calls `map_tasks`
                assert type(failure) is error
                return True
            return False

        assert await sweep.Watch(LIMIT, RATE).in_session(run) is (number < 6)


FAN_OUTS: dict[str, Callable[[], Coroutine[Any, Any, Any]]] = {
    "gather": lambda: gather_tasks(plain, range(5), limit=2),
    "calls": lambda: gather_tasks(plain.call(1), plain.call(2)),
    "threads": lambda: gather_tasks(square, range(5), limit=2),
    "streams": lambda: gather_tasks(rows, range(4), limit=2),
    "results": lambda: streamed(range(5)),
    "ordered": lambda: streamed_in_order(range(5)),
}


@pytest.mark.parametrize("error", [Mine, Interrupt])
@pytest.mark.parametrize("name", FAN_OUTS)
async def test_a_call_that_fails_ends_its_fan_out_and_nothing_else(name: str, error: type[BaseException]) -> None:
    for number in range(sweep.MOST):
        with Faults() as faults:
            fault = [faults.fail(each, error, after=number) for each in (plain, square, rows)]

            async def run() -> bool:
                try:
                    await FAN_OUTS[name]()
                except TaskGroupError as exc:
                    assert {type(failure.__cause__) for failure in exc.exceptions} == {Mine}
                except BaseException as exc:
                    assert {type(each) for each in flattened(exc)} == {Interrupt}
                else:
                    return False
                return True

            watch = sweep.Watch(LIMIT, RATE)
            failed = await watch.in_session(run)
            assert failed is any(each.hits for each in fault)
            assert watch.recorder.of(TaskStarted)
        if not failed:
            break
    assert 1 < number < sweep.MOST - 1
