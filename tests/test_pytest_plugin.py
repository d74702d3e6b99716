"""The pytest plugin, as a project sees it that has daglite installed and nothing in its configuration."""

import subprocess
import sys

import pytest

SUITE = """
import anyio
import pytest

from daglite import session, task
from daglite.events import TaskRetrying
from daglite.exceptions import TaskError

kept = []
pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("no_leaks")]


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request):
    return request.param


@task(retries=3, retry_delay=3600)
async def fetch():
    return "the page"


async def test_a_day_passes(virtual_clock):
    await anyio.sleep(24 * 3600)
    assert virtual_clock.time() == 24 * 3600


async def test_retries_wait_for_hours(virtual_clock, faults, recorded_events):
    faults.fail(fetch, ConnectionError, times=2)
    async with session():
        assert await fetch() == "the page"
    assert [event.delay for event in recorded_events.of(TaskRetrying)] == [3600, 3600]
    assert virtual_clock.time() == 7200


async def test_faults_are_gone():
    assert await fetch() == "the page"


def test_sync_code(no_waits, faults):
    faults.fail(fetch, ConnectionError, times=4)
    with session():
        with pytest.raises(TaskError, match="after 4 attempts"):
            fetch.from_thread()


async def test_a_leak():
    from daglite.testing import _leaks
    _leaks.PATIENCE = 0.1
    kept.append(open(__file__, "rb", buffering=0))
"""


def test_its_fixtures_are_there_for_async_and_sync_tests(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(SUITE)
    result = pytester.runpytest_subprocess("-W", "error", "-p", "no:cacheprovider")
    result.assert_outcomes(passed=9, errors=2)
    result.stdout.fnmatch_lines(["*the test left behind: file descriptor*"])


def test_it_imports_daglite_for_tests_that_ask_for_it_only(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        import sys

        def test_nothing_of_it():
            assert "daglite" not in sys.modules

        def test_something_of_it(no_waits):
            assert "daglite.testing" in sys.modules
        """
    )
    pytester.runpytest_subprocess("-p", "no:cacheprovider").assert_outcomes(passed=2)


def test_the_kit_needs_no_pytest() -> None:
    code = "import sys, daglite.testing; print([name for name in ('pytest', 'trio', 'asyncio') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=50)
    assert done.stdout.strip() == "[]"
