"""What a session has started: background calls, for which it waits, and services, which it cancels after them."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Iterator
from typing import TYPE_CHECKING, Any

import anyio
from anyio import get_cancelled_exc_class

from ._bindings import Bindings
from ._eventloop import comes_from_scope
from ._failures import Failures, without_cancellation
from ._handles import CallHandle
from ._log import logger
from ._running import Running

if TYPE_CHECKING:
    from uuid import UUID

    from anyio.abc import TaskGroup

    from ._call import Call

__all__ = ["Children"]


class Children:
    """The background calls and services of a session, and the streams that it closes while it goes on.

    What a service starts is counted with the services: else one that starts a call for each message would keep its
    session from ever ending.

    Args:
        name: What messages call the session.
        group: What they run in.
        failures: What they have failed with.
        bindings: Those who use the session from elsewhere, and may start calls: waited for between the two.
        logs: Whether a failure is only logged.
        services_end: Called before the services are cancelled.

    Attributes:
        deadline: When those that still run are cancelled once the session is being left, by the event loop's clock; never by default.
        services_ended: Whether the services were.
    """

    def __init__(
        self,
        name: str,
        group: TaskGroup,
        failures: Failures,
        bindings: Bindings,
        *,
        logs: bool,
        services_end: Callable[[], None],
    ) -> None:
        self.deadline: float = math.inf
        self.services_ended: bool = False
        self._name = name
        self._services_end = services_end
        self._group = group
        self._failures = failures
        self._bindings = bindings
        self._logs = logs
        self._calls = Running[object]()
        self._serving = Running[object]()
        self._services: set[CallHandle[Any]] = set()

    def start(self, handle: CallHandle[Any], name: str, *, is_service: bool, is_serving: bool) -> None:
        """Start a call.

        Args:
            handle: The call.
            name: Its task.
            is_service: Whether it is to be cancelled when the session ends.
            is_serving: Whether it is started by a service.
        """
        if is_service:
            self._services.add(handle)
        running = self._serving if is_service or is_serving else self._calls
        running.add(handle)
        self._group.start_soon(self._run, handle, running, name=name)

    def find(self, id: UUID) -> Call | None:
        """The background call of that id, also before it has begun."""
        return next((handle._call for handle in self._handles() if handle.id == id), None)

    def waiting(self) -> Iterator[Call]:
        """The background calls that have yet to begin."""
        return (handle._call for handle in self._handles() if not handle._has_begun)

    def _handles(self) -> list[CallHandle[Any]]:
        return [each for each in (*self._calls.copy(), *self._serving.copy()) if isinstance(each, CallHandle)]

    def close_soon(self, close: Callable[[], Awaitable[None]]) -> None:
        """Close a stream."""
        self._calls.add(close)
        self._group.start_soon(self._close, close)

    async def finish(self, grace: float) -> None:
        """Wait for the background calls before the session is left, and cancel those that run at the deadline.

        Args:
            grace: Seconds that those may take then; leaving waits for them again.
        """
        with anyio.CancelScope(deadline=self.deadline) as scope:
            await self._calls.until_none()
        if scope.cancelled_caught:
            for call in self._overdue(self._calls):
                call.cancel()
            with anyio.move_on_after(grace):
                await self._calls.until_none()

    def _overdue(self, *running: Running[object]) -> list[CallHandle[Any]]:
        """The calls that the deadline has found running, which is said."""
        calls = [each for some in running for each in some.copy() if isinstance(each, CallHandle)]
        if calls:
            self._services_end()  # their threads too have a limit now
            names = ", ".join(repr(each._call.metadata.name) for each in calls)
            logger().warning("session %r ends, and cancels what has not ended in time: %s", self._name, names)
        return calls

    async def join(self, cancellation: BaseException | None) -> BaseException | None:
        """Wait for all of them; a cancellation from outside cancels them, and waits all the same.

        Args:
            cancellation: The cancellation that the session's body has ended with.

        Returns:
            That cancellation, or the one that the wait was interrupted by.
        """
        shield, deadline = False, self.deadline
        while True:
            try:
                with anyio.CancelScope(shield=shield, deadline=deadline):
                    await self._until_done()
                    return cancellation
                self._overdue(self._calls, self._serving)
                self._group.cancel_scope.cancel()
                shield, deadline = True, math.inf
            except get_cancelled_exc_class() as interrupted:
                # To a native `Task.cancel` the shield is none: it may come again, and they are waited for all the same.
                cancellation = cancellation or interrupted
                self._group.cancel_scope.cancel()
                shield = True

    async def _until_done(self) -> None:
        await self._calls.until_none()
        await self._bindings.until_none()
        await self._calls.until_none()
        self.services_ended = True
        self._services_end()
        for handle in list(self._services):
            handle.cancel()
        while self._serving or self._calls:
            await self._serving.until_none()
            await self._calls.until_none()

    async def _run(self, handle: CallHandle[Any], running: Running[object]) -> None:
        try:
            if not self._group.cancel_scope.cancel_called:
                await handle._run()
        except BaseException as exc:
            try:
                await handle._tell()
            finally:  # whatever native cancellation goes through its shield
                cancellation = self._failed(exc, handle)
            if cancellation is not None and comes_from_scope():
                raise cancellation
        finally:
            handle._settle()
            handle._done.set()
            self._services.discard(handle)
            running.discard(handle)

    def _failed(self, exc: BaseException, handle: CallHandle[Any]) -> BaseException | None:
        """Keep or log what a call has raised, and return the cancellation in it, which has to go on."""
        failure, cancellation = without_cancellation(exc)
        if not self._logs or (failure is not None and not isinstance(failure, Exception)):
            return self._failures.add(exc)
        if failure is not None:
            text = "session %r: the background call of task %r failed"
            logger().error(text, self._name, handle._call.metadata.name, exc_info=failure)
        return cancellation

    async def _close(self, close: Callable[[], Awaitable[None]]) -> None:
        try:
            await close()
        finally:
            self._calls.discard(close)
