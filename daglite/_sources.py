"""Where the arguments of a fan-out come from: sync and async iterables.

An async generator may hold a cancel scope or a task group open across a `yield`, as one does that reads from a connection. It is
stepped in the task that starts the calls. So nothing of ours is opened there after it, and what is to bound its close is opened
before; and a cancellation that is its own, and comes while that task waits for a place, is thrown into it, where it belongs.
"""

from __future__ import annotations

import math
import sys
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator
from typing import Any

import anyio

if sys.version_info < (3, 11):
    from exceptiongroup import BaseExceptionGroup

__all__ = ["AsyncSource", "Source"]


class Source:
    """An iterator.

    Args:
        iterator: The iterator.
    """

    is_async = False

    def __init__(self, iterator: Iterator[Any]) -> None:
        self.take: Callable[[], Any] = iterator.__next__


class AsyncSource:
    """An async iterator. A generator is closed in the end; what else can be is for who has made it.

    Args:
        iterator: The iterator.
    """

    is_async = True

    def __init__(self, iterator: AsyncIterator[Any]) -> None:
        self.is_generator: bool = isinstance(iterator, AsyncGenerator)
        self._iterator: Any = iterator
        self._early: list[Any] = []  # what came of a cancellation, before anybody has asked for it
        self._scope: anyio.CancelScope | None = None

    async def take(self) -> Any:
        """The next item.

        Raises:
            StopAsyncIteration: There is none.
        """
        return self._early.pop() if self._early else await self._iterator.__anext__()

    async def while_open(self, body: Callable[[], Awaitable[None]], grace: float) -> None:
        """Do something that takes from it, then close it, for which it has so many seconds, whatever is cancelled."""
        error: BaseException | None = None
        try:
            with anyio.CancelScope() as self._scope:
                try:
                    await body()
                except BaseException as exc:
                    error = exc
                self._scope.shield = True
                self._scope.deadline = anyio.current_time() + grace
                try:
                    await self._close()
                except Exception as exc:
                    if not isinstance(error, Exception):
                        error = exc
            if error is not None:
                raise error
        finally:
            del error  # else its traceback, which holds this frame, would hold itself

    async def absorb(self, cancellation: BaseException) -> bool:
        """Throw a cancellation of the task into it, if it is one of its own; false if it is not, and concerns others too."""
        assert self._scope is not None  # it is open
        self._scope.shield = True
        try:
            if anyio.current_effective_deadline() > -math.inf:  # of what it holds open: nothing else is inside
                return False
            if (
                self._early
            ):  # it was told before, and has yielded inside of what is cancelled: so it would be told for ever
                await self._close()
            else:
                self._early.append(await self._iterator.athrow(cancellation))
        except StopAsyncIteration:
            pass  # as the next that asks will find
        finally:
            self._scope.shield = False
        return True

    async def _close(self) -> None:
        try:
            await self._iterator.aclose()
        except BaseExceptionGroup as exc:
            failure = exc.split(GeneratorExit)[1]  # a task group's way to be closed
            if failure is not None:
                raise failure
