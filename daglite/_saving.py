"""What a call saves: its result, or of a stream every item.

It is saved after the last attempt, outside of the call's deadlines, and before anybody has it. A save that fails is the failure of
the call, whose function is not run again for it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

from ._call import Call
from ._destinations import Access, Destination
from ._keeping import saved_in_thread
from ._log import described, logger
from .exceptions import DatasetError

__all__ = ["saved_generator", "saved_generator_sync", "saving", "saving_sync"]


class Saving:
    """What a call waits for whose result is saved."""

    state = "saving its dataset"
    name = None


SAVING = Saving()


def destination(call: Call) -> Destination:
    """Where a call saves what it gives.

    Raises:
        ValueError: Its arguments would lead out of the store, or there is no format for its key.
        DatasetError: There is no store.
    """
    return Destination.of(call.spec, call.args, call.kwargs, call.metadata, call)


def saving(call: Call, execute: Callable[[Call], Awaitable[Any]]) -> Callable[[Call], Awaitable[Any]]:
    """What runs a call and saves its result, before that is given to anybody.

    Args:
        call: The call, which has not begun.
        execute: What runs it.
    """
    to = destination(call)

    async def executed(call: Call) -> Any:
        value = await execute(call)
        await save(call, to, to.key(), value)
        return value

    return executed


def saving_sync(call: Call, execute: Callable[[Call], Any]) -> Callable[[Call], Any]:
    """The same in place."""
    to = destination(call)

    def executed(call: Call) -> Any:
        value = execute(call)
        save_sync(call, to, to.key(), value)
        return value

    return executed


async def save(call: Call, to: Destination, key: str, value: Any) -> None:
    """Save what a call gives, whatever is cancelled.

    Raises:
        DatasetError: It cannot be saved.
        ValueError: A link is in the way of its key.
    """
    call.waits_for = SAVING
    try:
        with Access(call, "save", key=key, value=value, format=to.format, options=None):
            what = f"task {call.metadata.name!r}: its dataset {key!r}"
            await saved_in_thread(what, partial(to.store.save, key, value, to.format), call.home.settings.grace)
    except Exception as exc:
        raise failed(call, key, exc)
    finally:
        call.waits_for = None


def save_sync(call: Call, to: Destination, key: str, value: Any) -> None:
    """The same in this thread."""
    call.waits_for = SAVING
    try:
        with Access(call, "save", key=key, value=value, format=to.format, options=None):
            to.store.save(key, value, to.format)
    except Exception as exc:
        raise failed(call, key, exc)
    finally:
        call.waits_for = None


def failed(call: Call, key: str, error: Exception) -> Exception:
    """The error of a call whose result cannot be saved: what is wrong with its key is a `ValueError`, as from the store itself."""
    if not isinstance(error, (DatasetError, ValueError)):
        made = DatasetError(f"dataset {key!r} cannot be saved: {described(error)}")
        made.__cause__ = error
        error = made
    return call.fail_with(error)


# Streams: a generator around that of the function, which saves every item before it gives it.


def saved_generator(call: Call, generator: Any) -> Any:
    """An async generator, or one whose items are saved if the task says so."""
    return generator if call.spec.options.dataset is None else SavedItems(call, generator)


def saved_generator_sync(call: Call, generator: Any) -> Any:
    """A generator, or one whose items are saved if the task says so."""
    return generator if call.spec.options.dataset is None else SavedItemsSync(call, generator)


class SavedItems:
    """An async generator whose items are saved.

    Args:
        call: The stream.
        generator: What gives them.
    """

    def __init__(self, call: Call, generator: Any) -> None:
        self._call = call
        self._generator = generator
        self._to: Destination | None = None

    def __anext__(self) -> Awaitable[Any]:
        return self._step(self._generator.__anext__)

    def asend(self, value: Any) -> Awaitable[Any]:
        """Send a value into the generator, and take the next item."""
        return self._step(partial(self._generator.asend, value))

    def athrow(self, *exc: Any) -> Awaitable[Any]:
        """Throw an error into the generator, and take the next item."""
        return self._step(partial(self._generator.athrow, *exc))

    def aclose(self) -> Awaitable[None]:
        """Close the generator."""
        return self._generator.aclose()  # type: ignore[no-any-return]

    async def _step(self, make: Callable[[], Awaitable[Any]]) -> Any:
        call = self._call
        if self._to is None:
            self._to = first_destination(call)
        item = await make()
        try:
            await save(call, self._to, self._to.key(call.items), item)
        except BaseException:
            try:
                await self._generator.aclose()
            except Exception:
                logger().exception("stream %r failed to close", call.spec.label)
            raise
        return item


class SavedItemsSync:
    """The same of a generator that is stepped in a thread."""

    def __init__(self, call: Call, generator: Any) -> None:
        self._call = call
        self._generator = generator
        self._to: Destination | None = None

    def __next__(self) -> Any:
        return self._step(self._generator.__next__)

    def send(self, value: Any) -> Any:
        """Send a value into the generator, and take the next item."""
        return self._step(partial(self._generator.send, value))

    def throw(self, *exc: Any) -> Any:
        """Throw an error into the generator, and take the next item."""
        return self._step(partial(self._generator.throw, *exc))

    def close(self) -> None:
        """Close the generator."""
        self._generator.close()

    def _step(self, make: Callable[[], Any]) -> Any:
        call = self._call
        if self._to is None:
            self._to = first_destination(call)
        item = make()
        try:
            save_sync(call, self._to, self._to.key(call.items), item)
        except BaseException:
            try:
                self._generator.close()
            except Exception:
                logger().exception("stream %r failed to close", call.spec.label)
            raise
        return item


def first_destination(call: Call) -> Destination:
    """Where a stream saves its items, found out before its generator begins."""
    try:
        return destination(call)
    except Exception as exc:
        raise call.fail_with(exc)
