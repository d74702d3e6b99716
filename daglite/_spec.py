"""What a task is: its function and its options."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any

from ._functions import Function
from ._gates import Gate
from ._options import Options, dataset_placeholders
from ._templates import placeholders, render

__all__ = ["Spec"]


class Spec:
    """A function and the options that make it a task. It never changes."""

    def __init__(self, function: Function, options: Options) -> None:
        self.function: Function = function
        self.options: Options = options
        # What a call looks at, without a step in between.
        self.func: Any = function.call
        self.retries: int = options.retries
        self.timeout: float | None = options.timeout
        self.total_timeout: float | None = options.total_timeout
        self.item_timeout: float | None = options.item_timeout
        self.is_async: bool = function.is_async
        self.is_generator: bool = function.is_generator
        # What its attempts, or a stream, wait for: a limit, a rate, both, or nothing as most do.
        self.gates: tuple[Gate, ...] = () if options.limit is None and options.rate is None else options.gates
        # Whether an attempt is all of a call.
        self.is_single: bool = not self.retries and self.total_timeout is None and not self.gates
        self.is_cached: bool = options.cache is not False
        # Whether anything happens to a result but that it is returned.
        self.is_kept: bool = self.is_cached or options.dataset is not None
        # As in `Options.deadlines`, but quickly: whenever a method is called this is made.
        self.is_bounded: bool = not (self.timeout is None and self.total_timeout is None and self.item_timeout is None)
        self.is_plain: bool = self.is_single and not self.is_bounded
        self.is_pumped: bool = options.pump or (self.is_async and self.item_timeout is not None)
        self.description: str | None = options.description

    def bound_to(self, owner: Any) -> Spec:
        """The same task as a method of an object."""
        return Spec(self.function.bound_to(owner), self.options)

    @cached_property
    def placeholders(self) -> frozenset[str]:
        """The placeholders in the name."""
        available = (*self.function.parameters, "map_index")
        return placeholders(self.options.name, available, f"task {self.options.name!r}: name")

    @cached_property
    def dataset_placeholders(self) -> frozenset[str]:
        """The placeholders in the key of its dataset."""
        assert self.options.dataset is not None
        return dataset_placeholders(self.function, self.options.dataset, f"task {self.options.name!r}: dataset")

    @cached_property
    def label(self) -> str:
        """What messages call the task, whatever its calls are called."""
        return self.options.name if self.placeholders else render(self.options.name, {})

    def inputs_of(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """The arguments of one call by parameter name."""
        return self.function.inputs(args, kwargs)

    def name_of(self, inputs: Callable[[], Mapping[str, Any]], map_index: int | None) -> str:
        """The name of one call: the template filled in, or `name[3]` in a fan-out.

        Args:
            inputs: Gives the arguments by parameter name, if they are needed.
            map_index: The call's position in its fan-out.
        """
        used = self.placeholders
        if not used:
            return self.label if map_index is None else f"{self.label}[{map_index}]"
        values = {**dict.fromkeys(self.function.parameters), **inputs(), "map_index": map_index or 0}
        name = render(self.options.name, {each: _text_of(values[each]) for each in used})
        return name if map_index is None or "map_index" in used else f"{name}[{map_index}]"


def _text_of(value: Any) -> str:
    try:
        return str(value)
    except Exception:  # the user's own __str__ is no reason for a call to fail
        return f"<{type(value).__name__}>"
