"""Failures and delays of tasks, as a test wants them."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import anyio

from .. import _checks
from .._spec import Spec
from ..tasks import Task

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["Fault", "Faults"]


class Fault:
    """What is to happen to a task; made by `Faults.fail` and `Faults.delay`.

    Attributes:
        hits: How often it has happened.
    """

    def __init__(
        self, error: Callable[[], BaseException] | None, seconds: float, times: int | None, after: int
    ) -> None:
        self.hits: int = 0
        self._error = error
        self._seconds = seconds
        self._times = times
        self._after = after
        self._lock = threading.Lock()

    def _strikes(self) -> bool:
        """Whether it happens this time."""
        with self._lock:
            if self._after:
                self._after -= 1
                return False
            if self.hits == self._times:
                return False
            self.hits += 1
            return True


class Faults:
    """Lets tasks fail, or take their time, for as long as its `with` lasts.

    ```python
    import anyio
    import pytest
    from daglite import task
    from daglite.exceptions import TaskError
    from daglite.testing import Faults


    @task(retries=2)
    async def fetch(url: str) -> str:
        return f"the page at {url}"


    with Faults() as faults:
        fault = faults.fail(fetch, ConnectionError("refused"), times=2)
        assert anyio.run(fetch, "/") == "the page at /"
        assert fault.hits == 2  # and the third attempt ran the function

        faults.fail(fetch, ConnectionError, times=None)
        with pytest.raises(TaskError, match="after 3 attempts"):
            anyio.run(fetch, "/")
    ```

    A fault is of the function: of every task that was made of it, such as a copy by `with_options` or a method of any object,
    wherever it is called from; not of the function where it is called without a task. Each attempt counts, in a stream each
    step. Several faults of a task happen one after another: delays, and the first failure.

    With pytest, the fixture `faults` is one for the time of a test.
    """

    def __init__(self) -> None:
        self._own: list[tuple[Any, Fault]] = []
        self._is_entered = False

    def __enter__(self) -> Self:
        self._is_entered = True
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._is_entered = False
        for origin, fault in self._own:
            _planned[id(origin)].remove(fault)
            if not _planned[id(origin)]:
                del _planned[id(origin)]
        self._own.clear()
        if not _planned:
            _let_tasks_alone()

    def fail(
        self,
        task: Task[Any, Any],
        error: BaseException | type[BaseException],
        *,
        times: int | None = 1,
        after: int = 0,
    ) -> Fault:
        """Let a task fail instead of running its function; a stream, where it has come to.

        Args:
            task: The task.
            error: What it fails with: an exception, or a class of which one is made each time. In a stream it is thrown into the
                generator, whose `finally` blocks run.
            times: How many attempts fail, or steps of streams: 1 by default, all if `None`.
            after: How many are left alone before; none by default.

        Returns:
            The fault, which counts how often it has happened.

        Raises:
            TypeError: An argument has the wrong type, or the class wants arguments.
            ValueError: A number is out of range.
            RuntimeError: It is outside of its `with`.
        """
        return self._add("faults.fail", task, Fault(_maker_of(error), 0.0, times, after))

    def delay(self, task: Task[Any, Any], seconds: float, *, times: int | None = None, after: int = 0) -> Fault:
        """Let a task wait before it runs its function; a stream, before it is to produce an item.

        An async function waits by the event loop's clock, which a `VirtualClock` may be; a sync one in its thread, really.

        Args:
            task: The task.
            seconds: For how long.
            times: How many attempts wait, or steps of streams: all by default.
            after: How many are left alone before; none by default.

        Returns:
            The fault, which counts how often it has happened.

        Raises:
            TypeError: An argument has the wrong type.
            ValueError: A number is out of range.
            RuntimeError: It is outside of its `with`.
        """
        _checks.finite("faults.delay: seconds", seconds, least=0)
        return self._add("faults.delay", task, Fault(None, seconds, times, after))

    def _add(self, where: str, task: Any, fault: Fault) -> Fault:
        if not isinstance(task, Task):
            raise TypeError(f"{where}: {task!r} is no task; a fault is one of a function with @task")
        if fault._times is not None:
            _checks.whole(f"{where}: times", fault._times, least=1)
        _checks.whole(f"{where}: after", fault._after, least=0)
        if not self._is_entered:
            raise RuntimeError(f"{where} is for the time of a `with`: with Faults() as faults")
        origin = task._spec.function.origin
        self._own.append((origin, fault))
        _planned.setdefault(id(origin), []).append(fault)
        _look_at_tasks()
        return fault


def _maker_of(error: Any) -> Callable[[], BaseException]:
    """What gives the error for each time.

    Raises:
        TypeError: It is none, or a class that wants arguments.
    """
    if isinstance(error, BaseException):
        return partial(error.with_traceback, None)  # each time as if it had not been raised before
    if not (isinstance(error, type) and issubclass(error, BaseException)):
        raise TypeError(f"faults.fail: the error must be an exception or a class of exceptions, not {error!r}")
    try:
        error()
    except TypeError as exc:
        raise TypeError(f"faults.fail: {exc}: give an exception, and not the class {error.__name__}") from None
    return error


_planned: dict[int, list[Fault]] = {}
"""By the identity of functions, which whoever plans a fault holds."""


def _look_at_tasks() -> None:
    """Let every task ask whether something is planned; while nothing is, none of them pays for that."""
    setattr(Spec, "func", property(_function_of, _keep_function))  # noqa: B010 -- type checkers know it of objects only


def _let_tasks_alone() -> None:
    if "func" in Spec.__dict__:
        delattr(Spec, "func")


def _function_of(spec: Any) -> Any:
    func = spec.__dict__["func"]
    return _Faulty(func, spec) if id(spec.function.origin) in _planned else func


def _keep_function(spec: Any, func: Any) -> None:
    spec.__dict__["func"] = func


class _Faulty:
    """A task's function to which something is to happen."""

    def __init__(self, func: Callable[..., Any], spec: Spec) -> None:
        self.__wrapped__ = func
        self._spec = spec

    def __eq__(self, other: object) -> bool:
        return self.__wrapped__ == (other.__wrapped__ if isinstance(other, _Faulty) else other)

    def __hash__(self) -> int:
        return hash(self.__wrapped__)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        spec = self._spec
        if spec.is_generator:
            generator = self.__wrapped__(*args, **kwargs)
            return _AsyncGenerator(self, generator) if spec.is_async else _Generator(self, generator)
        return self._awaited(args, kwargs) if spec.is_async else self._called(args, kwargs)

    async def _awaited(self, args: Any, kwargs: Any) -> Any:
        if (error := await self.strike()) is not None:
            raise error
        return await self.__wrapped__(*args, **kwargs)

    def _called(self, args: Any, kwargs: Any) -> Any:
        if (error := self.strike_sync()) is not None:
            raise error
        return self.__wrapped__(*args, **kwargs)

    async def strike(self) -> BaseException | None:
        """What it fails with this time, after what it waits for."""
        error, seconds = self._struck()
        if seconds:
            await anyio.sleep(seconds)
        return error

    def strike_sync(self) -> BaseException | None:
        """The same in a thread."""
        error, seconds = self._struck()
        if seconds:
            time.sleep(seconds)
        return error

    def _struck(self) -> tuple[BaseException | None, float]:
        seconds = 0.0
        for fault in tuple(_planned.get(id(self._spec.function.origin), ())):
            if not fault._strikes():
                continue
            if fault._error is not None:
                return fault._error(), seconds
            seconds += fault._seconds
        return None, seconds


class _AsyncGenerator:
    """An async generator to whose steps something is to happen."""

    def __init__(self, faulty: _Faulty, generator: Any) -> None:
        self._faulty = faulty
        self._generator = generator

    def __getattr__(self, name: str) -> Any:
        return getattr(self._generator, name)

    async def asend(self, value: Any) -> Any:
        error = await self._faulty.strike()
        return await (self._generator.asend(value) if error is None else self._generator.athrow(error))

    async def __anext__(self) -> Any:
        return await self.asend(None)


class _Generator:
    """A generator to whose steps something is to happen."""

    def __init__(self, faulty: _Faulty, generator: Any) -> None:
        self._faulty = faulty
        self._generator = generator

    def __getattr__(self, name: str) -> Any:
        return getattr(self._generator, name)

    def send(self, value: Any) -> Any:
        error = self._faulty.strike_sync()
        return self._generator.send(value) if error is None else self._generator.throw(error)

    def __next__(self) -> Any:
        return self.send(None)
