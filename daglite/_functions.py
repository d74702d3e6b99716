"""What kind of function a task is made of, and how to call it as such."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from inspect import Parameter, Signature
from types import MappingProxyType, MethodType
from typing import Any, NamedTuple

from ._typing import NOT_GIVEN, NotGiven

__all__ = ["Function", "function_of", "is_coroutine_function", "is_plain"]


class Function:
    """A function, and what has to be known to call it and to describe its calls. It never changes.

    Args:
        call: What is called: the function, a method bound to its object, or a partial.
        origin: What lends the task its name and documentation.
        is_async: Whether it is a coroutine function or an async generator function.
        is_generator: Whether it is a generator function.
        binding: How it binds to an object: `"instance"`, `"class"` or `"static"`.
        whole: All of its parameters.
        args: The arguments that are fixed already, the object of a method first.
        kwargs: The keyword arguments that are fixed already.
        owner: The object, or class, whose method it is; `None` of a function.
    """

    # No dataclass: one is made whenever a method is taken from its object.
    __slots__ = (
        "_plain",
        "_signature",
        "args",
        "binding",
        "call",
        "is_async",
        "is_generator",
        "keys",
        "kwargs",
        "origin",
        "owner",
        "root",
        "whole",
    )

    def __init__(
        self,
        call: Callable[..., Any],
        origin: Any,
        is_async: bool,
        is_generator: bool,
        binding: str,
        whole: Signature,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] = MappingProxyType({}),
        owner: Any = None,
    ) -> None:
        self.call: Callable[..., Any] = call
        self.origin: Any = origin
        self.is_async: bool = is_async
        self.is_generator: bool = is_generator
        self.binding: str = binding
        self.whole: Signature = whole
        self.args: tuple[Any, ...] = args
        self.kwargs: Mapping[str, Any] = kwargs
        self.owner: Any = owner
        # What it was made of by binding and fixing; and there, for a cache, what its keys begin with, for each version.
        self.root: Function = self
        self.keys: dict[Any, Any] | None = None
        self._signature: Signature | None = None
        self._plain: Plain | NotGiven | None = NOT_GIVEN  # found out when something asks

    @property
    def signature(self) -> Signature:
        """The parameters that a call has arguments for; found out when something asks."""
        if self._signature is None:
            self._signature = _signature(self.call)
        return self._signature

    @property
    def name(self) -> str:
        """What the function is called."""
        return self.origin.__name__  # type: ignore[no-any-return]

    @property
    def parameters(self) -> tuple[str, ...]:
        """The names that a call's inputs may have."""
        names = tuple(self.whole.parameters)
        return names[1:] if self.owner is not None and not self._takes_self_in_args() else names

    def bound_to(self, owner: Any) -> Function:
        """The method of an object."""
        return self._with(MethodType(self.call, owner), (owner, *self.args), self.kwargs, owner)

    def partial(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Function:
        """The function with some arguments fixed.

        Raises:
            TypeError: It does not take these arguments.
        """
        self.signature.bind_partial(*args, **kwargs)
        call = functools.partial(self.call, *args, **kwargs)
        return self._with(call, (*self.args, *args), {**self.kwargs, **kwargs}, self.owner)

    def _with(self, call: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any], owner: Any) -> Function:
        made = Function(
            call, self.origin, self.is_async, self.is_generator, self.binding, self.whole, args, kwargs, owner
        )
        made.root = self.root
        return made

    def fits(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
        """Whether a call may have these arguments."""
        try:
            self.signature.bind(*args, **kwargs)
        except TypeError:
            return False
        return True

    def inputs(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """The arguments of a call by parameter name, with defaults and fixed ones, without `self`."""
        inputs = self._plain_inputs(args, kwargs)
        return self._bound_inputs(args, kwargs) if inputs is None else inputs

    def all_inputs(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """The same, with the object of a method too; of arguments that do not fit, these as they are."""
        inputs = self._plain_inputs(args, kwargs)
        if inputs is None:
            inputs = self._whole_inputs(args, kwargs)
        return {"args": (*self.args, *args), "kwargs": {**self.kwargs, **kwargs}} if inputs is None else inputs

    def _plain_inputs(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any] | None:
        """Those of most calls, at a tenth of the cost; `None` if they do not fit, or it is not that simple."""
        plain = self.plain
        if plain is None:
            return None
        given, defaults = len(args), plain.defaults
        if given > plain.positional:
            return None
        for index, name in plain.required:
            if index >= given and name not in kwargs:
                return None
        if not kwargs:
            return {**defaults, **dict(zip(defaults, args, strict=False))}
        for name in kwargs:
            if plain.positions.get(name, -1) < given:  # unknown, or given twice
                return None
        return {**defaults, **dict(zip(defaults, args, strict=False)), **kwargs}

    @property
    def plain(self) -> Plain | None:
        """Its parameters, if a call can be bound to them by hand: none of them takes any number of arguments."""
        if self._plain is NOT_GIVEN:
            is_simple = not self.args and not self.kwargs and self.owner is None
            self._plain = Plain.of(self.whole) if is_simple else None
        return self._plain  # type: ignore[return-value]

    def _bound_inputs(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        inputs = self._whole_inputs(args, kwargs)
        if inputs is None:
            # They do not fit; or they do, for a decorator below @task adds some. Calling will tell.
            return {**dict(zip(self.signature.parameters, args, strict=False)), **kwargs}
        if self.owner is not None:
            first = next(iter(inputs))
            if self._takes_self_in_args():
                inputs[first] = inputs[first][1:]
            else:
                del inputs[first]
        return inputs

    def _whole_inputs(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any] | None:
        try:
            bound = self.whole.bind(*self.args, *args, **{**self.kwargs, **kwargs})
        except TypeError:
            return None
        bound.apply_defaults()
        return dict(bound.arguments)

    def _takes_self_in_args(self) -> bool:
        return next(iter(self.whole.parameters.values())).kind is Parameter.VAR_POSITIONAL


class Plain(NamedTuple):
    """The parameters of a function, if each takes one argument.

    Args:
        defaults: All of them in order, with their defaults.
        positional: How many may be given by position.
        required: The position and name of those that have no default.
        positions: Where in the order each is that may be given by name; of one that may not -1.
    """

    defaults: dict[str, Any]
    positional: int
    required: tuple[tuple[int, str], ...]
    positions: dict[str, int]

    @classmethod
    def of(cls, signature: Signature) -> Plain | None:
        """Those of a signature; `None` if one of them takes any number of arguments."""
        parameters = signature.parameters
        kinds = [each.kind for each in parameters.values()]
        if Parameter.VAR_POSITIONAL in kinds or Parameter.VAR_KEYWORD in kinds:
            return None
        return cls(
            {name: each.default for name, each in parameters.items()},
            sum(kind is not Parameter.KEYWORD_ONLY for kind in kinds),
            tuple((index, name) for index, (name, each) in enumerate(parameters.items()) if each.default is each.empty),
            {
                name: -1 if kind is Parameter.POSITIONAL_ONLY else index
                for index, (name, kind) in enumerate(zip(parameters, kinds, strict=True))
            },
        )


def function_of(target: Any) -> Function:
    """What `@task` is put on, understood.

    Raises:
        TypeError: It is a class, or cannot be called.
    """
    binding, func = _unwrapped(target)
    is_async, is_generator, call = _kind_of(func)
    return Function(call, _origin(func), is_async, is_generator, binding, _signature(func))


def is_plain(func: Any) -> bool:
    """Whether it is a function that answers at once."""
    return callable(func) and not isinstance(func, type) and _kind_of(func)[:2] == (False, False)


def is_coroutine_function(func: Any) -> bool:
    """Whether calling it gives something to await."""
    return callable(func) and not isinstance(func, type) and _kind_of(func)[:2] == (True, False)


def _unwrapped(target: Any) -> tuple[str, Any]:
    """How it binds to an object, and the function inside a `staticmethod` or `classmethod`."""
    if isinstance(target, staticmethod):
        return "static", target.__func__
    if isinstance(target, classmethod):
        return "class", target.__func__
    if isinstance(target, type):
        raise TypeError(
            f"@task takes a function, not the class {target.__qualname__!r}; decorate its methods, "
            f"or a function that makes one"
        )
    if not callable(target):
        raise TypeError(f"@task takes a function, not {target!r}")
    return "instance", target


def _kind_of(func: Any) -> tuple[bool, bool, Callable[..., Any]]:
    """Whether a function is async, whether it is a generator, and how to call it as such."""
    inner = func
    while isinstance(inner, functools.partial):
        inner = inner.func
    if not inspect.isroutine(inner):
        inner = type(inner).__call__
    if inspect.isasyncgenfunction(inner):
        return True, True, func
    if inspect.isgeneratorfunction(inner):
        return False, True, func
    if inspect.iscoroutinefunction(inner) or inspect.iscoroutinefunction(func):
        return True, False, func
    if inspect.iscoroutinefunction(inspect.unwrap(inner)):
        return True, False, _awaited(func)
    return False, False, func


def _awaited(func: Callable[..., Any]) -> Callable[..., Any]:
    """A coroutine function from a plain wrapper around one, which may also answer at once."""

    @functools.wraps(func)
    async def wrapper(*args: Any, **kwargs: Any) -> Any:
        result = func(*args, **kwargs)
        return await result if inspect.isawaitable(result) else result

    return wrapper


def _signature(func: Any) -> Signature:
    try:
        return inspect.signature(func)
    except ValueError:  # some functions of C have none, such as `max`
        return inspect.signature(lambda *args, **kwargs: None)


def _origin(func: Any) -> Any:
    """What has the name: of a partial its function, of a callable object its class."""
    while isinstance(func, functools.partial):
        func = func.func
    return func if getattr(func, "__name__", None) else type(func)
