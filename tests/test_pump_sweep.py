"""Pumped streams, cancelled once at each point of their lives: every generator that has begun has ended, in its own task."""

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from contextvars import ContextVar
from functools import partial

import anyio
import pytest
from anyio.lowlevel import checkpoint

from daglite import session, task
from daglite.events import TaskFailed
from tests import sweep

variable: ContextVar[str] = ContextVar("variable", default="unset")


class Lives:
    """What has begun, and what has ended, in which task and with which variable set."""

    def __init__(self) -> None:
        self.begun: Counter[str] = Counter()
        self.ended: Counter[str] = Counter()

    @asynccontextmanager
    async def one(self, name: str) -> AsyncIterator[None]:
        here = anyio.get_current_task().id
        token = variable.set(name)
        self.begun[name] += 1
        try:
            yield
        finally:
            assert anyio.get_current_task().id == here
            variable.reset(token)
            try:
                with anyio.CancelScope(shield=True):  # which is none to asyncio's own cancellation
                    await checkpoint()
            finally:
                self.ended[name] += 1


lives: ContextVar[Lives] = ContextVar("lives")


@task(pump=True)
async def grouped(to: int) -> AsyncIterator[int]:
    """A task group across its yields, and a child that makes the items."""
    send, receive = anyio.create_memory_object_stream[int]()

    async def produce() -> None:
        async with lives.get().one("child"):
            with send:
                for number in range(to):
                    await send.send(number)

    async with lives.get().one("grouped"):
        with send, receive:
            async with anyio.create_task_group() as group:
                group.start_soon(produce)
                async for number in receive:
                    yield number


@task(pump=True)
async def scoped(to: int) -> AsyncIterator[int]:
    """Scopes across its yields, of which it cancels one itself."""
    async with lives.get().one("scoped"):
        for number in range(to):
            with anyio.CancelScope() as scope, anyio.CancelScope(shield=number == 1):
                await checkpoint()
                yield number
                if number == 2:
                    scope.cancel()
                await checkpoint()


@task(pump=True)
async def nested(to: int) -> AsyncIterator[int]:
    """Reads from others, of which one is left open for whoever owns this."""
    async with lives.get().one("nested"), grouped(to) as items:
        async for number in items:
            async with scoped(3) as others:
                async for other in others:
                    yield number + other
                    break


@task(item_timeout=60)
async def timed(to: int) -> AsyncIterator[int]:
    """Has a deadline for each item, which never passes."""
    async with lives.get().one("timed"), anyio.create_task_group() as group:
        group.start_soon(anyio.sleep_forever)
        for number in range(to):
            await checkpoint()
            yield number
        group.cancel_scope.cancel()


@task
async def stepped(to: int) -> AsyncIterator[int]:
    """Is no pumped stream, and reads from one."""
    async with lives.get().one("stepped"), scoped(to) as items:
        async for number in items:
            yield number


class Mine(Exception):
    pass


async def whole() -> None:
    async with nested(3) as items:
        assert [item async for item in items] == [0, 1, 2]
    async with scoped(4) as items:
        assert [item async for item in items] == [0, 1, 2, 3]


async def early() -> None:
    async with grouped(5) as items:
        async for item in items:
            if item == 1:
                break
    async with stepped(5) as others:
        assert await others.__anext__() == 0
        await checkpoint()


async def failing() -> None:
    with pytest.raises(Mine):
        async with nested(3) as items:
            async for item in items:
                if item == 1:
                    raise Mine


async def sent_and_thrown() -> None:
    async with grouped(5) as items:
        assert await items.asend(None) == 0
        assert await items.asend("anything") == 1
        with pytest.raises(Mine):
            await items.athrow(Mine())


async def from_other_tasks() -> None:
    async with grouped(5) as items:
        seen: list[int] = []

        async def step() -> None:
            seen.append(await items.__anext__())

        for _ in range(2):
            async with anyio.create_task_group() as group:
                group.start_soon(step)
        assert seen == [0, 1]
        async with anyio.create_task_group() as group:
            group.start_soon(items.aclose)


async def as_context_manager() -> None:
    async with session():
        async with asynccontextmanager(grouped)(1) as item:
            assert item == 0
            await checkpoint()
        with pytest.raises(Mine):
            async with asynccontextmanager(grouped)(2) as item:
                await checkpoint()
                raise Mine


async def left_to_the_session() -> None:
    async with session() as s:
        async for _ in grouped(3):
            break
        async with s.bind():
            async for _ in nested(3):
                break
        kept = scoped(3)
        assert await kept.__anext__() == 0


async def in_time() -> None:
    async with timed(3) as items:
        assert [item async for item in items] == [0, 1, 2]
    async with timed(3) as items:
        assert await items.__anext__() == 0


SCENARIOS = [in_time, whole, early, failing, sent_and_thrown, from_other_tasks, as_context_manager, left_to_the_session]


async def natively_from_outside(steps: int, scenario: sweep.Scenario) -> bool:
    """Cancel it by asyncio's own `Task.cancel`, after so many steps of the event loop."""
    running = asyncio.get_running_loop().create_task(scenario())
    for _ in range(steps):
        await asyncio.sleep(0)
    running.cancel()
    try:
        await running
    except asyncio.CancelledError:
        return True
    return False


@pytest.mark.parametrize("where", ["outside", "session"])
@pytest.mark.parametrize("scenario", SCENARIOS)
@pytest.mark.parametrize(
    ("anyio_backend", "cancelled"),
    [("asyncio", sweep.from_outside), ("trio", sweep.from_outside), ("asyncio", natively_from_outside)],
)
async def test_every_generator_that_has_begun_ends(
    cancelled: sweep.Cancelled, scenario: sweep.Scenario, where: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    before = sweep.running_tasks()
    for steps in range(sweep.MOST):
        counted, watch = Lives(), sweep.Watch()
        token = lives.set(counted)
        try:
            run = watch.in_session if where == "session" else watch.outside
            was_cancelled = await run(partial(cancelled, steps, scenario))
            await sweep.assert_scopes_are_whole(before)
            assert counted.begun == counted.ended
            assert variable.get() == "unset"
            assert not watch.recorder.of(TaskFailed)
        except BaseException as exc:
            raise AssertionError(f"cancelled at {steps}") from exc
        finally:
            lives.reset(token)
        if not was_cancelled:
            break
    assert 5 < steps < sweep.MOST - 1
    assert caplog.records == []
