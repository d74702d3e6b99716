"""What plugins put around the function's code: current inside, and nowhere else."""

import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from typing import Any

import anyio
import pytest
from anyio.lowlevel import checkpoint

from daglite import TaskMetadata, gather_tasks, session, task
from daglite.exceptions import TaskError, TaskTimeoutError
from daglite.plugins import hook_impl

current_span: ContextVar["Span | None"] = ContextVar("current_span", default=None)


class Span:
    """A span as tracers have it: it is current where it was attached, and detached with a token."""

    def __init__(self, name: str, parent: "Span | None") -> None:
        self.name = name
        self.parent = parent
        self.ended = False
        self.error: BaseException | None = None

    @property
    def path(self) -> str:
        return self.name if self.parent is None else f"{self.parent.path}/{self.name}"


class Tracing:
    """A plugin as one for OpenTelemetry would be: a span for each call, current in the function's code."""

    def __init__(self) -> None:
        self.spans: dict[Any, Span] = {}
        self.threads: dict[str, list[int]] = {}

    @hook_impl
    def before_node_execute(self, metadata: TaskMetadata) -> None:
        self.spans[metadata.id] = Span(metadata.name, current_span.get())

    @hook_impl
    @contextmanager
    def activate(self, metadata: TaskMetadata) -> Iterator[None]:
        span = self.spans[metadata.id]
        ids = [threading.get_ident()]
        token = current_span.set(span)
        try:
            yield
        except BaseException as exc:
            span.error = exc
            raise
        finally:
            current_span.reset(token)  # a ValueError if it is another context
            ids.append(threading.get_ident())
            self.threads[metadata.name] = ids

    @hook_impl
    def after_node_execute(self, metadata: TaskMetadata) -> None:
        self.spans[metadata.id].ended = True

    @hook_impl
    def on_node_error(self, metadata: TaskMetadata) -> None:
        self.spans[metadata.id].ended = True

    @hook_impl
    def on_node_cancelled(self, metadata: TaskMetadata) -> None:
        self.spans[metadata.id].ended = True

    @property
    def paths(self) -> list[str]:
        assert all(span.ended for span in self.spans.values())
        return sorted(span.path for span in self.spans.values())


def path() -> str:
    span = current_span.get()
    return "" if span is None else span.path


@task
async def leaf() -> str:
    await checkpoint()
    return path()


@task
def sync_leaf() -> str:
    return path()


@task
async def rows(log: list[str], name: str = "") -> AsyncIterator[int]:
    try:
        for number in range(10):
            await checkpoint()
            log.append(path())
            assert await leaf() == f"{path()}/leaf"
            yield number
    finally:
        log.append(f"closed in {path()}")


@task
def sync_rows(log: list[str]) -> Iterator[int]:
    try:
        for number in range(10):
            log.append(path())
            yield number
    finally:
        log.append(f"closed in {path()}")


async def test_a_span_is_current_in_calls_and_those_that_they_make() -> None:
    tracing = Tracing()

    @task
    async def outer() -> list[str]:
        return [
            path(),
            await leaf(),
            sync_leaf(),
            await sync_leaf.to_thread(),
            *await gather_tasks(sync_leaf, [()] * 0),
        ]

    async with session(plugins=[tracing]):
        assert path() == ""
        assert await outer() == ["outer", "outer/leaf", "outer/sync_leaf", "outer/sync_leaf"]
        assert path() == ""
    assert tracing.paths == ["outer", "outer/leaf", "outer/sync_leaf", "outer/sync_leaf"]


async def test_a_call_in_a_thread_has_its_span_there() -> None:
    tracing = Tracing()

    @task(timeout=30)
    def in_thread() -> tuple[str, str, int]:
        return path(), sync_leaf(), threading.get_ident()

    async with session(plugins=[tracing]):
        *paths, thread = await in_thread.to_thread()
        assert path() == ""
    assert paths == ["in_thread", "in_thread/sync_leaf"]
    assert tracing.threads["in_thread"] == [thread, thread]


async def test_each_attempt_is_surrounded() -> None:
    entered: list[str] = []

    class Plugin:
        @hook_impl
        @contextmanager
        def activate(self, metadata: TaskMetadata) -> Iterator[None]:
            entered.append(f"enter {metadata.name}")
            try:
                yield
            except ValueError as exc:
                entered.append(f"failed with {exc}")
                raise
            else:
                entered.append("succeeded")

    left = [ValueError("first"), ValueError("second")]

    @task(retries=2)
    async def unstable() -> None:
        if left:
            raise left.pop(0)

    async with session(plugins=[Plugin()]):
        await unstable()
    assert entered == [
        *["enter unstable", "failed with first"],
        *["enter unstable", "failed with second"],
        *["enter unstable", "succeeded"],
    ]


@pytest.mark.parametrize("how", ["async", "sync", "thread"])
async def test_a_stream_is_surrounded_as_a_whole_and_its_consumer_is_not(how: str) -> None:
    tracing = Tracing()
    log: list[str] = []
    name = "rows" if how == "async" else "sync_rows"
    async with session(plugins=[tracing]):
        if how == "sync":
            with sync_rows(log) as items:
                for item in items:
                    assert path() == ""
                    if item == 1:
                        break
        else:
            async with rows(log) if how == "async" else sync_rows.to_thread(log) as stream:
                async for item in stream:
                    assert path() == ""
                    if item == 1:
                        break
        assert path() == ""
    assert log == [name, name, f"closed in {name}"]
    entered, left = tracing.threads[name]
    assert entered == left
    assert (entered == threading.get_ident()) is (how != "thread")


@pytest.mark.parametrize("how", ["async", "sync", "thread"])
async def test_a_stream_whose_step_raises_leaves_its_span_with_the_error(how: str) -> None:
    tracing = Tracing()

    @task
    async def broken() -> AsyncIterator[int]:
        yield 1
        raise ValueError("no")

    @task
    def sync_broken() -> Iterator[int]:
        yield 1
        raise ValueError("no")

    async with session(plugins=[tracing]):
        with pytest.raises(TaskError):
            if how == "sync":
                list(sync_broken())
            else:
                async for _ in broken() if how == "async" else sync_broken.to_thread():
                    assert path() == ""
        assert path() == ""
    (span,) = tracing.spans.values()
    assert isinstance(span.error, ValueError)
    assert span.ended


async def test_a_cancelled_step_leaves_its_span() -> None:
    tracing = Tracing()

    @task
    async def hanging() -> AsyncIterator[int]:
        yield 1
        await anyio.sleep_forever()

    async with session(plugins=[tracing]):
        with anyio.CancelScope() as scope:
            async for _ in hanging():
                scope.cancel()
        assert path() == ""
    (span,) = tracing.spans.values()
    assert isinstance(span.error, BaseException)
    assert not isinstance(span.error, Exception)
    assert span.ended


async def test_four_interleaved_streams_closed_out_of_order_from_other_tasks_keep_their_spans() -> None:
    tracing = Tracing()
    logs: list[list[str]] = [[], [], [], []]
    named = rows.with_options(name="rows{name}")
    async with session(plugins=[tracing]):
        streams: list[Any] = [named(logs[0], "0"), named(logs[1], "1")]
        streams += [sync_rows.with_options(name="rows2").to_thread(logs[2]), named(logs[3], "3")]
        for _ in range(3):
            for stream in streams:
                await anext(stream)
                assert path() == ""

        async def step_and_close(stream: Any) -> None:
            await anext(stream)
            await stream.aclose()
            assert path() == ""

        for number in (2, 0, 3, 1):
            async with anyio.create_task_group() as tg:
                tg.start_soon(step_and_close, streams[number])
        assert path() == ""
    for number, log in enumerate(logs):
        assert log == [f"rows{number}"] * 4 + [f"closed in rows{number}"]
    assert len(tracing.spans) == 4 + 3 * 4
    assert len(tracing.paths) == 16


async def test_a_stream_that_is_left_open_is_closed_by_its_session_inside_its_span() -> None:
    tracing = Tracing()
    logs: list[list[str]] = [[], []]
    async with session(plugins=[tracing]):
        first, second = rows(logs[0]), sync_rows.to_thread(logs[1])
        await anext(first)
        await anext(second)
    assert logs == [["rows", "closed in rows"], ["sync_rows", "closed in sync_rows"]]
    assert len(tracing.paths) == 3


async def test_a_stream_that_is_opened_and_never_stepped_is_not_surrounded() -> None:
    tracing = Tracing()
    async with session(plugins=[tracing]), rows([]):
        pass
    assert tracing.threads == {}
    assert tracing.paths == ["rows"]


async def test_what_exit_returns_is_ignored() -> None:
    class Swallowing(AbstractContextManager[None]):
        def __exit__(self, *exc_info: object) -> bool:
            return True

    class Plugin:
        @hook_impl
        def activate(self) -> AbstractContextManager[None]:
            return Swallowing()

    @task
    async def fail() -> None:
        raise ValueError("no")

    @task
    async def rows_that_fail() -> AsyncIterator[int]:
        yield 1
        raise ValueError("no")

    async with session(plugins=[Plugin()]):
        with pytest.raises(TaskError):
            await fail()
        with pytest.raises(TaskError):
            [item async for item in rows_that_fail()]
        with anyio.CancelScope() as scope:
            scope.cancel()
            await leaf()
            pytest.fail("the cancellation was swallowed")
        with pytest.raises(TaskTimeoutError):
            await task(timeout=1e-6)(anyio.sleep_forever)()


@pytest.mark.parametrize("where", ["activate", "enter", "exit"])
async def test_a_failing_activation_is_logged_and_the_others_are_left(
    where: str, caplog: pytest.LogCaptureFixture
) -> None:
    class Failing:
        def __enter__(self) -> None:
            if where == "enter":
                raise RuntimeError("enter")

        def __exit__(self, *exc_info: object) -> None:
            if where == "exit":
                raise RuntimeError("exit")

        @hook_impl
        def activate(self, metadata: TaskMetadata) -> Any:
            if where == "activate":
                raise RuntimeError("activate")
            return self

    first, last = Tracing(), Tracing()
    log: list[str] = []
    async with session(plugins=[first, Failing(), last]):
        assert await leaf() == "leaf"
        async with rows(log) as items:
            await anext(items)
    assert len(caplog.records) == 3
    assert {record.getMessage() for record in caplog.records} == {
        "plugin test_a_failing_activation_is_logged_and_the_others_are_left.<locals>.Failing: its hook 'activate' failed"
    }
    assert first.threads.keys() == last.threads.keys() == {"leaf", "rows"}


async def test_an_interrupt_while_entering_leaves_what_was_entered() -> None:
    class Interrupting:
        @hook_impl(trylast=True)
        def activate(self) -> Any:
            raise KeyboardInterrupt

    tracing = Tracing()
    async with session(plugins=[tracing, Interrupting()]):
        with pytest.raises(KeyboardInterrupt):
            await leaf()
        with pytest.raises(KeyboardInterrupt):
            await anext(rows([]))
        assert path() == ""
    assert tracing.threads.keys() == {"leaf", "rows"}
    assert tracing.paths == ["leaf", "rows"]


async def test_a_function_that_raises_stop_iteration_has_failed_and_a_stream_has_ended() -> None:
    tracing = Tracing()

    @task
    def exhausted() -> None:
        next(iter(()))

    async with session(plugins=[tracing]):
        with pytest.raises(TaskError):
            exhausted()
        assert len(list(sync_rows([]))) == 10
    errors = {span.name: type(span.error) for span in tracing.spans.values()}
    assert errors == {"exhausted": StopIteration, "sync_rows": type(None)}
