"""Worker threads that go back to their event loop."""

import threading
from collections.abc import Iterator
from contextvars import ContextVar, copy_context
from typing import Any

import anyio
import anyio.to_thread
import pytest
from anyio import from_thread, get_cancelled_exc_class
from anyio.lowlevel import checkpoint

from daglite import check_cancelled, current_session, current_task, gather_tasks, session, task
from daglite.events import Event, TaskCancelled, TaskStarted
from daglite.exceptions import CallCancelledError, SessionError, TaskError, TaskTimeoutError
from daglite.sessions import Session

variable: ContextVar[str] = ContextVar("variable", default="unset")


@task
async def double(number: int) -> int:
    await checkpoint()
    return 2 * number


@task
async def thread_of() -> int:
    return threading.get_ident()


@task
def go_back(number: int) -> int:
    return double.from_thread(number)


@pytest.fixture(params=["outside", "session"])
def inside(request: pytest.FixtureRequest) -> Any:
    """A session to be in, or nothing."""

    class Nothing:
        async def __aenter__(self) -> None: ...
        async def __aexit__(self, *exc_info: object) -> None: ...

    return session() if request.param == "session" else Nothing()


async def test_a_thread_has_a_task_run_in_its_event_loop(inside: Any) -> None:
    @task
    def look() -> tuple[int, int]:
        return thread_of.from_thread(), threading.get_ident()

    async with inside:
        loop, thread = await look.to_thread()
        assert loop == threading.get_ident() != thread
        assert await go_back.to_thread(4) == 8


async def test_a_timed_call_may_go_back_too(inside: Any) -> None:
    async with inside:
        assert await go_back.with_options(timeout=30).to_thread(4) == 8


async def test_context_variables_travel_into_the_thread_and_back_into_the_loop(inside: Any) -> None:
    @task
    async def inner() -> str:
        seen = variable.get()
        variable.set("inner")
        return seen

    @task
    def outer() -> list[str]:
        seen = [variable.get()]
        variable.set("outer")
        seen.append(inner.from_thread())
        seen.append(variable.get())  # what is set further on stays there, as in a task of the event loop
        return seen

    async with inside:
        variable.set("mine")
        assert await outer.to_thread() == ["mine", "outer", "outer"]
        assert variable.get() == "mine"


async def test_parents_and_sessions_are_known_there() -> None:
    @task
    async def inner() -> tuple[Any, Any]:
        return current_task(), current_session()

    @task
    def outer() -> tuple[Any, Any, Any]:
        return current_task(), *inner.from_thread()

    async with session() as s:
        of_outer, of_inner, current = await outer.to_thread()
        assert of_inner.parent_id == of_outer.id
        assert current is s
        assert (s.stats().started, s.stats().succeeded) == (2, 2)


async def test_an_error_comes_out_in_the_thread_and_is_wrapped_once_for_each_task(inside: Any) -> None:
    @task
    async def fail() -> None:
        raise ValueError("no")

    @task
    def catch() -> str:
        try:
            fail.from_thread()
        except TaskError as error:
            return repr(error.root_cause)
        return "nothing"

    async with inside:
        assert await catch.to_thread() == "ValueError('no')"


async def test_wrong_arguments_are_a_type_error(inside: Any) -> None:
    @task
    def wrong() -> None:
        double.from_thread(1, 2)  # type: ignore[call-arg]

    async with inside:
        with pytest.raises(TaskError) as caught:
            await wrong.to_thread()
        assert isinstance(caught.value.root_cause, TypeError)


@pytest.mark.usefixtures("virtual_clock")
async def test_retries_and_timeouts_are_those_of_the_task() -> None:
    attempts: list[int] = []

    @task(retries=1, timeout=0.02)
    async def hang() -> None:
        attempts.append(len(attempts))
        await anyio.sleep_forever()

    @task
    def wait() -> None:
        hang.from_thread()

    with pytest.raises(TaskError) as caught:
        await wait.to_thread()
    assert isinstance(caught.value.__cause__, TaskTimeoutError)
    assert attempts == [0, 1]


async def test_in_the_event_loops_own_thread_it_is_refused(inside: Any) -> None:
    async with inside:
        with pytest.raises(RuntimeError, match=r"'double': from_thread\(\) in an event loop's own .* await double\("):
            double.from_thread(4)


def test_a_plain_thread_has_no_event_loop_to_go_to() -> None:
    with pytest.raises(SessionError, match="'double': from_thread.. has no event loop to go to.*with session()"):
        double.from_thread(4)


@pytest.mark.parametrize("call", ["anyio", "the event loop"])
async def test_threads_that_others_have_made_go_back_too(inside: Any, call: str, anyio_backend_name: str) -> None:
    def look() -> tuple[int, int]:
        return double.from_thread(4), thread_of.from_thread()

    async with inside:
        if call == "anyio":
            assert await anyio.to_thread.run_sync(look) == (8, threading.get_ident())
        elif anyio_backend_name == "trio":
            import trio

            assert await trio.to_thread.run_sync(look) == (8, threading.get_ident())
        elif isinstance(inside, Session):  # which is all that is known to such a thread
            import asyncio

            assert await asyncio.to_thread(look) == (8, threading.get_ident())


async def test_a_thread_with_a_copy_of_the_context_goes_to_the_session() -> None:
    results: list[int] = []
    async with session():
        context = copy_context()
        thread = threading.Thread(target=lambda: results.append(context.run(double.from_thread, 4)))
        thread.start()
        await anyio.to_thread.run_sync(thread.join)
    assert results == [8]


async def test_a_bound_thread_goes_to_the_session() -> None:
    results: list[Any] = []
    async with session() as s:

        def work() -> None:
            with s.bind():
                results.append(double.from_thread(4))
                results.append(thread_of.from_thread())

        thread = threading.Thread(target=work)
        thread.start()
        await anyio.to_thread.run_sync(thread.join)
    assert results == [8, threading.get_ident()]


async def test_a_stream_in_a_thread_of_its_own_may_go_back(inside: Any) -> None:
    @task
    def numbers() -> Iterator[int]:
        for number in range(3):
            yield double.from_thread(number)

    async with inside:
        assert [number async for number in numbers.to_thread()] == [0, 2, 4]


async def test_a_call_in_place_with_a_deadline_may_go_back(inside: Any) -> None:
    timed = go_back.with_options(timeout=30)

    @task
    def outer() -> int:
        return timed(4)

    async with inside:
        assert await outer.to_thread() == 8


# Slots


@task
def down(depth: int, path: str) -> str:
    return path if depth == 0 else up.from_thread(depth, path)


@task
async def up(depth: int, path: str) -> str:
    return await down.to_thread(depth - 1, path + str(depth))


async def test_threads_that_nest_through_the_loop_at_a_full_limiter_go_on() -> None:
    async with session(max_threads=2) as s:
        assert await gather_tasks(down, [4] * 12, map(str, range(12))) == [f"{number}4321" for number in range(12)]
        assert s.stats().succeeded == 12 * 9


async def test_a_call_in_place_with_a_deadline_gives_up_the_place_of_who_waits_for_it() -> None:
    timed = down.with_options(timeout=30)

    @task
    def outer() -> str:
        return timed(2, "")

    async with session(max_threads=1):
        assert await outer.to_thread() == "21"


async def test_a_thread_gives_up_its_place_while_it_waits_and_has_it_again_afterwards() -> None:
    go, running = anyio.Event(), threading.Semaphore(0)

    @task
    async def wait() -> None:
        await go.wait()

    @task
    def first() -> None:
        wait.from_thread()
        running.release()

    @task
    def second() -> None:
        running.release()
        from_thread.run_sync(go.set)

    async with session(max_threads=1) as s:
        threads = s._home.threads
        assert threads is not None
        async with anyio.create_task_group() as group:
            group.start_soon(first.to_thread)
            await anyio.wait_all_tasks_blocked()
            group.start_soon(second.to_thread)
        assert running.acquire(timeout=20)
        assert running.acquire(timeout=20)
        assert threads._limiter is not None
        assert threads._limiter.borrowed_tokens == 0


async def test_sixty_functions_in_the_event_loops_default_threads_go_to_and_fro() -> None:
    results: list[str] = []
    arrived = threading.Barrier(40)  # as many as anyio's default limiter lets run

    def endpoint(number: int) -> None:
        if number < 40:
            arrived.wait(20)
        results.append(up.from_thread(3, f"{number}-"))

    async with anyio.create_task_group() as group:
        for number in range(60):
            group.start_soon(anyio.to_thread.run_sync, endpoint, number)
    assert sorted(results) == sorted(f"{number}-321" for number in range(60))


# Cancellation


class Hang:
    """A task that waits for ever, and what is known of it."""

    def __init__(self) -> None:
        self.begun = anyio.Event()
        self.cancelled = False
        self.thread_heard: list[BaseException] = []
        self.call = task(name="hang")(self._call)
        self.in_thread = task(name="in_thread")(self._in_thread)

    async def _call(self) -> None:
        self.begun.set()
        try:
            await anyio.sleep_forever()
        except get_cancelled_exc_class():
            self.cancelled = True
            raise

    def _in_thread(self) -> None:
        try:
            self.call.from_thread()
        except BaseException as exc:
            self.thread_heard.append(exc)
            raise


@pytest.mark.parametrize("timeout", [None, 1000])
@pytest.mark.parametrize("kind", ["outside", "session", "anyio"])
async def test_what_a_thread_awaits_is_cancelled_with_its_caller(kind: str, timeout: float | None) -> None:
    hang = Hang()
    in_thread = hang.in_thread.with_options(timeout=timeout)

    async def call() -> None:
        if kind == "anyio":
            await anyio.to_thread.run_sync(hang._in_thread)
        elif kind == "session":
            async with session():
                await in_thread.to_thread()
        else:
            await in_thread.to_thread()

    async with anyio.create_task_group() as group:
        group.start_soon(call)
        await hang.begun.wait()
        group.cancel_scope.cancel()
    assert hang.cancelled
    while not hang.thread_heard:  # an abandoned thread hears of it on its own
        await anyio.sleep(0.001)
    assert not isinstance(hang.thread_heard[0], Exception)


async def test_a_native_cancellation_reaches_it_as_well(anyio_backend_name: str) -> None:
    if anyio_backend_name == "trio":
        assert hasattr(__import__("trio"), "Cancelled")  # which knows of no other than its own
        return
    import asyncio

    hang = Hang()
    async with session():
        running = asyncio.ensure_future(hang.in_thread.to_thread())
        await hang.begun.wait()
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
    assert hang.cancelled


@pytest.mark.usefixtures("virtual_clock")
@pytest.mark.parametrize("in_session", [False, True])
async def test_at_its_deadline_an_abandoned_thread_awaits_nothing_any_more(in_session: bool) -> None:
    hang = Hang()
    events: list[Event] = []

    async def call() -> None:
        with pytest.raises(TaskTimeoutError):
            await hang.in_thread.with_options(timeout=1).to_thread()
        assert hang.cancelled  # before the caller goes on, whose it is
        assert not hang.thread_heard or not isinstance(hang.thread_heard[0], Exception)

    if not in_session:
        await call()
        return
    async with session() as s:

        async def follow(subscription: Any) -> None:
            async for event in subscription:
                events.append(event)

        s.watch(follow)
        await call()
        stats = s.stats()
        assert (stats.running, stats.failed, stats.cancelled) == (0, 1, 1)
    started = [event.metadata.name for event in events if isinstance(event, TaskStarted)]
    cancelled = [event.metadata.name for event in events if isinstance(event, TaskCancelled)]
    assert (started, cancelled) == (["in_thread", "hang"], ["hang"])


async def test_a_cancellation_is_neither_retried_nor_an_error_of_the_thread(inside: Any) -> None:
    hang = Hang()
    attempts: list[int] = []

    @task(retries=3)
    def outer() -> None:
        attempts.append(1)
        hang.call.from_thread()

    async with inside:
        async with anyio.create_task_group() as group:
            group.start_soon(outer.to_thread)
            await hang.begun.wait()
            group.cancel_scope.cancel()
    assert attempts == [1]


async def test_a_cancellation_that_comes_as_an_error_of_a_portal_is_one_all_the_same() -> None:
    begun = anyio.Event()
    attempts: list[int] = []
    heard: list[BaseException] = []
    portals: list[from_thread.BlockingPortal] = []

    async def wait() -> None:
        begun.set()
        await anyio.sleep_forever()

    async def call() -> None:
        async with from_thread.BlockingPortal() as portal:
            portals.append(portal)
            await outer.to_thread()

    @task(retries=3)
    def inner() -> None:
        attempts.append(1)
        portals[0].call(wait)  # which raises an `Exception` when it is cancelled

    @task(retries=3)
    def outer() -> None:
        try:
            inner()
        except BaseException as exc:
            heard.append(exc)
            raise

    async with anyio.create_task_group() as group:
        group.start_soon(call)
        await begun.wait()
        group.cancel_scope.cancel()
    assert attempts == [1]
    assert len(heard) == 1
    assert not isinstance(heard[0], Exception)


@pytest.mark.parametrize("shield", [True, False])
async def test_in_a_cancelled_thread_only_what_is_shielded_still_runs(shield: bool) -> None:
    hang = Hang()
    cleaned: list[str] = []

    @task
    async def clean_up() -> None:
        with anyio.CancelScope(shield=shield):
            await checkpoint()
            cleaned.append("up")

    @task
    def outer() -> None:
        try:
            hang.call.from_thread()
        finally:
            clean_up.from_thread()

    async with session():
        async with anyio.create_task_group() as group:
            group.start_soon(outer.to_thread)
            await hang.begun.wait()
            group.cancel_scope.cancel()
    assert cleaned == (["up"] if shield else [])


async def test_a_call_that_is_cancelled_by_itself_is_an_error_in_the_thread() -> None:
    hang = Hang()
    ids: list[Any] = []

    @task
    async def identify() -> None:
        ids.append(current_task())
        await hang.call()

    @task
    def outer() -> str:
        try:
            identify.from_thread()
        except CallCancelledError as error:
            check_cancelled()  # does nothing: the thread is not cancelled
            return str(error)
        return "nothing"

    async with session() as s:
        call = s.start_soon(outer)
        await hang.begun.wait()
        assert s.cancel(under=ids[0].id)
        assert await call == "task 'identify' was cancelled in the event loop"


async def test_a_task_that_cancels_itself_natively_is_an_error_in_the_thread(anyio_backend_name: str) -> None:
    @task
    async def give_up() -> None:
        if anyio_backend_name == "asyncio":
            import asyncio

            running = asyncio.current_task()
            assert running is not None
            running.cancel()
            await checkpoint()
        else:
            with anyio.CancelScope() as scope:
                scope.cancel()
                await checkpoint()
            raise CallCancelledError("as Trio has no such thing")

    @task(retries=2)
    def outer() -> None:
        with pytest.raises(CallCancelledError if anyio_backend_name == "asyncio" else TaskError):
            give_up.from_thread()

    async with session():
        await outer.to_thread()


async def test_an_interrupt_in_the_loop_comes_out_in_the_thread_alone(inside: Any) -> None:
    class Stop(BaseException):
        pass

    @task
    async def stop() -> None:
        raise Stop

    @task
    def outer() -> str:
        try:
            stop.from_thread()
        except Stop:
            return "stopped"
        return "went on"

    async with inside:
        assert await outer.to_thread() == "stopped"


async def test_a_bound_thread_hears_that_the_session_was_cancelled() -> None:
    hang = Hang()
    heard: list[BaseException] = []
    async with anyio.create_task_group():
        async with session() as s:

            def work() -> None:
                try:
                    with s.bind():
                        hang.call.from_thread()
                except BaseException as exc:
                    heard.append(exc)

            thread = threading.Thread(target=work)
            thread.start()
            await hang.begun.wait()
            s.cancel()
        await anyio.to_thread.run_sync(thread.join)
    assert hang.cancelled
    assert [type(exc) for exc in heard] == [CallCancelledError]


async def test_a_thread_that_its_session_gave_up_is_refused() -> None:
    hang = Hang()
    heard: list[BaseException] = []
    late = threading.Event()

    async with session(grace=0.05) as s:

        def work() -> None:
            with s.bind():
                late.wait(20)
                try:
                    hang.call.from_thread()
                except BaseException as exc:
                    heard.append(exc)

        thread = threading.Thread(target=work)
        thread.start()
        while not s._bindings:
            await anyio.sleep(0.001)
    late.set()
    await anyio.to_thread.run_sync(thread.join)
    assert not isinstance(heard[0], Exception)
    assert not hang.begun.is_set()


async def test_after_its_session_a_thread_is_told_so() -> None:
    async with session():
        context = copy_context()
    with pytest.raises(SessionError, match="'double' was called in session 'session', which has ended"):
        await anyio.to_thread.run_sync(context.run, in_plain_thread, double.from_thread, 4)


def in_plain_thread(func: Any, *args: Any) -> Any:
    """Call a function in a thread that has the context, and that no event loop waits for."""
    outcome: list[Any] = []
    context = copy_context()

    def run() -> None:
        try:
            outcome.append(context.run(func, *args))
        except BaseException as exc:
            outcome.append(exc)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if isinstance(outcome[0], BaseException):
        raise outcome[0]
    return outcome[0]
