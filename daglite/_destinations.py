"""Where datasets are: the store that holds at a place, and under which key a call saves what it gives."""

from __future__ import annotations

from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal

from . import _clock
from ._opening import opened_datasets
from ._spec import Spec
from ._templates import render
from .exceptions import DatasetError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ._context import Position
    from ._metadata import TaskMetadata
    from ._protocols import Thread, Watched, Watcher
    from .datasets import DatasetStore

__all__ = ["Access", "Destination", "dataset_store_at", "text_in_key"]


class Destination:
    """Where a call saves its result, or a stream its items.

    Args:
        store: The store.
        template: The key, with placeholders.
        values: What they stand for, but for that of items.
        format: The format that was asked for.
    """

    def __init__(self, store: DatasetStore, template: str, values: dict[str, str], format: str | None) -> None:
        self.store: DatasetStore = store
        self.format: str | None = format
        self._template = template
        self._values = values

    @classmethod
    def of(
        cls, spec: Spec, args: tuple[Any, ...], kwargs: Mapping[str, Any], metadata: TaskMetadata, at: Position
    ) -> Destination:
        """That of a call, checked before it begins.

        Args:
            spec: The task.
            args: The positional arguments.
            kwargs: The keyword arguments.
            metadata: The call.
            at: Its position.

        Raises:
            ValueError: Its arguments would lead out of the store, or there is no format for its key.
            DatasetError: There is no store.
        """
        options = spec.options
        assert options.dataset is not None
        store = dataset_store_at(at, options.dataset_store)
        if store is None:
            raise DatasetError(
                f"task {spec.label!r} has dataset={options.dataset!r}, and there is no store for it: give it a dataset_store=, "
                f"or open a session(dataset_store=...)"
            )
        available: dict[str, Any] = {
            "name": None,
            **dict.fromkeys(spec.function.parameters),
            **spec.inputs_of(args, kwargs),
        }
        if "name" not in spec.function.parameters:
            available["name"] = metadata.name
        available["map_index"] = metadata.map_index or 0
        where = f"task {spec.label!r}: dataset"
        used = spec.dataset_placeholders - {"iter_index"}
        made = cls(
            store,
            options.dataset,
            {name: text_in_key(available[name], f"{where}: {{{name}}}") for name in used},
            options.dataset_format,
        )
        made.check(where)
        return made

    def check(self, where: str) -> None:
        """Raise if it is none.

        Raises:
            ValueError: Its key may lead out of the store, or there is no format for it.
        """
        from .datasets._formats import format_of  # not by `import daglite`
        from .datasets._keys import checked_key

        key = self.key(0)
        checked_key(key, where)
        if self.format is None:
            format_of(key, where)

    def key(self, index: int | None = None) -> str:
        """The key of the result, or of an item."""
        return render(self._template, {**self._values, "iter_index": str(index)})


def text_in_key(value: Any, where: str) -> str:
    """A value as a part of a key.

    Raises:
        ValueError: It would lead elsewhere.
    """
    try:
        text = str(value)
    except Exception as exc:  # the user's own __str__
        raise ValueError(f"{where} stands for an object that cannot be shown as text: {type(exc).__name__}") from exc
    if text in (".", "..") or any(each in text for each in "/\\\0"):
        raise ValueError(
            f"{where} is {text!r}, which may lead to another folder; a value in a key is a part of one name"
        )
    return text


def dataset_store_at(position: Position, given: Any = None) -> DatasetStore | None:
    """The store that holds at a place; `None` if none does.

    Args:
        position: The place.
        given: One that was named for it: a store, a path or a URL.
    """
    store = given
    if store is None and position.call is not None:
        store = position.call.spec.options.dataset_store
    if store is None:
        store = position.home.settings.dataset_store
    return opened_datasets(store) if isinstance(store, str) else store


class Access:
    """Something is saved or loaded: around that, whoever listens is told.

    Args:
        position: Where.
        operation: What is done.
        facts: What hooks are told of it: `key`, `format`, `options`, and what is saved, or of which class what is loaded is to be.
    """

    def __init__(self, position: Position, operation: Literal["save", "load"], **facts: Any) -> None:
        slot = position.slot
        # Of a thread that was given up nobody hears any more.
        self._watcher: Watcher | None = None if slot is not None and slot.given_up else position.home.watcher
        self._call: Watched | None = position.call
        self._slot: Thread | None = slot
        self._operation = operation
        self._facts = facts
        self._began = 0.0
        self.result: Any = None

    def __enter__(self) -> Access:
        if self._watcher is not None:
            self._watcher.accessing(self._operation, self._call, self._slot, self._facts)
            self._began = _clock.monotonic()
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._watcher is None or exc is not None or (self._slot is not None and self._slot.given_up):
            return
        duration = _clock.monotonic() - self._began
        self._watcher.accessed(self._operation, self._call, self._slot, self._facts, self.result, duration)
