"""The fixture `no_leaks`: each kind of leak fails its test, on both event loops, and only that."""

import pytest

HEADER = """
import asyncio, functools, gc, os, subprocess, sys, threading, trio
import anyio, anyio.from_thread, anyio.lowlevel, anyio.to_thread
KEPT = []
"""


CONFTEST = """
import pytest
from daglite.testing import _leaks

_leaks.PATIENCE = 0.5

@pytest.fixture(scope="module", params=["asyncio", "trio"])
def anyio_backend(request):
    return request.param
"""


def run_suite(pytester: pytest.Pytester, source: str) -> pytest.RunResult:
    """Run tests in a process of their own, as those of a project that has daglite installed."""
    pytester.makeini("[pytest]\nanyio_mode = auto\nfilterwarnings = error\nusefixtures = no_leaks\n")
    pytester.makeconftest(CONFTEST)
    path = pytester.makepyfile(test_suite=HEADER + source)
    return pytester.runpytest_subprocess(path, "-p", "no:cacheprovider")


def test_a_test_that_leaves_nothing_passes_on_both_event_loops(pytester: pytest.Pytester) -> None:
    result = run_suite(
        pytester,
        """
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
""",
    )
    result.assert_outcomes(passed=3)


def test_what_is_left_behind_fails_the_test_that_left_it(pytester: pytest.Pytester) -> None:
    result = run_suite(
        pytester,
        """
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
""",
    )
    result.assert_outcomes(passed=14, errors=12)
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


def test_the_leaks_of_a_failed_test_do_not_hide_its_own_error(pytester: pytest.Pytester) -> None:
    result = run_suite(
        pytester,
        """
async def test_fails():
    os.open(os.devnull, os.O_RDONLY)
    raise ValueError("the reason")

async def test_next():
    pass
""",
    )
    result.assert_outcomes(passed=2, failed=2)
    assert "left behind" not in result.stdout.str()
