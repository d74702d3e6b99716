"""The streams that a session, or a use of it from elsewhere, has to close when it ends."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import anyio
from anyio import get_cancelled_exc_class

from ._failures import without_cancellation
from ._log import logger

__all__ = ["Closing"]


class Closing:
    """Closes streams, oldest first: one that reads from another was opened after that.

    Args:
        owner: Who closes them, as messages call it.
        grace: Seconds that they are given, for messages.

    Attributes:
        cancellation: The native cancellation that came in the meantime; anyio's does not get in.
        fatal: What ends the program, such as an interrupt.
    """

    def __init__(self, owner: str, grace: float) -> None:
        self._owner = owner
        self._grace = grace
        self.cancellation: BaseException | None = None
        self.fatal: BaseException | None = None

    async def close_all(self, streams: Iterable[Any], deadline: float) -> None:
        """Close streams of the event loop, and those in its threads.

        Args:
            streams: The open ones.
            deadline: When they have to be closed, by the event loop's clock.
        """
        for steps in list(streams):
            slot = steps.call.slot
            if slot is not None and slot.given_up and not steps.is_pumped:
                continue  # it may run at this moment, and nobody is to hear of it
            # A scope for each: one that takes too long does not keep the next from being closed.
            try:
                with anyio.CancelScope(deadline=deadline, shield=True) as scope:
                    await self._close(steps)
            except get_cancelled_exc_class() as interrupted:
                self.cancellation = self.cancellation or interrupted
            if scope.cancelled_caught:
                logger().warning("%s: stream %r had not closed after %g s", self._owner, self._name(steps), self._grace)

    async def _close(self, steps: Any) -> None:
        try:
            await steps.aclose()
        except BaseException as exc:
            failure, cancellation = without_cancellation(exc)
            if failure is not None:
                self._failed(steps, failure)
            if cancellation is not None:
                raise cancellation

    def close_all_here(self, streams: Iterable[Any]) -> None:
        """Close streams of this thread, which is no event loop's."""
        for steps in list(streams):
            try:
                steps.close_now()
            except BaseException as exc:
                self._failed(steps, exc)

    def _failed(self, steps: Any, failure: BaseException) -> None:
        if isinstance(failure, Exception):
            logger().error("%s: stream %r failed to close", self._owner, self._name(steps), exc_info=failure)
        else:
            self.fatal = self.fatal or failure

    def _name(self, steps: Any) -> str:
        name: str = steps.call.spec.label
        return name
