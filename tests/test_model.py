"""Fan-outs, streams and sessions as Hypothesis makes them up, against what they have to come to.

`DAGLITE_EXAMPLES` is how many it makes of each, at random; else they are the same hundred each time.
"""

import os
import sys
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import anyio
import pytest
from anyio.lowlevel import checkpoint
from hypothesis import assume, event, given, settings
from hypothesis import strategies as st

from daglite import (
    Limit,
    Outcome,
    Rate,
    current_session,
    current_task,
    gather_tasks,
    partition,
    race_tasks,
    session,
    stream_tasks,
    task,
)
from daglite._context import OPEN
from daglite.exceptions import TaskError, TaskGroupError
from daglite.testing import EventRecorder, VirtualClock
from tests import sweep

if sys.version_info < (3, 11):
    from exceptiongroup import BaseExceptionGroup, ExceptionGroup

EXAMPLES = os.environ.get("DAGLITE_EXAMPLES")
examples = settings(max_examples=int(EXAMPLES or "100"), derandomize=EXAMPLES is None)

BACKENDS = st.sampled_from(["asyncio", "trio"])


@dataclass(frozen=True)
class Job:
    """What one call of a fan-out does.

    Args:
        seconds: How long it takes.
        fails: How many of its attempts fail.
        cleanup: How long it takes to clean up.
    """

    seconds: int
    fails: int = 0
    cleanup: int = 0


class Broken(Exception):
    pass


jobs = st.builds(Job, st.integers(0, 5), st.sampled_from([0, 0, 0, 1, 2]), st.sampled_from([0, 0, 1]))


@dataclass
class World:
    """Where the calls of a fan-out run, and what is seen of them."""

    limit: Limit
    retries: int
    tries: Counter[int] = field(default_factory=Counter)
    in_attempt: int = 0
    most_in_attempt: int = 0

    def make(self, **options: Any) -> Any:
        @task(retries=self.retries, retry_on=Broken, limit=self.limit, **options)
        async def work(number: int, job: Job) -> int:
            self.tries[number] += 1
            self.in_attempt += 1
            self.most_in_attempt = max(self.most_in_attempt, self.in_attempt)
            try:
                await anyio.sleep(job.seconds)
                if self.tries[number] <= job.fails:
                    raise Broken(number)
                return number
            finally:
                if job.cleanup:
                    with anyio.CancelScope(shield=True):
                        await anyio.sleep(job.cleanup)
                self.in_attempt -= 1

        return work

    def seconds(self, job: Job) -> int:
        """How long the call takes that succeeds or fails by itself."""
        return (job.seconds + job.cleanup) * (min(job.fails, self.retries) + 1)

    def succeeds(self, job: Job) -> bool:
        return job.fails <= self.retries


def run(backend: str, scenario: Any) -> Any:
    """Run it by a virtual clock, and in a session of which nothing is left."""

    async def main() -> Any:
        with VirtualClock() as clock, EventRecorder() as recorder:
            async with session():
                result = await scenario(clock)
            sweep.assert_each_has_one_end(recorder)
            assert not OPEN
            return result

    return anyio.run(main, backend=backend)


class Pulled:
    """A source that knows how far it is ahead of what has ended."""

    def __init__(self, items: list[tuple[int, Job]], *, is_async: bool) -> None:
        self.taken = 0
        self._items = items
        self.source: Any = self._awaited() if is_async else self._plain()

    def _plain(self) -> Iterator[tuple[int, Job]]:
        for item in self._items:
            self.taken += 1
            yield item

    async def _awaited(self) -> AsyncIterator[tuple[int, Job]]:
        for item in self._items:
            await checkpoint()
            self.taken += 1
            yield item


@examples
@given(
    backend=BACKENDS,
    plan=st.lists(jobs, max_size=8),
    width=st.integers(1, 4),
    tokens=st.integers(1, 4),
    retries=st.integers(0, 2),
    deadline=st.one_of(st.none(), st.integers(0, 12)),
    errors=st.sampled_from(["raise", "collect"]),
)
def test_gather_tasks(
    backend: str, plan: list[Job], width: int, tokens: int, retries: int, deadline: int | None, errors: Any
) -> None:
    world = World(Limit("model", tokens), retries)

    async def scenario(clock: VirtualClock) -> tuple[str, Any, float]:
        with anyio.move_on_after(deadline if deadline is None else deadline + 0.5):
            try:
                return (
                    "result",
                    await gather_tasks(world.make(), range(len(plan)), plan, limit=width, errors=errors),
                    clock.time(),
                )
            except TaskGroupError as exc:
                return "failed", exc.exceptions, clock.time()
        return "cancelled", None, clock.time()

    kind, value, seconds = run(backend, scenario)
    event(kind)
    assert world.most_in_attempt <= min(width, tokens)
    assert world.in_attempt == 0
    assert world.limit.available_tokens == tokens
    assert all(world.tries[number] <= retries + 1 for number in world.tries)
    doomed = [number for number, job in enumerate(plan) if not world.succeeds(job)]
    if kind == "result" and deadline is not None and seconds >= deadline + 0.5:
        pass  # cancelled, but only after the last checkpoint
    elif kind == "result":
        assert not doomed or errors == "collect"
        assert sum(world.tries.values()) == sum(min(job.fails, retries) + 1 for job in plan)
        if errors == "raise":
            assert value == list(range(len(plan)))
        else:
            succeeded, failed = partition(value)
            assert [each.index for each in value] == list(range(len(plan)))
            assert succeeded == [number for number in range(len(plan)) if number not in doomed]
            assert [each.__cause__.args for each in failed] == [(number,) for number in doomed]  # type: ignore[union-attr]
        assert seconds >= max((world.seconds(job) for job in plan), default=0)
        if width == 1 or tokens == 1:
            assert seconds == sum(world.seconds(job) for job in plan)
    elif kind == "failed":
        assert errors == "raise"
        numbers = [each.__cause__.args[0] for each in value]
        # Who fails while it is cancelled is not tried again, and has failed as well.
        assert set(numbers) <= {number for number, job in enumerate(plan) if job.fails}
        assert deadline is not None or set(numbers) & set(doomed)
        assert len(numbers) == len(set(numbers)) > 0
    else:
        assert deadline is not None
        assert seconds >= deadline
        assert seconds <= deadline + 0.5 + max(job.cleanup for job in plan)  # every cleanup runs at once


@examples
@given(
    backend=BACKENDS,
    plan=st.lists(jobs, max_size=8),
    width=st.integers(1, 4),
    buffer=st.one_of(st.none(), st.integers(1, 3)),
    ordered=st.booleans(),
    is_async=st.booleans(),
    errors=st.sampled_from(["raise", "collect"]),
    take=st.integers(0, 9),
    pause=st.integers(0, 3),
)
def test_stream_tasks(
    backend: str,
    plan: list[Job],
    width: int,
    buffer: int | None,
    ordered: bool,
    is_async: bool,
    errors: Any,
    take: int,
    pause: int,
) -> None:
    world = World(Limit("model", 8), retries=1)
    work = world.make()

    @task
    async def pair(item: tuple[int, Job]) -> int:
        return await work(*item)  # type: ignore[no-any-return]

    pulled = Pulled(list(enumerate(plan)), is_async=is_async)

    async def scenario(clock: VirtualClock) -> tuple[list[Any], Any]:
        taken: list[Any] = []
        try:
            async with stream_tasks(
                pair, pulled.source, limit=width, buffer=buffer, ordered=ordered, errors=errors
            ) as results:
                async for result in results:
                    taken.append(result)
                    assert pulled.taken <= len(taken) + width + (width if buffer is None else buffer)
                    if len(taken) == take:
                        break
                    await anyio.sleep(pause)
        except TaskGroupError as exc:
            return taken, exc
        return taken, None

    taken, error = run(backend, scenario)
    event("failed" if error else "left early" if len(taken) == take else "whole")
    assert world.most_in_attempt <= width
    assert world.in_attempt == 0
    doomed = {number for number, job in enumerate(plan) if not world.succeeds(job)}
    numbers = [each.index if isinstance(each, Outcome) else each for each in taken]
    assert len(numbers) == len(set(numbers))
    if ordered and error is None:
        assert numbers == list(range(len(numbers)))
    elif ordered:
        assert numbers == sorted(numbers)  # what had ended is handed out, also beyond what has failed
    if errors == "collect":
        assert error is None
        assert {each.index for each in taken if each.error} == doomed & set(numbers)
    else:
        assert not doomed & set(numbers)
        if error is None:
            assert not doomed or len(taken) == take
        else:
            failed = {each.root_cause.args[0] for each in error.exceptions}
            assert failed & doomed or len(taken) == take
            assert failed <= {number for number, job in enumerate(plan) if job.fails}  # as in `gather_tasks`
    if error is None and len(taken) != take:
        assert sorted(numbers) == list(range(len(plan)))


@examples
@given(backend=BACKENDS, plan=st.lists(jobs, min_size=1, max_size=5))
def test_race_tasks(backend: str, plan: list[Job]) -> None:
    world = World(Limit("model", 8), retries=1)
    work = world.make()

    async def scenario(clock: VirtualClock) -> Any:
        try:
            return await race_tasks(*(work.call(number, job) for number, job in enumerate(plan)))
        except TaskGroupError as exc:
            return exc

    winner = run(backend, scenario)
    finishers = {number: world.seconds(job) for number, job in enumerate(plan) if world.succeeds(job)}
    if finishers:
        assert finishers[winner] == min(finishers.values())
    else:
        assert sorted(each.__cause__.args[0] for each in winner.exceptions) == list(range(len(plan)))
    assert world.in_attempt == 0


@examples
@given(
    backend=BACKENDS,
    count=st.integers(1, 4),
    per=st.integers(1, 5),
    burst=st.integers(1, 3),
    arrivals=st.lists(st.integers(0, 6), min_size=1, max_size=10),
)
def test_rates(backend: str, count: int, per: int, burst: int, arrivals: list[int]) -> None:
    began: list[float] = []

    async def scenario(clock: VirtualClock) -> None:
        @task(rate=Rate(count, per=per, burst=burst))
        async def paced() -> None:
            began.append(clock.time())

        async with anyio.create_task_group() as group:
            for arrival in arrivals:
                group.start_soon(paced)
                await anyio.sleep(arrival)

    run(backend, scenario)
    assert len(began) == len(arrivals)
    interval = per / count
    for first in range(len(began)):
        for last in range(first, len(began)):
            # Those that begin in a time are no more than the burst, and one for each interval of it.
            assert last - first + 1 <= burst + (began[last] - began[first]) / interval + 1e-6


# Streams, opened, stepped and closed in any order, by any task.

variable: ContextVar[str] = ContextVar("model variable", default="unset")


@dataclass
class Lives:
    begun: int = 0
    ended: int = 0


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["open", "open", "step", "step", "step", "throw", "close", "drop", "cancel"]),
        st.integers(0, 2),  # which task does it
        st.integers(0, 3),  # to which of the open streams
        st.sampled_from(["stepped", "pumped", "timed", "thread"]),
    ),
    max_size=25,
)


class Thrown(Exception):
    pass


def kinds(lives: Lives) -> dict[str, Any]:
    """The kinds of stream, each of which sets a variable, and holds what it may hold."""

    @task
    async def stepped(to: int) -> AsyncIterator[int]:
        lives.begun += 1
        token = variable.set("stepped")
        try:
            for number in range(to):
                await checkpoint()
                yield number
        finally:
            variable.reset(token)
            lives.ended += 1

    @task(pump=True)
    async def pumped(to: int) -> AsyncIterator[int]:
        lives.begun += 1
        token = variable.set("pumped")
        try:
            async with anyio.create_task_group() as group:
                group.start_soon(anyio.sleep_forever)
                for number in range(to):
                    with anyio.CancelScope():
                        yield number
                group.cancel_scope.cancel()
        finally:
            variable.reset(token)
            lives.ended += 1

    @task
    def in_thread(to: int) -> Iterator[int]:
        lives.begun += 1
        token = variable.set("thread")
        try:
            yield from range(to)
        finally:
            variable.reset(token)
            lives.ended += 1

    timed = stepped.with_options(item_timeout=3600)
    return {"stepped": stepped, "pumped": pumped, "timed": timed, "thread": in_thread.to_thread}


@examples
@given(backend=BACKENDS, steps=STEPS, length=st.integers(0, 4))
def test_streams_in_any_order_from_any_task(backend: str, steps: list[Any], length: int) -> None:
    lives = Lives()
    make = kinds(lives)

    async def scenario(clock: VirtualClock) -> None:
        @dataclass
        class Open:
            stream: Any
            items: list[int] = field(default_factory=list)
            over: bool = False

        streams: list[Open] = []

        async def act(action: str, which: int, kind: str) -> None:
            if action == "open":
                streams.append(Open(make[kind](length)))
            elif streams:
                each = streams[which % len(streams)]
                if action == "step":
                    await step(each)
                elif action == "throw":
                    await throw(each)
                elif action == "close":
                    await each.stream.aclose()
                    each.over = True
                elif action == "cancel":
                    with anyio.CancelScope() as scope:
                        scope.cancel()
                        await step(each)
                    each.over = each.over or scope.cancelled_caught
                else:
                    streams.remove(each)
            assert variable.get() == "unset"

        async def step(each: Open) -> None:
            try:
                item = await anext(each.stream)
            except StopAsyncIteration:
                assert each.over or len(each.items) == length
                each.over = True
            else:
                assert not each.over
                assert item == len(each.items)
                each.items.append(item)

        async def throw(each: Open) -> None:
            try:
                await each.stream.athrow(Thrown())
            except (Thrown, StopAsyncIteration):
                each.over = True
            else:
                raise AssertionError("an error was thrown in, and did not come out")

        async def worker(receive: Any) -> None:
            async for action, which, kind, done in receive:
                await act(action, which, kind)
                done.set()

        async with AsyncExitStack() as stack, anyio.create_task_group() as group:
            workers = []
            for _ in range(3):
                send, receive = anyio.create_memory_object_stream[Any](1)
                stack.enter_context(receive)
                workers.append(stack.enter_context(send))
                group.start_soon(worker, receive)
            for action, who, which, kind in steps:
                done = anyio.Event()
                await workers[who].send((action, which, kind, done))
                await done.wait()
            for each in workers:
                each.close()
        streams.clear()

    run(backend, scenario)
    assert lives.begun == lives.ended
    assert variable.get() == "unset"


# Sessions, one inside the other, at random.

TREES = st.recursive(
    st.sampled_from(["call", "fail", "background", "background failure", "service", "stream", "cancel", "bind"]),
    lambda children: st.tuples(st.sampled_from(["session", "log", "group"]), st.lists(children, max_size=4)),
    max_leaves=12,
)


@task
async def leaf(seconds: float = 1) -> float:
    await anyio.sleep(seconds)
    return seconds


@task
async def broken() -> None:
    await anyio.sleep(1)
    raise Broken


@task
async def rows() -> AsyncIterator[int]:
    yield 1
    await anyio.sleep(1)
    yield 2


@examples
@given(backend=BACKENDS, tree=TREES, deadline=st.one_of(st.none(), st.integers(0, 6)))
def test_sessions_in_sessions(backend: str, tree: Any, deadline: int | None) -> None:
    assume(isinstance(tree, tuple))
    told: list[str] = []

    async def play(node: Any, s: Any) -> None:
        if not isinstance(node, str):
            kind, children = node
            await {"session": inner, "log": logging, "group": grouped}[kind](children, s)
        elif node == "call":
            assert await leaf() == 1
        elif node == "fail":
            with pytest.raises(TaskError):
                await broken()
        elif node == "background":
            s.start_soon(leaf, 2)
        elif node == "background failure":
            s.start_soon(broken)
        elif node == "service":
            s.start_service(leaf, 10_000)
        elif node == "stream":
            async for _ in rows():
                break
        elif node == "cancel":
            s.cancel()
            await checkpoint()
        else:
            async with s.bind():
                await leaf()
        assert current_session() is s
        assert current_task() is None

    async def inner(children: list[Any], outer: Any, **options: Any) -> None:
        begun = sum(stats(outer))
        try:
            async with session(**options) as s:
                told.append("entered")
                try:
                    for child in children:
                        await play(child, s)
                finally:
                    told.append("left")
        except (TaskError, ExceptionGroup) as exc:
            assert all(isinstance(each, Broken) for each in causes(exc))
        assert s.stats().running == 0
        assert sum(stats(outer)) >= begun + s.stats().started  # the outer counts what the inner does

    async def logging(children: list[Any], outer: Any) -> None:
        await inner(children, outer, on_background_error="log")

    async def grouped(children: list[Any], s: Any) -> None:
        async with anyio.create_task_group() as group:
            for child in children:
                group.start_soon(guarded, child, s)

    async def guarded(child: Any, s: Any) -> None:
        if child == "bind" or not isinstance(child, str):
            await play(child, s)  # a task of its own enters what is its own
        else:
            async with s.bind():
                pass

    async def scenario(clock: VirtualClock) -> None:
        outer = current_session()
        with anyio.move_on_after(deadline if deadline is None else deadline + 0.5):
            await play(tree if tree[0] != "group" else ("session", [tree]), outer)
        assert current_session() is outer
        assert clock.time() < 10_000

    run(backend, scenario)
    assert told.count("entered") == told.count("left")


def stats(s: Any) -> tuple[int, ...]:
    counted = s.stats()
    return (counted.running, counted.succeeded, counted.failed, counted.cancelled)


def causes(exc: BaseException) -> Iterator[BaseException]:
    if isinstance(exc, BaseExceptionGroup):
        for each in exc.exceptions:
            yield from causes(each)
    else:
        yield exc.__cause__ or exc
