"""Programs of asyncio and of Trio that know nothing of anyio, with daglite in them: what they cancel ends as they expect."""

import asyncio
import math
import sys
import threading
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, NoReturn

import pytest
import trio

from daglite import (
    Limit,
    check_cancelled,
    gather_tasks,
    race_tasks,
    session,
    stream_tasks,
    task,
    workflow,
)
from daglite.events import CacheHit, TaskCancelled, TaskEvent, TaskFailed, TaskStarted, TaskSucceeded
from daglite.sessions import Session, Subscription

if sys.version_info < (3, 11):
    from exceptiongroup import ExceptionGroup

LONG = 3600.0  # seconds that nobody waits for


class Host:
    """A program, and the session in it.

    Args:
        forever: Waits, as the event loop's own code does.
        reached: Called when there is nothing more to be done but to wait.
    """

    def __init__(self, forever: Callable[[], Awaitable[Any]], reached: Callable[[], object]) -> None:
        self.forever = forever
        self.reached = reached
        self.events: list[TaskEvent] = []
        self.session: Session | None = None
        self.cleaned_up = False

    async def watch(self, events: Subscription) -> None:
        async for event in events:
            if isinstance(event, TaskEvent):
                self.events.append(event)

    async def run(self, scenario: "Scenario") -> None:
        """Do it, in a session, with nothing around it but what the program itself has."""
        async with session(grace=LONG) as s:
            self.session = s
            s.watch(self.watch)
            await scenario(self, s)

    def check(self) -> None:
        """Nothing of it is left, and every call has ended once."""
        assert self.session is not None
        stats = self.session.stats()
        assert stats.running == 0
        assert not list(self.session.tree())
        started = Counter(event.metadata.id for event in self.events if isinstance(event, TaskStarted))
        ended = Counter(
            event.metadata.id for event in self.events if isinstance(event, (TaskSucceeded, TaskFailed, TaskCancelled))
        )
        assert started == ended
        assert set(started.values()) <= {1}
        assert not any(isinstance(event, CacheHit) for event in self.events)


Scenario = Callable[[Host, Session], Awaitable[Any]]


@task
async def wait(host: Host) -> None:
    try:
        host.reached()
        await host.forever()
    finally:
        host.cleaned_up = True


@task(retries=5)
async def fail_and_wait(host: Host) -> None:
    host.reached()
    raise OSError("busy")


@task
async def endless(host: Host) -> AsyncIterator[int]:
    try:
        yield 1
        host.reached()
        await host.forever()
        yield 2
    finally:
        host.cleaned_up = True


@task
def in_thread(host: Host) -> None:
    host.reached()
    while True:
        check_cancelled()


async def a_call(host: Host, s: Session) -> None:
    await wait(host)


async def a_call_with_a_timeout(host: Host, s: Session) -> None:
    await wait.with_options(timeout=LONG, total_timeout=LONG, retries=3)(host)


async def a_pause_before_a_retry(host: Host, s: Session) -> None:
    await fail_and_wait.with_options(retry_delay=LONG)(host)


async def a_fan_out(host: Host, s: Session) -> None:
    await gather_tasks(wait, [host] * 3)


async def a_race(host: Host, s: Session) -> None:
    await race_tasks(wait.call(host), wait.call(host))


async def a_stream_of_results(host: Host, s: Session) -> None:
    async with stream_tasks(wait, [host] * 10, limit=2) as results:
        async for _ in results:
            pass


async def a_stream(host: Host, s: Session) -> None:
    async for _ in endless(host):
        pass


async def a_pumped_stream(host: Host, s: Session) -> None:
    async with endless.with_options(pump=True)(host) as items:
        async for _ in items:
            pass


async def a_worker_thread(host: Host, s: Session) -> None:
    await in_thread.to_thread(host)


async def a_thread_with_a_deadline(host: Host, s: Session) -> None:
    await in_thread.with_options(timeout=LONG).to_thread(host)


async def a_limit(host: Host, s: Session) -> None:
    one = wait.with_options(limit=Limit("one", 1))
    await gather_tasks(one, [host] * 3)


async def a_background_call(host: Host, s: Session) -> None:
    await s.start_soon(wait, host)


async def the_end_of_the_session(host: Host, s: Session) -> None:
    s.start_soon(wait, host)  # which leaving waits for


async def a_service(host: Host, s: Session) -> None:
    s.start_service(wait, host)
    await host.forever()


async def an_inner_session(host: Host, s: Session) -> None:
    async with session(name="inner") as inner:
        inner.start_soon(wait, host)
        await host.forever()


async def a_workflow(host: Host, s: Session) -> None:
    await workflow(a_call)(host, s)


async def a_subscription(host: Host, s: Session) -> None:
    async with s.events() as events:
        host.reached()
        async for _ in events:
            pass


scenarios = pytest.mark.parametrize(
    "scenario",
    [
        a_call,
        a_call_with_a_timeout,
        a_pause_before_a_retry,
        a_fan_out,
        a_race,
        a_stream_of_results,
        a_stream,
        a_pumped_stream,
        a_worker_thread,
        a_thread_with_a_deadline,
        a_limit,
        a_background_call,
        the_end_of_the_session,
        a_service,
        an_inner_session,
        a_workflow,
        a_subscription,
    ],
    ids=lambda scenario: scenario.__name__,
)


class AsyncioHost(Host):
    """A program of asyncio: `go` is set when its tasks wait."""

    def __init__(self) -> None:
        self.go = asyncio.Event()
        loop = asyncio.get_running_loop()
        super().__init__(lambda: asyncio.sleep(LONG), lambda: loop.call_soon_threadsafe(self.go.set))


class TrioHost(Host):
    """The same of Trio."""

    def __init__(self) -> None:
        self.go = trio.Event()
        token = trio.lowlevel.current_trio_token()
        super().__init__(trio.sleep_forever, lambda: token.run_sync_soon(self.go.set))


async def fail(host: AsyncioHost | TrioHost) -> NoReturn:
    await host.go.wait()
    raise ValueError("a sibling")


async def cancel(host: AsyncioHost, scenario: Scenario) -> None:
    running = asyncio.create_task(host.run(scenario))
    await host.go.wait()
    running.cancel("enough")
    with pytest.raises(asyncio.CancelledError):
        await running
    assert running.cancelled()


async def time_out(host: AsyncioHost, scenario: Scenario) -> None:
    with pytest.raises(TimeoutError) as caught:
        async with asyncio.timeout(None) as timeout:

            async def expire() -> None:
                await host.go.wait()
                timeout.reschedule(asyncio.get_running_loop().time())

            expiring = asyncio.create_task(expire())
            await host.run(scenario)
    await expiring
    assert type(caught.value) is TimeoutError
    assert timeout.expired()
    current = asyncio.current_task()
    assert current is not None
    assert current.cancelling() == 0  # the cancellation was the timeout's, and it is over
    await asyncio.sleep(0)


async def wait_for(host: AsyncioHost, scenario: Scenario) -> None:
    running = asyncio.ensure_future(host.run(scenario))
    await host.go.wait()
    with pytest.raises(asyncio.TimeoutError):
        await asyncio.wait_for(running, 0)
    assert running.cancelled()


async def fail_in_the_group(host: AsyncioHost, scenario: Scenario) -> None:
    with pytest.raises(ExceptionGroup) as caught:
        async with asyncio.TaskGroup() as group:
            group.create_task(host.run(scenario))
            group.create_task(fail(host))
    assert [str(error) for error in caught.value.exceptions] == ["a sibling"]


NEW = pytest.mark.skipif(
    sys.version_info < (3, 11), reason="Python 3.10 has neither asyncio.timeout nor asyncio.TaskGroup"
)


@scenarios
@pytest.mark.parametrize(
    "end", [cancel, pytest.param(time_out, marks=NEW), wait_for, pytest.param(fail_in_the_group, marks=NEW)]
)
def test_what_asyncio_cancels_comes_to_what_its_program_expects(
    end: Callable[[AsyncioHost, Scenario], Awaitable[None]], scenario: Scenario
) -> None:
    async def main() -> None:
        host = AsyncioHost()
        await end(host, scenario)
        host.check()

    asyncio.run(main())


async def cancel_the_scope(host: TrioHost, scenario: Scenario) -> None:
    scope = trio.CancelScope()

    async def cancel() -> None:
        await host.go.wait()
        scope.cancel()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(cancel)
        with scope:
            await host.run(scenario)
        assert scope.cancelled_caught
        await trio.lowlevel.checkpoint()


async def fail_after(host: TrioHost, scenario: Scenario) -> None:
    async def expire(scope: trio.CancelScope) -> None:
        await host.go.wait()
        scope.deadline = -math.inf

    async with trio.open_nursery() as nursery:
        with pytest.raises(trio.TooSlowError):
            with trio.fail_after(LONG) as scope:
                nursery.start_soon(expire, scope)
                await host.run(scenario)


async def fail_in_the_nursery(host: TrioHost, scenario: Scenario) -> None:
    with pytest.raises(ExceptionGroup) as caught:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(host.run, scenario)
            nursery.start_soon(fail, host)
    assert [str(error) for error in caught.value.exceptions] == ["a sibling"]


@scenarios
@pytest.mark.parametrize("end", [cancel_the_scope, fail_after, fail_in_the_nursery])
def test_what_trio_cancels_comes_to_what_its_program_expects(
    end: Callable[[TrioHost, Scenario], Awaitable[None]], scenario: Scenario
) -> None:
    async def main() -> None:
        host = TrioHost()
        await end(host, scenario)
        host.check()

    trio.run(main)


@scenarios
def test_cleaning_up_may_take_a_while(scenario: Scenario) -> None:
    """A native cancellation does not tear what cleans up: the generators and calls have run their `finally`."""

    async def on_asyncio() -> Host:
        host = AsyncioHost()
        running = asyncio.create_task(host.run(scenario))
        await host.go.wait()
        running.cancel()
        await asyncio.wait([running])
        return host

    async def on_trio() -> Host:
        host = TrioHost()
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(host.run, scenario)
                await host.go.wait()
                scope.cancel()
        return host

    has_finally = scenario not in (
        a_pause_before_a_retry,
        a_worker_thread,
        a_thread_with_a_deadline,
        a_subscription,
    )
    assert asyncio.run(on_asyncio()).cleaned_up is has_finally
    assert trio.run(on_trio).cleaned_up is has_finally


def test_a_program_of_asyncio_needs_nothing_else() -> None:
    @task(retries=2, timeout=LONG)
    async def fetch(number: int) -> int:
        await asyncio.sleep(0)
        if number == 2 and not failed:
            failed.append(number)
            raise OSError("once")
        return number * 10

    @task
    def here() -> str:
        return threading.current_thread().name

    failed: list[int] = []
    queue: asyncio.Queue[int] = asyncio.Queue()

    async def main() -> list[int]:
        async with session() as s:
            assert isinstance(asyncio.current_task(), asyncio.Task)
            call = s.start_soon(fetch, 7)
            producer = asyncio.create_task(produce())
            found = [await fetch(await queue.get()) for _ in range(3)]
            await producer
            assert list(await asyncio.gather(fetch(8), fetch(9))) == [80, 90]  # their own gather is not ours to forbid
            assert await here.to_thread() != threading.current_thread().name
            return [*found, await call]

    async def produce() -> None:
        for number in range(1, 4):
            await queue.put(number)

    assert asyncio.run(main()) == [10, 20, 30, 70]


def test_a_program_of_trio_needs_nothing_else() -> None:
    @task(retries=2, timeout=LONG)
    async def fetch(number: int) -> int:
        await trio.lowlevel.checkpoint()
        if number == 2 and not failed:
            failed.append(number)
            raise OSError("once")
        return number * 10

    @task
    def here() -> str:
        return trio.from_thread.run_sync(trio.lowlevel.current_task).name

    failed: list[int] = []

    async def main() -> list[int]:
        send, receive = trio.open_memory_channel[int](0)
        async with trio.open_nursery() as nursery, session() as s:
            call = s.start_soon(fetch, 7)
            nursery.start_soon(produce, send)
            async with stream_tasks(fetch, receive, ordered=True) as results:  # a channel of Trio's is a source
                found = [result async for result in results]
            assert await here.to_thread()
            return [*found, await call]

    async def produce(send: trio.MemorySendChannel[int]) -> None:
        async with send:
            for number in range(1, 4):
                await send.send(number)

    assert trio.run(main) == [10, 20, 30, 70]
