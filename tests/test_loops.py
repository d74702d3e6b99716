"""The same programs on every event loop, and in every order in which that may run tasks, come to the same.

`DAGLITE_SEEDS` is how many orders of asyncio's ready queue are tried.
"""

import asyncio
import importlib.util
import os
import random
import re
import sys
from collections import defaultdict
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import anyio
import pytest

from daglite import session
from daglite.events import (
    DatasetSaved,
    Event,
    ItemYielded,
    SessionEnded,
    SessionStarted,
    TaskCancelled,
    TaskEvent,
    TaskFailed,
    TaskReported,
    TaskRetrying,
    TaskSucceeded,
)
from daglite.testing import EventRecorder, VirtualClock
from tests import scenarios

SEEDS = int(os.environ.get("DAGLITE_SEEDS", "3"))
REAL_UNIT = 0.05  # seconds, where there is no virtual clock


class Shuffled(asyncio.SelectorEventLoop):
    """Runs the tasks that are ready in a random order, as Trio does; what is no step of a task keeps its place."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self._dice = random.Random(seed)

    def _run_once(self) -> None:
        ready: Any = self._ready  # type: ignore[attr-defined]
        handles = list(ready)
        places = [number for number, handle in enumerate(handles) if is_step(handle)]
        steps = [handles[place] for place in places]
        self._dice.shuffle(steps)
        for place, handle in zip(places, steps, strict=True):
            handles[place] = handle
        ready.clear()
        ready.extend(handles)
        super()._run_once()  # type: ignore[misc]


def is_step(handle: Any) -> bool:
    return isinstance(getattr(handle._callback, "__self__", None), asyncio.Task)


def eager_loop() -> asyncio.AbstractEventLoop:
    loop = asyncio.new_event_loop()
    loop.set_task_factory(asyncio.eager_task_factory)  # type: ignore[attr-defined, unused-ignore]
    return loop


def uvloop_loop() -> asyncio.AbstractEventLoop:
    import uvloop  # type: ignore[import-not-found, unused-ignore]

    return uvloop.new_event_loop()  # type: ignore[no-any-return, unused-ignore]


LOOPS: dict[str, Callable[[], Any] | None] = {"trio": None}
LOOPS |= {f"shuffled {seed}": (lambda seed=seed: Shuffled(seed)) for seed in range(SEEDS)}  # type: ignore[misc]
if sys.version_info >= (3, 12):
    LOOPS["eager"] = eager_loop
if importlib.util.find_spec("uvloop"):
    LOOPS["uvloop"] = uvloop_loop
    uvloop_loop().close()  # the first makes a pipe that stays


def come_to(scenario: scenarios.Scenario, loop: str) -> Any:
    """What a scenario returns or raises in a session, and what is told of its calls."""

    async def main() -> str:
        with VirtualClock() if loop != "uvloop" else nullcontext():
            async with session(name="outer"):
                return await scenarios.outcome_of(scenario())

    factory = asyncio.new_event_loop if loop == "asyncio" else LOOPS[loop]
    token = scenarios.unit.set(REAL_UNIT if loop == "uvloop" else 1.0)
    try:
        with EventRecorder() as recorder:
            if factory is None:
                outcome = anyio.run(main, backend="trio")
            else:
                outcome = anyio.run(main, backend_options={"loop_factory": factory})
    finally:
        scenarios.unit.reset(token)
    return without_own_words(outcome), told(recorder.events)


def without_own_words(text: str) -> str:
    """A text without what an event loop calls a group of errors, and without seconds, which are no virtual ones everywhere."""
    return re.sub(
        r"of [\d.]+ s", "of … s", text.replace("Exceptions from Trio nursery", "unhandled errors in a TaskGroup")
    )


def told(events: list[Event]) -> list[Any]:
    """The events of each call, in their order, with the names of the calls around it; the calls in no order."""
    names: dict[Any, str] = {}
    parents: dict[Any, Any] = {}
    of_call: dict[Any, list[str]] = defaultdict(list)
    for event in events:
        if isinstance(event, (TaskEvent, DatasetSaved)):
            assert event.metadata is not None
            names[event.metadata.id], parents[event.metadata.id] = event.metadata.name, event.metadata.parent_id
            of_call[event.metadata.id].append(line_of(event))
        else:
            assert isinstance(event, (SessionStarted, SessionEnded))
            of_call[event.session_id].append(line_of(event))
            names[event.session_id], parents[event.session_id] = f"session {event.name}", None
    return sorted((path_of(id, names, parents), lines) for id, lines in of_call.items())


def path_of(id: Any, names: dict[Any, str], parents: dict[Any, Any]) -> str:
    parent = parents[id]
    return names[id] if parent is None else f"{path_of(parent, names, parents)} / {names[id]}"


def line_of(event: Event) -> str:
    facts: tuple[Any, ...] = ()
    match event:
        case DatasetSaved():
            facts = (event.key,)
        case TaskSucceeded():
            facts = event.attempts, event.items, event.closed
        case TaskFailed() | TaskCancelled():
            facts = event.attempts, getattr(event, "error", None)
        case TaskRetrying():
            facts = event.attempt, event.error
        case ItemYielded():
            facts = (event.index,)
        case TaskReported():
            facts = event.type, event.data
    return without_own_words(" ".join(map(str, (type(event).__name__, *facts))))


@pytest.fixture(scope="module")
def on_asyncio() -> dict[str, Any]:
    return {}


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("scenario", scenarios.SCENARIOS, ids=lambda each: each.__name__)
def test_a_program_comes_to_the_same(scenario: scenarios.Scenario, loop: str, on_asyncio: dict[str, Any]) -> None:
    name = scenario.__name__
    if name not in on_asyncio:
        on_asyncio[name] = come_to(scenario, "asyncio")
    assert come_to(scenario, loop) == on_asyncio[name]
