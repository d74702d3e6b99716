"""Functions that have a session for each call."""

import inspect
import pickle
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any, Literal, get_type_hints

import anyio
import pytest
from anyio.lowlevel import checkpoint

from daglite import (
    TaskMetadata,
    current_session,
    current_task,
    gather_tasks,
    map_tasks,
    session,
    task,
    workflow,
)
from daglite.events import SessionEnded, SessionStarted, TaskStarted
from daglite.exceptions import SessionError, TaskError
from daglite.plugins import hook_impl
from daglite.sessions import Session
from daglite.testing import EventRecorder
from daglite.workflows import AsyncWorkflow, SyncWorkflow, Workflow

LOOPS: list[Literal["asyncio", "trio"]] = ["asyncio", "trio"]


def here() -> Session:
    found = current_session()
    assert found is not None
    return found


def event_loop_here() -> str:
    import sniffio

    return sniffio.current_async_library()


@task
async def double(number: int) -> int:
    await checkpoint()
    return 2 * number


@workflow
async def total(count: int, *, start: int = 0) -> int:
    """Add up some numbers."""
    return start + sum(await gather_tasks(double, range(count)))


@workflow(name="adding up", description="By hand.", grace=3)
def total_sync(count: int) -> int:
    return sum(map_tasks(double, range(count)))


@workflow(grace=7, max_threads=3)
async def settled() -> tuple[str, float, int]:
    found = here()
    return found.name, found.settings.grace, found.settings.max_threads


async def test_a_call_is_a_session(recorded_events: EventRecorder) -> None:
    assert await total(3) == 6
    assert await total(3, start=1) == 7
    kinds = [type(event) for event in recorded_events.events]
    assert (kinds.count(SessionStarted), kinds.count(SessionEnded), kinds.count(TaskStarted)) == (2, 2, 6)
    names = {event.name for event in recorded_events.events if isinstance(event, SessionStarted)}
    assert names == {"total"}
    assert current_session() is None


@pytest.mark.parametrize("event_loop", LOOPS)
def test_from_sync_code_it_is_run(event_loop: Literal["asyncio", "trio"]) -> None:
    @workflow
    async def where() -> tuple[str, int]:
        return event_loop_here(), threading.get_ident()

    assert total.run(3) == 6
    assert total.run(3, start=1, event_loop=event_loop) == 7
    assert where.run(event_loop=event_loop) == (event_loop, threading.get_ident())  # in this thread
    assert where.run() == ("asyncio", threading.get_ident())


@pytest.mark.parametrize("event_loop", LOOPS)
def test_a_plain_function_has_its_event_loop_in_the_background(event_loop: Literal["asyncio", "trio"]) -> None:
    @task
    async def where() -> str:
        return event_loop_here()

    @workflow
    def ask() -> str:
        return where.from_thread()

    assert total_sync(3) == total_sync.run(3) == 6
    assert ask.run(event_loop=event_loop) == event_loop
    assert workflow(event_loop=event_loop)(ask.func)() == event_loop
    assert ask() == "asyncio"


def test_the_decorator_may_choose_the_event_loop() -> None:
    @workflow(event_loop="trio")
    async def where() -> str:
        return event_loop_here()

    assert where.run() == "trio"
    assert where.run(event_loop="asyncio") == "asyncio"


async def test_where_it_is_awaited_it_runs(anyio_backend: str) -> None:
    @workflow(event_loop="trio")
    async def where() -> str:
        return event_loop_here()

    assert await where() == anyio_backend


async def test_its_options_are_those_of_its_session() -> None:
    assert await settled() == ("settled", 7, 3)
    assert (total_sync.name, total_sync.description) == ("adding up", "By hand.")
    assert (total.name, total.description) == ("total", "Add up some numbers.")


async def test_what_it_is_not_given_comes_from_the_session_around() -> None:
    @workflow(grace=2)
    async def outer() -> tuple[Any, ...]:
        async with session(max_threads=9):
            return await inner()

    @workflow(name="inside")
    async def inner() -> tuple[Any, ...]:
        found = here()
        return found.name, found.settings.grace, found.settings.max_threads

    assert await outer() == ("inside", 2, 9)


async def test_plugins_of_the_outer_see_the_calls_of_the_inner() -> None:
    class Names:
        def __init__(self) -> None:
            self.names: list[str] = []

        @hook_impl
        def before_node_execute(self, metadata: TaskMetadata) -> None:
            self.names.append(metadata.name)

    names = Names()

    @workflow(plugins=iter([names]))  # which could be used once
    async def outer() -> int:
        return await total(2)

    assert await outer() == 2
    assert await outer() == 2
    assert sorted(names.names) == ["double[0]", "double[0]", "double[1]", "double[1]"]


async def test_in_a_task_its_calls_have_that_for_a_parent(recorded_events: EventRecorder) -> None:
    @task
    async def outer() -> int:
        return await total(1)

    async with session():
        await outer()
    [first, second] = [event.metadata for event in recorded_events.events if isinstance(event, TaskStarted)]
    assert (first.name, second.name) == ("outer", "double[0]")
    assert second.parent_id == first.id


async def test_what_it_starts_has_ended_when_it_returns() -> None:
    done: list[int] = []

    @task
    async def later() -> None:
        await checkpoint()
        done.append(1)

    @workflow
    async def start() -> str:
        here().start_soon(later)
        return "started"

    assert await start() == "started"
    assert done == [1]


async def test_errors_come_out_as_they_are() -> None:
    @workflow
    async def fail(how: str) -> None:
        if how == "itself":
            raise ValueError("wrong")
        await task(fails)()

    with pytest.raises(ValueError, match="wrong"):
        await fail("itself")
    with pytest.raises(TaskError, match="Task 'fails' failed"):
        await fail("a task")


async def fails() -> None:
    raise ValueError("wrong")


async def test_a_cancelled_workflow_ends_what_runs_in_it() -> None:
    @task
    async def wait() -> None:
        await anyio.sleep_forever()

    seen: list[Session] = []

    @workflow
    async def waits() -> None:
        seen.append(here())
        scope.cancel()
        await gather_tasks(wait.call(), wait.call())

    with anyio.CancelScope() as scope:
        await waits()
    assert scope.cancelled_caught
    assert seen[0].stats().cancelled == 2


async def test_from_a_worker_thread_it_runs_in_the_event_loop_that_waits(anyio_backend: str) -> None:
    @workflow
    async def where() -> tuple[str, int, str]:
        task = current_task()
        assert task is not None
        return event_loop_here(), threading.get_ident(), task.name

    @task
    def ask() -> tuple[str, int, str]:
        return where.run()

    @task
    def ask_sync() -> int:
        return total_sync(3)

    async with session() as s:
        assert await ask.to_thread() == (anyio_backend, threading.get_ident(), "ask")
        assert await ask_sync.to_thread() == 6
        assert s.stats().succeeded == 2 + 3
    assert await anyio.to_thread.run_sync(total.run, 3) == 6
    assert await anyio.to_thread.run_sync(total_sync, 3) == 6


@pytest.mark.parametrize(("outer", "inner"), [("asyncio", "trio"), ("trio", "asyncio")])
def test_another_event_loop_than_that_of_the_session_is_one_of_its_own(
    outer: Literal["asyncio", "trio"], inner: Literal["asyncio", "trio"]
) -> None:
    @workflow
    async def where() -> str:
        return event_loop_here()

    with session(event_loop=outer) as s:
        assert where.run() == outer
        assert where.run(event_loop=outer) == outer
        assert where.run(event_loop=inner) == inner
        assert total.run(3, event_loop=inner) == 6
        assert s.stats().succeeded == 0


async def test_in_an_event_loop_the_wrong_call_says_what_to_write() -> None:
    with pytest.raises(RuntimeError) as first:
        total.run(3)
    assert str(first.value) == (
        "workflow 'total': run() in an event loop's own thread would wait for itself; write: await total(...)"
    )
    with pytest.raises(SessionError) as second:
        total_sync(3)
    assert str(second.value) == (
        "workflow 'adding up' is a plain function, and would block the event loop that runs in this thread: call it in "
        "another, `await anyio.to_thread.run_sync(total_sync, ...)`, or write it with `async def`"
    )


async def test_wrong_arguments_are_told_before_a_session_is_opened(recorded_events: EventRecorder) -> None:
    with pytest.raises(TypeError, match="workflow 'total': missing a required argument: 'count'"):
        await total()  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="workflow 'adding up': got an unexpected keyword argument 'size'"):
        await anyio.to_thread.run_sync(lambda: total_sync(3, size=4))  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="workflow 'total': too many positional arguments"):
        total.run(1, 2, event_loop="trio")
    assert not recorded_events.events


class Shop:
    """Has workflows for methods."""

    def __init__(self, price: int) -> None:
        self.price = price

    @workflow
    async def sell(self, count: int) -> int:
        return self.price * sum(await gather_tasks(double, [count]))

    @workflow
    def sell_sync(self, count: int) -> int:
        return self.price * count

    @workflow
    @classmethod
    async def named(cls) -> str:
        return cls.__name__

    @workflow
    @staticmethod
    async def closed() -> bool:
        return True


shop = Shop(3)


def test_it_binds_to_an_object_as_a_method_does() -> None:
    assert shop.sell.run(2) == 12
    assert shop.sell_sync(2) == 6
    assert Shop.sell.run(shop, 2) == 12
    untyped: Any = shop
    assert type(untyped).named.run() == "Shop"
    assert untyped.closed.run() is True
    assert str(shop.sell.signature) == "(count: int) -> int"


def test_it_keeps_what_its_function_says_of_itself() -> None:
    assert total.__name__ == "total"
    assert total.__qualname__ == "total"
    assert total.__module__ == __name__
    assert total.__doc__ == "Add up some numbers."
    assert total.__wrapped__ is total.func  # type: ignore[attr-defined]
    assert inspect.signature(total) == total.signature == inspect.signature(total.func)
    assert inspect.iscoroutinefunction(total.__call__)
    assert get_type_hints(total) == {"count": int, "start": int, "return": int}
    assert repr(total) == "<AsyncWorkflow 'total'>"
    assert repr(total_sync) == "<SyncWorkflow 'adding up'>"
    assert isinstance(total, AsyncWorkflow)
    assert isinstance(total_sync, SyncWorkflow)
    assert isinstance(total, Workflow)


def test_it_is_immutable() -> None:
    with pytest.raises(AttributeError, match="workflow 'total' is immutable"):
        total.name = "other"
    with pytest.raises(AttributeError, match="workflow 'total' is immutable"):
        del total.func


def test_it_is_pickled_by_reference() -> None:
    assert pickle.loads(pickle.dumps(total)) is total
    assert pickle.loads(pickle.dumps(shop.sell)).run(2) == 12

    @workflow
    async def inside() -> None: ...

    with pytest.raises(
        pickle.PicklingError, match="workflow 'inside' cannot be pickled: .* define it at the top level"
    ):
        pickle.dumps(inside)
    with pytest.raises(pickle.PicklingError):
        pickle.dumps(workflow(fails))


async def test_a_task_may_be_one() -> None:
    assert await workflow(double)(4) == 8


def rows() -> Iterator[int]:
    yield 1


async def with_event_loop(event_loop: str) -> None: ...


wrong: Any = workflow  # of whose arguments type checkers know nothing


@pytest.mark.parametrize(
    ("make", "error", "text"),
    [
        (lambda: wrong(3), TypeError, "@workflow takes a function, not 3"),
        (lambda: wrong(int), TypeError, "@workflow takes a function, not <class 'int'>"),
        (lambda: wrong(rows), TypeError, "workflow 'rows' is a generator function, but a workflow returns once"),
        (lambda: wrong(total), TypeError, "workflow 'total' is a workflow already"),
        (lambda: wrong(name="")(fails), TypeError, "workflow 'fails': name must be a str that is not empty, not ''"),
        (lambda: wrong(name=3)(fails), TypeError, "workflow 'fails': name must be a str that is not empty, not 3"),
        (lambda: wrong(description=3)(fails), TypeError, "workflow 'fails': description must be a str, not 3"),
        (lambda: wrong(retries=3)(fails), TypeError, "workflow 'fails': there is no option 'retries'; there are: "),
        (lambda: wrong(grace=-1)(fails), ValueError, "workflow 'fails': session: grace must be"),
        (lambda: wrong(plugins="x")(fails), TypeError, "workflow 'fails': session: plugins must be a list"),
        (lambda: wrong(event_loop="curio")(fails), ValueError, "workflow 'fails': session: event_loop must be"),
        (lambda: wrong(with_event_loop), ValueError, "has a parameter 'event_loop', which run() takes for itself"),
        (lambda: wrong(fails).run(event_loop="curio"), ValueError, "workflow 'fails': event_loop must be"),
        (lambda: wrong(sync).run(event_loop="curio"), ValueError, "workflow 'sync': event_loop must be"),
    ],
)
def test_what_is_wrong_is_said_at_once(make: Any, error: type[Exception], text: str) -> None:
    with pytest.raises(error) as caught:
        make()
    assert text in str(caught.value)


def sync() -> None: ...


def test_without_trio_the_error_says_what_to_install() -> None:
    program = """
import sys
sys.modules["trio"] = None
from daglite import workflow
@workflow
async def work(): ...
@workflow
def work_sync(): ...
for each in (work, work_sync):
    try:
        each.run(event_loop="trio")
    except ImportError as exc:
        print(exc)
"""
    done = subprocess.run([sys.executable, "-W", "error", "-c", program], capture_output=True, text=True, check=True)
    text = "event_loop='trio' needs Trio, which is not installed: pip install 'daglite[trio]'\n"
    assert done.stdout == f"workflow 'work': {text}workflow 'work_sync': {text}"


@pytest.mark.parametrize("event_loop", LOOPS)
@pytest.mark.parametrize("kind", ["async def", "def"])
def test_ctrl_c_cancels_it_and_comes_out_as_an_interrupt(kind: str, event_loop: str) -> None:
    waits = "await wait()" if kind == "async def" else "wait.from_thread()"
    program = f"""
import anyio
from daglite import task, workflow

@task
async def wait():
    try:
        print("waits", flush=True)
        await anyio.sleep_forever()
    finally:
        print("cleaned up", flush=True)

@workflow
{kind} work():
    {waits}

try:
    work.run(event_loop={event_loop!r})
except BaseException as exc:
    print(type(exc).__name__)
"""
    # Before Python 3.11 asyncio cannot tell an interrupt from another cancellation.
    is_told = sys.version_info >= (3, 11) or event_loop == "trio" or kind == "def"
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "waits\n"
        child.send_signal(signal.SIGINT)
        assert child.stdout.read() == f"cleaned up\n{'KeyboardInterrupt' if is_told else 'CancelledError'}\n"
    assert child.returncode == 0
