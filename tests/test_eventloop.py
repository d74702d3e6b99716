"""Event loops, for threads that want something of them."""

import sys
import threading
from types import ModuleType

import anyio
import anyio.to_thread
import pytest

from daglite import _eventloop, task
from daglite._eventloop import Loop, LoopEnded, in_event_loop, running_loop, running_task
from daglite.exceptions import TaskError


async def loop_of() -> Loop:
    return Loop()


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_one_that_has_ended_is_not_waited_for(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_eventloop, "LOOK_EVERY", 0.01)
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


def test_what_another_thread_is_about_to_import_does_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("asyncio", "trio", "sniffio", "concurrent.futures"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    assert (running_loop(), running_task(), in_event_loop()) == (None, None, False)

    @task(timeout=30)
    def fail() -> None:
        raise KeyError

    with pytest.raises(TaskError, match="KeyError"):
        fail()
