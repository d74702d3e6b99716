"""Under what a result is kept: a digest of the task's function, and of the arguments of the call."""

from __future__ import annotations

import functools
import types
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from .. import exceptions
from .._log import described
from ._encoding import ENCODERS, Encoding, Unencodable, encoder_for, name_of_type

__all__ = ["Keys", "default_cache_hash", "write_function"]

_BY_HAND = "register_encoder() or a method __cache_key__ says what counts of it, cache_hash= computes the key by hand"


class Keys:
    """The keys of one task. The function's part of them is made once.

    Args:
        label: What messages call the task.
        func: Its function, not bound to an object.
        version: What stands in place of the function's code, if anything does.
        names: Its parameters, if all of them take one argument that may be given by position.

    Raises:
        CacheKeyError: The function closes over something that cannot be encoded, or has such a default.
    """

    __slots__ = ("_encoded", "_func", "_label", "_names", "count", "part")

    def __init__(self, label: str, func: Any, version: Any, names: tuple[str, ...] | None) -> None:
        self._label = label
        self._func = func
        encoding = Encoding()
        try:
            write_function(encoding, func, version)
        except Exception as exc:
            text = f"it {exc}" if isinstance(exc, Unencodable) else described(exc)
            raise exceptions.CacheKeyError(
                f"task {label!r} cannot be cached by its code: {text}. With version= neither its code nor what it closes "
                f"over counts; {_BY_HAND}"
            ) from (None if isinstance(exc, Unencodable) else exc)
        self.part: bytes = encoding.bytes()
        self.count: int = -1 if names is None else len(names)  # of arguments that `of_args` takes
        self._names = names or ()
        self._encoded = tuple(map(encoded_name, self._names))

    def of(self, inputs: Iterable[tuple[str, Any]]) -> str:
        """The key of a call.

        Args:
            inputs: Its arguments, all of them in the order of the parameters.

        Raises:
            CacheKeyError: One of them cannot be encoded.
        """
        return digest(self.part, inputs, self._label)

    def of_args(self, args: tuple[Any, ...]) -> str:
        """The same, of arguments that were all given by position: what most calls cost."""
        encoding = Encoding()
        write, encoders = encoding.write, ENCODERS
        write(self.part)
        try:
            for name, value in zip(self._encoded, args, strict=True):
                write(name)
                encoder = encoders.get(type(value))  # as `Encoding.value` does
                if encoder is None:
                    encoder = encoder_for(value)
                encoder(value, encoding)
        except Exception:
            return self.of(zip(self._names, args, strict=True))  # which says with what it fails
        return encoding.digest()

    def by(self, cache_hash: Callable[[Any, Mapping[str, Any]], str], inputs: Mapping[str, Any]) -> str:
        """The key of a call whose task has a `cache_hash`.

        Raises:
            CacheKeyError: That fails, or gives no text.
        """
        try:
            text = cache_hash(self._func, inputs)
        except exceptions.CacheKeyError as exc:
            raise exceptions.CacheKeyError(f"task {self._label!r}: {exc}") from None
        except Exception as exc:
            raise exceptions.CacheKeyError(f"task {self._label!r}: its cache_hash failed: {described(exc)}") from exc
        if not isinstance(text, str):
            raise exceptions.CacheKeyError(f"task {self._label!r}: its cache_hash gave {text!r}, which is no str")
        encoding = Encoding()
        encoding.write(self.part)
        encoding.write(b"#")
        encoding.value(str(text))
        return encoding.digest()


def default_cache_hash(func: Callable[..., Any], inputs: Mapping[str, Any]) -> str:
    """What stands for the arguments of a call in the key of its result, if a task has no `cache_hash`.

    One of one's own may leave out what does not count:

    ```python
    from daglite import task
    from daglite.cache import default_cache_hash


    def without_client(func, inputs):
        return default_cache_hash(func, {name: value for name, value in inputs.items() if name != "client"})


    @task(cache="memory://pages", cache_hash=without_client)
    async def fetch(client: object, url: str) -> bytes: ...
    ```

    Args:
        func: The task's function, for messages.
        inputs: The arguments by parameter name, with defaults, and `self` of a method.

    Returns:
        A text of 64 characters. It is the same for arguments that are equal and of the same types, all the way down, in
        every process and version of Python; the order of dictionaries and sets does not count.

    Raises:
        CacheKeyError: An argument cannot be encoded.
    """
    return digest(b"", inputs.items(), getattr(func, "__name__", "?"))


def digest(part: bytes, inputs: Iterable[tuple[str, Any]], label: str) -> str:
    """A text of 64 characters that stands for a function's part and for arguments.

    Args:
        part: The function's part.
        inputs: The arguments.
        label: What messages call the task.
    """
    encoding = Encoding()
    encoding.write(part)
    name = ""
    try:
        for name, value in inputs:
            encoding.value(name)
            encoding.value(value)
        return encoding.digest()
    except Exception as exc:
        raise no_key(label, name, exc) from (None if isinstance(exc, Unencodable) else exc)


def encoded_name(name: str) -> bytes:
    """The name of a parameter."""
    encoding = Encoding()
    encoding.value(name)
    return encoding.bytes()


def no_key(label: str, name: str, exc: Exception) -> exceptions.CacheKeyError:
    """The error of a call of which no key can be made.

    Args:
        label: What messages call the task.
        name: The argument that it fails with.
        exc: Why. Else than `Unencodable` it is an error of a class' own `__cache_key__`, say.
    """
    why = f"it holds something that {exc}. {_BY_HAND}" if isinstance(exc, Unencodable) else described(exc)
    return exceptions.CacheKeyError(f"task {label!r}: no key can be made of the argument {name!r}: {why}")


def write_function(encoding: Encoding, func: Any, version: Any) -> None:
    """Add what makes a function this one and no other: its name, what is fixed in it, and its code or its version."""
    while True:
        if isinstance(func, functools.partial):
            encoding.values((func.args, func.keywords), 2)
            func = func.func
            continue
        owner = getattr(func, "__self__", None)
        if owner is not None and not isinstance(owner, types.ModuleType):
            encoding.value(owner)
        func = getattr(func, "__func__", func)
        break
    if hasattr(func, "__qualname__"):
        encoding.value(name_of_type(func))
        if version is None:
            encoding.value(func)
    else:  # an object that can be called: what it holds counts like an argument
        encoding.value(func)
        if version is None:
            encoding.value(type(func).__call__)
    if version is not None:
        encoding.write(b"v")
        encoding.value(version)
