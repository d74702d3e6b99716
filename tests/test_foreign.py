"""Code that has a copy of a session's context and is not in the session: in other event loops, and in forks."""

import asyncio
import inspect
import os
import signal
import sys
import threading
from collections.abc import AsyncIterator, Callable
from contextvars import copy_context
from typing import Any

import anyio
import anyio.to_thread
import pytest
import trio
from anyio.lowlevel import checkpoint

from daglite import TaskMetadata, current_session, current_task, gather_tasks, report, session, task
from daglite.events import TaskCancelled
from daglite.exceptions import SessionError
from daglite.plugins import hook_impl
from daglite.sessions import CallHandle, Subscription


@task
async def double(number: int) -> int:
    await checkpoint()
    return 2 * number


@task
def where() -> int:
    return threading.get_ident()


@task
async def rows() -> AsyncIterator[int]:
    yield 1


@pytest.mark.parametrize("other", ["asyncio", "trio"])
@pytest.mark.parametrize("thread", ["anyio's", "ours", "a stream's"])
async def test_another_event_loop_is_not_in_the_session(other: str, thread: str) -> None:
    seen: list[Any] = []

    async def main() -> None:
        seen.append((current_session(), current_task()))
        report("progress", 1)
        assert await double(2) == 4
        assert await where.to_thread() != threading.get_ident()
        assert await gather_tasks(double, [1, 2]) == [2, 4]
        stream = rows()
        assert await stream.__anext__() == 1
        async with session() as own:  # inside nothing
            await double(3)
            seen.append(own.stats().succeeded)
        with pytest.raises(SessionError, match="'double' in another event loop than its own"):
            s.start_soon(double, 1)
        await stream.aclose()

    @task
    def run() -> None:
        anyio.run(main, backend=other)

    @task
    def run_as_stream() -> Any:
        anyio.run(main, backend=other)
        yield 1

    async with session() as s:
        before = s.stats().started
        async with s.events() as events:
            if thread == "ours":
                await run.to_thread()
            elif thread == "a stream's":
                assert [item async for item in run_as_stream.to_thread()] == [1]
            else:
                await anyio.to_thread.run_sync(lambda: anyio.run(main, backend=other))
            heard = []
            with anyio.move_on_after(0):
                async for event in events:
                    heard.append(event)
        assert s.stats().started - before == (0 if thread == "anyio's" else 1)
    names = {event.metadata.name for event in heard if hasattr(event, "metadata") and event.metadata}
    assert names <= {"run", "run_as_stream"}
    assert not [event for event in heard if type(event).__name__.startswith(("Session", "TaskReported"))]
    assert seen == [(None, None), 1]


async def test_a_thread_without_an_event_loop_is_in_it() -> None:
    """With the context it has all that is needed: no event loop would be the wrong one."""
    async with session() as s:
        assert await anyio.to_thread.run_sync(current_session) is s
        await anyio.to_thread.run_sync(where)
        assert s.stats().succeeded == 1


async def test_a_call_in_such_a_thread_ends_once_though_the_session_ends_meanwhile() -> None:
    """It ends by itself at the moment at which it is given up: whoever comes first is told of, and nobody else."""
    told: list[str] = []
    begun, ending, given_up, block = (threading.Event() for _ in range(4))

    class Witness:
        @hook_impl
        def after_node_execute(self, metadata: TaskMetadata) -> None:
            told.append(f"{metadata.name} succeeded")
            ending.set()
            assert given_up.wait(10)

        @hook_impl
        def on_node_cancelled(self, metadata: TaskMetadata) -> None:
            told.append(f"{metadata.name} cancelled")

        @hook_impl
        def after_session_end(self) -> None:
            given_up.set()

    @task
    def is_ending() -> None:
        pass

    @task
    def is_running() -> None:
        begun.set()
        assert block.wait(10)

    heard: list[str] = []

    async def follow(events: Subscription) -> None:
        heard.extend([event.metadata.name async for event in events if isinstance(event, TaskCancelled)])

    async with session(plugins=[Witness()]) as s:
        s.watch(follow)
        context = copy_context()
        threads = [threading.Thread(target=context.copy().run, args=(each,)) for each in (is_running, is_ending)]
        for thread in threads:
            thread.start()
        await anyio.to_thread.run_sync(begun.wait)
        await anyio.to_thread.run_sync(ending.wait)
    block.set()
    for thread in threads:
        await anyio.to_thread.run_sync(thread.join)
    assert sorted(told) == ["is_ending succeeded", "is_running cancelled"]
    assert sorted(heard) == ["is_ending", "is_running"]
    assert (s.stats().running, s.stats().cancelled) == (0, 2)


async def test_a_call_in_such_a_thread_that_begins_as_the_session_ends_is_refused() -> None:
    asked, ended = threading.Event(), threading.Event()
    raised: list[SessionError] = []

    class Slow(threading.Thread):
        @property
        def name(self) -> str:  # type: ignore[override]
            """Asked for by the call, once it was accepted and before it is noted."""
            if threading.current_thread() is self:
                asked.set()
                assert ended.wait(10)
            return "slow"

    def work() -> None:
        with pytest.raises(SessionError, match="'where' was called in session 'web', which has ended") as caught:
            where()
        raised.append(caught.value)

    async with session(name="web") as s:
        thread = Slow(target=copy_context().run, args=(work,))
        thread.start()
        await anyio.to_thread.run_sync(asked.wait)
    ended.set()
    await anyio.to_thread.run_sync(thread.join)
    assert len(raised) == 1
    assert (s.stats().started, s.tree().calls) == (0, ())


async def test_a_handle_is_not_awaited_in_another_event_loop() -> None:
    async def double_later(number: int, event: anyio.Event) -> int:
        await event.wait()
        return 2 * number

    async def elsewhere(handle: CallHandle[int]) -> int:
        return await handle

    async with session() as s:
        go_on = anyio.Event()
        handle = s.start_soon(double_later, 4, go_on)
        with pytest.raises(SessionError, match="'double_later' was awaited in another event loop than its own"):
            await anyio.to_thread.run_sync(anyio.run, elsewhere, handle)
        go_on.set()
        assert await handle == 8
        assert await anyio.to_thread.run_sync(anyio.run, elsewhere, handle) == 8  # it is there: nobody waits


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
@pytest.mark.parametrize("how", ["nested", "guest"])
async def test_trio_that_runs_inside_the_sessions_own_event_loop_cannot_use_it(how: str) -> None:
    """What is waited for there would never come."""
    refused: list[str] = []

    async def inside() -> None:
        uses: list[Callable[[], Any]] = [
            s.bind().__aenter__,
            lambda: s.start_soon(anyio.sleep, 0),
            lambda: handle,
            s.cancel,
        ]
        for use in uses:
            try:
                result = use()
                if inspect.isawaitable(result):
                    await result
            except SessionError as error:
                refused.append(str(error))

    async with session(name="web") as s:
        go_on, done = anyio.Event(), anyio.Event()
        handle = s.start_soon(go_on.wait)
        if how == "nested":
            trio.run(inside)
        else:
            loop = asyncio.get_running_loop()
            trio.lowlevel.start_guest_run(
                inside,
                run_sync_soon_threadsafe=loop.call_soon_threadsafe,
                done_callback=lambda _: done.set(),
                host_uses_signal_set_wakeup_fd=True,
            )
            async with s.bind():  # the host is not disturbed
                assert await s.start_soon(double, 1) == 2
            await done.wait()
        go_on.set()
    assert [text.partition(" in another event loop than its own")[0] for text in refused] == [
        "session 'web': bind(): `async with`",
        "session 'web': the background call of 'sleep'",
        "the background call of task 'wait' was awaited",
        "session 'web': cancel()",
    ]


def in_fork(work: Callable[[], Any]) -> str:
    """What the work has to say, in a copy of this process."""
    receive, send = os.pipe()
    pid = os.fork()
    if not pid:
        signal.alarm(30)  # else who waits for its answer would wait for ever
        try:
            os.write(send, str(work()).encode())
        except BaseException as exc:
            os.write(send, repr(exc).encode())
        finally:
            os._exit(0)
    os.close(send)
    with os.fdopen(receive) as answers:
        answer = answers.read()
    os.waitpid(pid, 0)
    return answer


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there are no forks")
@pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")
async def test_a_fork_is_not_in_the_session() -> None:
    def look() -> Any:
        where()  # a call of nobody's
        return current_session(), current_task()

    def use() -> Any:
        errors = []
        for call in (lambda: s.start_soon(where), s.bind, s.stats, s.tree, s.cancel):
            with pytest.raises(SessionError) as caught:
                call()
            errors.append(str(caught.value))
        return errors

    def run() -> Any:
        from daglite._dump import dumped

        return dumped()

    @task
    def fork(work: Callable[[], Any]) -> str:
        answer = in_fork(work)
        assert current_session() is s
        return answer

    async with session(name="web") as s, s.events() as events:
        assert fork(look) == "(None, None)"
        used = fork(use)
        assert fork(run) == "daglite: no session is open\n"
        await double(1)  # the parent is as it was
        assert s.stats().succeeded == 4
        assert [type(await events.__anext__()).__name__ for _ in range(8)] == ["TaskStarted", "TaskSucceeded"] * 4
    for what in ("the background call of 'where'", "bind()", "stats()", "tree()", "cancel()"):
        assert f"session 'web': {what} in a fork of the process that it is open in" in used


@pytest.mark.skipif(sys.platform != "linux", reason="forks at will")
@pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")
async def test_a_fork_that_runs_an_event_loop_has_sessions_of_its_own() -> None:
    async def main() -> str:
        async with session(name="own") as own:
            await own.start_soon(where)
            assert current_session() is own
            return str(own.stats().succeeded)

    async with session():
        answer = await anyio.to_thread.run_sync(lambda: in_fork(lambda: anyio.run(main)))
    assert answer == "1"
