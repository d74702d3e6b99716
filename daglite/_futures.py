"""Background calls, for threads. Imported when a thread starts one, for `concurrent.futures` takes a while."""

from __future__ import annotations

from concurrent.futures import CancelledError, Future
from typing import TYPE_CHECKING, Any, TypeVar

from ._context import here
from ._handles import CallHandle
from ._slots import Slot, ThreadCancelled
from ._trips import run_in_loop
from ._typing import NOT_GIVEN

if TYPE_CHECKING:
    from uuid import UUID

__all__ = ["CallFuture"]

R = TypeVar("R")


class CallFuture(Future[R]):
    """A background call that was started from a thread: a `concurrent.futures.Future` that has an `id`.

    `result()` gives the function's result or raises the call's own error. The session tells of that error whether or not
    it was caught here. `cancel()` cancels the call, which ends at its next `await`.
    """

    __module__ = "daglite.sessions"  # where people find it

    def __init__(self, handle: CallHandle[R], session: Any) -> None:
        super().__init__()
        self._handle = handle
        self._session = session
        self._with_session = False  # it was cancelled
        handle._future = self

    @property
    def id(self) -> UUID:
        """The id of the call, as in its events."""
        return self._handle.id

    def result(self, timeout: float | None = None) -> R:
        """What the function returns.

        Args:
            timeout: Seconds to wait for it; without a limit by default.

        Raises:
            TaskError: The function failed; its error is the cause.
            TimeoutError: The time was up; the call goes on. Before Python 3.11 that of `concurrent.futures`.
            CancelledError: The call was cancelled, that of `concurrent.futures`.
            BaseException: It was cancelled with the session that this thread is in: let it through.
        """
        position = here()
        slot, is_in_session = position.slot, position.home.session is self._session
        if is_in_session and timeout is None and isinstance(slot, Slot) and slot.holder.has_place and not self.done():
            # A worker thread gives up its place in the meantime: the call may be waiting for one.
            run_in_loop(self._handle._call.spec.label, lambda _: self._handle._done.wait(), "await the call")
        try:
            return super().result(timeout)
        except CancelledError:
            if not (self._with_session and is_in_session):
                raise
            raise ThreadCancelled("the session of this thread is cancelled") from None

    def cancel(self) -> bool:
        """Cancel the call, which ends at its next `await`; false if it has ended."""
        is_cancelled = super().cancel()
        if is_cancelled:
            self._handle._loop.run(self._handle.cancel)
        return is_cancelled

    def settle(self, value: Any, error: Exception | None, *, with_session: bool) -> None:
        """Let those know who wait for it; called once, in the event loop."""
        if error is None and value is NOT_GIVEN:
            self._with_session = with_session
            super().cancel()
            self.set_running_or_notify_cancel()
        elif self.set_running_or_notify_cancel():
            if error is None:
                self.set_result(value)
            else:
                self.set_exception(error)
