"""Values as bytes, so that two values have the same bytes only if they are equal, and of one type all the way down.

Every value is framed: a letter for its type, its length where that varies, and what it is made of. So no value can look
like another one, or like two. Nothing here depends on the process, on `PYTHONHASHSEED` or on the version of Python, but
for the code of functions.
"""

from __future__ import annotations

import enum
import functools
import struct
import sys
import types
from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields, is_dataclass
from hashlib import sha256
from typing import Any, TypeAlias
from weakref import WeakKeyDictionary

__all__ = ["ENCODERS", "Encoding", "Unencodable", "name_of_type", "register_encoder"]

MAX_DEPTH = 100
MAX_SIZE = 1 << 28  # bytes
PER_ELEMENT = 1 << 8  # bytes that an element of a container counts as: what it costs is time
LARGE = 1 << 16  # bytes: from there on the digest of them is written in their place

EncoderFunc: TypeAlias = "Callable[[Any, Encoding], None]"


class Unencodable(Exception):
    """A value that has no bytes of its own."""


class Encoding:
    """The bytes of some values, as they are written one after another.

    Attributes:
        write: Adds some.
    """

    __slots__ = ("_depth", "_functions", "_left", "_parts", "write")

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self.write: Callable[[bytes], None] = self._parts.append
        self._depth = 0
        self._left = MAX_SIZE
        self._functions: list[Any] = []  # those whose code is being written

    def value(self, value: Any) -> None:
        """Add a value.

        Raises:
            Unencodable: It has none, or it is too large or too deep.
        """
        encoder = ENCODERS.get(type(value))
        if encoder is None:
            encoder = encoder_for(value)
        encoder(value, self)

    def named(self, name: str, value: Any) -> None:
        """Add a value and what it is called."""
        _encode_str(name, self)
        self.value(value)

    def values(self, values: Iterable[Any], count: int) -> None:
        """Add the elements of a container, in order."""
        self.enter(count)
        encoders = ENCODERS
        for value in values:
            encoder = encoders.get(type(value))
            if encoder is None:
                encoder = encoder_for(value)
            encoder(value, self)
        self._depth -= 1

    def unordered(self, values: Iterable[tuple[Any, ...]], count: int) -> None:
        """Add the elements of a container whose order does not count, each of them some values."""
        self.enter(count)
        parts, write = self._parts, self.write
        encoded = []
        for each in values:
            self._parts = []
            self.write = self._parts.append
            for value in each:
                self.value(value)
            encoded.append(b"".join(self._parts))
        encoded.sort()
        self._parts, self.write = parts, write
        parts.extend(encoded)
        self._depth -= 1

    def enter(self, count: int) -> None:
        """Go a level deeper, where so many elements are."""
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise Unencodable(f"contains itself, or is more than {MAX_DEPTH} levels deep")
        self.spend(PER_ELEMENT * count)

    def leave(self) -> None:
        """Come back from there."""
        self._depth -= 1

    def spend(self, size: int) -> None:
        """Note that so many bytes are about to be added."""
        self._left -= size
        if self._left < 0:
            raise Unencodable(f"is too large for a key: more than {MAX_SIZE >> 20} MiB, or about a million elements")

    def buffer(self, data: Any) -> None:
        """Add bytes of any kind that lie in one piece; of many bytes the digest."""
        size = memoryview(data).nbytes
        if size < LARGE:
            self.write(b"%x:" % size)
            self.write(bytes(data))
        else:
            self.spend(size)
            self.write(b"%x#" % size)
            self.write(sha256(data).digest())

    def function(self, func: types.FunctionType) -> None:
        """Add a function, by what it does: its code, its defaults, and the values that it closes over.

        One that is inside itself, as the function that calls itself by a name of the function around it, is added by name.
        """
        _encode_str(name_of_type(func), self)
        if any(func is each for each in self._functions):
            self.write(b"@")
            return
        self._functions.append(func)
        self.value(func.__code__)
        self.value(func.__defaults__)
        self.value(func.__kwdefaults__)
        for name, cell in zip(func.__code__.co_freevars, func.__closure__ or (), strict=True):
            try:
                content = cell.cell_contents
            except ValueError:  # it is not yet set
                self.write(b"?")
                continue
            try:
                self.value(content)
            except Unencodable as exc:
                raise Unencodable(f"closes over {name!r}, which {exc}") from None
        self._functions.pop()

    def is_inside(self, func: Any) -> bool:
        """Whether the code of a function is being written."""
        return any(func is each for each in self._functions)

    def bytes(self) -> bytes:
        """All of them."""
        return b"".join(self._parts)

    def digest(self) -> str:
        """A text of 64 characters that stands for all of them."""
        return sha256(b"".join(self._parts)).hexdigest()


def name_of_type(each: Any) -> str:
    """A class or a function, as the name under which it can be imported."""
    return f"{each.__module__}:{each.__qualname__}"


def register_encoder(type: type[Any], encoder: Callable[[Any], Any]) -> None:
    """Say what of the objects of a class counts in the keys of a cache.

    ```python
    from daglite.cache import register_encoder


    class Point:
        def __init__(self, x: float, y: float) -> None:
            self.x, self.y = x, y


    register_encoder(Point, lambda point: (point.x, point.y))
    ```

    It holds for the class itself, and not for those derived from it, whose objects may have more to them. Of a class of
    one's own the method `__cache_key__(self)` does the same. The name of the class counts in any case.

    Args:
        type: The class.
        encoder: Makes of an object a value that can be encoded, such as a tuple of its parts.

    Raises:
        TypeError: It is no class, or the encoder no function.
        ValueError: The objects of the class have an encoding that is not to be changed, such as those of `int`.
    """
    if not isinstance(type, _type):
        raise TypeError(f"register_encoder: {type!r} is not a class")
    if not callable(encoder):
        raise TypeError(f"register_encoder: the encoder of {type.__qualname__} must be a function, not {encoder!r}")
    if type in _BUILTIN:
        raise ValueError(f"register_encoder: {type.__qualname__} has an encoding already, which others rely on")
    _found[type] = _by(encoder)
    ENCODERS.pop(type, None)


_type = type


def _by(key_of: Callable[[Any], Any]) -> EncoderFunc:
    """Encodes what a function makes of an object, with the name of its class."""

    def encode(value: Any, encoding: Encoding) -> None:
        encoding.write(b"o")
        _encode_str(name_of_type(type(value)), encoding)
        encoding.values((key_of(value),), 1)

    return encode


# The builtin types, whose encodings never change.


def _constant(letter: bytes) -> EncoderFunc:
    return lambda value, encoding: encoding.write(letter)


def _encode_int(value: int, encoding: Encoding) -> None:
    encoding.write(b"i%x;" % value)


def _encode_float(value: float, encoding: Encoding) -> None:
    # 0.0 and -0.0 are equal, and not the same: a function may tell them apart.
    encoding.write(struct.pack(">cd", b"f", value))


def _encode_complex(value: complex, encoding: Encoding) -> None:
    encoding.write(struct.pack(">cdd", b"c", value.real, value.imag))


def _encode_str(value: str, encoding: Encoding) -> None:
    data = value.encode("utf-8", "surrogatepass")
    size = len(data)
    if size < LARGE:
        encoding.write(b"s%x:%b" % (size, data))
    else:
        encoding.write(b"s")
        encoding.buffer(data)


def _encode_bytes(value: bytes, encoding: Encoding) -> None:
    encoding.write(b"b")
    encoding.buffer(value)


def _encode_bytearray(value: bytearray, encoding: Encoding) -> None:
    encoding.write(b"a")
    encoding.buffer(value)


def _encode_memoryview(value: memoryview, encoding: Encoding) -> None:
    encoding.write(b"m")
    _encode_str(value.format, encoding)
    encoding.value(value.shape)
    encoding.buffer(value if value.c_contiguous else value.tobytes())


def _encode_list(value: list[Any], encoding: Encoding) -> None:
    encoding.write(b"l%x:" % len(value))
    encoding.values(value, len(value))


def _encode_tuple(value: tuple[Any, ...], encoding: Encoding) -> None:
    encoding.write(b"t%x:" % len(value))
    encoding.values(value, len(value))


def _encode_dict(value: Mapping[Any, Any], encoding: Encoding) -> None:
    encoding.write(b"d%x:" % len(value))
    encoding.unordered(value.items(), 2 * len(value))


def _encode_set(value: set[Any], encoding: Encoding) -> None:
    encoding.write(b"S%x:" % len(value))
    encoding.unordered(((each,) for each in value), len(value))


def _encode_frozenset(value: frozenset[Any], encoding: Encoding) -> None:
    encoding.write(b"z%x:" % len(value))
    encoding.unordered(((each,) for each in value), len(value))


def _encode_code(code: types.CodeType, encoding: Encoding) -> None:
    """Whatever of the code of a function says what it does: no line numbers, and no name of a file."""
    encoding.write(b"C")
    encoding.values(
        (
            code.co_name,
            code.co_code,
            code.co_consts,  # with the code of functions inside it
            code.co_names,  # of attributes and globals: all in which `x.upper()` and `x.lower()` differ
            code.co_varnames,
            code.co_freevars,
            code.co_cellvars,
            code.co_flags,
            (code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount),
            getattr(code, "co_exceptiontable", b""),  # from Python 3.11 on
        ),
        10,
    )


def _encode_function(func: types.FunctionType, encoding: Encoding) -> None:
    encoding.write(b"F")
    encoding.enter(1)
    encoding.function(func)
    encoding.leave()


def _encode_method(method: types.MethodType, encoding: Encoding) -> None:
    encoding.write(b"M")
    encoding.values((method.__func__, method.__self__), 2)


def _encode_builtin(func: types.BuiltinFunctionType, encoding: Encoding) -> None:
    """A function of C: by its name, and by the object that it is a method of."""
    owner = func.__self__
    encoding.write(b"X")
    if owner is None or isinstance(owner, types.ModuleType):
        encoding.values((func.__module__, func.__qualname__), 2)
    else:
        encoding.values((func.__qualname__, owner), 2)


def _encode_type(value: type, encoding: Encoding) -> None:
    encoding.write(b"Y")
    _encode_str(name_of_type(value), encoding)


def _encode_module(value: types.ModuleType, encoding: Encoding) -> None:
    encoding.write(b"Z")
    _encode_str(value.__name__, encoding)


def _encode_partial(value: functools.partial[Any], encoding: Encoding) -> None:
    encoding.write(b"P")
    encoding.values((value.func, value.args, value.keywords), 3)


_BUILTIN: dict[type[Any], EncoderFunc] = {
    type(None): _constant(b"N"),
    bool: lambda value, encoding: encoding.write(b"T" if value else b"U"),
    type(Ellipsis): _constant(b"E"),
    type(NotImplemented): _constant(b"I"),
    int: _encode_int,
    float: _encode_float,
    complex: _encode_complex,
    str: _encode_str,
    bytes: _encode_bytes,
    bytearray: _encode_bytearray,
    memoryview: _encode_memoryview,
    list: _encode_list,
    tuple: _encode_tuple,
    dict: _encode_dict,
    set: _encode_set,
    frozenset: _encode_frozenset,
    type: _encode_type,
    types.CodeType: _encode_code,
    types.FunctionType: _encode_function,
    types.MethodType: _encode_method,
    types.BuiltinFunctionType: _encode_builtin,
    types.ModuleType: _encode_module,
    functools.partial: _encode_partial,
}

# Those that are looked up first: the builtin ones, and of the standard library what was met.
ENCODERS: dict[type[Any], EncoderFunc] = dict(_BUILTIN)

# Those that were found out or registered, for as long as there is the class.
_found: WeakKeyDictionary[type[Any], EncoderFunc] = WeakKeyDictionary()


def encoder_for(value: Any) -> EncoderFunc:
    """How to encode an object of a class that is not among the builtin ones.

    Raises:
        Unencodable: Nobody knows.
    """
    cls = type(value)
    encoder = _found.get(cls)
    if encoder is None:
        encoder = _made_for(cls)
        if encoder is None:
            raise Unencodable(_why_not(cls))
        _found[cls] = encoder
    return encoder


def _made_for(cls: type[Any]) -> EncoderFunc | None:
    """How to encode the objects of a class, as its kind tells."""
    if issubclass(cls, type):
        return _encode_type
    if hasattr(cls, "_write_key"):  # a task
        return lambda value, encoding: value._write_key(encoding)
    own = getattr(cls, "__cache_key__", None)
    if own is not None:
        return _by(lambda value: value.__cache_key__())
    known = _LIBRARY.get(name_of_type(cls))
    if known is not None:
        return _by(known)
    root = cls.__module__.partition(".")[0]
    if root in ("numpy", "pandas", "polars"):
        from . import _frames  # which imports what is imported already

        return _frames.encoder_for(cls)
    if issubclass(cls, enum.Enum):
        return _by(lambda member: member._value_)
    if _is_named_tuple(cls):
        return _by(lambda value: dict(zip(cls._fields, tuple(value), strict=True)))
    if issubclass(cls, _CONTAINERS):
        return None  # it may have more to it than the builtin type knows
    if is_dataclass(cls):
        # What does not count when two of them are compared does not count here either.
        names = [each.name for each in fields(cls) if each.compare]
        return _by(lambda value: {name: getattr(value, name) for name in names})
    pydantic = sys.modules.get("pydantic")
    if pydantic is not None and issubclass(cls, pydantic.BaseModel):
        return _by(_parts_of_model)
    return None


_CONTAINERS = (int, float, complex, str, bytes, bytearray, list, tuple, dict, set, frozenset)


def _is_named_tuple(cls: type[Any]) -> bool:
    return cls.__bases__ == (tuple,) and isinstance(getattr(cls, "_fields", None), tuple)


def _parts_of_model(model: Any) -> Any:
    """What counts when two models of pydantic are compared."""
    return model.__dict__, model.__pydantic_extra__, model.__pydantic_private__


def _why_not(cls: type[Any]) -> str:
    name = f"{cls.__module__}.{cls.__qualname__}".removeprefix("builtins.")
    builtin = next((each for each in _CONTAINERS if issubclass(cls, each)), None)
    if builtin is not None:
        return f"is a {name}, derived from {builtin.__name__}, of which nobody knows what it has besides"
    return f"is a {name}, of which nobody knows what counts"


def _parts_of_datetime(value: Any) -> Any:
    return value.isoformat(), value.fold, value.tzinfo


# The rest of the standard library, by name: nothing is imported for what nobody uses.
_LIBRARY: dict[str, Callable[[Any], Any]] = {
    "datetime:date": lambda value: value.isoformat(),
    "datetime:datetime": _parts_of_datetime,
    "datetime:time": _parts_of_datetime,
    "datetime:timedelta": lambda value: (value.days, value.seconds, value.microseconds),
    "datetime:timezone": repr,
    "zoneinfo:ZoneInfo": lambda value: value.key,
    "decimal:Decimal": str,
    "fractions:Fraction": lambda value: (value.numerator, value.denominator),
    "uuid:UUID": lambda value: value.int,
    "re:Pattern": lambda value: (value.pattern, value.flags),
    "array:array": lambda value: (value.typecode, memoryview(value)),
    "builtins:range": lambda value: (value.start, value.stop, value.step),
    "builtins:slice": lambda value: (value.start, value.stop, value.step),
    "builtins:mappingproxy": dict,
    "builtins:method_descriptor": lambda value: (value.__objclass__, value.__name__),  # such as `str.upper`
    "builtins:wrapper_descriptor": lambda value: (value.__objclass__, value.__name__),
    "types:GenericAlias": lambda value: (value.__origin__, value.__args__),
    **{f"operator:{kind}": lambda value: value.__reduce__() for kind in ("itemgetter", "attrgetter", "methodcaller")},
    "types:SimpleNamespace": vars,
    "collections:deque": lambda value: (list(value), value.maxlen),
    "collections:OrderedDict": lambda value: list(value.items()),
    "collections:Counter": dict,
    "collections:defaultdict": lambda value: (value.default_factory, dict(value)),
    **{
        f"ipaddress:{kind}{version}": str
        for kind in ("IPv4", "IPv6")
        for version in ("Address", "Network", "Interface")
    },
}


def _encode_path(value: Any, encoding: Encoding) -> None:
    """A path, as text: not what is in the file. Python 3.13 has them in another module than others."""
    encoding.write(b"p")
    _encode_str(type(value).__name__, encoding)
    _encode_str(str(value), encoding)


def _register_paths() -> None:
    import pathlib

    for each in (pathlib.PurePosixPath, pathlib.PureWindowsPath, pathlib.PosixPath, pathlib.WindowsPath):
        _BUILTIN[each] = ENCODERS[each] = _encode_path


_register_paths()
