"""Hooks: which are called when, with what, in which order and thread, and what they cannot do."""

from __future__ import annotations

import importlib.metadata
import logging
import sys
import threading
import types
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from daglite import current_session, current_task, gather_tasks, session, task
from daglite.events import (
    ItemYielded,
    SessionEnded,
    SessionStarted,
    TaskCancelled,
    TaskFailed,
    TaskReported,
    TaskStarted,
    TaskSucceeded,
)
from daglite.exceptions import SessionError, TaskError, TaskTimeoutError
from daglite.plugins import HookSpecs, hook_impl

HOOKS = [name for name in vars(HookSpecs) if not name.startswith("_")]
LATER = {name for name in HOOKS if "cache" in name or "dataset" in name}


@task
async def double(number: int) -> int:
    return 2 * number


@task
def halve(number: int) -> int:
    return number // 2


@task
async def fail() -> None:
    raise ValueError("no")


@task
async def rows(most: int = 3) -> AsyncIterator[int]:
    for number in range(most):
        yield number


@task
def sync_rows(most: int = 3) -> Iterator[int]:
    yield from range(most)


@dataclass(eq=False)
class Recorder:
    """Notes every hook with all its arguments, and the thread it is called in."""

    seen: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    threads: list[int] = field(default_factory=list)

    def note(self, hook: str, **arguments: Any) -> None:
        self.seen.append((hook, arguments))
        self.threads.append(threading.get_ident())

    @property
    def names(self) -> list[str]:
        return [hook for hook, _ in self.seen]

    def of(self, hook: str) -> list[dict[str, Any]]:
        return [arguments for name, arguments in self.seen if name == hook]

    def calls(self) -> list[tuple[str, str]]:
        """The hooks of calls, each with the name of its call."""
        return [(hook, told["metadata"].name) for hook, told in self.seen if "metadata" in told]

    @hook_impl
    def before_session_start(self, session_id: Any) -> None:
        self.note("before_session_start", session_id=session_id)

    @hook_impl
    def after_session_end(self, session_id: Any, duration: float) -> None:
        self.note("after_session_end", session_id=session_id, duration=duration)

    @hook_impl
    def on_cache_hit(self, metadata: Any, key: str, value: Any, reporter: Any) -> None:
        self.note("on_cache_hit", metadata=metadata, key=key, value=value, reporter=reporter)

    @hook_impl
    def on_cache_miss(self, metadata: Any, key: str) -> None:
        self.note("on_cache_miss", metadata=metadata, key=key)

    @hook_impl
    def before_node_execute(self, metadata: Any, reporter: Any) -> None:
        self.note("before_node_execute", metadata=metadata, reporter=reporter)

    @hook_impl
    def after_node_execute(self, metadata: Any, result: Any, duration: float, reporter: Any) -> None:
        self.note(
            "after_node_execute",
            metadata=metadata,
            result=result,
            duration=duration,
            reporter=reporter,
        )

    @hook_impl
    def on_node_error(self, metadata: Any, error: Any, duration: float, reporter: Any) -> None:
        self.note("on_node_error", metadata=metadata, error=error, duration=duration, reporter=reporter)

    @hook_impl
    def on_node_cancelled(self, metadata: Any, duration: float, reporter: Any) -> None:
        self.note("on_node_cancelled", metadata=metadata, duration=duration, reporter=reporter)

    @hook_impl
    def before_node_retry(self, metadata: Any, attempt: int, error: Any, reporter: Any) -> None:
        self.note("before_node_retry", metadata=metadata, attempt=attempt, error=error, reporter=reporter)

    @hook_impl
    def after_node_retry(self, metadata: Any, attempt: int, succeeded: bool, reporter: Any) -> None:
        self.note(
            "after_node_retry",
            metadata=metadata,
            attempt=attempt,
            succeeded=succeeded,
            reporter=reporter,
        )

    @hook_impl
    def node_iteration(self, metadata: Any, index: int, reporter: Any) -> None:
        self.note("node_iteration", metadata=metadata, index=index, reporter=reporter)


class Keeper:
    """Keeps all events."""

    def __init__(self, kept: list[Any]) -> None:
        self.kept = kept

    async def consume(self, events: Any) -> None:
        async for event in events:
            self.kept.append(event)


# What is told -----------------------------------------------------------------------------------


async def test_a_session_is_told_of_from_its_start_to_its_end() -> None:
    recorder = Recorder()
    async with session(plugins=[recorder]) as s:
        assert recorder.names == ["before_session_start"]
    assert recorder.names == ["before_session_start", "after_session_end"]
    assert [told["session_id"] for _, told in recorder.seen] == [s.id, s.id]
    assert recorder.of("after_session_end")[0]["duration"] >= 0


async def test_a_call_is_told_of_with_its_result() -> None:
    recorder = Recorder()
    async with session(plugins=[recorder]):
        await double(21)
    (before,), (after,) = recorder.of("before_node_execute"), recorder.of("after_node_execute")
    assert before["metadata"].name == "double"
    assert before["metadata"].inputs == {"number": 21}
    assert after["metadata"] is before["metadata"]
    assert after["result"] == 42
    assert after["duration"] >= 0


async def test_a_failed_call_is_told_of_with_the_users_own_error() -> None:
    recorder = Recorder()
    async with session(plugins=[recorder]):
        with pytest.raises(TaskError) as caught:
            await fail()
    (told,) = recorder.of("on_node_error")
    assert told["error"] is caught.value.__cause__
    assert told["duration"] >= 0
    assert recorder.calls() == [("before_node_execute", "fail"), ("on_node_error", "fail")]


async def test_a_timed_out_call_is_told_of_with_the_timeout() -> None:
    recorder = Recorder()
    async with session(plugins=[recorder]):
        with pytest.raises(TaskTimeoutError):
            await task(timeout=1e-6)(anyio.sleep_forever)()
    (told,) = recorder.of("on_node_error")
    assert isinstance(told["error"], TaskTimeoutError)
    assert told["error"].scope == "attempt"


async def test_a_cancelled_call_is_told_of_as_cancelled() -> None:
    recorder = Recorder()

    @task
    async def wait() -> None:
        scope.cancel()
        await anyio.lowlevel.checkpoint()

    async with session(plugins=[recorder]):
        with anyio.CancelScope() as scope:
            await wait()
    assert recorder.calls() == [("before_node_execute", "wait"), ("on_node_cancelled", "wait")]
    assert recorder.of("on_node_cancelled")[0]["duration"] >= 0


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit, GeneratorExit])
async def test_an_interrupted_call_is_told_of_as_cancelled(kind: type[BaseException]) -> None:
    recorder = Recorder()

    @task
    def interrupted() -> None:
        raise kind

    async with session(plugins=[recorder]):
        with pytest.raises(kind):
            interrupted()
    assert recorder.names[1:-1] == ["before_node_execute", "on_node_cancelled"]


async def test_retries_are_numbered_from_one() -> None:
    recorder = Recorder()
    errors = [ValueError("first"), ValueError("second")]
    left = errors.copy()

    @task(retries=3)
    async def unstable() -> str:
        if left:
            raise left.pop(0)
        return "done"

    async with session(plugins=[recorder]):
        await unstable()
    assert recorder.names[1:-1] == [
        "before_node_execute",
        "before_node_retry",
        "after_node_retry",
        "before_node_retry",
        "after_node_retry",
        "after_node_execute",
    ]
    retries = [(told["attempt"], told["error"]) for told in recorder.of("before_node_retry")]
    assert retries == [(1, errors[0]), (2, errors[1])]
    ends = recorder.of("after_node_retry")
    assert [(told["attempt"], told["succeeded"]) for told in ends] == [(1, False), (2, True)]


async def test_the_last_retry_of_a_failed_call_is_told_of_before_its_failure() -> None:
    recorder = Recorder()
    async with session(plugins=[recorder]):
        with pytest.raises(TaskError):
            await fail.with_options(retries=1)()
    assert recorder.names[2:-1] == ["before_node_retry", "after_node_retry", "on_node_error"]
    assert recorder.of("after_node_retry")[0]["succeeded"] is False


async def test_a_sync_call_is_told_of_in_the_same_way() -> None:
    recorder = Recorder()
    left = [ValueError()]

    @task(retries=1)
    def unstable() -> int:
        if left:
            raise left.pop()
        return 7

    async with session(plugins=[recorder]):
        assert unstable() == 7
    assert recorder.names[1:-1] == [
        "before_node_execute",
        "before_node_retry",
        "after_node_retry",
        "after_node_execute",
    ]


@pytest.mark.parametrize("how", ["async", "sync", "thread"])
async def test_the_items_of_a_stream_are_told_of_with_their_index(how: str) -> None:
    recorder = Recorder()
    async with session(plugins=[recorder]):
        if how == "sync":
            assert [*sync_rows()] == [0, 1, 2]
        else:
            stream = rows() if how == "async" else sync_rows.to_thread()
            assert [row async for row in stream] == [0, 1, 2]
    assert recorder.names[1:-1] == [
        "before_node_execute",
        *["node_iteration"] * 3,
        "after_node_execute",
    ]
    assert [told["index"] for told in recorder.of("node_iteration")] == [0, 1, 2]
    assert recorder.of("after_node_execute")[0]["result"] is None


async def test_a_stream_that_is_closed_early_has_succeeded() -> None:
    recorder = Recorder()
    async with session(plugins=[recorder]):
        async with rows() as items:
            await anext(items)
        with sync_rows() as sync_items:
            next(sync_items)
    assert [hook for hook, name in recorder.calls() if name == "rows"] == [
        "before_node_execute",
        "node_iteration",
        "after_node_execute",
    ]
    assert [hook for hook, name in recorder.calls() if name == "sync_rows"] == [
        "before_node_execute",
        "node_iteration",
        "after_node_execute",
    ]


async def test_a_stream_that_fails_is_told_of_with_its_error() -> None:
    recorder = Recorder()

    @task
    async def broken() -> AsyncIterator[int]:
        yield 1
        raise ValueError("no")

    async with session(plugins=[recorder]):
        with pytest.raises(TaskError):
            [item async for item in broken()]
    assert recorder.names[1:-1] == ["before_node_execute", "node_iteration", "on_node_error"]
    assert isinstance(recorder.of("on_node_error")[0]["error"], ValueError)


async def test_hooks_are_called_in_the_thread_where_the_call_runs() -> None:
    recorder = Recorder()
    here = threading.get_ident()

    @task
    def outer() -> int:
        halve(2)
        return threading.get_ident()

    async with session(plugins=[recorder]):
        await double(1)
        there = await outer.to_thread()
    where: dict[str, set[int]] = {}
    for (_, told), thread in zip(recorder.seen, recorder.threads, strict=True):
        if "metadata" in told:
            where.setdefault(told["metadata"].name, set()).add(thread)
    # The call of a thread is kept by the event loop: what it calls itself runs in the thread.
    assert where == {"double": {here}, "outer": {here}, "halve": {there}}


async def test_every_call_of_a_fan_out_is_told_of() -> None:
    recorder = Recorder()
    async with session(plugins=[recorder]):
        await gather_tasks(halve, range(5), limit=2)
    ended = [told["metadata"].map_index for told in recorder.of("after_node_execute")]
    assert sorted(ended) == [0, 1, 2, 3, 4]
    assert len(recorder.of("before_node_execute")) == 5


# What a hook may take ----------------------------------------------------------------------------


async def test_a_hook_takes_only_the_arguments_that_it_wants() -> None:
    seen: list[Any] = []

    class Some:
        @hook_impl
        def before_node_execute(self) -> None:
            seen.append("nothing")

        @hook_impl
        def after_node_execute(self, result: Any, metadata: Any) -> None:
            seen.append((result, metadata.name))

        @hook_impl
        def after_session_end(self, duration: float) -> None:
            seen.append(type(duration))

    async with session(plugins=[Some()]):
        await double(1)
    assert seen == ["nothing", (2, "double"), float]


async def test_hooks_may_be_static_and_class_methods_and_functions_of_a_module() -> None:
    seen: list[str] = []

    class Methods:
        @staticmethod
        @hook_impl
        def before_node_execute(metadata: Any) -> None:
            seen.append(f"static {metadata.name}")

        @hook_impl
        @classmethod
        def after_node_execute(cls, result: Any) -> None:
            seen.append(f"class {result}")

        @hook_impl(specname="after_session_end")
        def _another_name(self) -> None:
            seen.append("end")

        @property
        def trap(self) -> None:
            raise AssertionError("a property was run")

    module = types.ModuleType("some_plugin")
    module.before_node_execute = hook_impl(lambda metadata: seen.append("module"))  # type: ignore[attr-defined]

    async with session(plugins=[Methods(), module]):
        await double(1)
    assert seen == ["module", "static double", "class 2", "end"]


async def test_the_last_plugin_comes_first_but_for_marks() -> None:
    seen: list[str] = []

    def plugin(name: str, mark: str = "") -> Any:
        class Named:
            @hook_impl(tryfirst=mark == "first", trylast=mark == "last")
            def before_node_execute(self) -> None:
                seen.append(name)

        return Named()

    plugins = [
        plugin("late 1", "last"),
        plugin("early 1", "first"),
        plugin("normal 1"),
        plugin("late 2", "last"),
        plugin("early 2", "first"),
        plugin("normal 2"),
    ]
    async with session(plugins=plugins):
        await double(1)
    assert seen == ["early 2", "early 1", "normal 2", "normal 1", "late 1", "late 2"]


# What is refused -------------------------------------------------------------------------------


class Async:
    @hook_impl
    async def before_node_execute(self) -> None: ...


class AsyncStatic:
    @staticmethod
    @hook_impl
    async def before_node_execute() -> None: ...


class Generator:
    @hook_impl
    def before_node_execute(self) -> Iterator[None]:
        yield


class Wrapper:
    @hook_impl(wrapper=True)
    def before_node_execute(self) -> Iterator[None]:
        yield


class OldWrapper:
    @hook_impl(hookwrapper=True)
    def before_node_execute(self) -> Iterator[None]:
        yield


class WrongArgument:
    @hook_impl
    def before_node_execute(self, metdata: Any) -> None: ...


class WrongKeyword:
    @hook_impl
    def before_node_execute(self, *, result: Any) -> None: ...


class Misspelt:
    @hook_impl
    def before_node_exeucte(self) -> None: ...


class SyncConsume:
    def consume(self, events: Any) -> None: ...


class GeneratorConsume:
    async def consume(self, events: Any) -> AsyncIterator[None]:
        yield


@pytest.mark.parametrize(
    ("plugin", "kind", "words"),
    [
        (Async(), TypeError, ["before_node_execute", "async", "consume"]),
        (AsyncStatic(), TypeError, ["before_node_execute", "async"]),
        (Generator(), TypeError, ["before_node_execute", "wrapper"]),
        (Wrapper(), TypeError, ["before_node_execute", "wrapper"]),
        (OldWrapper(), TypeError, ["before_node_execute", "wrapper"]),
        (WrongArgument(), TypeError, ["before_node_execute", "metdata"]),
        (WrongKeyword(), TypeError, ["before_node_execute", "result"]),
        (Misspelt(), ValueError, ["before_node_exeucte", "before_node_execute"]),
        (SyncConsume(), TypeError, ["async def consume(self, events)"]),
        (GeneratorConsume(), TypeError, ["async def consume(self, events)"]),
    ],
    ids=lambda value: type(value).__name__,
)
async def test_a_wrong_plugin_is_refused_by_name_when_the_session_starts(
    plugin: Any, kind: type[Exception], words: list[str]
) -> None:
    recorder = Recorder()
    s = session(plugins=[recorder, plugin])
    with pytest.raises(kind) as caught:
        async with s:
            pytest.fail("the session was entered")
    for word in (type(plugin).__name__, *words):
        assert word in str(caught.value)
    # Nothing is half-built: no hook was called, no session is current, and it was never entered.
    assert recorder.names == []
    assert current_session() is None
    with pytest.raises(SessionError, match="before it was entered"):
        s.events()


async def test_a_class_is_refused_and_told_apart_from_its_instance() -> None:
    with pytest.raises(TypeError, match=r"Recorder is a class; give an object, Recorder\(\)"):
        async with session(plugins=[Recorder]):
            pass


async def test_an_unknown_hook_that_is_marked_as_optional_is_ignored() -> None:
    called: list[str] = []

    class ForLater:
        @hook_impl(optionalhook=True)
        def on_node_teleported(self) -> None:
            called.append("teleported")

        @hook_impl
        def after_node_execute(self) -> None:
            called.append("executed")

    async with session(plugins=[ForLater()]):
        assert await double(1) == 2
    assert called == ["executed"]


# Isolation -------------------------------------------------------------------------------------


class Raising:
    """Every hook raises."""


def raising_hook(name: str) -> Any:
    def hook(self: Raising) -> None:
        raise RuntimeError(name)

    return hook_impl(hook)


for _name in HOOKS:
    setattr(Raising, _name, raising_hook(_name))


async def test_a_raising_hook_is_logged_by_plugin_and_the_others_run(
    caplog: pytest.LogCaptureFixture,
) -> None:
    first, last = Recorder(), Recorder()
    left = [ValueError()]

    @task(retries=1)
    async def unstable() -> int:
        if left:
            raise left.pop()
        return 7

    async with session(plugins=[first, Raising(), last]):
        assert await unstable() == 7
        with pytest.raises(TaskError):
            await fail()
        assert [row async for row in rows(1)] == [0]
        with anyio.CancelScope() as scope:
            scope.cancel()
            await task(anyio.sleep_forever)()
    assert first.names == last.names
    assert set(first.names) == set(HOOKS) - LATER - {"activate"}
    logged = [record.getMessage() for record in caplog.records]
    activate = "plugin Raising: its hook 'activate' failed"
    assert logged.count(activate) == 5  # attempts and a stream
    assert [text for text in logged if text != activate] == [
        f"plugin Raising: its hook {hook!r} failed" for hook in first.names
    ]
    assert {record.name for record in caplog.records} == {"daglite"}
    assert {str(record.exc_info[1]) for record in caplog.records if record.exc_info} == {*first.names, "activate"}


async def test_a_raising_hook_does_not_run_the_function_again() -> None:
    runs: list[int] = []

    @task(retries=3)
    async def counted() -> None:
        runs.append(1)

    logging.getLogger("daglite").disabled = True
    try:
        async with session(plugins=[Raising()]):
            await counted()
    finally:
        logging.getLogger("daglite").disabled = False
    assert runs == [1]


ENDS = (TaskSucceeded, TaskFailed, TaskCancelled)


@pytest.mark.parametrize("hook", ["before_node_execute", "after_node_execute", "before_node_retry", "after_node_retry"])
@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit])
async def test_an_interrupt_in_a_hook_passes_and_the_call_has_one_end(hook: str, kind: type[BaseException]) -> None:
    plugin = interrupting(hook, kind)
    left = [ValueError()]

    @task(retries=1)
    async def unstable() -> None:
        if left:
            raise left.pop()

    seen: list[Any] = []
    async with session(plugins=[plugin]) as s:
        s.watch(Keeper(seen).consume)
        with pytest.raises(kind):
            await unstable()
    assert [type(event) for event in seen if isinstance(event, TaskStarted)] == [TaskStarted]
    assert len([event for event in seen if isinstance(event, ENDS)]) == 1
    assert isinstance(seen[-2], ENDS)


@pytest.mark.parametrize("hook", ["on_node_error", "on_node_cancelled"])
async def test_an_interrupt_in_the_hook_of_an_end_passes_and_the_end_is_told(hook: str) -> None:
    seen: list[Any] = []
    async with session(plugins=[interrupting(hook, KeyboardInterrupt)]) as s:
        s.watch(Keeper(seen).consume)
        with pytest.raises(KeyboardInterrupt):
            with anyio.CancelScope() as scope:
                if hook == "on_node_error":
                    await fail()
                scope.cancel()
                await task(anyio.sleep_forever)()
    expected = TaskFailed if hook == "on_node_error" else TaskCancelled
    assert [type(event) for event in seen] == [TaskStarted, expected, SessionEnded]


@pytest.mark.parametrize("hook", ["before_node_execute", "node_iteration", "after_node_execute"])
@pytest.mark.parametrize("how", ["async", "sync", "thread"])
async def test_an_interrupt_in_a_hook_of_a_stream_passes_and_the_stream_has_one_end(hook: str, how: str) -> None:
    stream: Any

    async def step() -> Any:
        try:
            return next(stream) if how == "sync" else await anext(stream)
        except (StopIteration, StopAsyncIteration):
            return "end"
        except KeyboardInterrupt:
            return "interrupt"

    seen: list[Any] = []
    async with session(plugins=[interrupting(hook, KeyboardInterrupt)]) as s:
        s.watch(Keeper(seen).consume)
        kinds: dict[str, Any] = {"async": rows, "sync": sync_rows, "thread": sync_rows.to_thread}
        stream = kinds[how](2)
        steps = [await step() for _ in range(4)]
    expected = {
        "before_node_execute": ["interrupt", "end", "end", "end"],
        "node_iteration": ["interrupt", "interrupt", "end", "end"],
        "after_node_execute": [0, 1, "interrupt", "end"],
    }
    assert steps == expected[hook]
    indexes = [event.index for event in seen if isinstance(event, ItemYielded)]
    assert indexes == ([] if hook == "before_node_execute" else [0, 1])
    assert isinstance(seen[0], TaskStarted)
    assert [type(event) for event in seen if isinstance(event, ENDS)] == [type(seen[-2])]


def interrupting(hook: str, kind: type[BaseException]) -> Any:
    """A plugin whose one hook is interrupted."""

    class Interrupting:
        calls = 0

    def interrupted(self: Any) -> None:
        self.calls += 1
        raise kind

    setattr(Interrupting, hook, hook_impl(specname=hook)(interrupted))
    return Interrupting()


@pytest.mark.parametrize("hook", ["before_session_start", "after_session_end"])
async def test_an_interrupt_in_a_hook_of_a_session_ends_it_whole(hook: str) -> None:
    plugin = interrupting(hook, KeyboardInterrupt)
    seen: list[Any] = []
    consumed: list[Any] = []
    async with session() as outer:
        outer.watch(Keeper(seen).consume)
        inner = session(plugins=[plugin, Keeper(consumed)])
        with pytest.raises(KeyboardInterrupt):
            async with inner:
                assert hook == "after_session_end"
        assert plugin.calls == 1
        assert current_session() is outer
        assert await double(1) == 2
    assert [type(event) for event in seen] == [SessionStarted, SessionEnded, TaskStarted, TaskSucceeded, SessionEnded]
    assert [type(event) for event in consumed] == [SessionStarted, SessionEnded]
    with pytest.raises(SessionError):
        inner.start_soon(double, 1)


# The reporter ----------------------------------------------------------------------------------


async def test_a_hook_reports_in_the_name_of_the_call() -> None:
    class Reporting:
        @hook_impl
        def before_node_execute(self, reporter: Any) -> None:
            reporter.report("begin", 1)

        @hook_impl
        def after_node_execute(self, reporter: Any, result: Any) -> None:
            reporter.report("end", result)

    @task
    def halve_in_thread(number: int) -> int:
        return halve(number)

    seen: list[Any] = []
    async with session(plugins=[Reporting()]) as s:
        s.watch(Keeper(seen).consume)
        await double(1)
        await halve_in_thread.to_thread(4)
    told: dict[str, list[Any]] = {}
    for event in seen[:-1]:
        assert event.session_id == s.id
        kind = (event.type, event.data) if isinstance(event, TaskReported) else type(event)
        told.setdefault(event.metadata.name, []).append(kind)
    assert told == {
        "double": [TaskStarted, ("begin", 1), ("end", 2), TaskSucceeded],
        "halve_in_thread": [TaskStarted, ("begin", 1), ("end", 2), TaskSucceeded],
        "halve": [TaskStarted, ("begin", 1), ("end", 2), TaskSucceeded],
    }


async def test_a_reporter_that_nobody_hears_does_nothing() -> None:
    kept: list[Any] = []
    seen: list[Any] = []

    class Keeping:
        @hook_impl
        def before_node_execute(self, reporter: Any) -> None:
            kept.append(reporter)
            reporter.report("unheard")

    async with session(plugins=[Keeping()]):
        assert await double(1) == 2
    async with session() as s:
        s.watch(Keeper(seen).consume)
        kept[0].report("after the end")
    assert len(kept) == 1
    assert [type(event) for event in seen] == [SessionEnded]


# Nobody implements, nobody listens ---------------------------------------------------------------


# Which plugins there are -------------------------------------------------------------------------


async def test_a_plugin_of_nested_sessions_sees_each_call_once() -> None:
    outer, inner = Recorder(), Recorder()
    async with session(plugins=[outer]):
        async with session(plugins=[inner, outer]):
            await double(1)
        await halve.to_thread(2)
    assert outer.calls() == [
        ("before_node_execute", "double"),
        ("after_node_execute", "double"),
        ("before_node_execute", "halve"),
        ("after_node_execute", "halve"),
    ]
    assert inner.calls() == outer.calls()[:2]
    assert outer.names.count("before_session_start") == 2
    assert inner.names.count("before_session_start") == 1


async def test_an_inner_session_has_the_plugins_of_the_outer_one() -> None:
    recorder = Recorder()
    async with session(plugins=[recorder]), session(), session(plugins=[Recorder()]):
        await double(1)
    assert len(recorder.calls()) == 2


async def test_sessions_in_sibling_tasks_have_their_own_plugins() -> None:
    both = [Recorder(), Recorder()]

    async def work(recorder: Recorder) -> None:
        async with session(plugins=[recorder]):
            await double(1)

    async with anyio.create_task_group() as tg:
        for recorder in both:
            tg.start_soon(work, recorder)
    assert [len(recorder.calls()) for recorder in both] == [2, 2]


@dataclass
class Equal:
    """All its instances are equal, and none can be hashed."""

    calls: list[str] = field(default_factory=list, compare=False)

    @hook_impl
    def before_node_execute(self, metadata: Any) -> None:
        self.calls.append(metadata.name)


async def test_plugins_that_are_equal_are_two_all_the_same() -> None:
    first, second = Equal(), Equal()
    assert first == second
    async with session(plugins=[first, second]):
        await double(1)
    assert first.calls == second.calls == ["double"]


# By name ---------------------------------------------------------------------------------------

PLUGIN = """
from daglite.plugins import hook_impl

class Named:
    made = []

    def __init__(self):
        self.calls = []
        self.made.append(self)

    @hook_impl
    def before_node_execute(self, metadata):
        self.calls.append(metadata.name)

    async def consume(self, events):
        async for event in events:
            pass

def make():
    return Named()

ready = Named()
"""


@pytest.fixture
def distribution(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """An installed package with plugins, and the class they are of."""
    (tmp_path / "fake_plugins.py").write_text(PLUGIN)
    facts = tmp_path / "fake_plugins-1.0.dist-info"
    facts.mkdir()
    (facts / "METADATA").write_text("Metadata-Version: 2.1\nName: fake-plugins\nVersion: 1.0\n")
    (facts / "entry_points.txt").write_text(
        "[daglite.plugins]\n"
        "class = fake_plugins:Named\n"
        "function = fake_plugins:make\n"
        "object = fake_plugins:ready\n"
        "gone = fake_plugins:nowhere\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    yield importlib.import_module("fake_plugins").Named
    del sys.modules["fake_plugins"]


@pytest.mark.parametrize("name", ["class", "function", "object"])
async def test_a_plugin_may_be_given_by_the_name_of_its_entry_point(name: str, distribution: Any) -> None:
    async with session(plugins=[name]):
        await double(1)
    assert distribution.made[-1].calls == ["double"]


async def test_a_named_plugin_of_nested_sessions_is_one(distribution: Any) -> None:
    before = len(distribution.made)
    async with session(plugins=["class"]), session(plugins=["class"]):
        await double(1)
    assert len(distribution.made) == before + 1
    assert distribution.made[-1].calls == ["double"]
    async with session(plugins=["class"]):
        pass
    assert len(distribution.made) == before + 2


async def test_an_unknown_name_lists_those_that_there_are(distribution: Any) -> None:
    with pytest.raises(ValueError, match="no installed package offers a plugin 'clas'") as caught:
        async with session(plugins=["clas"]):
            pass
    for name in ("'class'", "'function'", "'object'"):
        assert name in str(caught.value)


async def test_an_installed_plugin_that_nobody_names_is_not_loaded(distribution: Any) -> None:
    before = len(distribution.made)
    async with session(plugins=[Recorder()]):
        await double(1)
    assert len(distribution.made) == before


async def test_a_named_plugin_that_cannot_be_imported_says_so(distribution: Any) -> None:
    with pytest.raises(AttributeError, match="nowhere"):
        async with session(plugins=["gone"]):
            pass
    assert current_session() is None


def test_importlib_metadata_finds_the_distribution(distribution: Any) -> None:
    names = {each.name for each in importlib.metadata.entry_points(group="daglite.plugins")}
    assert {"class", "function", "object"} <= names


# Nobody implements, nobody listens ---------------------------------------------------------------


def forbid(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    """Let it be an error to make certain things."""

    def made(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("made for nobody")

    for name in names:
        monkeypatch.setattr(name, made)


async def test_nothing_is_made_for_hooks_that_nobody_implements(monkeypatch: pytest.MonkeyPatch) -> None:
    class OfSessions:
        @hook_impl
        def after_session_end(self) -> None: ...

    async with session(plugins=[OfSessions()]):
        with monkeypatch.context() as patch:
            forbid(patch, "daglite._call.drafted", "daglite._reports.Aside", "daglite._reports.TaskStarted")
            await double(1)
            halve(2)
            await halve.to_thread(2)
            assert [row async for row in rows(1)] == [*sync_rows(1)] == [0]
            await gather_tasks(double, range(3))
            await double.with_options(retries=1, timeout=60)(1)


async def test_no_event_is_made_for_hooks_and_no_hook_is_called_for_events(monkeypatch: pytest.MonkeyPatch) -> None:
    async with session(plugins=[Recorder()]):
        with monkeypatch.context() as patch:
            forbid(patch, "daglite._reports.TaskStarted", "daglite._reports.TaskSucceeded")
            assert await double(1) == 2
            forbid(patch, "daglite._reports.Aside")
            with pytest.raises(AssertionError, match="made for nobody"):
                await double(1)
    async with session() as s, s.events():
        with monkeypatch.context() as patch:
            forbid(patch, "daglite._reports.Aside")
            assert await double(1) == 2
            forbid(patch, "daglite._reports.TaskStarted")
            with pytest.raises(AssertionError, match="made for nobody"):
                await double(1)


async def test_metadata_is_made_only_for_a_hook_that_is_called(monkeypatch: pytest.MonkeyPatch) -> None:
    class OfErrors:
        @hook_impl
        def on_node_error(self, metadata: Any) -> None: ...

    async with session(plugins=[OfErrors()]):
        with monkeypatch.context() as patch:
            forbid(patch, "daglite._call.drafted")
            assert await double(1) == 2
            with pytest.raises(AssertionError, match="made for nobody"):
                await fail()


# What hooks do themselves ------------------------------------------------------------------------


async def test_what_a_hook_calls_is_not_watched_and_the_call_is_current_in_it() -> None:
    current: list[Any] = []

    class Calling:
        @hook_impl
        def before_node_execute(self, metadata: Any) -> None:
            current.append(current_task() is metadata)
            assert halve(8) == 4
            assert [*sync_rows(2)] == [0, 1]

        @hook_impl
        def after_node_execute(self, metadata: Any) -> None:
            current.append(current_task() is metadata)

        @hook_impl
        def node_iteration(self) -> None:
            halve(2)

    recorder = Recorder()
    seen: list[Any] = []
    async with session(plugins=[recorder, Calling(), Keeper(seen)]):
        await double(1)
        assert [row async for row in rows(1)] == [0]
    assert {name for _, name in recorder.calls()} == {"double", "rows"}
    assert [event.metadata.name for event in seen[1:-1]] == ["double"] * 2 + ["rows"] * 3
    assert current == [True] * 4


async def test_what_a_hook_starts_in_the_background_is_joined_and_not_watched() -> None:
    done: list[int] = []

    @task
    async def background() -> None:
        await anyio.lowlevel.checkpoint()
        async with session(name="of a hook"):
            done.append(await double(2))

    class Starting:
        @hook_impl
        def after_node_execute(self) -> None:
            current = current_session()
            assert current is not None
            current.start_soon(background)

    recorder = Recorder()
    seen: list[Any] = []
    async with session(plugins=[recorder, Starting(), Keeper(seen)]) as s:
        await double(1)
    assert done == [4]
    assert [name for _, name in recorder.calls()] == ["double"] * 2
    assert [type(event) for event in seen] == [SessionStarted, TaskStarted, TaskSucceeded, SessionEnded]
    assert s.stats().succeeded == 3  # they count all the same


async def test_a_cancellation_while_a_hook_runs_waits_for_the_next_checkpoint() -> None:
    class Cancelling:
        @hook_impl
        def after_node_execute(self) -> None:
            scope.cancel()

    recorder = Recorder()
    value = None
    async with session(plugins=[recorder, Cancelling()]):
        with anyio.CancelScope() as scope:
            value = await double(21)  # it has succeeded: between that and its event nothing can be cancelled
            await anyio.lowlevel.checkpoint()
    assert value == 42
    assert scope.cancelled_caught
    assert [hook for hook, _ in recorder.calls()] == ["before_node_execute", "after_node_execute"]


async def test_a_call_that_is_cancelled_in_back_off_is_told_of_as_cancelled() -> None:
    class Cancelling:
        @hook_impl
        def before_node_retry(self) -> None:
            scope.cancel()

    recorder = Recorder()
    async with session(plugins=[recorder, Cancelling()]):
        with anyio.CancelScope() as scope:
            await fail.with_options(retries=3, retry_delay=60)()
    assert [hook for hook, _ in recorder.calls()] == ["before_node_execute", "before_node_retry", "on_node_cancelled"]


@pytest.mark.usefixtures("virtual_clock")
async def test_the_calls_of_an_abandoned_thread_are_told_of_as_cancelled_once() -> None:
    recorder = Recorder()
    hooks_running, leave = threading.Event(), threading.Event()

    class Slow:
        @hook_impl
        def after_node_execute(self, metadata: Any) -> None:
            if metadata.name == "halve":
                hooks_running.set()
                leave.wait(30)

    @task
    def inner() -> None:
        halve(2)  # its end is being told of when the thread is given up

    @task(timeout=1)
    def outer() -> None:
        inner()
        halve(4)

    async with session(plugins=[recorder, Slow()]):
        with pytest.raises(TaskTimeoutError):
            await outer.to_thread()
        assert hooks_running.is_set()
        leave.set()
    told = recorder.calls()
    assert told.count(("on_node_cancelled", "inner")) == 1
    assert told.count(("on_node_error", "outer")) == 1
    # The end of `halve` was told of as a success when the thread was given up, and is not told of again.
    assert [hook for hook, name in told if name == "halve"] in (
        ["before_node_execute", "after_node_execute"],
        ["before_node_execute"],
    )


async def test_a_plugin_in_two_sessions_at_once_sees_the_calls_of_both() -> None:
    recorder = Recorder()
    both_in = anyio.Event()

    async def work(number: int) -> None:
        async with session(plugins=[recorder]):
            if number:
                both_in.set()
            await both_in.wait()
            await double(number)

    async with anyio.create_task_group() as tg:
        tg.start_soon(work, 0)
        tg.start_soon(work, 1)
    assert len(recorder.of("before_session_start")) == len(recorder.of("after_session_end")) == 2
    assert sorted(told["result"] for told in recorder.of("after_node_execute")) == [0, 2]


async def test_a_method_with_a_hooks_name_and_no_mark_is_refused() -> None:
    class Forgetful:
        def after_node_execute(self) -> None: ...

    with pytest.raises(TypeError, match="Forgetful: 'after_node_execute' .* not marked with @hook_impl"):
        async with session(plugins=[Forgetful()]):
            pass


@pytest.mark.parametrize(
    ("plugins", "kind", "message"),
    [
        ([object()], TypeError, "plugin object has neither a hook nor"),
        ([None], TypeError, "plugin NoneType has neither a hook nor"),
    ],
)
async def test_what_is_no_plugin_is_refused(plugins: Any, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        async with session(plugins=plugins):
            pass


async def test_a_plugin_that_is_given_twice_is_refused() -> None:
    recorder = Recorder()
    with pytest.raises(ValueError, match="plugin Recorder is given twice"):
        async with session(plugins=[recorder, recorder]):
            pass


async def test_what_the_hooks_of_a_session_call_is_not_watched() -> None:
    class Calling:
        @hook_impl
        def before_session_start(self) -> None:
            assert halve(2) == 1

        @hook_impl
        def after_session_end(self) -> None:
            assert halve(4) == 2

    recorder = Recorder()
    seen: list[Any] = []
    async with session(plugins=[recorder, Keeper(seen)]) as outer:
        async with session(plugins=[Calling()]) as inner:
            pass
    assert recorder.calls() == []
    assert {type(event) for event in seen} == {SessionStarted, SessionEnded}
    assert inner.stats().started == 1  # the other was made when it had ended
    assert outer.stats().started == 2
