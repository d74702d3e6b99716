"""Pickling by reference: a task travels as the name under which it can be imported."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ._spec import Spec

__all__ = ["reduce_partial", "reduce_task"]


def reduce_task(task: Any, spec: Spec) -> tuple[Any, ...]:
    """What pickle is to store of a task, or of one that was taken from an object or a class.

    Raises:
        pickle.PicklingError: The name of the task's function does not lead to the task.
    """
    owner = spec.function.owner
    if owner is None:
        load: Any = load_task
        where: tuple[Any, str] = (task.__module__, task.__qualname__)
        found = _imported(*where)
    else:
        load = load_method
        where = (owner, task.__name__)
        found = getattr(owner, task.__name__, None)
    if type(found) is not type(task) or found._spec.func != spec.func:
        import pickle  # not by `import daglite`

        raise pickle.PicklingError(
            f"task {spec.label!r} cannot be pickled: {task.__module__}:{task.__qualname__} is not this task. Tasks "
            f"are pickled by reference, so define it at the top level of a module or class, under its own name"
        )
    return load, (*where, _changes(found._spec, spec))


def reduce_partial(source: Any, spec: Spec, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[Any, ...]:
    """What pickle is to store of a task with fixed arguments: the task that they were fixed of, and they."""
    return load_partial, (source, args, dict(kwargs), _changes(source._spec, spec))


def load_task(module: str, qualname: str, changes: Mapping[str, Any]) -> Any:
    """Find a task again."""
    found: Any = import_module(module)
    for part in qualname.split("."):
        found = getattr(found, part)
    return found.with_options(**changes) if changes else found


def load_method(owner: Any, name: str, changes: Mapping[str, Any]) -> Any:
    """Find the task of an object, or of a class, again."""
    found = getattr(owner, name)
    return found.with_options(**changes) if changes else found


def load_partial(source: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], changes: Mapping[str, Any]) -> Any:
    """Fix the arguments of a task again."""
    made = source.partial(*args, **kwargs)
    return made.with_options(**changes) if changes else made


def _imported(module: str, qualname: str) -> Any:
    """What a name stands for now; `None` if for nothing."""
    try:
        found: Any = sys.modules[module]
        for part in qualname.split("."):
            found = getattr(found, part)
    except (AttributeError, KeyError):
        return None
    return found


def _changes(found: Spec, spec: Spec) -> dict[str, Any]:
    """The options that a `with_options` copy has of its own."""
    before = found.options.as_given()
    return {key: value for key, value in spec.options.as_given().items() if value != before[key]}
