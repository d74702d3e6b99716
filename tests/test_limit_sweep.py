"""Limits and rates under cancellation at every point, and from many threads and event loops at once: no token is lost."""

import random
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import anyio
import pytest
from anyio.lowlevel import checkpoint

from daglite import Limit, Rate, gather_tasks, race_tasks, session, stream_tasks, task
from daglite.exceptions import TaskError
from tests import sweep


class Inside:
    """How many are inside at once, and that it is no more than may be."""

    def __init__(self, allowed: int) -> None:
        self.allowed = allowed
        self.now = 0
        self._lock = threading.Lock()

    @contextmanager
    def __call__(self) -> Iterator[None]:
        with self._lock:
            self.now += 1
            assert self.now <= self.allowed
        try:
            yield
        finally:
            with self._lock:
                self.now -= 1


async def scenario(limit: Limit, rate: Rate) -> None:
    inside = Inside(limit.total_tokens)

    @task(limit=limit, rate=rate, retries=1)
    async def work(number: int) -> int:
        with inside():
            await checkpoint()
            if number == 3:
                raise ValueError("no")
            return number

    @task(limit=limit, timeout=30)
    def in_thread(number: int) -> int:
        with inside():
            return number

    @task(limit=limit)
    async def rows(to: int) -> AsyncIterator[int]:
        for number in range(to):
            await checkpoint()
            yield number

    async with session() as s:
        for number in range(2):
            s.start_soon(work, number)
        await gather_tasks(work, range(5), errors="collect")
        assert await race_tasks(work.call(1), work.call(2), work.call(3)) in (1, 2)
        async with stream_tasks(rows, range(4), limit=3) as lists:
            async for _ in lists:
                break
        async with anyio.create_task_group() as group:
            group.start_soon(in_thread.to_thread, 1)
            async for _ in rows.with_options(pump=True)(3):
                await checkpoint()
        await gather_tasks(in_thread, range(3))
        with pytest.raises(TaskError):
            await work(3)


async def test_no_token_is_lost_wherever_a_call_is_cancelled() -> None:
    cancelled = 0
    for steps in range(100):
        limit, rate = Limit("sweep", 2), Rate(1_000_000)
        watch = sweep.Watch(limit, rate)
        cancelled += await watch.outside(partial(sweep.from_outside, steps, partial(scenario, limit, rate)))
    assert cancelled > 20


def test_no_token_is_lost_between_threads_and_event_loops() -> None:
    limit = Limit("shared", 3)
    inside = Inside(3)
    failures: list[BaseException] = []

    @task(limit=limit)
    async def awaited(pause: float) -> None:
        with inside():
            await anyio.sleep(pause)

    @task(limit=limit)
    def in_place(pause: float) -> None:
        with inside():
            threading.Event().wait(pause)

    @task(limit=limit, total_timeout=0.005)
    def in_time() -> None:
        pass  # an attempt that is abandoned gives its token back, and goes on inside

    async def loop(seed: int) -> None:
        dice = random.Random(seed)
        async with anyio.create_task_group() as group:
            for number in range(40):
                group.start_soon(one, dice.random() / 500, dice.random() / 100, number)

    async def one(pause: float, deadline: float, number: int) -> None:
        with anyio.move_on_after(deadline):
            if number % 3 == 0:
                await in_place.to_thread(pause)
            else:
                await awaited(pause)

    def thread(seed: int) -> None:
        dice = random.Random(seed)
        for _ in range(20):
            in_place(dice.random() / 500)
            try:
                in_time()
            except TaskError:
                pass

    def guarded(func: Any, *args: Any) -> None:
        try:
            func(*args)
        except BaseException as exc:
            failures.append(exc)

    def in_loop(backend: str, seed: int) -> None:
        anyio.run(loop, seed, backend=backend)

    threads = [
        *(threading.Thread(target=guarded, args=(thread, seed)) for seed in range(2)),
        *(
            threading.Thread(target=guarded, args=(in_loop, loop, seed))
            for seed, loop in enumerate(("asyncio", "trio"))
        ),
    ]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert failures == []
    assert (limit.available_tokens, limit.tasks_waiting) == (3, 0)
