"""What runs at this moment, seen from inside and from outside, and how to end a part of it."""

import re
import signal
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest
from anyio.lowlevel import checkpoint

from daglite import dump_on_signal, gather_tasks, session, stream_tasks, task
from daglite._metadata import new_id
from daglite.exceptions import CallCancelledError, SessionError, TaskGroupError
from daglite.plugins import hook_impl
from daglite.sessions import CallTree, Session


def shape(calls: Any) -> list[Any]:
    """Names and states, nested, in an order that does not depend on when tasks began: Trio begins them at random."""
    return sorted(
        (call.metadata.name, call.state, shape(call.calls)) if call.calls else (call.metadata.name, call.state)
        for call in calls
    )


async def until(condition: Callable[[], bool]) -> None:
    """Wait for what has no event of its own."""
    with anyio.fail_after(30):
        while not condition():
            await anyio.sleep(0.001)


@task
async def hang() -> None:
    await anyio.sleep_forever()


@task
async def outer(number: int) -> None:
    await hang()


async def test_the_tree_has_every_call_with_those_that_it_has_made() -> None:
    async with session(name="work") as s:
        assert s.tree().calls == ()
        s.start_soon(outer, 1)
        s.start_soon(gather_tasks, outer, [1, 2])
        await until(lambda: s.stats().running == 7)
        tree = s.tree()
        assert shape(tree.calls) == [
            (
                "gather_tasks",
                "running",
                [("outer[0]", "running", [("hang", "running")]), ("outer[1]", "running", [("hang", "running")])],
            ),
            ("outer", "running", [("hang", "running")]),
        ]
        assert (tree.name, tree.session_id) == ("work", s.id)
        assert len(list(tree)) == 7
        for call in tree:
            assert tree.age >= call.age >= 0
            assert (call.attempts, call.deadline, call.retry_in, call.items) == (1, None, None, None)
            assert all(call.age >= each.age for each in call.calls)
        s.cancel()
    assert s.tree().calls == ()


async def test_the_tree_prints_as_one() -> None:
    async with session(name="work") as s:
        s.start_soon(outer, 1)
        s.start_soon(task(name="two\nlines")(anyio.sleep_forever))
        await until(lambda: s.stats().running == 3)
        lines = str(s.tree()).splitlines()
        s.cancel()
    id = r"  \[[0-9a-f-]{36}\]"
    for line, pattern in zip(
        lines,
        [
            rf"session 'work': 3 calls run, \d\.\d s old{id}",
            rf"[├└]─ (outer|two lines): running, \d\.\d s old{id}",
            rf"([├└│] *[└─]* *)(hang|outer): running, \d\.\d s old{id}",
            rf"[└ ]+─ (hang|two lines): running, \d\.\d s old{id}",
        ],
        strict=True,
    ):
        assert re.fullmatch(pattern, line), line
    assert str(s.tree()).startswith("session 'work': no call runs, ")


async def test_back_off_is_told_with_the_time_that_is_left() -> None:
    @task(retries=3, retry_delay=60)
    async def unstable() -> None:
        raise ValueError("no")

    async with session() as s:
        s.start_soon(unstable)
        await until(lambda: [call.state for call in s.tree()] == ["backing off"])
        (call,) = s.tree()
        assert call.retry_in is not None
        assert 0 < call.retry_in <= 60
        assert (call.attempts, call.deadline) == (1, None)
        assert "unstable: backing off, attempt 2 in " in str(call)
        s.cancel()


async def test_a_deadline_is_told_with_the_time_that_is_left() -> None:
    async with session() as s:
        s.start_soon(hang.with_options(timeout=60))
        await until(lambda: s.stats().running == 1)
        (call,) = s.tree()
        assert call.deadline is not None
        assert 0 < call.deadline <= 60
        assert re.search(r" \d+\.\d s left  \[", str(call))
        s.cancel()


async def test_threads_are_told_of_from_the_wait_to_the_work() -> None:
    leave = threading.Event()

    @task
    def inner() -> None:
        leave.wait(30)

    @task(timeout=60)
    def work() -> None:
        inner()

    async with session(max_threads=1) as s:
        s.start_soon(work)
        await until(lambda: s.stats().running == 2)
        s.start_soon(work)
        await until(lambda: s.stats().running == 3)
        first, second = s.tree().calls
        assert shape([first]) == [("work", "in a thread", [("inner", "in a thread")])]
        assert first.deadline is not None
        assert 0 < first.deadline <= 60
        assert shape([second]) == [("work", "waiting for a thread")]
        assert second.deadline is None  # the wait for a thread does not count
        leave.set()


async def test_streams_are_told_of_between_items_in_steps_and_when_they_close() -> None:
    go = anyio.Event()
    close = threading.Event()

    @task
    async def rows() -> AsyncIterator[int]:
        try:
            yield 1
            await go.wait()
            yield 2
        finally:
            await hang.with_options(name="cleaning up")()

    @task
    def sync_rows() -> Iterator[int]:
        try:
            yield 1
        finally:
            close.wait(30)

    def states() -> list[Any]:
        return shape(s.tree().calls)

    async with session() as s:
        stream, thread_stream = rows(), sync_rows.to_thread()
        with sync_rows() as held:
            close.set()
            next(held)
            await anext(stream)
            await anext(thread_stream)
            assert states() == [
                ("rows", "between items"),
                ("sync_rows", "between items"),
                ("sync_rows", "between items"),
            ]
            assert [call.items for call in s.tree()] == [1, 1, 1]
        close.clear()
        async with anyio.create_task_group() as tg:
            tg.start_soon(anext, stream)
            await until(lambda: states()[0] == ("rows", "running"))
            go.set()
        assert states()[0] == ("rows", "between items")
        async with anyio.create_task_group() as tg:
            tg.start_soon(stream.aclose)
            tg.start_soon(thread_stream.aclose)
            await until(
                lambda: states() == [("rows", "closing", [("cleaning up", "running")]), ("sync_rows", "closing")]
            )
            close.set()
            tg.cancel_scope.cancel()
        assert states() == []


async def test_a_step_in_a_threads_own_stream_is_in_a_thread() -> None:
    go = threading.Event()

    @task
    def rows() -> Iterator[int]:
        go.wait(30)
        yield 1

    async with session() as s, rows.to_thread() as stream:
        async with anyio.create_task_group() as tg:
            tg.start_soon(anext, stream)
            await until(lambda: shape(s.tree().calls) == [("rows", "in a thread")])
            go.set()


async def test_abandoned_threads_are_told_of_with_how_late_they_are() -> None:
    leave = threading.Event()

    @task(timeout=1, retries=1, retry_delay=60)
    def stubborn() -> None:
        leave.wait(30)

    async with session() as s:
        handle = s.start_soon(stubborn)
        await until(lambda: [call.state for call in s.tree().calls] == ["backing off"])
        (call,) = s.tree().calls
        assert shape(call.calls) == [("stubborn", "stuck in an abandoned thread")]
        (stuck,) = call.calls
        assert stuck.metadata.id == handle.id
        assert stuck.deadline is not None
        assert stuck.deadline < 0
        assert " s past its deadline  [" in str(stuck)
        handle.cancel()
        with pytest.raises(CallCancelledError):
            await handle
        # The call is gone, and its thread is not.
        assert shape(s.tree().calls) == [("stubborn", "stuck in an abandoned thread")]
        leave.set()
        await until(lambda: s.tree().calls == ())


async def test_inner_sessions_are_in_the_tree_of_the_outer_one() -> None:
    ready = anyio.Event()

    @task
    async def work() -> None:
        async with session(name="inner") as inner:
            inner.start_soon(hang)
            await until(lambda: inner.stats().running == 1)
            assert shape(inner.tree().calls) == [("hang", "running")]
            ready.set()

    async with session() as s:
        s.start_soon(work)
        await ready.wait()
        assert shape(s.tree().calls) == [("work", "running", [("hang", "running")])]
        s.cancel()


async def test_a_call_whose_maker_has_ended_is_with_the_nearest_that_runs() -> None:
    @task
    async def middle() -> None:
        s.start_soon(hang)

    @task
    async def top() -> None:
        await middle()
        await hang.with_options(name="its own")()

    async with session() as s:
        s.start_soon(top)
        await until(lambda: s.stats().running == 3)
        assert shape(s.tree().calls) == [("top", "running", [("hang", "running"), ("its own", "running")])]
        s.cancel()


async def test_what_a_hook_calls_is_in_the_tree() -> None:
    seen: list[Any] = []

    @task
    def look() -> None:
        seen.extend(shape(s.tree().calls))

    class Looking:
        @hook_impl
        def before_node_execute(self) -> None:
            look()

    @task
    async def work() -> None: ...

    async with session(plugins=[Looking()]) as s:
        await work()
    assert seen == [("work", "running", [("look", "running")])]


async def test_the_tree_may_be_asked_for_from_any_thread_while_calls_come_and_go() -> None:
    stop = threading.Event()
    trees: list[CallTree] = []
    failures: list[BaseException] = []

    @task
    async def short() -> None:
        await checkpoint()

    def look() -> None:
        try:
            while not stop.is_set():
                trees.append(s.tree())
                assert str(trees[-1])
        except BaseException as exc:
            failures.append(exc)

    async with session() as s:
        thread = threading.Thread(target=look)
        thread.start()
        try:
            while len(trees) < 20 and not failures:
                async with anyio.create_task_group() as tg:
                    for _ in range(50):
                        tg.start_soon(short)
        finally:
            stop.set()
            thread.join()
    assert failures == []


async def test_calls_may_be_nested_deeper_than_functions() -> None:
    depth = 0

    @task
    async def deep() -> None:
        nonlocal depth
        depth += 1
        if depth < 1500:
            s.start_soon(deep)
        await anyio.sleep_forever()

    async with session() as s:
        s.start_soon(deep)
        await until(lambda: s.stats().running == 1500)
        tree = s.tree()
        assert len(list(tree)) == 1500
        assert len(str(tree).splitlines()) == 1501
        s.cancel()


async def test_a_session_that_was_not_entered_has_no_tree() -> None:
    with pytest.raises(SessionError, match="tree\\(\\) before it was entered"):
        session().tree()


# Cancelling ----------------------------------------------------------------------------------------


async def test_cancel_ends_all_of_the_session_and_no_more() -> None:
    reached: list[str] = []
    with anyio.CancelScope() as scope:
        async with session() as s:
            handle = s.start_soon(hang)
            await checkpoint()
            assert s.cancel() is True
            await anyio.sleep_forever()
            reached.append("behind the cancellation")
    assert not scope.cancelled_caught
    assert reached == []
    with pytest.raises(CallCancelledError):
        await handle
    assert s.cancel() is False
    assert s.stats().cancelled <= 1


async def test_cancel_under_ends_a_background_call_and_what_it_has_made() -> None:
    async with session() as s:
        handle, other = s.start_soon(outer, 1), s.start_soon(outer, 2)
        await until(lambda: s.stats().running == 4)
        assert s.cancel(under=handle.id) is True
        with pytest.raises(CallCancelledError):
            await handle
        assert shape(s.tree().calls) == [("outer", "running", [("hang", "running")])]
        assert s.cancel(under=handle.id) is False
        assert s.cancel(under=other.id)
    assert s.stats().cancelled == 4


@pytest.mark.parametrize("errors", ["raise", "collect"])
async def test_cancel_under_ends_one_call_of_a_fan_out(errors: Any) -> None:
    go = anyio.Event()

    @task
    async def work(number: int) -> int:
        if number == 1:
            await anyio.sleep_forever()
        await go.wait()
        return number

    async def cancel_one(s: Session) -> None:
        await until(lambda: s.stats().running == 3)
        (victim,) = [call for call in s.tree() if call.metadata.map_index == 1]
        assert s.cancel(under=victim.metadata.id)
        go.set()

    async with session() as s, anyio.create_task_group() as tg:
        tg.start_soon(cancel_one, s)
        with pytest.raises(TaskGroupError) as caught:
            await gather_tasks(work, range(3), errors=errors)
        (error,) = caught.value.exceptions
        assert isinstance(error, CallCancelledError)
        assert str(error) == "1 of 3 calls of task 'work' were cancelled"


async def test_cancel_under_ends_one_call_of_stream_tasks_of_an_inner_session() -> None:
    got: list[int] = []

    @task
    async def work(number: int) -> int:
        if number == 1:
            await anyio.sleep_forever()
        return number

    async def cancel_one(s: Session) -> None:
        await until(lambda: [call.metadata.map_index for call in s.tree()] == [1])
        (victim,) = s.tree()
        assert s.cancel(under=victim.metadata.id)

    async with session() as s, anyio.create_task_group() as tg:
        tg.start_soon(cancel_one, s)
        with pytest.raises(TaskGroupError):
            async with session(name="inner"), stream_tasks(work, range(3)) as results:
                got = [number async for number in results]
    assert got == []


async def test_a_call_in_the_task_of_its_caller_is_not_cancelled_alone() -> None:
    async with session() as s:
        handle = s.start_soon(outer, 1)
        await until(lambda: s.stats().running == 2)
        inner = next(call for call in s.tree() if call.metadata.name == "hang")
        with pytest.raises(SessionError) as caught:
            s.cancel(under=inner.metadata.id)
        assert str(caught.value) == (
            "session 'session': task 'hang' runs in the task of whoever called it, and cannot be cancelled alone; "
            f"cancel under 'outer', whose id is {handle.id}"
        )
        handle.cancel()
        with anyio.CancelScope() as scope:

            @task
            async def try_it() -> None:
                (call,) = [each for each in s.tree() if each.metadata.name == "try_it"]
                with pytest.raises(SessionError, match="start it with start_soon"):
                    s.cancel(under=call.metadata.id)
                scope.cancel()

            await try_it()


async def test_wrong_uses_of_cancel_are_errors() -> None:
    s = session()
    with pytest.raises(SessionError, match="cancel\\(\\) before it was entered"):
        s.cancel()
    async with s:
        with pytest.raises(TypeError, match="cancel: under must be the id of a call, a UUID, not 'abc'"):
            s.cancel(under="abc")  # type: ignore[arg-type]
        assert s.cancel(under=new_id()) is False


# From outside --------------------------------------------------------------------------------------

PROGRAM = """
import sys, time
from pathlib import Path
import anyio
from daglite import dump_on_signal, session, task

def wait_for(name):
    # In steps: a thread that is just about to wait for long hears of a signal when it wakes.
    print("ready", flush=True)
    while not Path(name).exists():
        time.sleep(0.01)

@task
def blocking():
    wait_for("go")

@task
async def waiting():
    if sys.argv[2] == "blocked":
        blocking()
    else:
        await blocking.to_thread()

async def main():
    async with session(name="one"), session(name="two") as s:
        s.start_soon(waiting)
        while s.stats().succeeded < 2:
            await anyio.sleep(0.01)

dump_on_signal()
dump_on_signal()
anyio.run(main, backend=sys.argv[1])
wait_for("end")
"""


@pytest.mark.skipif(not hasattr(signal, "SIGUSR1"), reason="there is no SIGUSR1")
@pytest.mark.parametrize("how", ["waiting", "blocked"])
@pytest.mark.parametrize("event_loop", ["asyncio", "trio"])
def test_a_signal_prints_the_trees_of_all_sessions(event_loop: str, how: str, tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    with subprocess.Popen(
        [sys.executable, "-W", "error", program, event_loop, how],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGUSR1)
        lines = [process.stderr.readline() for _ in range(3)]
        (tmp_path / "go").touch()
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGUSR1)
        lines.append(process.stderr.readline())
        (tmp_path / "end").touch()
        assert process.wait(30) == 0
        assert process.stderr.read() == ""
    assert re.fullmatch(r"session 'one': 2 calls run, \d+\.\d s old  \[.*\]\n", lines[0])
    assert lines[1].startswith("└─ waiting: running, ")
    assert lines[2].startswith(f"   └─ blocking: {'running' if how == 'blocked' else 'in a thread'}, ")
    assert lines[3] == "daglite: no session is open\n"


@pytest.fixture
def handler() -> Iterator[None]:
    before = signal.getsignal(signal.SIGUSR1)
    yield
    signal.signal(signal.SIGUSR1, before)


@pytest.mark.usefixtures("handler")
async def test_a_handler_that_was_there_is_called_too(capsys: pytest.CaptureFixture[str]) -> None:
    called: list[int] = []
    signal.signal(signal.SIGUSR1, lambda signum, frame: called.append(signum))
    dump_on_signal(signal.SIGUSR1)
    async with session(name="here"):
        signal.raise_signal(signal.SIGUSR1)
        await checkpoint()
    assert called == [signal.SIGUSR1]
    assert capsys.readouterr().err.startswith("session 'here': no call runs, ")


@pytest.mark.usefixtures("handler")
def test_a_closed_stderr_does_not_disturb_the_program(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stderr", None)
    dump_on_signal()
    signal.raise_signal(signal.SIGUSR1)
    monkeypatch.undo()
    assert capfd.readouterr().err == "daglite: no session is open\n"


@pytest.mark.parametrize(
    ("signum", "error", "message"),
    [
        ("SIGUSR1", TypeError, "a signal is a number such as signal.SIGUSR1, not 'SIGUSR1'"),
        (True, TypeError, "a signal is a number such as signal.SIGUSR1, not True"),
        (9999, ValueError, "signal 9999 cannot be handled"),
        (signal.SIGKILL, ValueError, "signal 9 cannot be handled"),
    ],
)
def test_what_is_no_signal_is_refused(signum: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        dump_on_signal(signum)


def test_signals_are_for_the_main_thread() -> None:
    caught: list[BaseException] = []

    def try_it() -> None:
        try:
            dump_on_signal()
        except RuntimeError as exc:
            caught.append(exc)

    thread = threading.Thread(target=try_it)
    thread.start()
    thread.join()
    assert "call it there" in str(caught[0])
