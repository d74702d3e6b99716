"""A session that is used from other tasks and threads than it was entered in."""

import contextvars
import logging
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import anyio
import anyio.from_thread
import anyio.to_thread
import pytest
from anyio.lowlevel import checkpoint

from daglite import current_session, current_task, session, task
from daglite.events import TaskCancelled, TaskStarted, TaskSucceeded
from daglite.exceptions import CallCancelledError, SessionError


@task
async def double(number: int) -> int:
    await checkpoint()
    return 2 * number


@task
def triple(number: int) -> int:
    return 3 * number


class Aside:
    """A task that was started before the session, and so knows nothing of it."""

    def __init__(self) -> None:
        self._work: Any = None
        self._wake = anyio.Event()
        self.done = anyio.Event()
        self.error: BaseException | None = None

    async def run(self) -> None:
        await self._wake.wait()
        try:
            await self._work()
        except Exception as exc:
            self.error = exc
        self.done.set()

    def start(self, work: Callable[[], Any]) -> None:
        self._work = work
        self._wake.set()

    async def do(self, work: Callable[[], Any]) -> None:
        self.start(work)
        await self.done.wait()
        if self.error is not None:
            raise self.error


@pytest.fixture
async def aside() -> AsyncIterator[Aside]:
    async with anyio.create_task_group() as group:
        task_aside = Aside()
        group.start_soon(task_aside.run)
        await anyio.wait_all_tasks_blocked()
        yield task_aside
        group.cancel_scope.cancel()


def in_plain_thread(work: Callable[[], Any]) -> threading.Thread:
    """A thread of nobody's, with a context of its own."""
    thread = threading.Thread(target=contextvars.Context().run, args=(work,))
    thread.start()
    return thread


async def joined(thread: threading.Thread) -> None:
    await anyio.to_thread.run_sync(thread.join)


async def test_another_task_is_in_the_session_for_as_long_as_it_is_bound(aside: Aside) -> None:
    async with session() as s:

        async def work() -> None:
            assert current_session() is None
            async with s.bind() as bound:
                assert bound is s
                assert current_session() is s
                assert await double(1) == 2
                assert await s.start_soon(double, 2) == 4
            assert current_session() is None
            assert await double(3) == 6

        await aside.do(work)
        assert s.stats().succeeded == 2


async def test_a_thread_is_in_the_session_for_as_long_as_it_is_bound() -> None:
    seen: list[Any] = []
    async with session() as s, s.events() as events:

        def work() -> None:
            assert current_session() is None
            with s.bind() as bound:
                assert bound is s  # type: ignore[comparison-overlap]
                seen.append(current_session() is s)
                seen.append(triple(1))
            seen.append(current_session())

        await joined(in_plain_thread(work))
        assert seen == [True, 3, None]
        assert [type(await events.__anext__()) for _ in range(2)] == [TaskStarted, TaskSucceeded]
        assert s.stats().succeeded == 1


async def test_streams_opened_under_it_are_closed_at_its_end(aside: Aside) -> None:
    closed: list[str] = []

    @task
    async def rows(name: str) -> AsyncIterator[int]:
        try:
            yield 1
            yield 2
        finally:
            await checkpoint()
            closed.append(name)

    async with session() as s:

        async def work() -> None:
            async with s.bind():
                stream, other = rows("first"), rows("second")
                assert [await stream.__anext__(), await other.__anext__()] == [1, 1]
                assert closed == []
            assert closed == ["first", "second"]
            with pytest.raises(SessionError, match="has to open the stream itself"):
                await stream.__anext__()

        mine = rows("the session's")
        await mine.__anext__()
        await aside.do(work)
        assert closed == ["first", "second"]
    assert closed[2:] == ["the session's"]


async def test_streams_of_a_thread_are_closed_in_it() -> None:
    where: list[int] = []

    @task
    def rows() -> Iterator[int]:
        try:
            yield 1
        finally:
            where.append(threading.get_ident())

    async with session() as s:

        def work() -> None:
            with s.bind():
                stream = rows()
                assert next(stream) == 1
                streams.append(stream)
            assert where == [threading.get_ident()]

        streams: list[Any] = []
        await joined(in_plain_thread(work))
        assert len(where) == 1
        assert where != [threading.get_ident()]


async def test_a_stream_that_a_thread_steps_at_its_end_is_closed_by_the_next_step(
    caplog: pytest.LogCaptureFixture,
) -> None:
    reached, go_on = threading.Event(), threading.Event()
    closed: list[int] = []

    @task
    def rows() -> Iterator[int]:
        try:
            yield 1
            reached.set()
            go_on.wait(30)
            yield 2
            yield 3
        finally:
            closed.append(threading.get_ident())

    def read(items: Iterator[int]) -> list[int]:
        found = [next(items)]
        with pytest.raises(SessionError, match="stream 'rows' was opened in a request, or under another bind"):
            next(items)
        return [*found, threading.get_ident()]

    async with session() as s:
        async with s.bind():
            items = rows()
            assert next(items) == 1
            call = s.start_soon(read, items)  # in a worker thread
            await anyio.to_thread.run_sync(reached.wait)
        assert not closed
        go_on.set()
        assert await call == [2, *closed]
    assert s.stats().failed == 0
    assert not caplog.records


async def test_a_background_call_and_what_it_opens_is_the_sessions(aside: Aside) -> None:
    closed = anyio.Event()
    opened = anyio.Event()
    go_on = anyio.Event()

    @task
    async def rows() -> AsyncIterator[int]:
        try:
            yield 1
            yield 2
        finally:
            closed.set()

    @task
    async def consume() -> int:
        stream = rows()
        first = await stream.__anext__()
        opened.set()
        await go_on.wait()
        return first + await stream.__anext__()

    @task
    async def caller() -> Any:
        me = current_task()
        assert me is not None
        return me.id, s.start_soon(consume)

    async with session() as s, s.events() as events:

        async def work() -> None:
            async with s.bind():
                caller_id, handle = await caller()
                await opened.wait()
            assert not closed.is_set()
            go_on.set()
            assert await handle == 3
            started = [await events.__anext__() for _ in range(2)]
            heard = [event.metadata for event in started if isinstance(event, TaskStarted)]
            heard += [(await events.__anext__()).metadata for _ in range(1)]  # type: ignore[attr-defined]
            assert [each.parent_id for each in heard if each.name == "consume"] == [caller_id]

        await aside.do(work)


async def test_a_call_under_one_that_has_ended_is_the_sessions(aside: Aside) -> None:
    """A task of the user's that outlives the request in which it was started."""
    go_on, closed = anyio.Event(), anyio.Event()

    @task
    async def rows() -> AsyncIterator[int]:
        try:
            yield 1
        finally:
            closed.set()

    async def later() -> None:
        await go_on.wait()
        assert current_session() is s
        stream = rows()
        await stream.__anext__()
        kept.append(stream)

    kept: list[Any] = []
    async with anyio.create_task_group() as group:
        async with session() as s:

            async def work() -> None:
                async with s.bind():
                    group.start_soon(later)
                go_on.set()

            await aside.do(work)
            await anyio.wait_all_tasks_blocked()
            assert len(kept) == 1
            assert not closed.is_set()
    assert closed.is_set()


async def test_leaving_waits_for_those_that_are_bound_and_their_calls_go_on(aside: Aside) -> None:
    order: list[str] = []
    bound = anyio.Event()

    @task
    async def background() -> None:
        order.append("background")

    async with session() as s:

        async def work() -> None:
            async with s.bind():
                bound.set()
                await anyio.wait_all_tasks_blocked()  # until the session waits
                assert repr(s) == "<Session 'session', leaving>"
                assert await double(2) == 4
                s.start_soon(background)
                order.append("bound")
            with pytest.raises(SessionError, match="has begun to end"):
                async with s.bind():
                    raise AssertionError("not reached")

        aside.start(work)
        await bound.wait()
    order.append("ended")
    await aside.done.wait()
    assert aside.error is None
    assert order == ["bound", "background", "ended"]


async def test_leaving_waits_for_a_bound_thread() -> None:
    order: list[str] = []
    bound, leaving = threading.Event(), threading.Event()

    def work() -> None:
        with s.bind():
            bound.set()
            leaving.wait()
            order.append(str(triple(1)))

    async def release() -> None:
        while "leaving" not in repr(s):
            await checkpoint()
        leaving.set()

    async with anyio.create_task_group() as group:
        async with session() as s:
            thread = in_plain_thread(work)
            await anyio.to_thread.run_sync(bound.wait)
            group.start_soon(release)
        order.append("ended")
    await joined(thread)
    assert order == ["3", "ended"]


async def test_those_that_are_bound_longer_than_its_grace_are_given_up(
    aside: Aside, caplog: pytest.LogCaptureFixture
) -> None:
    go_on, bound = anyio.Event(), anyio.Event()
    ended: list[Any] = []
    results: list[Any] = []

    async def follow(events: Any) -> None:
        ended.extend([event async for event in events if isinstance(event, (TaskSucceeded, TaskCancelled))])

    @task
    async def slow() -> int:
        bound.set()
        await go_on.wait()
        return 7

    async def work() -> None:
        async with s.bind():
            results.append(await slow())
            with pytest.raises(SessionError, match="'double' was called in session 'web', which has ended"):
                await double(1)

    async with session(name="web", grace=0.02) as s:
        s.watch(follow)
        aside.start(work)
        await bound.wait()
    assert [type(event) for event in ended] == [TaskCancelled]
    stats = s.stats()
    go_on.set()
    await aside.done.wait()
    assert aside.error is None
    assert results == [7]  # it goes on, and nobody hears of it
    assert s.stats() == stats
    assert (stats.cancelled, stats.running, stats.succeeded) == (1, 0, 0)
    assert len(caplog.records) == 1
    assert caplog.records[0].getMessage().startswith("session 'web' ends while it is still bound: to task ")


async def test_a_thread_that_is_bound_longer_than_its_grace_is_given_up(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    bound, go_on = threading.Event(), threading.Event()
    ended: list[Any] = []
    results: list[Any] = []

    async def follow(events: Any) -> None:
        ended.extend([event async for event in events if isinstance(event, (TaskSucceeded, TaskCancelled))])

    @task
    def rows() -> Iterator[int]:
        try:
            yield 1
        finally:
            results.append("closed")

    @task
    def block() -> int:
        bound.set()
        go_on.wait()
        return 7

    def work() -> None:
        with s.bind():
            stream = rows()
            next(stream)
            results.append(block())

    async with session(name="web", grace=0.02) as s:
        s.watch(follow)
        thread = in_plain_thread(work)
        await anyio.to_thread.run_sync(bound.wait)
    assert sorted(event.metadata.name for event in ended) == ["block", "rows"]
    assert {type(event) for event in ended} == {TaskCancelled}
    assert results == []
    go_on.set()
    await joined(thread)
    assert results == [7, "closed"]
    assert [record.getMessage() for record in caplog.records] == [
        f"session 'web' ends while it is still bound: to thread {thread.name!r}"
    ]


async def test_a_stream_that_does_not_close_is_given_up_at_the_grace(
    aside: Aside, caplog: pytest.LogCaptureFixture
) -> None:
    @task
    async def stubborn() -> AsyncIterator[int]:
        try:
            yield 1
        finally:
            await anyio.sleep_forever()

    @task
    async def failing() -> AsyncIterator[int]:
        try:
            yield 1
        finally:
            raise ValueError("no")

    async with session(grace=0.01) as s:

        async def work() -> None:
            async with s.bind():
                for rows in (stubborn, failing):
                    stream = rows()
                    await stream.__anext__()
                    kept.append(stream)

        kept: list[Any] = []
        await aside.do(work)
    assert [record.getMessage() for record in caplog.records] == [
        "bind() of session 'session': stream 'stubborn' had not closed after 0.01 s",
        "bind() of session 'session': stream 'failing' failed to close",
    ]


async def test_an_error_or_cancellation_goes_through_it(aside: Aside) -> None:
    closed: list[bool] = []

    @task
    async def rows() -> AsyncIterator[int]:
        try:
            yield 1
        finally:
            await checkpoint()  # which a cancelled scope would not let it do
            closed.append(True)

    async with session() as s:

        async def work() -> None:
            with pytest.raises(KeyError):
                async with s.bind():
                    raise KeyError("body")
            with anyio.CancelScope() as scope:
                async with s.bind():
                    stream = rows()
                    await stream.__anext__()
                    scope.cancel()
                    await checkpoint()
            assert scope.cancelled_caught
            assert closed == [True]

        await aside.do(work)


async def test_calls_under_it_have_the_call_around_it_for_a_parent() -> None:
    @task
    async def around() -> Any:
        async with s.bind():
            return current_task(), await inside()

    @task
    async def inside() -> Any:
        return current_task()

    async with session() as s:
        outer, inner = await around()
    assert inner.parent_id == outer.id


async def test_a_worker_thread_of_a_call_may_bind_another_session() -> None:
    @task
    def work() -> Any:
        mine = current_session()
        with other.bind():
            assert current_session() is other
            result = triple(2)
        assert current_session() is mine
        return result

    async with session() as other:
        async with session() as s:
            assert await work.to_thread() == 6
            assert s.stats().succeeded == 1
        assert other.stats().succeeded == 2  # it is around the other


async def test_what_is_wrong_with_it_is_said() -> None:
    s = session(name="web")
    with pytest.raises(SessionError, match="session 'web': bind\\(\\) before it was entered"):
        s.bind()
    async with s:
        once = s.bind()
        async with once:
            with pytest.raises(SessionError, match="it was entered before, and can be once: bind\\(\\) makes another"):
                await once.__aenter__()
            with pytest.raises(SessionError, match="it was entered before, and can be once: bind\\(\\) makes another"):
                await anyio.to_thread.run_sync(once.__enter__)
        with pytest.raises(SessionError, match="was left before"):
            await once.__aexit__(None, None, None)
        with pytest.raises(SessionError, match="`with` in an event loop's thread: use `async with`"):
            with s.bind():
                raise AssertionError("not reached")

        async def elsewhere() -> None:
            async with s.bind():
                raise AssertionError("not reached")

        with pytest.raises(SessionError, match="in another event loop than its own: a thread takes `with`"):
            await anyio.to_thread.run_sync(anyio.run, elsewhere)
        late = s.bind()
        mine = s.bind()
        await mine.__aenter__()
        with pytest.raises(SessionError, match="session 'web' was left before bind\\(\\) of it.*leave that first"):
            await s.__aexit__(None, None, None)
        await mine.__aexit__(None, None, None)
    with pytest.raises(SessionError, match="bind\\(\\) after it has begun to end"):
        await late.__aenter__()
    with pytest.raises(SessionError, match="bind\\(\\) after it has begun to end"):
        s.bind()


async def test_a_handle_may_be_awaited_where_the_session_is_bound(aside: Aside) -> None:
    async with session() as s:

        async def work() -> None:
            async with s.bind():
                handle = s.start_soon(anyio.sleep_forever)
            handle.cancel()
            with pytest.raises(CallCancelledError):
                await handle

        await aside.do(work)
