"""What an item of a stream costs, as a multiple of an item of the bare thing: a memory object stream, `for`, a hop into a thread.

    python benchmarks/streams.py
    python benchmarks/streams.py --rounds 5 --event-loop trio

Every round measures everything once, and each ratio is to the bare thing of the same round; what is printed are the medians
over the rounds. So what else the machine does meets all alike.
"""

import time
from collections.abc import AsyncIterable, AsyncIterator, Iterable, Iterator

import anyio
import anyio.to_thread
from anyio.abc import ObjectSendStream
from rounds import arguments, measure, show

from daglite import session, task

ITEMS = 4_000
HOPS = 400


async def numbers(count: int) -> AsyncIterator[int]:
    for number in range(count):
        yield number


def numbers_sync(count: int) -> Iterator[int]:
    yield from range(count)


stepped = task(numbers)
pumped = task(pump=True)(numbers)
timed = task(item_timeout=30)(numbers)
in_place = task(numbers_sync)


async def seconds_of(items: AsyncIterable[int], count: int = ITEMS) -> float:
    """Seconds that one item takes, on average."""
    began = time.perf_counter()
    async for _ in items:
        pass
    return (time.perf_counter() - began) / count


def seconds_of_sync(items: Iterable[int]) -> float:
    """The same of what is iterated over in place."""
    began = time.perf_counter()
    for _ in items:
        pass
    return (time.perf_counter() - began) / ITEMS


async def seconds_of_memory_stream() -> float:
    """Seconds that an item takes through a memory object stream without a buffer, from another task."""

    async def produce(send: ObjectSendStream[int]) -> None:
        async with send:
            for number in range(ITEMS):
                await send.send(number)

    send, receive = anyio.create_memory_object_stream[int]()
    async with anyio.create_task_group() as group, receive:
        group.start_soon(produce, send)
        took = await seconds_of(receive)
    return took


async def seconds_of_hop() -> float:
    """Seconds that it takes to a worker thread and back."""
    began = time.perf_counter()
    for number in range(HOPS):
        await anyio.to_thread.run_sync(abs, number)
    return (time.perf_counter() - began) / HOPS


async def one_round() -> dict[str, float]:
    """Seconds of everything, measured once."""
    took = {"memory object stream": await seconds_of_memory_stream()}
    took["async generator"] = await seconds_of(numbers(ITEMS))
    took["stepped"] = await seconds_of(stepped(ITEMS))
    for name, stream in (("pumped", pumped), ("item_timeout=30", timed)):
        async with stream(ITEMS) as items:
            took[name] = await seconds_of(items)
    async with session():
        took["stepped, in a session"] = await seconds_of(stepped(ITEMS))
        took["pumped, in a session"] = await seconds_of(pumped(ITEMS))
    took["generator"] = seconds_of_sync(numbers_sync(ITEMS))
    took["sync stream"] = seconds_of_sync(in_place(ITEMS))
    took["anyio.to_thread.run_sync"] = await seconds_of_hop()
    took["sync stream, to_thread"] = await seconds_of(in_place.to_thread(HOPS), HOPS)
    return took


BARE = {
    **dict.fromkeys(("generator", "sync stream"), "generator"),
    **dict.fromkeys(("anyio.to_thread.run_sync", "sync stream, to_thread"), "anyio.to_thread.run_sync"),
}


def main() -> None:
    event_loops, rounds = arguments("Measure what an item of a stream costs.")
    for event_loop in event_loops:
        show(event_loop, anyio.run(measure, one_round, rounds, backend=event_loop), BARE, "memory object stream")


if __name__ == "__main__":
    main()
