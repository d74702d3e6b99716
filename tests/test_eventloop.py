"""Event loops, for threads that want something of them."""

import threading

import anyio
import anyio.to_thread
import pytest

from daglite import _eventloop
from daglite._eventloop import Loop, LoopEnded


async def loop_of() -> Loop:
    return Loop()


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_one_that_has_ended_is_not_waited_for(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_eventloop, "PATIENCE", 0.01)
    loop = anyio.run(loop_of, backend=backend)
    assert loop.post(print) is False
    assert loop.wait(threading.Event()) is False
    with pytest.raises(LoopEnded):
        loop.call(print)


async def test_what_a_thread_calls_in_it_runs_there_and_comes_out_in_the_thread() -> None:
    loop = Loop()

    def fail() -> None:
        raise KeyError(threading.get_ident())

    def work() -> None:
        assert loop.call(threading.get_ident) == here
        with pytest.raises(KeyError, match=str(here)):
            loop.call(fail)

    here = threading.get_ident()
    await anyio.to_thread.run_sync(work)
