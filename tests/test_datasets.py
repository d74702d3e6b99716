"""`dataset=`: a result is saved after its last attempt; and the four functions that save and load by hand."""

import logging
import os
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest
from anyio.lowlevel import checkpoint

from daglite import (
    aload_dataset,
    asave_dataset,
    current_task,
    gather_tasks,
    load_dataset,
    map_tasks,
    report,
    save_dataset,
    session,
    task,
)
from daglite.datasets import DatasetStore
from daglite.events import (
    CacheHit,
    DatasetLoaded,
    DatasetSaved,
    TaskCancelled,
    TaskEvent,
    TaskFailed,
    TaskStarted,
)
from daglite.exceptions import DatasetError, TaskError, TaskGroupError, TaskTimeoutError
from daglite.plugins import hook_impl
from daglite.settings import Settings, get_settings, set_settings
from daglite.testing import EventRecorder

from . import tasks_for_pickle
from .test_tree import until

KINDS = ["async", "sync", "thread"]
STREAMS = ["async", "pumped", "from a thread", "sync", "in a thread", "timed", "collected"]


class GatedStore(DatasetStore):
    """A store that can be told to fail, or to let others wait."""

    def __init__(self, path: Any) -> None:
        super().__init__(path)
        self.error: Exception | None = None
        self.gate: threading.Event | None = None
        self.saving = threading.Event()
        self.threads: set[int] = set()

    def save(self, key: str, *args: Any, **kwargs: Any) -> None:
        self.saving.set()
        self.threads.add(threading.get_ident())
        if self.gate is not None:
            assert self.gate.wait(30)
        if self.error is not None:
            raise self.error
        super().save(key, *args, **kwargs)


class Drawer(DatasetStore):
    """A store without files."""

    def __init__(self) -> None:
        super().__init__("a drawer")
        self.kept: dict[str, Any] = {}
        self.is_full = False

    def save(self, key: str, value: Any, *args: Any, **kwargs: Any) -> None:
        if self.is_full:
            raise OSError("it is full")
        self.kept[key] = value

    def load(self, key: str, *args: Any, **kwargs: Any) -> Any:
        return self.kept[key]


@pytest.fixture
def store(tmp_path: Path) -> GatedStore:
    return GatedStore(tmp_path / "root")


@pytest.fixture
def default_settings() -> Iterator[None]:
    yield
    set_settings(None)


class Square:
    """A task of each kind that has results, which counts how often its function runs."""

    def __init__(self, **options: Any) -> None:
        self.runs: list[int] = []
        self.task = task(name="square", **options)(self._square)
        self.sync = task(name="square", **options)(self._square_here)

    def __cache_key__(self) -> None: ...

    async def _square(self, number: Any) -> Any:
        self.runs.append(number)
        return number * number

    def _square_here(self, number: Any) -> Any:
        self.runs.append(number)
        return number * number

    async def call(self, kind: str, number: Any) -> Any:
        if kind == "async":
            return await self.task(number)
        return self.sync(number) if kind == "sync" else await self.sync.to_thread(number)


class Numbers:
    """A stream of each kind, which counts how far it has come, and notes how it ended."""

    def __init__(self, **options: Any) -> None:
        self.given: list[int] = []
        self.ended: list[str] = []
        self.options = {"dataset": "numbers/{iter_index}.json", **options}

    async def _numbers(self, count: int) -> AsyncIterator[Any]:
        try:
            for number in range(count):
                self.given.append(number)
                sent = yield {"number": number}
                if sent is not None:
                    self.given.append(sent)
        finally:
            self.ended.append("closed")

    def _numbers_here(self, count: int) -> Iterator[Any]:
        try:
            for number in range(count):
                self.given.append(number)
                sent = yield {"number": number}
                if sent is not None:
                    self.given.append(sent)
        finally:
            self.ended.append("closed")

    async def items(self, kind: str, count: int) -> list[Any]:
        match kind:
            case "async" | "pumped":
                async with task(pump=kind == "pumped", **self.options)(self._numbers)(count) as items:
                    return [item async for item in items]
            case "from a thread":
                stream = task(**self.options)(self._numbers)
                return await task(lambda: list(stream.from_thread(count))).to_thread()
            case "sync":
                return list(task(**self.options)(self._numbers_here)(count))
            case "in a thread":
                return [item async for item in task(**self.options)(self._numbers_here).to_thread(count)]
            case "timed":
                timed = task(item_timeout=30, **self.options)(self._numbers_here)
                return await task(lambda: list(timed(count))).to_thread()
            case _:
                collected: list[list[Any]] = await gather_tasks(task(**self.options)(self._numbers_here), [count])
                return collected[0]


def keys(recorder: EventRecorder) -> list[str]:
    return [event.key for event in recorder.of(DatasetSaved)]


# Results.


@pytest.mark.parametrize("kind", KINDS)
async def test_a_result_is_saved_and_returned(store: DatasetStore, kind: str) -> None:
    square = Square(dataset="results/{name}-{number}.json")
    async with session(dataset_store=store):
        assert await square.call(kind, 3) == 9
        assert await square.call(kind, 4) == 16
    assert store.list_keys() == ["results/square-3.json", "results/square-4.json"]
    assert store.load("results/square-4.json") == 16


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("where", ["task", "session", "settings", "path", "path object"])
async def test_the_nearest_store_is_used(tmp_path: Path, kind: str, where: str) -> None:
    wanted, other = tmp_path / "wanted", tmp_path / "other"
    square = Square(dataset="a.json", dataset_store=DatasetStore(wanted) if where == "task" else None)
    if where == "settings":
        async with session(settings=Settings(dataset_store=wanted)):
            await square.call(kind, 3)
    else:
        given: Any = {"path": str(wanted), "path object": wanted, "session": DatasetStore(wanted), "task": other}[where]
        async with session(settings=Settings(dataset_store=other)), session(dataset_store=given), session():
            await square.call(kind, 3)
    assert DatasetStore(wanted).list_keys() == ["a.json"]
    assert not other.exists()


@pytest.mark.usefixtures("default_settings")
@pytest.mark.parametrize("kind", KINDS)
async def test_outside_of_sessions_the_settings_say_where(tmp_path: Path, kind: str) -> None:
    set_settings(Settings.from_env({"DAGLITE_DATASET_STORE": str(tmp_path / "root")}))
    assert get_settings().dataset_store == str(tmp_path / "root")
    assert await Square(dataset="a.json").call(kind, 3) == 9
    assert DatasetStore(tmp_path / "root").load("a.json") == 9


@pytest.mark.parametrize("kind", KINDS)
async def test_without_a_store_the_function_does_not_run(kind: str) -> None:
    square = Square(dataset="a.json", retries=3)
    async with session() as s:
        with pytest.raises(
            DatasetError, match="task 'square' has dataset='a.json', and there is no store for it: give it"
        ):
            await square.call(kind, 3)
        assert s.stats().started == 0
    async with session(dataset_store="a", name="outer"), session(dataset_store=None):
        with pytest.raises(DatasetError, match="no store"):
            await square.call(kind, 3)
    assert square.runs == []


async def test_placeholders_are_parameters_the_name_and_the_place_in_a_fan_out(store: DatasetStore) -> None:
    @task(name="load {table}", dataset="{name}/{table}-{map_index}{{}}.json")
    async def load(table: str, limit: int = 3) -> int:
        return limit

    @task(dataset="{name}.json")
    async def greet(name: str) -> str:
        return name

    async with session(dataset_store=store):
        await gather_tasks(load, ["a", "b"])
        await load("c")
        await greet("ada")
    assert store.list_keys() == ["ada.json", "load a[0]/a-0{}.json", "load b[1]/b-1{}.json", "load c/c-0{}.json"]


async def test_a_method_saves_too(store: DatasetStore) -> None:
    class Shop:
        def __init__(self, name: str) -> None:
            self.name = name

        @task(dataset="{name}-{day}.json")
        async def sales(self, day: int) -> str:
            return self.name

    async with session(dataset_store=store):
        assert await Shop("a").sales(1) == "a"
        assert await Shop.sales(Shop("b"), 2) == "b"
    assert store.list_keys() == ["sales-1.json", "sales-2.json"]


async def test_a_format_can_be_named(store: DatasetStore) -> None:
    async with session(dataset_store=store):
        await Square(dataset="{number}", dataset_format="json").task(3)
    assert store.load("3", int, "json") == 9


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "value", ["a/b", "a\\b", "a\0b", ".", "..", "/", "../..", "/etc/passwd", "..\\..", "a" * 300, "\ud800"]
)
async def test_a_placeholder_does_not_lead_out_of_its_name(tmp_path: Path, kind: str, value: str) -> None:
    square = Square(dataset="a/{number}.json", retries=3)
    async with session(dataset_store=tmp_path / "root") as s:
        with pytest.raises(ValueError, match="task 'square': dataset") as caught:
            await square.call(kind, value)
        assert s.stats().started == 0
    assert type(caught.value.__cause__) is type(None)
    assert square.runs == []
    assert not (tmp_path / "root").exists()


async def test_a_placeholder_that_is_a_whole_part_may_not_be_dots(store: DatasetStore) -> None:
    async with session(dataset_store=store):
        for value in (".. ", "", " "):
            with pytest.raises(ValueError, match="is no key, for"):
                await Square(dataset="{number}/a.json").task(value)


@pytest.mark.parametrize("kind", KINDS)
async def test_a_link_in_a_keys_way_fails_the_call(tmp_path: Path, kind: str, recorded_events: EventRecorder) -> None:
    outside, root = tmp_path / "outside", tmp_path / "root"
    outside.mkdir()
    root.mkdir()
    (root / "3").symlink_to(outside)
    square = Square(dataset="{number}/a.json", retries=3)
    async with session(dataset_store=root):
        with pytest.raises(ValueError, match="'3/a.json' is no key, for '3' is a symbolic link in this store"):
            await square.call(kind, 3)
    assert square.runs == [3]
    assert list(outside.iterdir()) == []
    assert len(recorded_events.of(TaskFailed)) == 1


async def test_an_object_without_a_text_is_no_part_of_a_key(store: DatasetStore) -> None:
    class Mute:
        def __str__(self) -> str:
            raise OSError("no text")

    async with session(dataset_store=store):
        with pytest.raises(ValueError, match="{number} stands for an object that cannot be shown as text: OSError"):
            await Square(dataset="{number}.json").task(Mute())


async def test_what_is_hidden_in_names_is_hidden_in_keys_that_are_made_of_them(store: DatasetStore) -> None:
    @task(name="log in {user} {password}", dataset="{name}-{user}.json")
    async def log_in(user: str, password: str) -> str:
        return user

    from daglite.settings import hide

    async with session(dataset_store=store, settings=Settings(redact=hide("password"))):
        await log_in("ada", "1815")
    assert store.list_keys() == ["log in ada <redacted>-ada.json"]


@pytest.mark.parametrize("kind", KINDS)
async def test_wrong_arguments_are_a_type_error_and_nothing_is_saved(store: DatasetStore, kind: str) -> None:
    square = Square(dataset="{number}.json")
    call: Any = {"async": square.task, "sync": square.sync, "thread": square.sync.to_thread}[kind]
    async with session(dataset_store=store):
        with pytest.raises(TypeError, match="number"):
            result = call()
            if kind != "sync":
                await result
    assert store.list_keys() == []


@pytest.mark.parametrize("kind", KINDS)
async def test_it_is_saved_once_after_the_last_attempt(store: GatedStore, kind: str) -> None:
    runs: list[int] = []

    def work(number: int) -> int:
        runs.append(number)
        if len(runs) < 3:
            raise ValueError("not yet")
        return number

    async def awork(number: int) -> int:
        return work(number)

    options: dict[str, Any] = {"dataset": "{number}.json", "retries": 3, "name": "work"}
    async with session(dataset_store=store):
        if kind == "async":
            await task(**options)(awork)(3)
        else:
            sync: Any = task(**options)(work)
            _ = sync(3) if kind == "sync" else await sync.to_thread(3)
    assert runs == [3, 3, 3]
    assert store.list_keys() == ["3.json"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("options", [{}, {"retries": 3}, {"wrap_errors": False, "retries": 1}, {"total_timeout": 30}])
async def test_what_cannot_be_saved_fails_the_call_and_the_function_is_not_run_again(
    store: GatedStore, kind: str, options: dict[str, Any], recorded_events: EventRecorder
) -> None:
    square = Square(dataset="{number}.json", **options)
    store.error = OSError("no space")
    async with session(dataset_store=store):
        if kind == "sync" and "total_timeout" in options:
            return
        with pytest.raises(DatasetError, match="dataset '3.json' cannot be saved: OSError: no space") as caught:
            await square.call(kind, 3)
    assert caught.value.__cause__ is store.error
    assert square.runs == [3]
    (failed,) = recorded_events.of(TaskFailed)
    assert failed.error == "DatasetError: dataset '3.json' cannot be saved: OSError: no space"
    assert failed.attempts == 1
    assert keys(recorded_events) == []


@pytest.mark.parametrize("kind", KINDS)
async def test_a_value_that_the_format_does_not_take_fails_the_call(store: GatedStore, kind: str) -> None:
    square = Square(dataset="a.txt")
    async with session(dataset_store=store):
        with pytest.raises(DatasetError, match="dataset 'a.txt' cannot be saved as text: TypeError: text is for a str"):
            await square.call(kind, 3)
    assert square.runs == [3]


async def test_a_task_that_calls_another_may_try_again(store: GatedStore) -> None:
    square = Square(dataset="a.json")
    store.error = OSError("no space")

    @task(retries=2)
    async def outer() -> int:
        return await square.task(3)  # type: ignore[no-any-return]

    async with session(dataset_store=store):
        with pytest.raises(TaskError, match="Task 'outer' failed after 3 attempts") as caught:
            await outer()
    assert isinstance(caught.value.root_cause, DatasetError)
    assert square.runs == [3, 3, 3]


async def test_in_a_fan_out_it_is_a_failure_like_others(store: GatedStore) -> None:
    store.error = OSError("no space")
    async with session(dataset_store=store):
        with pytest.raises(TaskGroupError) as caught:
            await gather_tasks(Square(dataset="{number}.json").task, [1])
    (error,) = caught.value.exceptions
    assert isinstance(error, DatasetError)


def test_sync_sessions_save_too(tmp_path: Path) -> None:
    square = Square(dataset="{number}.json")
    with session(dataset_store=tmp_path):
        assert map_tasks(square.sync, [1, 2]) == [1, 4]
        assert square.task.from_thread(3) == 9
        assert square.sync(4) == 16
    assert DatasetStore(tmp_path).list_keys() == ["1.json", "2.json", "3.json", "4.json"]


async def test_async_calls_save_in_threads_of_their_own_and_the_tree_says_so(store: GatedStore) -> None:
    store.gate = threading.Event()
    async with session(dataset_store=store) as s:
        handle = s.start_soon(Square(dataset="a.json").task, 3)
        await until(lambda: [call.state for call in s.tree()] == ["saving its dataset"])
        store.gate.set()
        assert await handle == 9
    assert threading.get_ident() not in store.threads


@pytest.mark.parametrize("kind", ["async", "thread"])
async def test_a_cancelled_call_is_saved_all_the_same(store: GatedStore, kind: str) -> None:
    store.gate = threading.Event()
    square = Square(dataset="a.json")
    values: list[Any] = []
    async with session(dataset_store=store), anyio.create_task_group() as group:

        async def call() -> None:
            values.append(await square.call(kind, 3))
            await checkpoint()
            values.append("not cancelled")

        group.start_soon(call)
        await until(store.saving.is_set)
        group.cancel_scope.cancel()
        store.gate.set()
    assert values == [9]
    assert store.load("a.json") == 9


async def test_a_cancelled_call_waits_for_its_store_no_longer_than_grace(
    store: GatedStore, caplog: pytest.LogCaptureFixture, recorded_events: EventRecorder
) -> None:
    store.gate = threading.Event()
    square = Square(dataset="a.json")
    with caplog.at_level(logging.WARNING, "daglite"):
        async with session(dataset_store=store, grace=0.01):
            with anyio.CancelScope() as scope:
                async with anyio.create_task_group() as group:
                    group.start_soon(square.task, 3)
                    await until(store.saving.is_set)
                    scope.cancel()
            assert scope.cancelled_caught
    assert "task 'square': its dataset 'a.json' is saved by a thread that goes on by itself" in caplog.text
    assert [type(event) for event in recorded_events.of(TaskEvent)] == [TaskStarted, TaskCancelled]
    store.gate.set()
    while not store.exists("a.json"):  # in the thread that was left to itself
        await anyio.sleep(0.001)


async def test_who_saves_by_hand_and_is_cancelled_waits_no_longer_than_grace(
    store: GatedStore, caplog: pytest.LogCaptureFixture
) -> None:
    store.gate = threading.Event()
    with caplog.at_level(logging.WARNING, "daglite"):
        async with session(dataset_store=store, grace=0.01):
            with anyio.CancelScope() as scope:
                async with anyio.create_task_group() as group:
                    group.start_soon(asave_dataset, "a.json", 9)
                    await until(store.saving.is_set)
                    scope.cancel()
            assert scope.cancelled_caught
    assert "dataset 'a.json' is saved by a thread that goes on by itself" in caplog.text
    store.gate.set()
    while not store.exists("a.json"):  # in the thread that was left to itself
        await anyio.sleep(0.001)


@pytest.mark.parametrize("timeout", ["timeout", "total_timeout"])
async def test_saving_is_in_no_deadline(store: GatedStore, timeout: str) -> None:
    store.gate = threading.Event()
    options = {timeout: 0.1}  # in which the function, which waits for nothing, gives a value that wins
    async with session(dataset_store=store) as s:
        handle = s.start_soon(Square(dataset="a.json", **options).task, 3)
        await until(store.saving.is_set)
        await anyio.sleep(0.2)
        store.gate.set()
        assert await handle == 9


# With a cache.


@pytest.mark.parametrize("kind", KINDS)
async def test_a_hit_saves_nothing(store: DatasetStore, kind: str, recorded_events: EventRecorder) -> None:
    square = Square(dataset="{number}.json", cache=f"memory://{os.urandom(8).hex()}", version=1)
    async with session(dataset_store=store):
        assert await square.call(kind, 3) == 9
        store.delete("3.json")
        assert await square.call(kind, 3) == 9
    assert square.runs == [3]
    assert store.list_keys() == []
    assert keys(recorded_events) == ["3.json"]


async def test_followers_save_nothing_and_wait_until_it_is_saved(
    store: GatedStore, recorded_events: EventRecorder
) -> None:
    store.gate = threading.Event()
    square = Square(dataset="{number}.json", cache=f"memory://{os.urandom(8).hex()}", version=1)
    async with session(dataset_store=store) as s:
        handles = [s.start_soon(square.task, 3) for _ in range(3)]
        await until(lambda: len(list(s.tree())) == 3 and store.saving.is_set())
        assert recorded_events.of(CacheHit) == []
        store.gate.set()
        assert [await handle for handle in handles] == [9, 9, 9]
    assert keys(recorded_events) == ["3.json"]
    assert len(recorded_events.of(CacheHit)) == 2
    assert square.runs == [3]


async def test_followers_fail_with_the_one_who_could_not_save(store: GatedStore) -> None:
    store.gate = threading.Event()
    store.error = OSError("no space")
    square = Square(dataset="{number}.json", cache=f"memory://{os.urandom(8).hex()}", version=1)
    errors: list[Exception] = []

    async def call() -> None:
        try:
            await square.task(3)
        except Exception as exc:
            errors.append(exc)

    async with session(dataset_store=store) as s, anyio.create_task_group() as group:
        for _ in range(3):
            group.start_soon(call)
        await until(lambda: len(list(s.tree())) == 3 and store.saving.is_set())
        store.gate.set()
    assert [type(error) for error in errors] == [DatasetError] * 3
    assert len({id(error) for error in errors}) == 3
    assert {error.__cause__ for error in errors} == {store.error}
    assert square.runs == [3]
    store.error = None
    async with session(dataset_store=store):
        assert await square.task(3) == 9  # nothing of it was kept
    assert square.runs == [3, 3]


# Streams.


@pytest.mark.parametrize("kind", STREAMS)
async def test_a_stream_saves_each_item_before_it_gives_it(
    store: DatasetStore, kind: str, recorded_events: EventRecorder
) -> None:
    numbers = Numbers()
    async with session(dataset_store=store):
        assert await numbers.items(kind, 3) == [{"number": each} for each in range(3)]
    assert numbers.ended == ["closed"]
    assert store.list_keys() == ["numbers/0.json", "numbers/1.json", "numbers/2.json"]
    assert store.load("numbers/2.json") == {"number": 2}
    assert [event.key for event in recorded_events.of(DatasetSaved)] == store.list_keys()
    assert {
        event.metadata is not None and event.metadata.is_generator for event in recorded_events.of(DatasetSaved)
    } == {True}


@pytest.mark.parametrize("kind", STREAMS)
async def test_an_item_that_cannot_be_saved_ends_the_stream(
    store: GatedStore, kind: str, recorded_events: EventRecorder
) -> None:
    numbers = Numbers()
    store.error = OSError("no space")
    async with session(dataset_store=store):
        with pytest.raises((DatasetError, TaskError)) as caught:
            await numbers.items(kind, 3)
    error: Any = caught.value
    assert "dataset 'numbers/0.json' cannot be saved: OSError: no space" in str(getattr(error, "root_cause", error))
    assert numbers.given == [0]
    assert numbers.ended == ["closed"]
    failed = [event for event in recorded_events.of(TaskFailed) if event.metadata.is_generator]
    assert [event.error for event in failed] == [
        "DatasetError: dataset 'numbers/0.json' cannot be saved: OSError: no space"
    ]


@pytest.mark.parametrize("kind", STREAMS)
async def test_a_stream_without_a_store_does_not_begin(kind: str) -> None:
    numbers = Numbers()
    async with session():
        with pytest.raises((DatasetError, TaskError)) as caught:
            await numbers.items(kind, 3)
    error: Any = caught.value
    assert "there is no store for it" in str(getattr(error, "root_cause", error))
    assert (numbers.given, numbers.ended) == ([], [])


async def test_what_is_sent_and_thrown_reaches_the_generator(store: DatasetStore) -> None:
    numbers = Numbers()
    async with session(dataset_store=store):
        async with task(**numbers.options)(numbers._numbers)(9) as items:
            assert await items.__anext__() == {"number": 0}
            assert await items.asend(7) == {"number": 1}
            with pytest.raises(KeyError):
                await items.athrow(KeyError("thrown"))
        with task(**numbers.options)(numbers._numbers_here)(9) as here:
            assert next(here) == {"number": 0}
            assert here.send(8) == {"number": 1}
            with pytest.raises(KeyError):
                here.throw(KeyError("thrown"))
    assert numbers.given == [0, 7, 1, 0, 8, 1]
    assert numbers.ended == ["closed", "closed"]
    assert store.list_keys() == ["numbers/0.json", "numbers/1.json"]


async def test_a_stream_that_is_left_early_is_closed(store: DatasetStore) -> None:
    numbers = Numbers()
    async with session(dataset_store=store):
        async for _ in task(**numbers.options)(numbers._numbers)(9):
            break
        for _ in task(**numbers.options)(numbers._numbers_here)(9):
            break
    assert numbers.ended == ["closed", "closed"]
    assert store.list_keys() == ["numbers/0.json"]


async def test_a_cleanup_that_fails_too_is_logged(store: GatedStore, caplog: pytest.LogCaptureFixture) -> None:
    @task(dataset="{iter_index}.json")
    async def numbers() -> AsyncIterator[int]:
        try:
            yield 1
        finally:
            raise KeyError("cleanup")

    @task(dataset="{iter_index}.json")
    def numbers_here() -> Iterator[int]:
        try:
            yield 1
        finally:
            raise KeyError("cleanup")

    store.error = OSError("no space")
    async with session(dataset_store=store):
        with pytest.raises(DatasetError):
            await numbers().__anext__()
        with pytest.raises(DatasetError):
            next(numbers_here())
    for name in ("numbers", "numbers_here"):
        assert f"stream {name!r} failed to close" in caplog.text
    assert "KeyError: 'cleanup'" in caplog.text


async def test_a_stream_that_times_out_has_saved_what_it_gave(store: DatasetStore) -> None:
    @task(dataset="{iter_index}.json", item_timeout=0.2)
    async def numbers() -> AsyncIterator[int]:
        yield 1
        await anyio.sleep_forever()

    async with session(dataset_store=store):
        with pytest.raises(TaskTimeoutError):
            async for _ in numbers():
                pass
    assert store.list_keys() == ["0.json"]


# By hand.


async def test_the_four_functions_use_the_current_store(tmp_path: Path) -> None:
    @task(dataset_store=tmp_path / "of the task")
    async def inner() -> list[Any]:
        await asave_dataset("a.json", 1)
        return [await aload_dataset("a.json"), load_dataset("a.json", int)]

    @task
    async def outer() -> list[Any]:
        save_dataset("a.json", 2)
        return [await aload_dataset("a.json", int), await inner()]

    async with session(dataset_store=tmp_path / "of the session"):
        assert await outer() == [2, [1, 1]]
        assert load_dataset("a.json") == 2
        save_dataset("a", 3, format="json", store=tmp_path / "given", options={"indent": 1})
        await asave_dataset("a", 4, format="json", store=str(tmp_path / "given"))
        assert load_dataset("a", format="json", store=DatasetStore(tmp_path / "given")) == 4
        assert await aload_dataset("a", format="json", store=tmp_path / "given", options={"parse_int": str}) == "4"


@pytest.mark.usefixtures("default_settings")
async def test_they_work_outside_of_sessions(tmp_path: Path) -> None:
    for do in (lambda: save_dataset("a.json", 1), lambda: load_dataset("a.json")):
        with pytest.raises(DatasetError, match="dataset 'a.json': there is no store; open a session"):
            do()
    with pytest.raises(DatasetError, match="there is no store"):
        await asave_dataset("a.json", 1)
    with pytest.raises(DatasetError, match="there is no store"):
        await aload_dataset("a.json")
    set_settings(Settings(dataset_store=str(tmp_path)))
    save_dataset("a.json", 1)
    await asave_dataset("b.json", 2)
    assert (load_dataset("b.json"), await aload_dataset("a.json")) == (2, 1)


async def test_their_errors_are_those_of_the_store(tmp_path: Path) -> None:
    async with session(dataset_store=tmp_path):
        with pytest.raises(FileNotFoundError, match="there is no such dataset"):
            await aload_dataset("a.json")
        with pytest.raises(ValueError, match="is no key"):
            await asave_dataset("../a.json", 1)
        with pytest.raises(DatasetError, match="cannot be saved as json"):
            await asave_dataset("a.json", object())
        with pytest.raises(TypeError, match="store must be a path, a URL or a daglite.datasets.DatasetStore, not 3"):
            save_dataset("a.json", 1, store=3)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="store must be a path of text, not empty"):
            save_dataset("a.json", 1, store="")


async def test_an_awaited_save_is_seen_through_when_it_is_cancelled(store: GatedStore) -> None:
    store.gate = threading.Event()
    async with session(dataset_store=store), anyio.create_task_group() as group:
        group.start_soon(asave_dataset, "a.json", 1)
        await until(store.saving.is_set)
        group.cancel_scope.cancel()
        store.gate.set()
    assert store.load("a.json") == 1


# Who hears of it.


class Hooks:
    """Every hook of datasets."""

    def __init__(self) -> None:
        self.heard: list[Any] = []

    def _note(self, hook: str, **facts: Any) -> None:
        metadata = facts.pop("metadata")
        facts.pop("duration", None)
        self.heard.append((hook, None if metadata is None else metadata.name, facts))

    @hook_impl
    def before_dataset_save(self, key: Any, value: Any, format: Any, options: Any, metadata: Any) -> None:
        self._note("before save", key=key, value=value, format=format, options=options, metadata=metadata)

    @hook_impl
    def after_dataset_save(self, key: Any, value: Any, format: Any, options: Any, metadata: Any) -> None:
        self._note("after save", key=key, value=value, format=format, options=options, metadata=metadata)

    @hook_impl
    def before_dataset_load(self, key: Any, return_type: Any, format: Any, options: Any, metadata: Any) -> None:
        self._note("before load", key=key, type=return_type, format=format, options=options, metadata=metadata)

    @hook_impl
    def after_dataset_load(
        self, key: Any, return_type: Any, format: Any, options: Any, metadata: Any, result: Any, duration: float
    ) -> None:
        assert duration > 0
        self._note(
            "after load", key=key, type=return_type, format=format, options=options, metadata=metadata, result=result
        )


async def test_hooks_and_events_tell_of_saving_and_loading(store: DatasetStore, recorded_events: EventRecorder) -> None:
    hooks = Hooks()

    @task(dataset="{number}", dataset_format="json")
    async def double(number: int) -> int:
        return 2 * await aload_dataset("number.json", int)

    async with session(dataset_store=store, plugins=[hooks]):
        await asave_dataset("number.json", 21, options={"indent": 1})
        await double(3)
        assert load_dataset("3", format="json") == 42
    number: dict[str, Any] = {"key": "number.json", "format": None, "options": {"indent": 1}}
    loaded: dict[str, Any] = {"key": "number.json", "type": int, "format": None, "options": None}
    result: dict[str, Any] = {"key": "3", "value": 42, "format": "json", "options": None}
    again: dict[str, Any] = {"key": "3", "type": None, "format": "json", "options": None}
    assert hooks.heard == [
        ("before save", None, {**number, "value": 21}),
        ("after save", None, {**number, "value": 21}),
        ("before load", "double", loaded),
        ("after load", "double", {**loaded, "result": 21}),
        ("before save", "double", result),
        ("after save", "double", result),
        ("before load", None, again),
        ("after load", None, {**again, "result": 42}),
    ]
    events: list[Any] = recorded_events.of(DatasetSaved, DatasetLoaded)
    assert [(type(event), event.key, event.format, event.metadata and event.metadata.name) for event in events] == [
        (DatasetSaved, "number.json", None, None),
        (DatasetLoaded, "number.json", None, "double"),
        (DatasetSaved, "3", "json", "double"),
        (DatasetLoaded, "3", "json", None),
    ]
    assert all(event.duration > 0 for event in events)


async def test_what_fails_has_no_second_half_and_a_hook_that_fails_harms_nobody(
    store: DatasetStore, recorded_events: EventRecorder, caplog: pytest.LogCaptureFixture
) -> None:
    class Failing:
        @hook_impl
        def before_dataset_save(self, key: Any) -> None:
            raise ValueError("hook")

    hooks = Hooks()
    with caplog.at_level(logging.ERROR, "daglite"):
        async with session(dataset_store=store, plugins=[hooks, Failing()]):
            with pytest.raises(DatasetError):
                save_dataset("a.json", object())
            with pytest.raises(FileNotFoundError):
                load_dataset("a.json")
            save_dataset("a.json", 1)
    assert [hook for hook, _, _ in hooks.heard] == ["before save", "before load", "before save", "after save"]
    assert keys(recorded_events) == ["a.json"]
    assert "Failing" in caplog.text


async def test_hooks_may_use_datasets_and_nobody_hears_of_it(
    store: DatasetStore, recorded_events: EventRecorder
) -> None:
    class Journal:
        @hook_impl
        def after_dataset_save(self, key: str) -> None:
            save_dataset(f"journal/{key}", "saved")

    async with session(dataset_store=store, plugins=[Journal()]):
        save_dataset("a.txt", "text")
    assert store.list_keys() == ["a.txt", "journal/a.txt"]
    assert keys(recorded_events) == ["a.txt"]


# Options.


async def nothing(a: int, name: str) -> None: ...


async def items(a: int) -> AsyncIterator[int]:
    yield a


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"dataset": 3}, "task 'nothing': dataset must be a str such as '{name}.json', not 3"),
        ({"dataset": ""}, "task 'nothing': dataset: '' is no key, for it is empty"),
        ({"dataset": "a"}, "task 'nothing': dataset: 'a' has no extension"),
        ({"dataset": "{a}.zip"}, "no format has the extension 'zip'"),
        ({"dataset": "../{a}.json"}, "'../0.json' is no key, for '..' is no name of a file"),
        ({"dataset": "/{a}.json"}, "is no key, for it is absolute"),
        ({"dataset": "{b}.json"}, "unknown placeholder {b}; available are {a}, {name}, {map_index}"),
        ({"dataset": "{iter_index}.json"}, "unknown placeholder {iter_index}"),
        ({"dataset": "{a.b}.json"}, "holds a placeholder that is not a plain name"),
        ({"dataset": "{a!r}.json"}, "holds a placeholder that is not a plain name"),
        ({"dataset": "{.json"}, "is not a template"),
        ({"dataset": "a.json", "dataset_format": "yaml"}, "task 'nothing': dataset: there is no format 'yaml'"),
        ({"dataset": "a.json", "dataset_format": 3}, "format must be the name of one, not 3"),
        ({"dataset_format": "json"}, "dataset_format='json' does nothing without dataset="),
        ({"dataset": "a.json", "dataset_store": 3}, "dataset_store must be a path, a URL or a daglite.datasets"),
        ({"dataset": "a.json", "dataset_store": ""}, "dataset_store must be a path of text, not empty"),
    ],
)
def test_bad_options_are_refused_where_the_task_is_made(options: dict[str, Any], error: str) -> None:
    with pytest.raises((ValueError, TypeError)) as caught:
        task(**options)(nothing)
    assert error in str(caught.value)


@pytest.mark.parametrize("function", [items, lambda a: (yield a)])
def test_a_streams_key_holds_the_number_of_the_item(function: Callable[..., Any]) -> None:
    with pytest.raises(
        ValueError, match="is a generator, and saves each item: dataset='{a}.json' must hold {iter_index}"
    ):
        task(dataset="{a}.json")(function)
    assert task(dataset="{a}/{iter_index}.json")(function).dataset == "{a}/{iter_index}.json"


def test_options_can_be_read_changed_and_pickled(tmp_path: Path) -> None:
    import pickle

    made = tasks_for_pickle.double.with_options(dataset="{number}.json", dataset_store=tmp_path, dataset_format="json")
    assert (made.dataset, made.dataset_store, made.dataset_format) == ("{number}.json", str(tmp_path), "json")
    copy = pickle.loads(pickle.dumps(made))
    assert (copy.dataset, copy.dataset_store, copy.dataset_format) == ("{number}.json", str(tmp_path), "json")
    without = made.with_options(dataset=None)
    assert (without.dataset, without.dataset_format) == (None, None)


@pytest.mark.parametrize("where", [session, Settings])
def test_a_session_and_settings_refuse_what_is_no_store(where: Any) -> None:
    with pytest.raises(
        TypeError, match="dataset_store must be a path, a URL or a daglite.datasets.DatasetStore, not 3"
    ):
        where(dataset_store=3)
    with pytest.raises(ValueError, match="dataset_store must be a path of text, not empty"):
        where(dataset_store="")


async def test_a_task_without_a_dataset_pays_nothing_for_it() -> None:
    @task
    async def name() -> str:
        report("a")
        call = current_task()
        assert call is not None
        return call.name

    async with session(dataset_store="nowhere"):
        assert await name() == "name"
    assert not name._spec.is_kept
    assert not os.path.exists("nowhere")
