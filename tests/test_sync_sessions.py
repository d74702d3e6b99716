"""Sessions of sync code, with either event loop behind them."""

import concurrent.futures
import contextvars
import importlib.util
import os
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any, Literal, TypeAlias

import anyio
import anyio.to_thread
import pytest
from anyio import get_cancelled_exc_class
from anyio.lowlevel import checkpoint

from daglite import check_cancelled, current_session, current_task, map_tasks, session, task
from daglite._stays import Stay
from daglite.events import SessionEnded, TaskFailed, TaskReported, TaskStarted, TaskSucceeded
from daglite.exceptions import (
    BackendError,
    CallCancelledError,
    SessionError,
    TaskError,
    TaskGroupError,
    TaskTimeoutError,
)
from daglite.plugins import hook_impl
from daglite.sessions import Subscription, SyncSession
from daglite.settings import Settings

EventLoop: TypeAlias = Literal["asyncio", "trio"]

variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="unset")


@pytest.fixture(params=["asyncio", "trio"])
def loop(request: pytest.FixtureRequest) -> Any:
    """Which event loop runs in the background."""
    return request.param


@task
async def double(number: int) -> int:
    await checkpoint()
    return 2 * number


@task
async def fail(text: str = "no") -> None:
    raise ValueError(text)


@task
async def hang() -> None:
    await anyio.sleep_forever()


@task
def triple(number: int) -> int:
    return 3 * number


@task
async def which_loop() -> tuple[str, int]:
    name = "trio" if "trio" in get_cancelled_exc_class().__module__ else "asyncio"
    return name, threading.get_ident()


def in_thread(func: Callable[[], Any]) -> Any:
    """What a function returns, called in a thread of its own with an empty context."""
    with concurrent.futures.ThreadPoolExecutor(1) as executor:
        return executor.submit(contextvars.Context().run, func).result()


# Entering


def test_an_event_loop_runs_in_the_background_and_the_session_is_current_here(loop: EventLoop) -> None:
    with session(name="mine", event_loop=loop) as s:
        assert s.name == "mine"
        assert current_session() is s  # type: ignore[comparison-overlap]
        name, thread = which_loop.from_thread()
        assert (name, thread != threading.get_ident()) == (loop, True)
        assert double.from_thread(4) == 8
        assert triple(4) == 12
        assert s.stats().succeeded == 3
    assert current_session() is None
    assert repr(s) == "<Session 'mine', ended>"


def test_by_default_that_is_asyncio() -> None:
    with session():
        assert which_loop.from_thread()[0] == "asyncio"


async def test_in_a_running_event_loop_it_is_refused() -> None:
    s = session(name="mine")
    with pytest.raises(SessionError, match="'mine': `with` in an event loop's own thread.* use `async with`"):
        with s:
            pytest.fail("entered")
    async with s:  # it was not used up
        assert await double(1) == 2


async def test_the_event_loop_of_async_with_is_no_matter_of_choice() -> None:
    with pytest.raises(SessionError, match="event_loop='trio' is for `with`"):
        async with session(event_loop="trio"):
            pytest.fail("entered")


@pytest.mark.parametrize("wrong", ["uvloop", "", None, 1])
def test_an_event_loop_that_is_none_is_refused_at_once(wrong: Any) -> None:
    with pytest.raises((ValueError, TypeError), match="session: event_loop"):
        session(event_loop=wrong)


def test_without_trio_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match="event_loop='trio' needs Trio.*pip install 'daglite.trio.'"):
        with session(event_loop="trio"):
            pytest.fail("entered")


def test_what_goes_wrong_on_entering_comes_out_and_leaves_nothing(loop: EventLoop) -> None:
    class Misspelt:
        @hook_impl
        def before_session_begin(self) -> None: ...

    s = session(plugins=[Misspelt()], event_loop=loop)
    with pytest.raises(ValueError, match="before_session_begin"):
        with s:
            pytest.fail("entered")
    assert current_session() is None


def test_a_session_is_entered_once(loop: EventLoop) -> None:
    with session(event_loop=loop) as s:
        pass
    for _ in range(2):
        with pytest.raises(SessionError, match="was entered before; session"):
            with s:  # type: ignore[attr-defined]
                pytest.fail("entered")


def test_context_variables_travel_into_the_event_loop(loop: EventLoop) -> None:
    @task
    async def look() -> str:
        seen = variable.get()
        variable.set("changed")
        return seen

    token = variable.set("before")
    try:
        with session(event_loop=loop) as s:
            assert look.from_thread() == "before"
            variable.set("mine")
            assert look.from_thread() == "mine"
            assert s.start_soon(look).result() == "mine"
            assert variable.get() == "mine"  # what is set there stays there
        assert variable.get() == "mine"
    finally:
        variable.reset(token)


def test_options_and_hooks_are_those_of_any_session(loop: EventLoop) -> None:
    told: list[str] = []

    class Plugin:
        @hook_impl
        def before_session_start(self) -> None:
            told.append("start")

        @hook_impl
        def before_node_execute(self, metadata: Any) -> None:
            told.append(metadata.name)

        @hook_impl
        def after_session_end(self) -> None:
            told.append("end")

    with session(plugins=[Plugin()], settings=Settings(max_threads=3), grace=2, event_loop=loop) as s:
        assert (s.settings.max_threads, s.settings.grace) == (3, 2)
        double.from_thread(1)
        triple(1)
    assert told == ["start", "double", "triple", "end"]


# Calls


def test_start_soon_gives_a_future(loop: EventLoop) -> None:
    with session(event_loop=loop) as s:
        call = s.start_soon(double, 4)
        assert isinstance(call, concurrent.futures.Future)
        assert call.result(20) == 8
        assert s.start_soon(triple, 4).result() == 12  # in a worker thread
        calls = [s.start_soon(double, number) for number in range(5)]
        done, pending = concurrent.futures.wait(calls, timeout=20)
        assert (len(done), len(pending)) == (5, 0)
        assert [each.result() for each in calls] == [0, 2, 4, 6, 8]


def test_calls_in_the_background_are_joined(loop: EventLoop) -> None:
    ended: list[int] = []

    @task
    async def note(number: int) -> None:
        for _ in range(5):
            await checkpoint()
        ended.append(number)

    with session(event_loop=loop) as s:
        for number in range(3):
            s.start_soon(note, number)
    assert sorted(ended) == [0, 1, 2]


def test_services_are_cancelled(loop: EventLoop) -> None:
    with session(event_loop=loop) as s:
        service = s.start_service(hang)
        call = s.start_soon(double, 1)
    assert call.result() == 2
    assert service.cancelled()
    with pytest.raises(concurrent.futures.CancelledError):
        service.result()


def test_the_id_of_a_future_is_that_of_the_call(loop: EventLoop) -> None:
    @task
    async def who() -> Any:
        metadata = current_task()
        assert metadata is not None
        return metadata.id, metadata.is_background, metadata.parent_id

    @task
    def outer() -> Any:
        running = current_task()
        assert running is not None
        s: Any = current_session()
        call = s.start_soon(who)
        return call.id, call.result(), running.id

    with session(event_loop=loop) as s:
        call_id, (own_id, is_background, parent), outer_id = s.start_soon(outer).result()
    assert call_id == own_id
    assert is_background
    assert parent == outer_id


def test_a_future_that_is_cancelled_cancels_its_call_alone(loop: EventLoop) -> None:
    with session(event_loop=loop) as s:
        call, other = s.start_soon(hang), s.start_soon(double, 1)
        assert call.cancel()
        with pytest.raises(concurrent.futures.CancelledError):
            call.result()
        assert other.result() == 2
        assert double.from_thread(2) == 4
    assert (s.stats().succeeded, s.stats().running) == (2, 0)


def test_one_that_is_cancelled_by_its_id_says_so(loop: EventLoop) -> None:
    with session(event_loop=loop) as s:
        call = s.start_soon(hang)
        assert s.cancel(under=call.id)
        with pytest.raises(concurrent.futures.CancelledError):
            call.result()
        concurrent.futures.wait([s.start_soon(double, 1)])  # by then it has been taken off the books
        assert not s.cancel(under=call.id)


def test_waiting_for_a_future_may_have_an_end(loop: EventLoop) -> None:
    with session(event_loop=loop) as s:
        call = s.start_soon(hang)
        with pytest.raises((TimeoutError, concurrent.futures.TimeoutError)):
            call.result(0.01)
        assert not call.done()
        call.cancel()


def test_wrong_arguments_are_told_at_once(loop: EventLoop) -> None:
    with session(event_loop=loop) as s:
        with pytest.raises(TypeError, match="'double'"):
            s.start_soon(double)  # type: ignore[call-overload]
        with pytest.raises(TypeError):
            s.start_soon(7)  # type: ignore[call-overload]
    assert s.stats().started == 0


def test_a_thread_at_a_full_limiter_may_wait_for_a_future(loop: EventLoop) -> None:
    @task
    def nested(depth: int) -> int:
        s: Any = current_session()
        return 0 if depth == 0 else 1 + s.start_soon(nested, depth - 1).result()

    with session(max_threads=1, event_loop=loop) as s:
        assert s.start_soon(nested, 4).result() == 4


# Failures and cancellation


def test_an_error_of_the_body_comes_out_bare_and_cancels_the_calls(loop: EventLoop) -> None:
    error = KeyError("mine")
    with pytest.raises(KeyError) as caught:
        with session(event_loop=loop) as s:
            call = s.start_soon(hang)
            raise error
    assert caught.value is error
    assert call.cancelled()


def test_an_error_in_the_event_loop_comes_out_of_the_call(loop: EventLoop) -> None:
    with session(event_loop=loop) as s:
        with pytest.raises(TaskError, match="Task 'fail' failed after 1 attempt with error: ValueError: no") as caught:
            fail.from_thread()
        assert isinstance(caught.value.__cause__, ValueError)
        assert double.from_thread(1) == 2  # the session goes on: it was caught
    assert s.stats().failed == 1


def test_a_failed_background_call_cancels_what_the_body_waits_for(loop: EventLoop) -> None:
    noticed: list[str] = []
    with pytest.raises(TaskGroupError, match="Background calls of session 'session' failed") as caught:
        with session(event_loop=loop) as s:
            go = threading.Event()

            @task
            def fail_later() -> None:
                go.wait(20)
                raise ValueError("no")

            s.start_soon(fail_later)
            try:
                go.set()
                hang.from_thread()
            except Exception:
                noticed.append("as an error")
            finally:
                noticed.append("cleanup")
            noticed.append("went on")
    assert noticed == ["cleanup"]
    assert [str(each.__cause__) for each in caught.value.exceptions] == ["no"]


def test_its_own_waiter_hears_of_the_failure_itself(loop: EventLoop) -> None:
    with pytest.raises(TaskGroupError):
        with session(event_loop=loop) as s:
            with pytest.raises(TaskError, match="ValueError: no"):
                s.start_soon(fail).result()


def test_waiting_for_another_future_is_cancelled_with_the_session(loop: EventLoop) -> None:
    with pytest.raises(TaskGroupError):
        with session(event_loop=loop) as s:
            other = s.start_soon(hang)
            s.start_soon(fail)
            try:
                other.result()
            except Exception:
                pytest.fail("a cancellation is no error")
            pytest.fail("it is one all the same")


def test_on_background_error_log_lets_the_body_go_on(loop: EventLoop, caplog: pytest.LogCaptureFixture) -> None:
    with session(event_loop=loop, on_background_error="log") as s:
        with pytest.raises(TaskError):
            s.start_soon(fail).result()
        assert double.from_thread(1) == 2
    assert "the background call of task 'fail' failed" in caplog.text


def test_body_and_background_failures_come_out_together(loop: EventLoop) -> None:
    with pytest.raises(BaseException) as caught:
        with session(event_loop=loop) as s:
            call = s.start_soon(fail)
            concurrent.futures.wait([call], timeout=20)
            raise KeyError("mine")
    kinds = [type(each) for each in caught.value.exceptions]  # type: ignore[attr-defined]
    assert kinds == [KeyError, TaskError]


def test_cancel_ends_the_body_where_it_waits_next_and_does_not_leave_the_session(loop: EventLoop) -> None:
    reached: list[str] = []
    with session(event_loop=loop) as s:
        call = s.start_soon(hang)
        assert s.cancel()
        reached.append("sync code goes on")
        double.from_thread(1)
        reached.append("too far")
    assert reached == ["sync code goes on"]
    assert call.cancelled()
    assert not s.cancel()


def test_the_body_may_ask_whether_it_is_cancelled(loop: EventLoop) -> None:
    with session(event_loop=loop) as s:
        check_cancelled()
        s.cancel()
        began = time.monotonic()
        while time.monotonic() - began < 20:
            check_cancelled()
            time.sleep(0.001)
        pytest.fail("it was not told")


def test_a_retry_in_the_body_is_no_way_around_a_cancellation(loop: EventLoop) -> None:
    attempts: list[int] = []

    @task(retries=3)
    def stubborn() -> None:
        attempts.append(1)
        hang.from_thread()

    with session(event_loop=loop) as s:

        @task
        async def cancel() -> None:
            while not attempts:
                await checkpoint()
            s.cancel()

        s.start_soon(cancel)
        stubborn()
    assert attempts == [1]


class Interrupt(BaseException):
    """What is neither an error nor a cancellation."""


def test_an_interrupt_of_the_body_comes_out_as_it_is(loop: EventLoop) -> None:
    with pytest.raises(Interrupt):
        with session(event_loop=loop) as s:
            call = s.start_soon(hang)
            raise Interrupt
    assert call.cancelled()


def test_an_interrupt_in_the_event_loop_comes_out_of_the_session(loop: EventLoop) -> None:
    @task
    async def interrupt() -> None:
        raise Interrupt

    with pytest.raises(Interrupt):
        with session(event_loop=loop) as s:
            s.start_soon(interrupt)
    with pytest.raises(Interrupt):
        with session(event_loop=loop):
            interrupt.from_thread()


@pytest.mark.parametrize("where", ["_leave", "result"])
def test_an_interrupt_that_comes_between_two_waits_leaves_nothing(
    loop: EventLoop, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupts = [Interrupt()]
    real = getattr(Stay, where)

    def interrupted(self: Stay, **kwargs: Any) -> Any:
        if interrupts:
            raise interrupts.pop()
        return real(self, **kwargs)

    monkeypatch.setattr(Stay, where, interrupted)
    with pytest.raises(Interrupt):
        with session(event_loop=loop) as s:
            call = s.start_soon(hang)
    assert call.cancelled()
    assert repr(s) == "<Session 'session', ended>"
    assert current_session() is None


def test_nothing_is_swallowed_that_is_not_the_sessions_own(loop: EventLoop) -> None:
    with pytest.raises(concurrent.futures.CancelledError):
        with session(event_loop=loop) as s:
            call = s.start_soon(hang)
            call.cancel()
            call.result()


# Leaving


def test_after_the_end_it_says_so(loop: EventLoop) -> None:
    with session(event_loop=loop, name="mine") as s:
        context = contextvars.copy_context()
    for use in (
        lambda: s.start_soon(double, 1),
        lambda: s.start_service(double, 1),
        lambda: s.events(),
        lambda: s.watch(anyio.sleep),  # type: ignore[arg-type]
        lambda: s.bind(),
        lambda: context.run(double.from_thread, 1),
        lambda: context.run(triple, 1),
    ):
        with pytest.raises(SessionError, match="session 'mine'.* (has|had) (ended|begun to end)|after it has ended"):
            use()
    assert s.stats().started == 0
    assert str(s.tree()).startswith("session 'mine': no call runs")


def test_it_is_left_in_the_thread_that_entered_it(loop: EventLoop) -> None:
    entered: Any = session(event_loop=loop)
    with pytest.raises(SessionError, match="is not entered"):
        entered.__exit__(None, None, None)
    s: Any = entered.__enter__()
    call = s.start_soon(hang)
    with pytest.raises(SessionError, match="left in another thread than it was entered in, and is cancelled"):
        in_thread(lambda: entered.__exit__(None, None, None))
    with pytest.raises(concurrent.futures.CancelledError):
        in_thread(call.result)
    entered.__exit__(None, None, None)
    with pytest.raises(SessionError, match="was left before"):
        entered.__exit__(None, None, None)


def test_it_is_left_after_what_was_opened_in_it(loop: EventLoop) -> None:
    outer: Any = session(name="outer", event_loop=loop)
    inner: Any = session(name="inner")
    outer.__enter__()
    inner.__enter__()
    with pytest.raises(SessionError, match="session 'outer' was left before session 'inner', which the same thread"):
        outer.__exit__(None, None, None)
    inner.__exit__(None, None, None)
    bound = outer.bind()
    bound.__enter__()
    with pytest.raises(SessionError, match=r"session 'outer' was left before bind\(\) of it"):
        outer.__exit__(None, None, None)
    bound.__exit__(None, None, None)
    outer.__exit__(None, None, None)


def test_streams_are_closed_in_the_thread_that_opened_them(loop: EventLoop) -> None:
    closed: list[int] = []

    @task
    def rows() -> Iterator[int]:
        try:
            yield 1
            yield 2
        finally:
            closed.append(threading.get_ident())

    with session(event_loop=loop):
        stream = rows()
        assert next(stream) == 1
    assert closed == [threading.get_ident()]


def test_a_thread_past_its_deadline_is_waited_for_and_warned_of(loop: EventLoop) -> None:
    gate = threading.Event()

    @task(timeout=0.05)
    def hold() -> None:
        gate.wait(20)

    try:
        with pytest.warns(ResourceWarning, match="threads of it still run, past their deadlines: in 'hold', 'hold'"):
            with session(event_loop=loop, grace=0.01, max_threads=2) as s:
                with pytest.raises(TaskTimeoutError):
                    hold()
                with pytest.raises(TaskTimeoutError):
                    hold()
                with pytest.raises(BackendError, match="2 of session 'session''s threads are stuck"):
                    hold()
                assert str(s.tree()).count("stuck in an abandoned thread") >= 2
    finally:
        gate.set()


# Inside each other, and inside threads


def test_an_inner_session_is_a_part_of_the_outer(loop: EventLoop) -> None:
    @task
    def outer() -> int:
        with session(name="inner") as s:
            return s.start_soon(double, 4).result()

    with session(event_loop=loop) as s:
        thread = which_loop.from_thread()
        with s.events() as events:
            with session(name="inner", grace=1) as inner:
                assert which_loop.from_thread() == thread
                assert inner.settings.grace == 1
            names = []
            for event in events:
                names.append(event.metadata.name if isinstance(event, TaskStarted) else type(event).__name__)
                if isinstance(event, SessionEnded):
                    break
        assert names == ["SessionStarted", "which_loop", "TaskSucceeded", "SessionEnded"]
        assert outer() == 8
        assert s.start_soon(outer).result() == 8
        assert s.stats().succeeded == 6


def test_one_with_another_event_loop_takes_over_settings(loop: EventLoop) -> None:
    other: EventLoop = "trio" if loop == "asyncio" else "asyncio"
    with session(event_loop=loop, grace=7) as s:
        with session(event_loop=other) as inner:
            assert which_loop.from_thread()[0] == other
            assert inner.settings.grace == 7
        assert which_loop.from_thread()[0] == loop
        assert s.stats().succeeded == 1


async def test_in_a_worker_thread_it_is_a_part_of_the_session_around() -> None:
    @task
    def outer() -> tuple[tuple[str, int], Any, Any]:
        running = current_task()
        assert running is not None
        with session(name="inner"):
            where = which_loop.from_thread()
            with session():
                return where, parent.from_thread(), running.id

    @task
    async def parent() -> Any:
        running = current_task()
        assert running is not None
        return running.parent_id

    async with session(max_threads=1) as s:
        (_, thread), parent_id, outer_id = await outer.to_thread()
        assert thread == threading.get_ident()
        assert parent_id == outer_id
        assert s.stats().succeeded == 3


async def test_outside_sessions_a_worker_thread_gets_an_event_loop_of_its_own() -> None:
    @task
    def outer() -> int:
        with session():
            return which_loop.from_thread()[1]

    assert await outer.to_thread() != threading.get_ident()


async def test_it_is_cancelled_with_the_worker_thread_that_it_is_in() -> None:
    begun = anyio.Event()
    heard: list[type[BaseException]] = []

    @task
    async def wait() -> None:
        begun.set()
        await anyio.sleep_forever()

    @task
    def outer() -> None:
        with session() as inner:
            try:
                inner.start_soon(wait).result()
            except BaseException as exc:
                heard.append(type(exc))
                raise

    async with session() as s:
        async with anyio.create_task_group() as group:
            group.start_soon(outer.to_thread)
            await begun.wait()
            group.cancel_scope.cancel()
        assert (s.stats().running, s.stats().cancelled) == (0, 2)
    assert len(heard) == 1
    assert not issubclass(heard[0], Exception)


async def test_an_abandoned_thread_does_not_hold_the_session_up_that_it_has_opened() -> None:
    gate = threading.Event()

    @task(timeout=0.5)
    def outer() -> None:
        with session(name="inner") as inner:
            inner.start_soon(hang)
            gate.wait(20)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        async with session(grace=0.05) as s:
            with pytest.raises(TaskTimeoutError):
                await outer.to_thread()
            assert s.stats().running == 0
    gate.set()


async def test_a_sync_endpoint_is_in_the_session_that_is_bound_for_its_request() -> None:
    """As of a web framework, which runs it in a worker thread of anyio's."""

    def endpoint(s: Any) -> int:
        current: Any = current_session()
        assert current is s
        total: int = current.start_soon(double, 1).result()
        return total + double.from_thread(2) + sum(map_tasks(double, [3, 4]))

    async with session() as s:

        async def request() -> None:
            async with s.bind():
                assert await anyio.to_thread.run_sync(endpoint, s) == 20

        async with anyio.create_task_group() as group:
            group.start_soon(request)
        assert s.stats().succeeded == 4


def test_a_generator_may_hold_it(loop: EventLoop) -> None:
    def numbers() -> Iterator[int]:
        with session(event_loop=loop):
            yield double.from_thread(1)
            yield double.from_thread(2)

    generator = numbers()
    assert next(generator) == 2
    generator.close()  # type: ignore[attr-defined]
    assert list(numbers()) == [2, 4]
    assert current_session() is None


@pytest.mark.skipif(sys.platform != "linux", reason="forks at will")
@pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")
def test_a_fork_is_not_in_it_and_opens_its_own(loop: EventLoop) -> None:
    def answer() -> int:
        if current_session() is not None:
            return 1
        try:
            double.from_thread(1)
        except SessionError:
            with session(event_loop=loop):
                return 0 if double.from_thread(2) == 4 else 2
        return 3

    with session(event_loop=loop):
        child = os.fork()
        if child == 0:
            code = 4
            try:
                code = answer()
            finally:
                os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert double.from_thread(1) == 2


# Threads of one's own


def test_other_threads_use_it_through_bind(loop: EventLoop) -> None:
    def work(s: SyncSession, number: int) -> list[Any]:
        with s.bind() as bound:
            call = bound.start_soon(double, number)
            return [current_session() is s, call.result(), double.from_thread(number), triple(number)]  # type: ignore[comparison-overlap]

    with session(event_loop=loop) as s:
        with concurrent.futures.ThreadPoolExecutor(4) as executor:
            results = list(executor.map(work, [s] * 8, range(8)))
        assert results == [[True, 2 * number, 2 * number, 3 * number] for number in range(8)]
        assert s.stats().succeeded == 24


def test_other_threads_may_start_calls_and_cancel_them_without(loop: EventLoop) -> None:
    with session(event_loop=loop) as s:
        assert in_thread(lambda: s.start_soon(double, 4)).result() == 8
        call = s.start_soon(hang)
        assert in_thread(lambda: s.cancel(under=call.id))
        assert in_thread(s.stats).succeeded == 1
    assert call.cancelled()


async def test_threads_use_an_async_session_the_same_way() -> None:
    def work() -> list[Any]:
        with s.bind() as bound:
            with bound.events(under=None) as events:
                call = bound.start_soon(double, 4)
                return [call.result(), type(next(events)), type(next(events))]

    async with session() as s:
        assert await anyio.to_thread.run_sync(in_thread, work) == [8, TaskStarted, TaskSucceeded]


def test_a_bound_thread_hears_of_the_sessions_cancellation_as_an_error(loop: EventLoop) -> None:
    begun = threading.Event()
    heard: list[BaseException] = []

    @task
    async def wait() -> None:
        begun.set()
        await anyio.sleep_forever()

    def work() -> None:
        try:
            with s.bind():
                wait.from_thread()
        except BaseException as exc:
            heard.append(exc)

    with session(event_loop=loop) as s:
        thread = threading.Thread(target=work)
        thread.start()
        begun.wait(20)
        s.cancel()
        thread.join(20)
    assert [type(exc) for exc in heard] == [CallCancelledError]


# Events


def test_events_are_iterated_over_as_they_come(loop: EventLoop) -> None:
    from daglite import report

    @task
    async def work() -> None:
        for number in range(3):
            report("progress", number)
            await checkpoint()

    with session(event_loop=loop) as s:
        with s.events() as events:
            s.start_soon(work)
            seen: list[Any] = []
            for event in events:
                seen.append(event.data if isinstance(event, TaskReported) else type(event))
                if isinstance(event, TaskSucceeded):
                    break
        assert seen == [TaskStarted, 0, 1, 2, TaskSucceeded]
        assert double.from_thread(1) == 2  # and nobody listens any more
        assert not s._bus.listeners  # type: ignore[attr-defined]


def test_events_of_one_call(loop: EventLoop) -> None:
    begun = threading.Event()

    @task
    async def wait() -> None:
        begun.set()
        await anyio.sleep_forever()

    with session(event_loop=loop) as s:
        call = s.start_soon(wait)
        assert begun.wait(20)
        with s.events(under=call.id) as events:
            double.from_thread(1)
            call.cancel()
            assert type(next(events)).__name__ == "TaskCancelled"


def test_in_another_thread_they_end_when_the_session_begins_to(loop: EventLoop) -> None:
    entered = threading.Event()

    def follow() -> list[str]:
        with s.events() as events:
            entered.set()
            return [type(event).__name__ for event in events]

    with concurrent.futures.ThreadPoolExecutor(1) as executor:
        with session(event_loop=loop) as s:
            names = executor.submit(follow)
            assert entered.wait(20)
            double.from_thread(1)
        assert names.result(20) == ["TaskStarted", "TaskSucceeded"]


def test_a_bounded_subscription_drops_the_oldest(loop: EventLoop) -> None:
    with session(event_loop=loop) as s:
        with s.events(max_buffer=2) as events:
            for number in range(3):
                double.from_thread(number)
            left: list[Any] = [next(events), next(events)]
            assert [event.metadata.inputs for event in left] == [{"number": 2}, {"number": 2}]
            assert events.dropped == 4


def test_a_subscription_has_to_be_entered(loop: EventLoop) -> None:
    with session(event_loop=loop) as s:
        events = s.events()
        with pytest.raises(RuntimeError, match="has to be entered: with session.events"):
            next(events)
        with events:
            pass
        with pytest.raises(RuntimeError, match="can be entered once"):
            with events:
                pytest.fail("entered")


async def test_in_an_event_loop_it_is_async_with() -> None:
    async with session() as s:
        with pytest.raises(RuntimeError, match="async with session.events"):
            with s.events():
                pytest.fail("entered")


def test_a_watcher_is_a_coroutine_function_and_sees_all(loop: EventLoop) -> None:
    names: list[str] = []

    async def follow(events: Subscription) -> None:
        async for event in events:
            names.append(type(event).__name__)

    with session(event_loop=loop) as s:
        s.watch(follow)
        double.from_thread(1)
        with pytest.raises(TypeError, match="takes a coroutine function"):
            s.watch(print)  # type: ignore[arg-type]
    assert names == ["TaskStarted", "TaskSucceeded", "SessionEnded"]


def test_calls_in_place_are_events_too(loop: EventLoop) -> None:
    @task(retries=1)
    def flaky() -> None:
        raise ValueError("no")

    with session(event_loop=loop) as s:
        with s.events() as events:
            with pytest.raises(TaskError):
                flaky()
            names = []
            for event in events:
                names.append(type(event).__name__)
                if isinstance(event, TaskFailed):
                    break
    assert names == ["TaskStarted", "TaskRetrying", "TaskFailed"]


# In place


def test_a_call_in_place_may_have_a_timeout_and_a_delay(loop: EventLoop) -> None:
    attempts: list[int] = []

    @task(retries=1, retry_delay=0.01, timeout=30)
    def flaky() -> int:
        attempts.append(threading.get_ident())
        if len(attempts) == 1:
            raise ValueError("no")
        return double.from_thread(4)

    with session(event_loop=loop) as s:
        assert flaky() == 8
        assert s.stats().succeeded == 2
    assert threading.get_ident() not in attempts


def test_the_tree_says_where_a_call_is(loop: EventLoop) -> None:
    trees: list[str] = []

    @task
    async def look() -> None:
        s: Any = current_session()
        trees.append(str(s.tree()))

    @task
    def outer() -> None:
        look.from_thread()

    with session(event_loop=loop):
        outer()
    lines = trees[0].splitlines()
    assert lines[1].startswith("└─ outer: in a thread")
    assert lines[2].startswith("   └─ look: running")


def test_an_inner_session_is_refused_by_one_that_is_ending(loop: EventLoop) -> None:
    refused: list[str] = []

    async def follow(events: Subscription) -> None:
        async for _ in events:
            pass

    with session(name="outer", event_loop=loop) as s:
        context = contextvars.copy_context()
        go_on = anyio.Event()

        @task
        async def wait() -> None:
            await go_on.wait()

        s.watch(follow)
        s.start_soon(wait)
        thread = threading.Thread(target=lambda: refused.append(context.run(enter_late)))

        def enter_late() -> str:
            while "leaving" not in repr(s):
                time.sleep(0.001)
            try:
                with session(name="inner"):
                    return "entered"
            except SessionError as error:
                return str(error)
            finally:
                s._bus.loop.run(go_on.set)  # type: ignore[attr-defined]

        thread.start()
    thread.join(20)
    assert refused == [
        "session 'inner' was entered in session 'outer', which is ending: only calls that run already may make others"
    ]
