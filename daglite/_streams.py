"""Open streams, as people hold them.

What a session holds, to close it in the end, is the `Steps` beneath, so that it can be noticed when a stream is dropped.
"""

from __future__ import annotations

from collections.abc import Coroutine
from functools import partial
from types import TracebackType
from typing import Any, Generic, TypeVar

from typing_extensions import Self

from ._from_thread_streams import FromThreadSteps
from ._steps import SyncSteps
from ._thread_streams import TimedSteps

__all__ = ["AsyncStream", "SyncStream"]

R_co = TypeVar("R_co", covariant=True)


class AsyncStream(Generic[R_co]):
    """An open async stream: iterate over it with `async for`, and close it with `async with` or `aclose()`.

    Its generator runs in the consumer's task, or with `pump=True` or `item_timeout` in one of its own, and always in a
    context of its own: variables that it sets stay inside, whoever steps or closes it. After a bare `break` the session
    closes it, at the latest when it ends.
    """

    def __init__(self, steps: Any) -> None:
        self._steps = steps

    def __aiter__(self) -> Self:
        return self

    # Not a coroutine function, which would be one more to pass through for every item.
    def __anext__(self) -> Coroutine[Any, Any, R_co]:
        """The next item.

        Raises:
            TaskError: The function failed; its error is the cause.
            TaskTimeoutError: The item took longer than `item_timeout`.
            RuntimeError: Another step runs elsewhere; or it is the first step of one with a task of its own, outside of
                sessions and of `async with`.
            DatasetError: It has a dataset, and the item cannot be saved, or there is no store for it.
            SessionError: It is the first step, and the session accepts no more calls.
            LimitError: It is the first step, and a call around it, or a stream that is open in the same task, holds a token of its
                limit.
            BackendError: It is the first step of one in a thread, and as many threads as there may be are stuck past their
                deadlines.
        """
        steps = self._steps
        return steps.run("stepped", steps.next)  # type: ignore[no-any-return]

    async def asend(self, value: Any, /) -> R_co:
        """Send a value into the generator, and take the next item."""
        make = partial(self._steps.send, value)
        return await self._steps.run("sent to", make)  # type: ignore[no-any-return]

    async def athrow(self, typ: Any, value: Any = None, traceback: TracebackType | None = None, /) -> R_co:
        """Throw an error into the generator, and take the next item.

        If the generator lets it through it comes out as itself, and the stream is closed.
        """
        thrown = _instance(typ, value, traceback)
        make = partial(self._steps.throw, thrown)
        try:
            return await self._steps.run("thrown into", make, thrown)  # type: ignore[no-any-return]
        finally:
            del make, thrown, typ, value, traceback  # else its traceback, which holds this frame, would hold itself

    async def aclose(self) -> None:
        """Close the generator, which runs its `finally` blocks.

        One with a task of its own, or with an `item_timeout`, has `grace` seconds for that; a step of it that runs elsewhere
        is cancelled, and finds the stream at its end.

        Raises:
            TaskError: It failed while it was closed.
            RuntimeError: A step of one without a task of its own runs elsewhere.
        """
        await self._steps.aclose()

    async def __aenter__(self) -> Self:
        self._steps.is_owned = True
        self._steps.open()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self._steps.aclose()

    def __del__(self) -> None:
        steps = getattr(self, "_steps", None)
        if steps is not None:
            steps.drop()


class SyncStream(Generic[R_co]):
    """An open stream: iterate over it with `for`, and close it with `with` or `close()`.

    Its generator runs in the consumer's thread, or with an `item_timeout` in one of its own, and always in a context of
    its own: variables that it sets stay inside.
    """

    def __init__(self, steps: SyncSteps | TimedSteps | FromThreadSteps) -> None:
        self._steps = steps

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> R_co:
        """The next item.

        Raises:
            TaskError: The function failed; its error is the cause.
            TaskTimeoutError: The item took longer than `item_timeout`.
            RuntimeError: Another step runs elsewhere; or it has an `item_timeout` or a limit, and an event loop runs in this
                thread.
            DatasetError: It has a dataset, and the item cannot be saved, or there is no store for it.
            SessionError: It is the first step, and the session accepts no more calls.
            LimitError: It is the first step, and a call around it, or a stream that is open in the same task, holds a token of its
                limit.
        """
        return self._steps.run("stepped", self._steps.next)  # type: ignore[no-any-return]

    def send(self, value: Any, /) -> R_co:
        """Send a value into the generator, and take the next item."""
        return self._steps.run("sent to", partial(self._steps.send, value))  # type: ignore[no-any-return]

    def throw(self, typ: Any, value: Any = None, traceback: TracebackType | None = None, /) -> R_co:
        """Throw an error into the generator, and take the next item.

        If the generator lets it through it comes out as itself, and the stream is closed.
        """
        thrown = _instance(typ, value, traceback)
        make = partial(self._steps.throw, thrown)
        try:
            return self._steps.run("thrown into", make, thrown)  # type: ignore[no-any-return]
        finally:
            del make, thrown, typ, value, traceback  # else its traceback, which holds this frame, would hold itself

    def close(self) -> None:
        """Close the generator, which runs its `finally` blocks.

        Raises:
            TaskError: It failed while it was closed.
            RuntimeError: A step runs elsewhere.
        """
        self._steps.close_now()

    def __enter__(self) -> Self:
        self._steps.open()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._steps.close_now()

    def __del__(self) -> None:
        steps = getattr(self, "_steps", None)
        if steps is not None:
            steps.drop()


def _instance(typ: Any, value: Any, traceback: TracebackType | None) -> BaseException:
    """The error that the three arguments of `throw` stand for, of which Python 3.11's `contextlib` passes all."""
    error: BaseException = typ if isinstance(typ, BaseException) else value
    if not isinstance(error, BaseException):
        error = typ() if value is None else typ(value)
    return error if traceback is None else error.with_traceback(traceback)
