"""Async streams for threads: each is stepped in the event loop, where it lives in a task of its own."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from ._context import here
from ._pumps import PumpedSteps
from ._slots import Slot
from ._trips import run_in_loop, the_way

__all__ = ["FromThreadSteps"]


class FromThreadSteps:
    """An async generator in the event loop, stepped from threads.

    Args:
        steps: The generator there.
        instead: What to write in the event loop's own thread.
    """

    def __init__(self, steps: PumpedSteps, instead: str) -> None:
        self.next: Any = steps.next
        self.send: Any = steps.send
        self.throw: Any = steps.throw
        self._steps = steps
        self._name = steps.call.spec.label
        self._instead = instead
        the_way(self._name, instead)  # an error now, if there is none

    def open(self) -> None:
        """Begin it, for who closes it with `with`."""

        async def open() -> None:
            self._steps.open()

        self._in_loop(open)

    def run(self, what: str, make: Callable[[], Awaitable[Any]], thrown: BaseException | None = None) -> Any:
        """Take a step; the arguments are those of `AsyncSteps.run`."""
        if self._steps.ended:
            raise StopIteration
        slot = self._owner() if self._steps.context is None else None

        async def step() -> Any:
            if slot is not None:
                self._steps.belong_to(slot)
            return await self._steps.run(what, make, thrown)

        try:
            return self._in_loop(step)
        except StopAsyncIteration:
            raise StopIteration from None

    def _owner(self) -> Slot | None:
        """The thread that is to close it, if no session does.

        Raises:
            RuntimeError: Nobody would.
        """
        position = here()
        if position.home.books is not None:
            return None
        if isinstance(position.slot, Slot) and position.slot.is_here():
            return position.slot.holder
        raise RuntimeError(
            f"stream {self._name!r} was stepped outside of sessions and of worker threads of tasks: nothing would close "
            f"it; write: with {self._name}.from_thread(...) as items"
        )

    def close_now(self) -> None:
        """Close the generator."""
        self._steps.close_now()

    def drop(self) -> None:
        """Nobody can step it any more."""
        self._steps.drop()

    def _in_loop(self, func: Callable[[], Awaitable[Any]]) -> Any:
        return run_in_loop(self._name, lambda _: func(), self._instead)
