"""Whole programs, made of tasks: functions that have a session of their own."""

from __future__ import annotations

import inspect
from abc import abstractmethod
from collections.abc import Callable, Coroutine, Iterable
from functools import partial
from typing import Any, Concatenate, Generic, Literal, NoReturn, Protocol, TypeVar, overload

import anyio
from typing_extensions import Never, ParamSpec, Self, Unpack

from . import _checks
from ._context import here
from ._eventloop import check_installed, in_event_loop
from ._functions import Function, function_of
from ._reference import load_method, load_task
from ._session_options import CommonOptions
from ._trips import find_way
from ._typing import NOT_GIVEN, NotGiven
from .exceptions import SessionError
from .sessions import session

__all__ = ["AsyncWorkflow", "SyncWorkflow", "Workflow", "WorkflowOptions", "workflow"]

P = ParamSpec("P")
R = TypeVar("R")
Rest = ParamSpec("Rest")


class WorkflowOptions(CommonOptions, total=False):
    """The options that `workflow` takes: those of `session()`, and `description`.

    `event_loop` is the one in which `run()`, and a plain function from outside of all sessions, run.
    """

    description: str | None
    on_background_error: Literal["raise", "log"]
    event_loop: Literal["asyncio", "trio"]


class Decorator(Protocol):
    """What `workflow(...)` with options returns."""

    @overload
    def __call__(self, func: Callable[P, Never], /) -> SyncWorkflow[P, Any]: ...  # type: ignore[overload-overlap]
    @overload
    def __call__(self, func: Callable[P, Coroutine[Any, Any, R]], /) -> AsyncWorkflow[P, R]: ...  # type: ignore[overload-overlap]
    @overload
    def __call__(self, func: Callable[P, R], /) -> SyncWorkflow[P, R]: ...


@overload
def workflow(func: Callable[P, Never], /) -> SyncWorkflow[P, Any]: ...  # type: ignore[overload-overlap]
@overload
def workflow(func: Callable[P, Coroutine[Any, Any, R]], /) -> AsyncWorkflow[P, R]: ...  # type: ignore[overload-overlap]
@overload
def workflow(func: Callable[P, R], /) -> SyncWorkflow[P, R]: ...
@overload
def workflow(**options: Unpack[WorkflowOptions]) -> Decorator: ...
def workflow(func: Any = NOT_GIVEN, /, **options: Any) -> Any:
    """Make a function a workflow: each call of it is a session, in which it calls tasks.

    ```python
    from daglite import gather_tasks, task, workflow


    @task(retries=2)
    async def fetch(number: int) -> int:
        return 2 * number


    @workflow(grace=10)
    async def total(count: int) -> int:
        return sum(await gather_tasks(fetch, range(count), limit=5))


    assert total.run(4) == 12  # in an event loop: await total(4)
    ```

    Use it bare, `@workflow`, or with options, those of `session()`. A workflow that is called in a session, such as by another
    workflow, has an inner session, which takes over what it is not given, and whose calls the plugins and subscribers of the outer one
    see too. What it has started in the background is waited for before it returns. What its function raises comes out as it is.

    A coroutine function becomes an `AsyncWorkflow`, any other a `SyncWorkflow`. It keeps the name, documentation and signature of its
    function, binds to an object as a method does, is immutable, and is pickled by reference.

    Args:
        func: The function. Generator functions are none: a workflow returns once.
        options: See `session`; and:

            - `name`: what events and errors call it, and its session; the function's name by default.
            - `description`: what it does; its docstring by default.
            - `event_loop`: `"asyncio"` or `"trio"`, where there is none yet; asyncio by default.

    Returns:
        The workflow, or a decorator if no function was given.

    Raises:
        TypeError: It is not a function, or is a generator function, or an option has the wrong type.
        ValueError: An option is out of range, or the function has a parameter that `run()` takes for itself.
    """
    if func is NOT_GIVEN:
        return partial(made, options=options)
    return made(func, options)


def made(target: Any, options: dict[str, Any]) -> Workflow[Any, Any]:
    """The workflow of the kind that a function calls for."""
    if isinstance(target, Workflow):
        raise TypeError(f"workflow {target.name!r} is a workflow already")
    if isinstance(target, type) or not (callable(target) or isinstance(target, (staticmethod, classmethod))):
        raise TypeError(f"@workflow takes a function, not {target!r:.80}")
    function = function_of(target)
    if function.is_generator:
        raise TypeError(
            f"workflow {function.name!r} is a generator function, but a workflow returns once: return a list, or make it a @task"
        )
    kind = AsyncWorkflow if function.is_async else SyncWorkflow
    return kind(function, {"name": function.name, **options})


class Workflow(Generic[P, R]):
    """What both kinds of workflow have in common: a function, and the options of its sessions, which never change.

    Attributes:
        func: The function.
        name: What it is called, in events, errors and the tree of calls.
        description: What it does; `None` if nobody has said.
    """

    func: Callable[..., Any]
    name: str
    description: str | None
    __name__: str
    __qualname__: str
    _function: Function
    _options: dict[str, Any]

    def __init__(self, function: Function, options: dict[str, Any]) -> None:
        options = dict(options)
        origin = function.origin
        description = options.pop("description", None)
        name = options["name"]
        if not isinstance(name, str) or not name:
            raise TypeError(f"workflow {function.name!r}: name must be a str that is not empty, not {name!r:.80}")
        if not isinstance(description, (str, type(None))):
            raise TypeError(f"workflow {name!r}: description must be a str, not {description!r:.80}")
        check_options(name, function, options)
        self.__dict__.update(
            _function=function,
            _options=options,
            func=function.call,
            name=name,
            description=inspect.getdoc(origin) if description is None else description,
            __wrapped__=function.call,
            __signature__=function.signature,
            __module__=getattr(origin, "__module__", None),
            __name__=function.name,
            __qualname__=getattr(origin, "__qualname__", function.name),
            __doc__=getattr(origin, "__doc__", None),
            # Else those of this class would be found, and `typing.get_type_hints` stumble over them.
            __annotations__=getattr(origin, "__annotations__", {}),
        )

    @property
    def signature(self) -> inspect.Signature:
        """The parameters of a call; without `self` if the workflow was taken from an object."""
        return self._function.signature

    def __setattr__(self, name: str, value: Any) -> NoReturn:
        raise AttributeError(f"workflow {self.name!r} is immutable")

    def __delattr__(self, name: str) -> NoReturn:
        raise AttributeError(f"workflow {self.name!r} is immutable")

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name!r}>"

    def __reduce__(self) -> tuple[Any, ...]:
        owner = self._function.owner
        if owner is not None:
            return load_method, (owner, self.__name__, {})
        where: tuple[Any, str] = (self.__module__, self.__qualname__)
        try:
            found = load_task(*where, {})
        except (AttributeError, ImportError):
            found = None
        if found is not self:
            import pickle  # not by `import daglite`

            raise pickle.PicklingError(
                f"workflow {self.name!r} cannot be pickled: {self.__module__}:{self.__qualname__} is not this workflow. "
                f"Workflows are pickled by reference, so define it at the top level of a module or class, under its own name"
            )
        return load_task, (*where, {})

    def _bind(self, instance: Any, owner: Any) -> Any:
        function = self._function
        if function.owner is not None or function.binding == "static":
            return self
        found = owner if function.binding == "class" else instance
        return self if found is None else self._bound_to(found)

    def _bound_to(self, owner: Any) -> Self:
        function = self._function.bound_to(owner)
        bound: Self = object.__new__(type(self))
        own = {"_function": function, "func": function.call, "__wrapped__": function.call}
        bound.__dict__.update({**self.__dict__, **own, "__signature__": function.signature})
        return bound

    def _check_arguments(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        try:
            self.signature.bind(*args, **kwargs)
        except TypeError as exc:
            raise TypeError(f"workflow {self.name!r}: {exc}") from None

    @overload
    def run(self, *args: P.args, **kwargs: P.kwargs) -> R: ...
    @overload
    def run(self, *args: Any, event_loop: Literal["asyncio", "trio"], **kwargs: Any) -> R: ...
    def run(  # type: ignore[misc]  # a function with a parameter `event_loop` is refused
        self, *args: Any, event_loop: Literal["asyncio", "trio"] | NotGiven = NOT_GIVEN, **kwargs: Any
    ) -> R:
        """Run it from sync code.

        ```python
        from daglite import workflow


        @workflow
        async def greet(name: str) -> str:
            return f"hello {name}"


        assert greet.run("ada", event_loop="asyncio") == "hello ada"
        ```

        A coroutine function runs in an event loop in this thread, for as long as it takes; a plain function runs in this thread, and has its
        event loop in the background. In a session, such as in a worker thread of it, or in `with session()`, the event loop is that
        of the session, unless another is asked for. Ctrl-C cancels what runs, and comes out as a `KeyboardInterrupt`; on Python 3.10 out of a
        coroutine function on asyncio as that event loop's `CancelledError`, as with `anyio.run`.

        Args:
            args: The positional arguments.
            event_loop: `"asyncio"` or `"trio"`; by default what the decorator says, or that of the session, or asyncio. With it type
                checkers do not look at the other arguments.
            kwargs: The keyword arguments.

        Returns:
            What the function returns, after what it has started in the background has ended.

        Raises:
            TypeError: The function does not take these arguments.
            ValueError: There is no such event loop.
            ImportError: The event loop is not installed.
            RuntimeError: An event loop runs in this thread: `await wf(...)`; a `SessionError` of a plain function.
            BaseException: What the function raises, and what leaving its session may raise.
        """
        self._check_arguments(args, kwargs)
        return self._run(args, kwargs, self._chosen(event_loop))

    @abstractmethod
    def _run(self, args: Any, kwargs: Any, chosen: str | None) -> R:
        """Run it in this thread, with an event loop of that name, or the one that is there."""

    def _chosen(self, event_loop: str | NotGiven) -> str | None:
        """The event loop that is asked for, here or by the decorator; `None` if none is.

        Raises:
            ValueError: There is no such event loop.
            ImportError: It is not installed.
        """
        what = f"workflow {self.name!r}"
        if isinstance(event_loop, NotGiven):
            event_loop = self._options.get("event_loop", NOT_GIVEN)
        if isinstance(event_loop, NotGiven):
            return None
        _checks.one_of(f"{what}: event_loop", event_loop, ("asyncio", "trio"))
        check_installed(what, event_loop)
        return event_loop


class AsyncWorkflow(Workflow[P, R]):
    """A coroutine function that has a session for each call: `await wf(...)`, or `wf.run(...)` from sync code."""

    async def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Run it in the caller's own task, in a session.

        Returns:
            What the function returns, after what it has started in the background has ended.

        Raises:
            TypeError: The function does not take these arguments.
            BaseException: What the function raises, and what leaving a session may raise.
        """
        self._check_arguments(args, kwargs)
        async with session(**{**self._options, "event_loop": NOT_GIVEN}):
            return await self.func(*args, **kwargs)  # type: ignore[no-any-return]

    def _run(self, args: Any, kwargs: Any, chosen: str | None) -> R:
        way = find_way(f"workflow {self.name!r}: run()", self.name, f"await {self.__name__}(...)")
        books = here().home.books
        if way is not None and (chosen is None or (books is not None and books.loop.name == chosen)):
            return way.take(f"workflow {self.name!r}", self.name, lambda _: self(*args, **kwargs))
        return anyio.run(partial(self, *args, **kwargs), backend=chosen or "asyncio")

    @overload
    def __get__(self, instance: None, owner: Any) -> Self: ...
    @overload
    def __get__(
        self: Callable[Concatenate[Any, Rest], Coroutine[Any, Any, Any]], instance: object, owner: Any = None
    ) -> AsyncWorkflow[Rest, R]: ...
    def __get__(self, instance: Any, owner: Any = None) -> Any:
        """The workflow as a method of an object."""
        return self._bind(instance, owner)


class SyncWorkflow(Workflow[P, R]):
    """A plain function that has a session for each call: `wf(...)`.

    ```python
    from daglite import map_tasks, task, workflow


    @task
    async def fetch(number: int) -> int:
        return 2 * number


    @workflow
    def total(count: int) -> int:
        return sum(map_tasks(fetch, range(count)))


    assert total(4) == 12
    ```

    The event loop of its session is in a thread in the background, or is that of the session that it is called in.
    """

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Run it in this thread, in a session.

        Returns:
            What the function returns, after what it has started in the background has ended.

        Raises:
            TypeError: The function does not take these arguments.
            SessionError: An event loop runs in this thread, which it would block.
            BaseException: What the function raises, and what leaving a session may raise.
        """
        return self.run(*args, **kwargs)

    def _run(self, args: Any, kwargs: Any, chosen: str | None) -> R:
        if in_event_loop():
            raise SessionError(
                f"workflow {self.name!r} is a plain function, and would block the event loop that runs in this thread: call it in "
                f"another, `await anyio.to_thread.run_sync({self.__name__}, ...)`, or write it with `async def`"
            )
        with session(**{**self._options, "event_loop": NOT_GIVEN if chosen is None else chosen}):
            return self.func(*args, **kwargs)  # type: ignore[no-any-return]

    @overload
    def __get__(self, instance: None, owner: Any) -> Self: ...
    @overload
    def __get__(
        self: Callable[Concatenate[Any, Rest], Any], instance: object, owner: Any = None
    ) -> SyncWorkflow[Rest, R]: ...
    def __get__(self, instance: Any, owner: Any = None) -> Any:
        """The workflow as a method of an object."""
        return self._bind(instance, owner)


def check_options(name: str, function: Function, options: dict[str, Any]) -> None:
    """Raise if something is no option of a session, or is wrong, before the workflow is first called.

    Raises:
        TypeError: There is no such option, or it has the wrong type.
        ValueError: It is out of range, or a parameter has a name that `run()` needs.
    """
    where = f"workflow {name!r}"
    unknown = sorted(options.keys() - WorkflowOptions.__annotations__.keys())
    if unknown:
        raise TypeError(
            f"{where}: there is no option {unknown[0]!r}; there are: {', '.join(WorkflowOptions.__annotations__)}"
        )
    if "event_loop" in function.parameters:
        raise ValueError(f"{where} has a parameter 'event_loop', which run() takes for itself; give it another name")
    plugins = options.get("plugins", ())
    if isinstance(plugins, Iterable) and not isinstance(plugins, str):
        options["plugins"] = tuple(plugins)  # once for all calls
    try:
        session(**options)
    except TypeError as exc:
        raise TypeError(f"{where}: {exc}") from None
    except ValueError as exc:
        raise ValueError(f"{where}: {exc}") from None
