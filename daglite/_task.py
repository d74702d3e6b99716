"""What every kind of task is: a function and its options, which never change."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Coroutine, Mapping
from functools import partial
from inspect import Signature
from typing import Any, Generic, NoReturn, TypeVar

from typing_extensions import ParamSpec, Self

from ._bridge import INLINE, find_backend
from ._call import Call
from ._context import Home, Position, here
from ._opening import DatasetStoreLike
from ._options import CacheHash, CacheTTL, Options
from ._protocols import Backend
from ._reference import reduce_partial, reduce_task
from ._retry import RetryDelay, RetryOn
from ._spec import Spec
from ._stores import StoreLike
from ._task_call import TaskCall
from ._typing import NOT_GIVEN, NotGiven
from .limits import Limit, Rate

__all__ = ["Task"]

P = ParamSpec("P")
R = TypeVar("R")


class _SignatureOfTask:
    """What `inspect.signature` of a task looks at. It is not made before that asks."""

    def __get__(self, instance: Any, owner: Any = None) -> Signature:
        if instance is None:
            raise AttributeError("__signature__")
        return instance._spec.function.signature  # type: ignore[no-any-return]


class Task(Generic[P, R]):
    """What the kinds of task have in common: a function and its options, which never change.

    A task keeps the name, documentation and signature of its function, binds to an object as a method does, and is
    pickled by reference: as the module and name under which it can be imported.
    """

    # Of a task, not of the class.
    __signature__: Any = _SignatureOfTask()

    _spec: Spec
    _source: tuple[Any, tuple[Any, ...], Mapping[str, Any]] | None
    __name__: str
    __qualname__: str

    def __init__(self, spec: Spec, source: tuple[Any, tuple[Any, ...], Mapping[str, Any]] | None = None) -> None:
        origin = spec.function.origin
        self.__dict__.update(
            _spec=spec,
            _source=source,
            __wrapped__=spec.func,
            __module__=getattr(origin, "__module__", None),
            __name__=spec.function.name,
            __qualname__=getattr(origin, "__qualname__", spec.function.name),
            __doc__=getattr(origin, "__doc__", None),
            # Else those of this class would be found, and `typing.get_type_hints` stumble over them.
            __annotations__=getattr(origin, "__annotations__", {}),
        )

    @property
    def func(self) -> Callable[..., Any]:
        """The function that a call runs."""
        return self._spec.func  # type: ignore[no-any-return]

    @property
    def signature(self) -> Signature:
        """The parameters of a call; without `self` if the task was taken from an object."""
        return self._spec.function.signature

    @property
    def is_async(self) -> bool:
        """Whether the function is a coroutine function or an async generator function."""
        return self._spec.function.is_async

    @property
    def is_generator(self) -> bool:
        """Whether the function is a generator function, and the task a stream."""
        return self._spec.function.is_generator

    @property
    def name(self) -> str:
        """What the task is called in errors and events, with its placeholders."""
        return self._spec.options.name

    @property
    def description(self) -> str | None:
        """What the task does."""
        return self._spec.options.description

    @property
    def retries(self) -> int:
        """How often the function is run again after a failure."""
        return self._spec.options.retries

    @property
    def retry_on(self) -> RetryOn:
        """Which failures are retried."""
        return self._spec.options.retry_on

    @property
    def retry_delay(self) -> RetryDelay:
        """Seconds before a retry, or what says how many."""
        return self._spec.options.retry_delay

    @property
    def timeout(self) -> float | None:
        """Seconds for each attempt; `None` if there is no limit."""
        return self._spec.options.timeout

    @property
    def total_timeout(self) -> float | None:
        """Seconds for the whole call; `None` if there is no limit."""
        return self._spec.options.total_timeout

    @property
    def item_timeout(self) -> float | None:
        """Seconds for each item of a stream; `None` if there is no limit."""
        return self._spec.options.item_timeout

    @property
    def pump(self) -> bool:
        """Whether an async generator lives in a task of its own."""
        return self._spec.options.pump

    @property
    def limit(self) -> Limit | None:
        """How many attempts run at once, or streams are open; `None` for any number."""
        return self._spec.options.limit

    @property
    def rate(self) -> Rate | None:
        """How many attempts begin in a time; `None` for any number."""
        return self._spec.options.rate

    @property
    def cache(self) -> bool | StoreLike:
        """Whether results are kept, or where."""
        return self._spec.options.cache  # type: ignore[no-any-return]

    @property
    def cache_store(self) -> StoreLike | None:
        """The store that `cache=True` means; `None` for that of the session."""
        return self._spec.options.cache_store  # type: ignore[no-any-return]

    @property
    def cache_ttl(self) -> CacheTTL | None:
        """For how many seconds a result is kept, or what says so; `None` if without end."""
        return self._spec.options.cache_ttl

    @property
    def cache_hash(self) -> CacheHash | None:
        """What makes the key's text of the arguments; `None` for `daglite.cache.default_cache_hash`."""
        return self._spec.options.cache_hash

    @property
    def version(self) -> str | int | None:
        """What counts in keys in place of the function's code; `None` if that does."""
        return self._spec.options.version

    @property
    def dataset(self) -> str | None:
        """The key under which results, or items, are saved; `None` if they are not."""
        return self._spec.options.dataset

    @property
    def dataset_store(self) -> DatasetStoreLike | None:
        """Where datasets are; `None` for where the session says."""
        return self._spec.options.dataset_store  # type: ignore[no-any-return]

    @property
    def dataset_format(self) -> str | None:
        """In which format results are saved; `None` for the one that the key's extension means."""
        return self._spec.options.dataset_format

    @property
    def backend(self) -> str | None:
        """Where fan-outs run a sync function; `None` for where the session says."""
        return self._spec.options.backend

    @property
    def wrap_errors(self) -> bool:
        """Whether a failed call raises a `TaskError`, and not the function's own error."""
        return self._spec.options.wrap_errors

    def __setattr__(self, name: str, value: Any) -> NoReturn:
        remedy = f"; with_options({name}=...) makes another" if name in Options.__slots__ else ""
        raise AttributeError(f"task {self._spec.label!r} is immutable{remedy}")

    def __delattr__(self, name: str) -> NoReturn:
        raise AttributeError(f"task {self._spec.label!r} is immutable")

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name!r}>"

    def __reduce__(self) -> tuple[Any, ...]:
        if self._source is None:
            return reduce_task(self, self._spec)
        task, args, kwargs = self._source
        return reduce_partial(task, self._spec, args, kwargs)

    def with_options(
        self,
        *,
        name: str | NotGiven | None = NOT_GIVEN,
        description: str | NotGiven | None = NOT_GIVEN,
        retries: int | NotGiven = NOT_GIVEN,
        retry_on: RetryOn | NotGiven = NOT_GIVEN,
        retry_delay: RetryDelay | NotGiven = NOT_GIVEN,
        timeout: float | NotGiven | None = NOT_GIVEN,
        total_timeout: float | NotGiven | None = NOT_GIVEN,
        item_timeout: float | NotGiven | None = NOT_GIVEN,
        pump: bool | NotGiven = NOT_GIVEN,
        limit: int | Limit | NotGiven | None = NOT_GIVEN,
        rate: Rate | NotGiven | None = NOT_GIVEN,
        cache: bool | StoreLike | NotGiven = NOT_GIVEN,
        cache_store: StoreLike | NotGiven | None = NOT_GIVEN,
        cache_ttl: CacheTTL | NotGiven | None = NOT_GIVEN,
        cache_hash: CacheHash | NotGiven | None = NOT_GIVEN,
        version: str | int | NotGiven | None = NOT_GIVEN,
        dataset: str | NotGiven | None = NOT_GIVEN,
        dataset_store: DatasetStoreLike | NotGiven | None = NOT_GIVEN,
        dataset_format: str | NotGiven | None = NOT_GIVEN,
        backend: str | NotGiven | None = NOT_GIVEN,
        wrap_errors: bool | NotGiven = NOT_GIVEN,
    ) -> Self:
        """A copy of the task with other options; those that are not given stay as they are.

        Args:
            name: See `task`, as for all others.
            description: As above.
            retries: As above.
            retry_on: As above.
            retry_delay: As above, in seconds.
            timeout: As above, in seconds.
            total_timeout: As above, in seconds.
            item_timeout: As above, in seconds.
            pump: As above.
            limit: As above. A number makes another limit, for the copy and its copies.
            rate: As above.
            cache: As above. A store in place of `True` is in place of `cache_store` too.
            cache_store: As above.
            cache_ttl: As above, in seconds.
            cache_hash: As above.
            version: As above.
            dataset: As above. Without one there is no `dataset_format` either.
            dataset_store: As above.
            dataset_format: As above.
            backend: As above.
            wrap_errors: As above.

        Raises:
            TypeError: An option has the wrong type.
            ValueError: An option is out of range or does not apply to this kind of task.
        """
        options = {
            "name": name,
            "description": description,
            "retries": retries,
            "retry_on": retry_on,
            "retry_delay": retry_delay,
            "timeout": timeout,
            "total_timeout": total_timeout,
            "item_timeout": item_timeout,
            "pump": pump,
            "limit": limit,
            "rate": rate,
            "cache": cache,
            "cache_store": cache_store,
            "cache_ttl": cache_ttl,
            "cache_hash": cache_hash,
            "version": version,
            "dataset": dataset,
            "dataset_store": dataset_store,
            "dataset_format": dataset_format,
            "backend": backend,
            "wrap_errors": wrap_errors,
        }
        changes = {option: value for option, value in options.items() if value is not NOT_GIVEN}
        if not isinstance(cache, (bool, NotGiven)) and isinstance(cache_store, NotGiven):
            changes["cache_store"] = None
        if dataset is None and isinstance(dataset_format, NotGiven):
            changes["dataset_format"] = None
        spec = self._spec
        return type(self)(Spec(spec.function, spec.options.changed(spec.function, changes)), self._source)

    def _prepared(
        self, args: tuple[Any, ...], kwargs: Mapping[str, Any], parent: Position
    ) -> tuple[Call, Callable[[], Coroutine[Any, Any, Any]]]:
        """A call that somebody awaits later, and how: wrong arguments are an error now.

        A sync function runs on its backend, and a stream is collected into a list.

        Args:
            args: The positional arguments.
            kwargs: The keyword arguments.
            parent: Where it is made.
        """
        self._check_arguments(args, kwargs)
        call = Call(self._spec, args, kwargs, parent)
        if not self.is_async:
            call.backend = self._backend(None, call.home)
        return call, lambda: self._awaited(call)

    def _check_arguments(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        try:
            self._spec.function.signature.bind(*args, **kwargs)
        except TypeError as exc:
            raise TypeError(f"task {self._spec.label!r}: {exc}") from None

    def _unbegun(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> TaskCall[Any]:
        """A call that is begun later: wrong arguments are an error now."""
        self._check_arguments(args, kwargs)
        return TaskCall(self, args, kwargs)

    def _write_key(self, encoding: Any) -> None:
        """Add to a key what makes this task itself, where it is an argument or a function closes over it."""
        from .cache._keys import write_function  # not by `import daglite`

        function = self._spec.function
        root = function.root.call
        if encoding.is_inside(root):
            encoding.value(f"{self.__module__}:{self.__qualname__}")
        else:
            write_function(encoding, root, self._spec.options.version)
        encoding.values((function.args, dict(function.kwargs)), 2)

    def _run_one(
        self,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        index: int,
        backend: Backend | None,
        cancel: Callable[[int], None],
    ) -> Coroutine[Any, Any, Any]:
        """The same, for one of a fan-out, here and now.

        Args:
            args: The positional arguments.
            kwargs: The keyword arguments.
            index: Its position in the fan-out.
            backend: Where a sync function runs.
            cancel: Cancels the one of an index alone.
        """
        call = self._call(args, kwargs, backend)
        call.map_index = index
        if call.home.books is not None:  # else nobody can ask for it
            call.cancel = partial(cancel, index)
        return self._awaited(call)

    def _call(self, args: tuple[Any, ...], kwargs: Mapping[str, Any], backend: Backend | None = None) -> Call:
        """A call that is made here, to run on a backend."""
        call = Call(self._spec, args, kwargs, here())
        call.backend = backend
        return call

    @abstractmethod
    def _awaited(self, call: Call) -> Coroutine[Any, Any, Any]:
        """Begin a call and see it through, as each kind of task does."""

    def _backend(self, name: Any, home: Home) -> Backend:
        """Where a call of a sync function runs, if not in place: on the backend of that name, or on the default."""
        options = self._spec.options
        for default in (options.backend, home.settings.backend):
            name = default if name is None else name
        where = f"task {self._spec.label!r}"
        backend = find_backend(where, name, options.deadlines)
        if backend is INLINE and self.is_generator and options.limit is not None:
            raise ValueError(
                f"{where}: its limit cannot be waited for by a generator that is collected in the event loop's own thread; "
                f"use the backend 'thread' instead of 'inline'"
            )
        return backend

    def _bound_to(self, owner: Any) -> Self:
        # As short as can be: it happens whenever a method is called.
        spec = self._spec.bound_to(owner)
        bound: Self = object.__new__(type(self))
        bound.__dict__.update(self.__dict__, _spec=spec, __wrapped__=spec.func)
        return bound

    def _bind(self, instance: Any, owner: Any) -> Any:
        function = self._spec.function
        if function.owner is not None or self._source is not None or function.binding == "static":
            return self  # it is bound already, or never is
        if function.binding == "class":
            return self._bound_to(owner)
        return self if instance is None else self._bound_to(instance)

    def _partial(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        spec = self._spec
        return type(self)(Spec(spec.function.partial(args, kwargs), spec.options), (self, args, kwargs))
