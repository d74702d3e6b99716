"""The fixture `no_leaks`: each kind of leak fails its test, on both event loops, and only that."""

import pytest

HEADER = """
import asyncio, functools, gc, os, subprocess, sys, threading, trio
import anyio, anyio.from_thread, anyio.lowlevel, anyio.to_thread
import pytest
from daglite.testing import _leaks

KEPT = []

@pytest.fixture(autouse=True)
def patience():
    _leaks.PATIENCE = 2.0 if "clean" in __name__ else 0.1  # until the next test
"""
CONFTEST = """
import pytest

@pytest.fixture(scope="module", params=["asyncio", "trio"])
def anyio_backend(request):
    return request.param
"""
CLEAN = """
async def test_clean(anyio_backend_name):
    send, receive = anyio.create_memory_object_stream(1)
    with send, receive:
        async with anyio.create_task_group() as tg:
            tg.start_soon(send.send, 1)
            assert await receive.receive() == 1
    await anyio.to_thread.run_sync(threading.get_ident)
    await anyio.run_process([sys.executable, "-c", ""])
    with open(os.devnull):
        pass

def test_sync():
    threading.Thread(target=threading.get_ident).start()
"""
LEFT = """
async def test_thread():
    threading.Thread(target=threading.Event().wait, name="forgotten thread", daemon=True).start()

async def test_child_process():
    # It ends when the run does, and its standard input closes.
    command = [sys.executable, "-c", "input()"]
    KEPT.append(subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.DEVNULL))

async def test_file_descriptor():
    os.open(os.devnull, os.O_RDONLY)

async def forgotten():
    await anyio.sleep(600)

async def test_task(anyio_backend_name):
    if anyio_backend_name == "asyncio":
        KEPT.append(asyncio.create_task(forgotten(), name="forgotten task"))
    else:
        trio.lowlevel.spawn_system_task(forgotten, name="forgotten task")
    await anyio.lowlevel.checkpoint()

def hang(began):
    anyio.from_thread.run_sync(began.set)
    KEPT[-1].wait()

async def test_abandoned_thread():
    KEPT.append(threading.Event())
    began = anyio.Event()
    async with anyio.create_task_group() as tg:
        run = functools.partial(anyio.to_thread.run_sync, abandon_on_cancel=True)
        tg.start_soon(run, hang, began)
        await began.wait()
        tg.cancel_scope.cancel()

async def test_stream_in_a_cycle():
    gc.disable()  # else the collector may come by itself, while the test still runs
    send, receive = anyio.create_memory_object_stream(1)
    send.close()
    cycle = [receive]
    cycle.append(cycle)

async def test_next():
    KEPT[-1].set()  # the interpreter would wait for the thread
"""
FAILED = """
async def test_fails():
    os.open(os.devnull, os.O_RDONLY)
    raise ValueError("the reason")

async def test_next():
    pass
"""


def test_what_is_left_behind_fails_the_test_that_left_it(pytester: pytest.Pytester) -> None:
    """In a process of its own, as in a project that has daglite installed."""
    pytester.makeini("[pytest]\nanyio_mode = auto\nfilterwarnings = error\nusefixtures = no_leaks\n")
    pytester.makeconftest(CONFTEST)
    pytester.makepyfile(test_clean=HEADER + CLEAN, test_left=HEADER + LEFT, test_failed=HEADER + FAILED)
    result = pytester.runpytest_subprocess("-p", "no:cacheprovider", "-v")
    output = result.stdout.str()
    result.assert_outcomes(passed=3 + 14 + 2, errors=12, failed=2)
    # The leaks of a failed test do not hide its own error.
    assert output.count("ValueError: the reason") >= 2
    assert "ERROR at teardown of test_fails" not in output
    for event_loop in ("asyncio", "trio"):
        for name in ("thread", "child_process", "file_descriptor", "task", "abandoned_thread", "stream_in_a_cycle"):
            result.stdout.fnmatch_lines_random([f"*ERROR at teardown of test_{name}?{event_loop}?*"])
    for what in (
        "thread 'forgotten thread'",
        r"child process \d+ \(.*input",
        r"file descriptor \d+ \(/dev/null\)",
        "task 'forgotten task'",
        "thread '(AnyIO worker thread|.*test_abandoned_thread.*)'",
        "ResourceWarning: Unclosed <MemoryObjectReceiveStream",
    ):
        result.stdout.re_match_lines_random([rf".*{what}.*"])
