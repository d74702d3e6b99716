"""What goes on in any thread, and the wait until none of it does."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from functools import partial
from typing import Generic, TypeVar

import anyio

from ._eventloop import Loop

__all__ = ["Running"]

T = TypeVar("T")


class Running(Generic[T]):
    """Things that run, oldest first. They come and go in any thread; one task may wait until there are none."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
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
        with self._lock:
            self._all[one] = None

    def discard(self, one: T) -> None:
        """One less, if it was there."""
        with self._lock:
            self._all.pop(one, None)
            wake = None if self._all else self._waiting
        if wake is not None:
            wake()

    def copy(self) -> list[T]:
        """All of them, as they are now."""
        with self._lock:
            return list(self._all)

    def clear(self) -> list[T]:
        """Forget all.

        Returns:
            What there was.
        """
        with self._lock:
            left, self._all = list(self._all), {}
        return left

    async def until_none(self) -> None:
        """Wait until there are none, also of those that come in the meantime."""
        while self._all:
            loop, none = Loop(), anyio.Event()
            with self._lock:  # in which the last may be about to go
                if not self._all:
                    return
                self._waiting = partial(loop.run, none.set)
            await none.wait()
