"""Code that has a copy of a session's context and is not in the session: in other event loops, and in forks."""

import os
import sys
import threading
from collections.abc import AsyncIterator, Callable
from typing import Any

import anyio
import anyio.to_thread
import pytest
from anyio.lowlevel import checkpoint

from daglite import current_session, current_task, gather_tasks, report, session, task
from daglite.exceptions import SessionError


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
        with pytest.raises(SessionError, match="in another thread than that of its event loop"):
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


def in_fork(work: Callable[[], Any]) -> str:
    """What the work has to say, in a copy of this process."""
    receive, send = os.pipe()
    pid = os.fork()
    if not pid:
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
