"""What goes on in any thread, and the wait until none of it does."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Generic, TypeVar

import anyio

from ._eventloop import Loop

__all__ = ["Running"]

T = TypeVar("T")


class Running(Generic[T]):
    """Things that run, oldest first. They come and go in any thread; one task may wait until there are none."""

    # Without a lock, for a dictionary has its own: who goes looks then whether somebody waits, and who waits says so before the last
    # look.

    def __init__(self) -> None:
        self._all: dict[T, None] = {}
        self._waiting: Callable[[], None] | None = None

    def __len__(self) -> int:
        return len(self._all)

    def __contains__(self, one: object) -> bool:
        return one in self._all

    def __iter__(self) -> Iterator[T]:
        return iter(self._all)

    def add(self, one: T) -> None:
        """One more."""
        self._all[one] = None

    def discard(self, one: T) -> None:
        """One less, if it was there."""
        self._all.pop(one, None)
        if not self._all and (wake := self._waiting) is not None:
            wake()

    def copy(self) -> list[T]:
        """All of them, as they are now."""
        return list(self._all)

    def clear(self) -> list[T]:
        """Forget all; what comes in this moment may be forgotten too.

        Returns:
            What there was.
        """
        left, self._all = self._all, {}
        return list(left)

    async def until_none(self) -> None:
        """Wait until there are none, also of those that come in the meantime."""
        while self._all:
            loop, none = Loop(), anyio.Event()
            self._waiting = partial(loop.run, none.set)
            if self._all:
                await none.wait()
