"""Plugins: found, checked when a session starts, and called so that a failing one harms nobody.

pluggy lends its marks and its checks. The calling is done here: pluggy stops at the first hook that raises, and takes
two plugins that are equal for one.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import pluggy

from ._functions import is_coroutine_function
from ._hookspecs import PROJECT, HookSpecs
from ._log import logger

if TYPE_CHECKING:
    from ._metadata import TaskMetadata

__all__ = ["Activation", "Hooks", "Implementation", "call", "name_of", "surrounded"]


class Implementation(NamedTuple):
    """What one plugin does for one hook.

    Args:
        hook: The hook.
        plugin: What messages call the plugin.
        run: Calls it with those of some facts, by name, that it wants.
        priority: -1 if it is called before others, 1 if after them.
    """

    hook: str
    plugin: str
    run: Callable[[Mapping[str, Any]], Any]
    priority: int


class Hooks:
    """The plugins that a session has, those of the sessions around it included.

    Args:
        plugins: Objects and modules with functions that are marked with `hook_impl`, or with a coroutine function
            `consume`; or the names of entry points in the group `daglite.plugins`.
        outer: The hooks of the session around this one.

    Raises:
        TypeError: Something is no plugin, or a hook cannot be called.
        ValueError: There is no such hook or entry point, or a plugin is given twice.
    """

    def __init__(self, plugins: Iterable[Any] = (), outer: Hooks | None = None) -> None:
        self.plugins: list[Any] = [] if outer is None else list(outer.plugins)
        self.own: list[Any] = []  # those of this session alone
        self._named: dict[str, Any] = {} if outer is None else dict(outer._named)
        implementations = [] if outer is None else list(outer.implementations)
        for plugin in self._found(plugins):
            if not any(plugin is each for each in self.plugins):
                self.plugins.append(plugin)
                self.own.append(plugin)
                for each in checked(plugin):  # who came last is called first, or last, as in pluggy
                    implementations.insert(len(implementations) if each.priority > 0 else 0, each)
        self.implementations: list[Implementation] = sorted(implementations, key=lambda each: each.priority)

    def of(self, hook: str) -> tuple[Implementation, ...]:
        """Those who implement a hook, in the order in which they are called."""
        if not self.implementations:
            return ()
        return tuple(each for each in self.implementations if each.hook == hook)

    def _found(self, plugins: Iterable[Any]) -> list[Any]:
        """The plugins themselves; one that has a name is made once for a session and those inside it."""
        found: list[Any] = []
        for plugin in plugins:
            if isinstance(plugin, str):
                if plugin not in self._named:
                    self._named[plugin] = loaded(plugin)
                plugin = self._named[plugin]
            if any(plugin is each for each in found):
                raise ValueError(f"session: plugin {name_of(plugin)} is given twice")
            found.append(plugin)
        return found


def surrounded(
    implementations: tuple[Implementation, ...], metadata: TaskMetadata, func: Callable[..., Any], *, is_async: bool
) -> Callable[..., Any]:
    """The function of an attempt inside the context managers of `activate`, which fail nobody and swallow nothing.

    Args:
        implementations: Those of `activate`.
        metadata: The call.
        func: The function.
        is_async: Whether it is to be awaited.
    """
    if not is_async:

        def called(*args: Any, **kwargs: Any) -> Any:
            entered = enter(implementations, metadata)
            try:
                value = func(*args, **kwargs)
            except BaseException as exc:
                leave(entered, exc)
                raise
            leave(entered, None)
            return value

        return called

    async def awaited(*args: Any, **kwargs: Any) -> Any:
        entered = enter(implementations, metadata)
        try:
            value = await func(*args, **kwargs)
        except BaseException as exc:
            leave(entered, exc)
            raise
        leave(entered, None)
        return value

    return awaited


class Activation:
    """The same around a stream: entered by its first step, and left by the last, or by one that raises.

    Args:
        implementations: Those of `activate`.
        metadata: The call.
    """

    def __init__(self, implementations: tuple[Implementation, ...], metadata: TaskMetadata) -> None:
        self.begun: bool = False
        self._implementations = implementations
        self._metadata = metadata
        self._entered: Entered = []

    def around(self, func: Callable[..., Any], *, is_async: bool, is_last: bool) -> Callable[..., Any]:
        """A step inside the context managers.

        Args:
            func: The step.
            is_async: Whether it is to be awaited.
            is_last: Whether they are left after it in any case, because no other follows.
        """

        def called() -> Any:
            with Inside(self, is_last):
                return func()

        async def awaited() -> Any:
            with Inside(self, is_last):
                return await func()

        return awaited if is_async else called

    def enter(self) -> None:
        """Enter them, if that was not done before."""
        if not self.begun:
            self.begun = True
            self._entered = enter(self._implementations, self._metadata)

    def leave(self, exc: BaseException | None, *, is_last: bool) -> None:
        """Leave them, with what was raised inside."""
        if not is_last and isinstance(exc, (StopIteration, StopAsyncIteration)):
            exc = None  # it is how a step says that the stream has ended
        leave(self._entered, exc)


class Inside:
    """One step inside the context managers.

    Args:
        activation: The context managers.
        is_last: Whether no other follows.
    """

    __slots__ = ("_activation", "_is_last")

    def __init__(self, activation: Activation, is_last: bool) -> None:
        self._activation = activation
        self._is_last = is_last

    def __enter__(self) -> None:
        self._activation.enter()

    def __exit__(self, exc_type: object, exc: BaseException | None, traceback: object) -> None:
        if exc is not None or self._is_last:
            self._activation.leave(exc, is_last=self._is_last)


Entered: TypeAlias = "list[tuple[Implementation, Any]]"


def enter(implementations: tuple[Implementation, ...], metadata: TaskMetadata) -> Entered:
    """Enter the context managers of `activate`."""
    entered: Entered = []
    try:
        for each in implementations:
            try:
                manager = each.run({"metadata": metadata})
                manager.__enter__()
                entered.append((each, manager))
            except Exception:
                log_failure(each)
    except BaseException as exc:  # an interrupt
        leave(entered, exc)
        raise
    return entered


def leave(entered: Entered, exc: BaseException | None) -> None:
    """Leave the context managers, with what was raised inside."""
    while entered:
        each, manager = entered.pop()
        try:
            if exc is None:
                manager.__exit__(None, None, None)
            else:
                manager.__exit__(type(exc), exc, exc.__traceback__)
        except Exception:
            log_failure(each)


def call(implementations: tuple[Implementation, ...], facts: Mapping[str, Any]) -> None:
    """Call everyone who implements a hook; what they raise is logged.

    Args:
        implementations: Those who do.
        facts: The arguments that there are, by name.
    """
    for each in implementations:
        try:
            each.run(facts)
        except Exception:
            log_failure(each)


def caller(func: Callable[..., Any], arguments: tuple[str, ...]) -> Callable[[Mapping[str, Any]], Any]:
    """What calls a function with those of the facts that it wants. Unpacking a sequence costs more."""
    match arguments:
        case ():
            return lambda facts: func()
        case (first,):
            return lambda facts: func(facts[first])
        case (first, second):
            return lambda facts: func(facts[first], facts[second])
        case (first, second, third):
            return lambda facts: func(facts[first], facts[second], facts[third])
    return lambda facts: func(*[facts[name] for name in arguments])


def log_failure(implementation: Implementation) -> None:
    """Log what a hook has just raised."""
    logger().exception("plugin %s: its hook %r failed", implementation.plugin, implementation.hook)


def name_of(plugin: Any) -> str:
    """What messages call a plugin."""
    return plugin.__name__ if inspect.ismodule(plugin) else type(plugin).__qualname__


def loaded(name: str) -> Any:
    """The plugin that an installed package offers under a name."""
    from importlib.metadata import entry_points  # 50 ms to import

    found = entry_points(group=f"{PROJECT}.plugins")
    for entry_point in found:
        if entry_point.name == name:
            plugin = entry_point.load()
            # What it refers to is the plugin, or a class or function that makes one.
            return plugin() if isinstance(plugin, type) or inspect.isfunction(plugin) else plugin
    names = ", ".join(sorted({repr(entry_point.name) for entry_point in found})) or "none"
    raise ValueError(f"session: no installed package offers a plugin {name!r}; there are: {names}")


def checked(plugin: Any) -> list[Implementation]:
    """What a plugin implements.

    Raises:
        TypeError: It is no plugin, or a hook of it cannot be called.
        ValueError: There is no hook of a name.
    """
    name = name_of(plugin)
    if isinstance(plugin, type):
        raise TypeError(f"session: plugin {plugin.__qualname__} is a class; give an object, {plugin.__qualname__}()")
    consume = getattr(plugin, "consume", None)
    if consume is not None and not takes_events(consume):
        raise TypeError(f"plugin {name}: consume must be `async def consume(self, events)`")
    manager = pluggy.PluginManager(PROJECT)
    manager.add_hookspecs(HookSpecs)
    refuse_unmarked(manager, plugin, name)
    try:
        manager.register(plugin, name)
    except pluggy.PluginValidationError as exc:
        raise TypeError(f"plugin {name}: {exc}") from None
    callers = manager.get_hookcallers(plugin) or ()
    if not callers and consume is None:
        raise TypeError(
            f"plugin {name} has neither a hook nor `async def consume(self, events)`: mark its hooks with @hook_impl"
        )
    implementations = []
    for hook in callers:
        for found in hook.get_hookimpls():
            where = f"plugin {name}: hook {hook.name!r}"
            if hook.has_spec():
                refuse_what_is_not_called(where, found)
                priority = found.trylast - found.tryfirst
                implementations.append(
                    Implementation(hook.name, name, caller(found.function, tuple(found.argnames)), priority)
                )
            elif not found.optionalhook:
                raise ValueError(f"{where} does not exist{suggestion(hook.name)}")
    return implementations


def takes_events(consume: Any) -> bool:
    """Whether it is a coroutine function of one argument."""
    if not is_coroutine_function(consume):
        return False
    try:
        inspect.signature(consume).bind(None)
    except TypeError:
        return False
    return True


def refuse_unmarked(manager: pluggy.PluginManager, plugin: Any, name: str) -> None:
    """Raise if a plugin has a method with a hook's name that is not marked: it would never be called."""
    for hook in vars(HookSpecs):
        found = None if hook.startswith("_") else inspect.getattr_static(plugin, hook, None)
        if found is None or manager.parse_hookimpl_opts(plugin, hook) is not None:
            continue
        if inspect.isroutine(found) and not getattr(found, PROJECT + "_spec", None):
            raise TypeError(f"plugin {name}: {hook!r} has a hook's name but is not marked with @hook_impl")


def refuse_what_is_not_called(where: str, implementation: Any) -> None:
    """Raise if a hook is more than a plain function."""
    function = inspect.unwrap(implementation.function)
    if inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function):
        raise TypeError(
            f"{where} is async, and nobody would await it; write a plain function, or `async def consume(self, events)`"
        )
    if implementation.wrapper or implementation.hookwrapper or inspect.isgeneratorfunction(implementation.function):
        raise TypeError(f"{where} is a wrapper, but hooks only observe; write a plain function")
    try:
        inspect.signature(implementation.function).bind(*implementation.argnames)
    except TypeError as exc:
        raise TypeError(f"{where} is called by position: {exc}") from None


def suggestion(name: str) -> str:
    """The hook that a misspelt name may mean, or all that there are."""
    import difflib

    hooks = [hook for hook in vars(HookSpecs) if not hook.startswith("_")]
    close = difflib.get_close_matches(name, hooks, 1)
    return f"; do you mean {close[0]!r}?" if close else "; there are: " + ", ".join(hooks)
