"""What is undone where something goes wrong in the middle, so that nobody is misled afterwards."""

import gc
import logging
from collections.abc import AsyncIterator, Iterator
from typing import Any

import anyio
import pytest
from anyio.lowlevel import checkpoint

from daglite import Limit, current_session, current_task, session, task
from daglite.exceptions import SessionError, TaskError
from daglite.plugins import hook_impl
from daglite.testing import VirtualClock


class Interrupt(BaseException):
    """What ends a program."""


@task
async def rows(to: int = 2) -> AsyncIterator[int]:
    for number in range(to):
        yield number


async def test_a_call_that_is_refused_is_not_current_afterwards() -> None:
    @task(timeout=30)
    def block() -> None: ...

    with pytest.raises(RuntimeError, match="to_thread"):
        block()
    assert current_task() is None
    async with session() as s:
        with pytest.raises(RuntimeError, match="to_thread"):
            block()
        assert current_task() is None
        assert current_session() is s


async def test_a_bind_does_not_hold_the_streams_that_have_ended_under_it() -> None:
    async with session() as s, s.bind():
        (binding,) = s._bindings
        assert [item async for item in rows()] == [0, 1]
        assert not binding.streams
        async with rows() as items:
            await anext(items)
            assert len(binding.streams) == 1
        assert not binding.streams


async def test_a_bind_that_is_refused_is_not_waited_for(
    virtual_clock: VirtualClock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)

    async def late() -> None:
        while not s._home.leaving:
            await checkpoint()
        with pytest.raises(SessionError, match="after it has begun to end"):
            await s.bind().__aenter__()

    async with session() as s:
        s.start_soon(late)
    assert virtual_clock.time() == 0
    assert caplog.records == []


async def test_what_ends_a_program_comes_out_of_a_bind_that_closes_streams() -> None:
    @task
    async def fatal() -> AsyncIterator[int]:
        try:
            yield 1
        finally:
            raise Interrupt

    async with session() as s:
        with pytest.raises(Interrupt):
            async with s.bind():
                async for _ in fatal():
                    break
        assert not s._bindings


class States:
    """A plugin that asks what a call waits for when it has been cancelled."""

    def __init__(self) -> None:
        self.states: list[str] = []

    @hook_impl
    def on_node_cancelled(self) -> None:
        s = current_session()
        assert s is not None
        self.states += [call.state for call in s.tree()]


@pytest.mark.parametrize("in_thread", [False, True])
async def test_a_call_that_is_cancelled_does_not_wait_any_more(in_thread: bool) -> None:
    limit = Limit("held", 1)

    @task(limit=limit)
    async def wait() -> None: ...

    plugin = States()
    async with session(plugins=[plugin]) as s:
        limit._tokens.enter()
        async with anyio.create_task_group() as group:
            if in_thread:
                group.start_soon(task(wait.from_thread, name="back").to_thread)  # type: ignore[call-overload]
            else:
                group.start_soon(wait)
            while not limit.tasks_waiting:
                await anyio.sleep(0.001)
            assert "waiting for a limit" in [call.state for call in s.tree()]
            group.cancel_scope.cancel()
        limit._tokens.give_back()
    assert plugin.states
    assert "waiting for a limit" not in plugin.states


def test_an_interrupt_in_a_wait_for_a_limit_comes_out(monkeypatch: pytest.MonkeyPatch) -> None:
    limit = Limit("held", 1)
    ran: list[int] = []
    append = task(limit=limit)(ran.append)

    def interrupt(waiter: Any) -> float:
        raise Interrupt

    limit._tokens.enter()
    monkeypatch.setattr(limit._tokens, "delay", interrupt)
    with pytest.raises(Interrupt):
        append(1)
    assert (ran, limit.tasks_waiting) == ([], 0)
    limit._tokens.give_back()
    assert limit.available_tokens == 1


def test_what_has_failed_in_place_is_not_left_in_cycles() -> None:
    @task(total_timeout=30, retries=2)
    def fail() -> None:
        raise ValueError

    @task
    def broken() -> Iterator[int]:
        yield 1
        raise ValueError

    def several() -> None:
        for _ in range(20):
            with pytest.raises(TaskError):
                fail()
            with pytest.raises(TaskError):
                list(broken())

    several()
    gc.collect()
    gc.disable()
    try:
        before = len(gc.get_objects())
        several()
        assert len(gc.get_objects()) - before < 40
    finally:
        gc.enable()
