"""What a session owns, and how it ends."""

import logging
import sys
from collections.abc import AsyncIterator
from typing import Any

import anyio
import pytest
from anyio.lowlevel import checkpoint

from daglite import current_session, current_task, session, task
from daglite.exceptions import CallCancelledError, SessionError, TaskError, TaskGroupError

if sys.version_info < (3, 11):
    from exceptiongroup import BaseExceptionGroup, ExceptionGroup


class Stop(BaseException):
    """As `KeyboardInterrupt`, without what event loops make of that."""


@task
async def double(number: int) -> int:
    await checkpoint()
    return 2 * number


@task
async def fail(message: str = "no") -> None:
    raise ValueError(message)


@task
async def hang() -> None:
    await anyio.sleep_forever()


async def test_current_session_is_the_innermost() -> None:
    assert current_session() is None
    async with session(name="outer") as outer:
        assert current_session() is outer
        async with session() as inner:
            assert current_session() is inner
            assert inner.name == "session"
        assert current_session() is outer
    assert current_session() is None


async def test_background_calls_are_joined() -> None:
    done: list[int] = []

    @task
    async def work(number: int) -> None:
        for _ in range(number):
            await checkpoint()
        done.append(number)

    async with session() as s:
        for number in (5, 1, 3):
            s.start_soon(work, number)
        assert done == []
    assert sorted(done) == [1, 3, 5]


async def test_a_handle_gives_the_result_as_often_as_it_is_awaited() -> None:
    async with session() as s:
        handle = s.start_soon(double, number=21)
        assert await handle == 42
        assert await handle == 42
    assert await handle == 42


async def test_plain_functions_and_sync_tasks_run_in_threads() -> None:
    import threading

    @task
    def where() -> int:
        return threading.get_ident()

    async def plain(number: int) -> int:
        return number

    async with session() as s:
        assert await s.start_soon(where) != threading.get_ident()
        assert await s.start_soon(threading.get_ident) != threading.get_ident()
        assert await s.start_soon(plain, 3) == 3


async def test_a_failed_background_call_cancels_the_session() -> None:
    cancelled = False

    @task
    async def sibling() -> None:
        nonlocal cancelled
        try:
            await anyio.sleep_forever()
        except BaseException:
            cancelled = True
            raise

    with pytest.raises(TaskGroupError, match="Background calls of session 'work' failed") as caught:
        async with session(name="work") as s:
            s.start_soon(sibling)
            await checkpoint()
            s.start_soon(fail)
            await anyio.sleep_forever()
    assert cancelled
    assert [type(error) for error in caught.value.exceptions] == [TaskError]


async def test_the_error_of_the_body_comes_out_bare_and_cancels_the_calls() -> None:
    with pytest.raises(KeyError):
        async with session() as s:
            s.start_soon(hang)
            await checkpoint()
            raise KeyError("body")


async def test_a_group_of_the_body_comes_out_the_same_on_both_event_loops() -> None:
    """On Trio it holds the session's own cancellation too."""
    ready = anyio.Event()

    async def child() -> None:
        try:
            await anyio.sleep_forever()
        finally:
            raise KeyError("child")

    @task
    async def fail_then() -> None:
        await ready.wait()
        raise ValueError("background")

    with pytest.raises(ExceptionGroup) as caught:
        async with session() as s:
            s.start_soon(fail_then)
            async with anyio.create_task_group() as group:
                group.start_soon(child)
                await checkpoint()
                await checkpoint()
                ready.set()
                await anyio.sleep_forever()
    body, background = caught.value.exceptions
    assert isinstance(body, ExceptionGroup)
    assert [type(error) for error in body.exceptions] == [KeyError]
    assert isinstance(background, TaskError)


async def test_awaiting_a_handle_raises_the_calls_own_error_and_the_session_tells_it_too() -> None:
    caught: list[Exception] = []
    with pytest.raises(TaskGroupError) as group:
        async with session() as s:
            handle = s.start_soon(fail)
            try:
                await handle
            except TaskError as error:
                caught.append(error)
            await anyio.sleep_forever()
    assert caught == list(group.value.exceptions)
    with pytest.raises(TaskGroupError) as group:
        async with session() as s:
            await s.start_soon(fail)
    assert len(group.value.exceptions) == 1


async def test_a_cancelled_call_says_so_to_whoever_awaits_it() -> None:
    async with session() as s:
        before, running = s.start_soon(hang), s.start_soon(hang)
        before.cancel()
        await checkpoint()
        running.cancel()
        for handle in (before, running):
            with pytest.raises(CallCancelledError, match="background call of task 'hang' was cancelled"):
                await handle
        assert await s.start_soon(double, 1) == 2


async def test_a_call_that_is_cancelled_before_it_begins_never_begins() -> None:
    begun = False

    @task
    async def work() -> None:
        nonlocal begun
        begun = True

    async with session() as s:
        s.start_soon(work).cancel()
    assert not begun


async def test_wrong_arguments_of_a_background_call_are_an_error_at_once() -> None:
    async with session() as s:
        with pytest.raises(TypeError, match="^task 'double': missing a required argument: 'number'"):
            s.start_soon(double)  # type: ignore[call-overload]
        with pytest.raises(TypeError, match="@task takes a function, not 3"):
            s.start_soon(3)  # type: ignore[call-overload]


async def test_a_session_that_has_ended_is_refused() -> None:
    async with session(name="gone") as s:
        position = task(current_session)
        assert position() is s
    for use in (lambda: s.start_soon(double, 1), s.events, lambda: s.watch(hang)):  # type: ignore[arg-type]
        with pytest.raises(SessionError, match="session 'gone': .* after it has begun to end"):
            use()
    with pytest.raises(SessionError, match="was entered before"):
        await s.__aenter__()


async def test_a_session_is_refused_before_it_is_entered() -> None:
    with pytest.raises(SessionError, match=r"before it was entered; use it in `async with`"):
        session().start_soon(double, 1)


async def test_a_call_from_code_of_an_ended_session_is_refused() -> None:
    import contextvars

    async with session(name="gone"):
        context = contextvars.copy_context()
    with pytest.raises(SessionError, match="task 'plain' was called in session 'gone', which has ended"):
        context.run(task(name="plain")(lambda: None))


async def test_while_a_session_ends_only_running_calls_make_others() -> None:
    import contextvars

    results: list[Any] = []
    leaving = anyio.Event()

    @task
    async def child() -> None:
        await leaving.wait()
        results.append(await double(1))
        results.append(await current_session().start_soon(double, 2))  # type: ignore[union-attr]
        with pytest.raises(SessionError, match="only calls that run already may make others"):
            context.run(task(lambda: None))

    async with session() as s:
        context = contextvars.copy_context()
        s.start_soon(child)
        started_late = s.start_soon(double, 3)
        await checkpoint()
        leaving.set()
    assert results == [2, 4]
    assert await started_late == 6


async def test_what_ends_a_program_comes_out_bare() -> None:
    @task
    async def stop() -> None:
        raise Stop

    with pytest.raises(Stop):
        async with session() as s:
            s.start_soon(hang)
            s.start_soon(stop)
            await anyio.sleep_forever()
    with pytest.raises(Stop):
        async with session() as s:
            s.start_soon(hang)
            raise Stop


async def test_a_cancellation_from_outside_cancels_the_session() -> None:
    with anyio.CancelScope() as scope:
        async with session() as s:
            handle = s.start_soon(hang)
            await checkpoint()
            scope.cancel()
            await anyio.sleep_forever()
    assert scope.cancelled_caught
    with pytest.raises(CallCancelledError):
        await handle


async def test_a_cancellation_while_a_session_waits_for_its_calls_cancels_them() -> None:
    @task
    async def cancel() -> None:
        scope.cancel()

    with anyio.CancelScope() as scope:
        async with session() as s:
            s.start_soon(hang)
            s.start_soon(cancel)
    assert scope.cancelled_caught


async def test_a_failure_of_cleaning_up_is_told_though_the_session_was_cancelled() -> None:
    @task
    async def clumsy() -> None:
        try:
            await anyio.sleep_forever()
        finally:
            raise ValueError("cleanup")

    with pytest.raises(TaskGroupError):
        with anyio.CancelScope() as scope:
            async with session() as s:
                s.start_soon(clumsy)
                await anyio.wait_all_tasks_blocked()
                scope.cancel()


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"name": 3}, TypeError, "session: name must be a str, not 3"),
        ({"grace": -1}, ValueError, "session: grace must be at least 0, not -1"),
        ({"grace": None}, TypeError, "session: grace must be a number, not None"),
        ({"grace": float("inf")}, ValueError, "session: grace must be finite, not inf"),
        ({"max_threads": 0}, ValueError, "session: max_threads must be at least 1, not 0"),
        ({"max_threads": 1.5}, TypeError, "session: max_threads must be a whole number, not 1.5"),
        ({"backend": "process"}, ValueError, "session: there is no backend 'process'; there are 'inline', 'thread'"),
        ({"backend": None}, TypeError, "session: backend must be a str, not None"),
        ({"plugins": "logging"}, TypeError, "session: plugins must be a list of plugins, not 'logging'"),
        ({"plugins": 7}, TypeError, "session: plugins must be a list of plugins, not 7"),
        ({"settings": None}, TypeError, "session: settings must be a daglite.settings.Settings, not None"),
    ],
)
def test_bad_arguments_are_refused_at_once(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        session(**arguments)


async def test_calls_carry_the_ids_of_their_parents() -> None:
    @task
    async def leaf() -> Any:
        return current_task()

    @task
    async def outer() -> Any:
        me = current_task()
        async with session() as inner:
            own = await leaf()
            background = await inner.start_soon(leaf)
        return me, own, background

    async with session() as s:
        me, own, background = await outer()
        top = await s.start_soon(leaf)
    assert own.parent_id == background.parent_id == me.id
    assert (own.is_background, background.is_background) == (False, True)
    assert top.parent_id is None


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_native_cancellations_do_not_keep_a_session_from_waiting() -> None:
    import asyncio

    go_on, leaving = asyncio.Event(), asyncio.Event()
    ended: list[str] = []

    @task
    async def stubborn() -> None:
        with anyio.CancelScope(shield=True):
            await go_on.wait()
        ended.append("call")

    @task
    async def rows() -> AsyncIterator[int]:
        try:
            yield 1
        finally:
            await asyncio.sleep(0)
            ended.append("stream")

    async def run() -> None:
        async with session() as s:
            s.start_soon(stubborn)
            items = rows()
            await items.__anext__()
            leaving.set()
        raise AssertionError("the cancellation was lost")

    running = asyncio.create_task(run())
    await leaving.wait()
    for _ in range(3):
        await asyncio.sleep(0)
        running.cancel()
    await asyncio.sleep(0)
    assert not running.done()
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert ended == ["call", "stream"]


async def test_a_failing_session_logs_nothing(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        with pytest.raises(TaskGroupError):
            async with session() as s:
                s.start_soon(fail)
    assert not [record for record in caplog.records if record.name == "daglite"]


async def test_a_session_may_be_held_by_a_task_group_of_the_user() -> None:
    with pytest.raises(BaseExceptionGroup) as caught:
        async with anyio.create_task_group() as group:
            async with session() as s:
                group.start_soon(fail)
                s.start_soon(hang)
                await anyio.sleep_forever()
    assert caught.value.subgroup(TaskError) is not None


async def test_a_stream_that_the_session_closes_may_call_tasks_and_start_none() -> None:
    cleaned: list[Any] = []

    @task
    async def clean() -> None:
        await checkpoint()
        cleaned.append("called")

    @task
    async def rows() -> AsyncIterator[int]:
        try:
            yield 1
        finally:
            await clean()
            with pytest.raises(SessionError, match="after it has begun to end"):
                s.start_soon(clean)
            cleaned.append("closed")

    async with session() as s:
        stream = rows()
        await anext(stream)
    assert cleaned == ["called", "closed"]
