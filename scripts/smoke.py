"""Use daglite as it was installed, without any extra; `scripts/package` runs it in a clean environment."""

import importlib.metadata
import importlib.util
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import anyio

import daglite
import daglite.plugins
import daglite.testing
from daglite import gather_tasks, map_tasks, session, task
from daglite.events import TaskSucceeded
from daglite.exceptions import TaskError


@task(retries=2, timeout=10)
async def double(number: int) -> int:
    return 2 * number


@task
def triple(number: int) -> int:
    return 3 * number


@task
async def count(end: int) -> AsyncIterator[int]:
    for number in range(end):
        yield number


@task(retries=1)
async def fail() -> None:
    raise ValueError("as it must")


async def main() -> None:
    succeeded = []

    async def follow(events: AsyncIterator[object]) -> None:
        async for event in events:
            if isinstance(event, TaskSucceeded):
                succeeded.append(event.metadata.name)

    async with session() as s:
        s.watch(follow)
        assert await gather_tasks(double, range(3), limit=2) == [0, 2, 4]
        assert await triple.to_thread(2) == 6
        assert [number async for number in count(3)] == [0, 1, 2]
        try:
            await fail()
        except TaskError as error:
            assert error.attempts == 2
            assert isinstance(error.__cause__, ValueError)
        else:
            raise AssertionError("it has not failed")
    assert sorted(succeeded) == ["count", "double[0]", "double[1]", "double[2]", "triple"], succeeded


package = Path(daglite.__file__).parent
assert "site-packages" in package.parts, f"this is not the installed package: {package}"
assert (package / "py.typed").exists(), "type checkers would not look at it"
assert importlib.util.find_spec("trio") is None, "this environment is not clean"
assert importlib.util.find_spec("pytest") is None, "this environment is not clean"
plugins = [found.value for found in importlib.metadata.entry_points(group="pytest11") if found.name == "daglite"]
assert plugins == ["_daglite_pytestplugin"], plugins
assert importlib.util.find_spec("_daglite_pytestplugin"), "pytest would not find the plugin"
top_level = {path.parts[0] for path in importlib.metadata.files("daglite") or () if path.suffix == ".py"}
assert top_level == {"daglite", "_daglite_pytestplugin.py"}, top_level
anyio.run(main)
assert map_tasks(double, [1, 2]) == [2, 4]
try:
    with session(event_loop="trio"):
        raise AssertionError("there is no Trio here")
except ImportError as error:
    assert "daglite[trio]" in str(error), error
print(f"daglite {importlib.metadata.version('daglite')} works on Python {sys.version.split()[0]}")
