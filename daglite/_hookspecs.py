"""The hooks that a plugin may implement, and the mark by which it says so."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Protocol

import pluggy

if TYPE_CHECKING:
    from collections.abc import Mapping
    from uuid import UUID

    from ._metadata import TaskMetadata

__all__ = ["PROJECT", "HookSpecs", "Reporter", "hook_impl"]

PROJECT = "daglite"  # what pluggy calls it, and the entry points' group is named after

hook_impl: pluggy.HookimplMarker = pluggy.HookimplMarker(PROJECT)
"""Marks a method of a plugin, or a function of a module, as its implementation of the hook of that name."""

_hook_spec = pluggy.HookspecMarker(PROJECT)


class Reporter(Protocol):
    """What hooks report through, in the name of the call that they are called for."""

    def report(self, type: str, data: Any = None) -> None:
        """Publish a `TaskReported` of the call. It never waits and never fails.

        Args:
            type: What kind of thing is reported, for subscribers to tell by.
            data: The thing. Subscribers get it as it is.
        """
        ...


class HookSpecs:
    """Every hook. A plugin implements those it wants, with those of their arguments that it wants.

    ```python
    import anyio
    from daglite import session, task
    from daglite.plugins import hook_impl


    class Durations:
        @hook_impl
        def after_node_execute(self, metadata, duration):
            print(f"{metadata.name} took {duration:.3f} s")


    @task
    async def double(number: int) -> int:
        return 2 * number


    async def main() -> None:
        async with session(plugins=[Durations()]):
            await double(21)


    anyio.run(main)
    ```

    Hooks are plain functions, called in the session's process and in the thread where the call runs; those of a stream
    in the context of the stream. One that raises is logged, and the call and the other hooks go on. The calls that a
    hook makes are not watched. As in pluggy the plugin that came last is called first, but for what is marked with
    `tryfirst` or `trylast`.
    """

    @_hook_spec
    def before_session_start(self, session_id: UUID) -> None:
        """A session was entered.

        Args:
            session_id: What its events carry as `session_id`.
        """

    @_hook_spec
    def after_session_end(self, session_id: UUID, duration: float) -> None:
        """A session was left.

        Args:
            session_id: What its events carry as `session_id`.
            duration: Seconds since it was entered.
        """

    @_hook_spec
    def before_node_execute(self, metadata: TaskMetadata, reporter: Reporter) -> None:
        """A call begins. One of the three hooks of its end follows.

        Args:
            metadata: The call.
            reporter: Its `report(type, data)` publishes a `TaskReported` of this call.
        """

    @_hook_spec
    def after_node_execute(self, metadata: TaskMetadata, result: Any, duration: float, reporter: Reporter) -> None:
        """A call has returned, or a stream came to its end or was closed.

        Args:
            metadata: The call.
            result: What it returned; `None` for a stream.
            duration: Seconds since it began.
            reporter: As in `before_node_execute`.
        """

    @_hook_spec
    def on_node_error(self, metadata: TaskMetadata, error: Exception, duration: float, reporter: Reporter) -> None:
        """A call has failed for good.

        Args:
            metadata: The call.
            error: What its function raised, or a `TaskTimeoutError`.
            duration: Seconds since it began.
            reporter: As in `before_node_execute`.
        """

    @_hook_spec
    def on_node_cancelled(self, metadata: TaskMetadata, duration: float, reporter: Reporter) -> None:
        """A call was ended from outside: by a cancellation, an interrupt or an exit.

        Args:
            metadata: The call.
            duration: Seconds since it began.
            reporter: As in `before_node_execute`.
        """

    @_hook_spec
    def before_node_retry(self, metadata: TaskMetadata, attempt: int, error: Exception, reporter: Reporter) -> None:
        """An attempt has failed, and there will be another.

        Args:
            metadata: The call.
            attempt: The number of the retry that follows, from 1.
            error: What the attempt before it raised.
            reporter: As in `before_node_execute`.
        """

    @_hook_spec
    def after_node_retry(self, metadata: TaskMetadata, attempt: int, succeeded: bool, reporter: Reporter) -> None:
        """A retry has ended.

        Args:
            metadata: The call.
            attempt: The number of the retry, from 1.
            succeeded: Whether it returned.
            reporter: As in `before_node_execute`.
        """

    @_hook_spec
    def activate(self, metadata: TaskMetadata) -> AbstractContextManager[Any]:
        """What surrounds the function's code: entered for every attempt, and for the whole life of a stream.

        It is entered where the function runs: in the same context, so that a context variable that it sets is seen
        inside and not by the caller; of a stream in the stream's own context, and in its own thread if it has one.
        It is left with the error, if there is one, and what `__exit__` returns is ignored.

        Args:
            metadata: The call.

        Returns:
            The context manager.
        """
        raise NotImplementedError

    @_hook_spec
    def on_cache_hit(self, metadata: TaskMetadata, key: str, value: Any, reporter: Reporter) -> None:
        """The result of a call was in its cache. No other hook is called for it.

        Args:
            metadata: The call.
            key: What the result is kept under.
            value: The result.
            reporter: As in `before_node_execute`.
        """

    @_hook_spec
    def on_cache_miss(self, metadata: TaskMetadata, key: str) -> None:
        """The result of a call was not in its cache, and no other call computes it already: the call is about to begin.

        Args:
            metadata: The call.
            key: What the result is to be kept under.
        """

    @_hook_spec
    def node_iteration(self, metadata: TaskMetadata, index: int, reporter: Reporter) -> None:
        """A stream has given an item.

        Args:
            metadata: The call.
            index: The item's position, from 0.
            reporter: As in `before_node_execute`.
        """

    @_hook_spec
    def before_dataset_save(
        self,
        key: str,
        value: Any,
        format: str | None,
        options: Mapping[str, Any] | None,
        metadata: TaskMetadata | None,
    ) -> None:
        """A value is about to be saved.

        Args:
            key: Its name.
            value: The value.
            format: The format that was asked for; `None` if the key's extension says it.
            options: What was given for the format's writer.
            metadata: The call that saves it; `None` if it is the body of the session.
        """

    @_hook_spec
    def after_dataset_save(
        self,
        key: str,
        value: Any,
        format: str | None,
        options: Mapping[str, Any] | None,
        metadata: TaskMetadata | None,
    ) -> None:
        """A value was saved.

        Args:
            key: As in `before_dataset_save`, as the others.
            value: As above.
            format: As above.
            options: As above.
            metadata: As above.
        """

    @_hook_spec
    def before_dataset_load(
        self,
        key: str,
        return_type: type | None,
        format: str | None,
        options: Mapping[str, Any] | None,
        metadata: TaskMetadata | None,
    ) -> None:
        """A value is about to be loaded.

        Args:
            key: Its name.
            return_type: The class that was asked for, if any.
            format: The format that was asked for; `None` if the key's extension says it.
            options: `None`.
            metadata: The call that loads it; `None` if it is the body of the session.
        """

    @_hook_spec
    def after_dataset_load(
        self,
        key: str,
        return_type: type | None,
        format: str | None,
        options: Mapping[str, Any] | None,
        metadata: TaskMetadata | None,
        result: Any,
        duration: float,
    ) -> None:
        """A value was loaded.

        Args:
            key: As in `before_dataset_load`.
            return_type: As above.
            format: As above.
            options: As above.
            metadata: As above.
            result: The value.
            duration: Seconds that it took.
        """
