"""Those who follow the events of a session from beside it: the consumers of `watch`, and of plugins."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

import anyio
from anyio import get_cancelled_exc_class

from ._bus import Bus, Subscription
from ._context import Home, Position, set_current
from ._eventloop import comes_from_scope
from ._failures import Failures
from ._log import logger

if TYPE_CHECKING:
    from anyio.abc import TaskGroup

__all__ = ["Watchers"]


class Watchers:
    """The watchers of a session. They harm nobody, and last until all else has ended and a while longer.

    Args:
        home: The session.
        bus: Its events.
        group: What they run in.
        failures: Where an interrupt goes to; other errors are logged.
        outside: Where the session was opened: their own calls are made there, and not watched by themselves.
    """

    def __init__(self, home: Home, bus: Bus, group: TaskGroup, failures: Failures, outside: Position) -> None:
        self._home = home
        self._bus = bus
        self._group = group
        self._failures = failures
        self._outside = outside
        self._scopes: set[anyio.CancelScope] = set()

    def start(self, consumer: Callable[[Subscription], Awaitable[Any]], name: str) -> None:
        """Start one.

        Args:
            consumer: Called with its events.
            name: What messages call it.
        """
        events = Subscription(self._bus, lasting=True)
        events._enter()
        scope = anyio.CancelScope(shield=True)
        self._scopes.add(scope)
        self._group.start_soon(self._run, consumer, name, events, scope, name=f"watch {self._home.name}")

    def end_soon(self) -> None:
        """Give them the session's `grace` to take what still waits."""
        deadline = anyio.current_time() + self._home.settings.grace
        for scope in self._scopes:
            scope.deadline = deadline

    async def _run(
        self,
        consumer: Callable[[Subscription], Awaitable[Any]],
        name: str,
        events: Subscription,
        scope: anyio.CancelScope,
    ) -> None:
        set_current(self._outside)
        with scope:
            try:
                await consumer(events)
            except Exception:
                logger().exception("session %r: %s failed to watch it", self._home.name, name)
            except get_cancelled_exc_class():
                if not comes_from_scope():
                    logger().warning("session %r: %s was cancelled, and watches it no more", self._home.name, name)
                    return
                logger().warning(
                    "session %r: %s had not seen all events after %g s",
                    self._home.name,
                    name,
                    self._home.settings.grace,
                )
                raise
            except BaseException as exc:
                self._failures.add(exc)
            finally:
                events._leave()
                self._scopes.discard(scope)
