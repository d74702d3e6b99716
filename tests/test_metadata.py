"""A call's description is made when it is read, and is a plain fact all the same."""

import copy
import dataclasses
import inspect
import pickle
from collections.abc import Callable
from typing import Any
from uuid import uuid4

import pytest

from daglite import TaskMetadata, current_task, session, task
from daglite.events import TaskStarted


@task(description="What it does.")
async def describe(number: int, other: int = 2) -> TaskMetadata | None:
    return current_task()


async def described() -> TaskMetadata:
    metadata = await describe(1)
    assert metadata is not None
    return metadata


@pytest.mark.parametrize(
    "made_again", [copy.copy, copy.deepcopy, lambda it: pickle.loads(pickle.dumps(it)), dataclasses.replace]
)
async def test_what_is_made_again_is_equal(made_again: Callable[[Any], Any]) -> None:
    metadata = await described()
    assert made_again(metadata) == metadata
    assert repr(made_again(metadata)) == repr(metadata)
    assert type(made_again(metadata)) is TaskMetadata


async def test_an_event_becomes_a_dictionary_with_all_that_it_says() -> None:
    async with session() as s, s.events() as events:
        await describe(1)
        event = await anext(events)
    assert isinstance(event, TaskStarted)
    facts = dataclasses.asdict(event)
    assert facts["metadata"] == {
        "id": event.metadata.id,
        "name": "describe",
        "backend": "inline",
        "inputs": {"number": 1, "other": 2},
        "description": "What it does.",
        "map_index": None,
        "parent_id": None,
        "is_async": True,
        "is_generator": False,
        "is_background": False,
    }


async def test_it_is_frozen_and_has_no_other_attributes() -> None:
    for metadata in (await described(), TaskMetadata(uuid4(), "by hand")):
        with pytest.raises(dataclasses.FrozenInstanceError):
            metadata.name = "another"  # type: ignore[misc]
        with pytest.raises(AttributeError, match="a TaskMetadata has no 'nmae'"):
            metadata.nmae  # type: ignore[attr-defined]
        assert not hasattr(metadata, "__dict__")


async def test_a_name_is_that_of_the_arguments_when_the_call_began() -> None:
    @task(name="sum of {numbers}")
    async def total(numbers: list[int]) -> TaskMetadata | None:
        metadata = current_task()
        numbers.append(3)
        return metadata

    async with session():
        metadata = await total([1, 2])
    assert metadata is not None
    assert metadata.name == "sum of [1, 2]"


def plain(a: Any, b: Any, c: Any = 3, d: Any = 4) -> Any: ...
def none() -> Any: ...
def only_defaults(a: Any = 1) -> Any: ...
def positional(a: Any, /, b: Any = 2) -> Any: ...
def keywords(a: Any, *, b: Any = 2) -> Any: ...
def variadic(a: Any, *args: Any, **kwargs: Any) -> Any: ...


class Ambiguous:
    """Cannot be compared, as arrays cannot."""

    def __eq__(self, other: object) -> bool:
        raise ValueError("compared")

    __hash__ = None  # type: ignore[assignment]


ODD = Ambiguous()


@pytest.mark.parametrize(
    ("func", "args", "kwargs"),
    [
        (plain, (1, 2), {}),
        (plain, (1, 2, 5), {}),
        (plain, (1, 2, 5, 6), {}),
        (plain, (ODD, ODD), {}),
        (plain, (1,), {"b": 2}),
        (plain, (), {"b": 2, "a": 1, "d": 9}),
        (none, (), {}),
        (only_defaults, (), {}),
        (only_defaults, (ODD,), {}),
        (positional, (1,), {}),
        (positional, (1,), {"b": 5}),
        (keywords, (1,), {"b": 5}),
        (variadic, (1,), {}),
        (variadic, (1, 2, 3), {"x": 4}),
    ],
)
def test_inputs_are_what_python_binds(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    seen: list[Any] = []

    def noted(*_: Any, **__: Any) -> None:
        current = current_task()
        assert current is not None
        seen.append(current.inputs)

    noted.__signature__ = inspect.signature(func)  # type: ignore[attr-defined]
    task(noted)(*args, **kwargs)
    bound = inspect.signature(func).bind(*args, **kwargs)
    bound.apply_defaults()
    (inputs,) = seen
    assert list(inputs) == list(bound.arguments)
    assert all(inputs[name] is value or inputs[name] == value for name, value in bound.arguments.items())
