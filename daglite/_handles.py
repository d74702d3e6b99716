"""Background calls, for those who started them."""

from __future__ import annotations

import math
from collections.abc import Callable, Coroutine, Generator
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

import anyio
from anyio.lowlevel import checkpoint

from ._typing import NOT_GIVEN
from .exceptions import CallCancelledError, SessionError

if TYPE_CHECKING:
    from uuid import UUID

    from ._call import Call
    from ._eventloop import Loop

__all__ = ["CallHandle"]

R = TypeVar("R")


class Future(Protocol):
    """What a thread waits with."""

    def settle(self, value: Any, error: Exception | None, *, with_session: bool) -> None:
        """Let it know: `value` is `NOT_GIVEN` if there is none, and `with_session` whether it was cancelled with that."""
        ...


class CallHandle(Generic[R]):
    """A background call. `await` it for its result.

    Awaiting gives the function's result or raises the call's own error. The session tells of that error whether or not
    it was caught here: to handle it, `await` the task instead of starting it.
    """

    def __init__(self, call: Call, work: Callable[[], Coroutine[Any, Any, Any]], loop: Loop) -> None:
        self._call = call
        self._work = work
        self._loop = loop
        self._scope = anyio.CancelScope()
        self._done = anyio.Event()
        self._waiting = 0
        self._has_begun = False
        self._value: Any = NOT_GIVEN
        self._error: Exception | None = None
        self._future: Future | None = None
        call.cancel = self._scope.cancel

    @property
    def id(self) -> UUID:
        """The id of the call, as in its events."""
        return self._call.metadata.id

    def cancel(self) -> None:
        """Cancel the call: at its next `await`, or before it has begun."""
        self._scope.cancel()

    def __await__(self) -> Generator[Any, Any, R]:
        return self._wait().__await__()

    def __repr__(self) -> str:
        return f"<CallHandle of {self._call.metadata.name!r}>"

    async def _wait(self) -> R:
        if self._done.is_set():
            await checkpoint()
        elif self._loop.is_running_here():
            self._waiting += 1
            try:
                await self._done.wait()
            finally:
                self._waiting -= 1
        else:
            name = self._call.metadata.name
            raise SessionError(f"the background call of task {name!r} was awaited in another event loop than its own")
        if self._error is not None:
            raise self._error
        if self._value is NOT_GIVEN:
            raise CallCancelledError(f"the background call of task {self._call.metadata.name!r} was cancelled")
        return self._value  # type: ignore[no-any-return]

    async def _run(self) -> None:
        """Run the call, and keep what comes of it."""
        self._has_begun = True
        if self._scope.cancel_called:
            return
        with self._scope:
            try:
                self._value = await self._work()
            except Exception as exc:
                self._error = exc
                raise
            finally:
                if self._error is not None or self._value is not NOT_GIVEN:
                    self._settle()

    def _settle(self) -> None:
        """Let a thread know that waits for it."""
        future, self._future = self._future, None
        if future is not None:
            with_session = anyio.current_effective_deadline() == -math.inf
            future.settle(self._value, self._error, with_session=with_session)

    async def _tell(self) -> None:
        """Wake those that wait: they hear of a failure before the session does, which it cancels."""
        if self._error is not None and self._waiting:
            self._done.set()
            with anyio.CancelScope(shield=True):
                # One step does not order two tasks on Trio; two do.
                await checkpoint()
                await checkpoint()
