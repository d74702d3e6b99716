"""Keys: equal means equal, and of one type all the way down; in every process, hash seed and version of Python."""

import array
import collections
import dataclasses
import datetime
import decimal
import enum
import fractions
import functools
import ipaddress
import math
import operator
import os
import pathlib
import re
import subprocess
import sys
import types
import uuid
import zoneinfo
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from daglite import AsyncTask, SyncTask, task
from daglite.cache import default_cache_hash, register_encoder
from daglite.exceptions import CacheKeyError, DagliteError


def hash_of(value: Any) -> str:
    return default_cache_hash(hash_of, {"value": value})


class Color(enum.Enum):
    RED = "r"
    BLUE = "b"


class Size(enum.IntEnum):
    SMALL = 1


class Mode(enum.Flag):
    READ = 1
    WRITE = 2


@dataclasses.dataclass
class Point:
    x: float
    y: float
    note: str = dataclasses.field(default="", compare=False)


@dataclasses.dataclass
class Spot:
    x: float
    y: float


class Pair(NamedTuple):
    first: int
    second: int


class Words(list[str]):
    pass


class Account:
    def __init__(self, number: int) -> None:
        self.number = number

    def __cache_key__(self) -> int:
        return self.number


class Client:
    pass


class Unknown:
    pass


# One of each kind, no two of which may have the same key.
DISTINCT: list[Any] = [
    None, ..., NotImplemented, True, False, 0, 1, -1, 10**5000, 0.0, -0.0, 1.0, math.inf, math.nan, 1j, 0j,
    "", "1", "a", "é", "\ud800", "x" * 100_000, b"", b"1", b"x" * 100_000, bytearray(b"1"), memoryview(b"1"),
    memoryview(b"12"), memoryview(b"1234").cast("H"),
    [], [1], [[1]], [1, [2]], [[1], 2], (), (1,), {}, {1: 2}, {2: 1}, {"1": 2}, set(), {1}, frozenset(), frozenset({1}),
    range(3), range(0, 6, 2), slice(1, 2), Color.RED, Color.BLUE, Size.SMALL, Mode.READ, Mode.READ | Mode.WRITE,
    Point(1, 2), Point(2, 1), Spot(1, 2), Pair(1, 2), Account(1), Account(2),
    pathlib.PurePosixPath("a/b"), pathlib.PureWindowsPath("a/b"), pathlib.Path("a/b"), "a/b",
    datetime.date(2026, 1, 2), datetime.datetime(2026, 1, 2), datetime.datetime(2026, 1, 2, tzinfo=datetime.timezone.utc),
    datetime.datetime(2026, 10, 25, 2, tzinfo=zoneinfo.ZoneInfo("Europe/Berlin")),
    datetime.datetime(2026, 10, 25, 2, tzinfo=zoneinfo.ZoneInfo("Europe/Berlin"), fold=1),
    datetime.time(1, 2), datetime.timedelta(days=1), datetime.timezone.utc, zoneinfo.ZoneInfo("Europe/Berlin"),
    decimal.Decimal("1.0"), decimal.Decimal("1.00"), fractions.Fraction(1, 3), uuid.UUID(int=1),
    re.compile("a"), re.compile("a", re.IGNORECASE), array.array("i", [1]), array.array("d", [1]),
    collections.deque([1]), collections.deque([1], 5), collections.OrderedDict(a=1, b=2), collections.OrderedDict(b=2, a=1),
    collections.Counter("ab"), collections.defaultdict(list), collections.defaultdict(int), types.SimpleNamespace(a=1),
    types.MappingProxyType({1: 2}), ipaddress.ip_address("::1"), ipaddress.ip_network("10.0.0.0/8"),
    int, str, Point, math, len, math.sin, "x".join, "y".join, functools.partial(pow, 2), functools.partial(pow, 3),
    str.upper, str.lower, int.__add__, list[int], list[str], operator.itemgetter(1), operator.itemgetter(2),
    operator.attrgetter("a"), operator.methodcaller("a"), operator.methodcaller("a", b=1),
    hash_of, lambda: 1, lambda: 2, lambda x: x.upper(), lambda x: x.lower(), lambda x=1: x, lambda x=2: x,
]  # fmt: skip


def test_no_two_values_of_different_kinds_have_the_same_key() -> None:
    found: dict[str, Any] = {}
    for value in DISTINCT:
        other = found.setdefault(hash_of(value), value)
        assert other is value, (value, other)


def test_what_is_equal_has_the_same_key() -> None:
    assert hash_of({"a": 1, "b": [2]}) == hash_of({"b": [2], "a": 1})
    assert hash_of({1, 2, 3}) == hash_of({3, 2, 1})
    assert hash_of(frozenset("abc")) == hash_of(frozenset("cba"))
    assert hash_of(Point(1, 2, "here")) == hash_of(Point(1, 2, "there"))
    assert hash_of(memoryview(b"abcd")[::2]) == hash_of(memoryview(b"ac"))
    assert hash_of(math.nan) == hash_of(float("nan"))
    assert hash_of({(1, frozenset({2})): {3}}) == hash_of({(1, frozenset({2})): {3}})
    assert hash_of(Account(7)) == hash_of(Account(7))


scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text()
    | st.binary()
    | st.complex_numbers()
    | st.sampled_from(Color)
)
hashable = st.recursive(scalars, lambda inner: st.tuples(inner, inner) | st.frozensets(inner), max_leaves=5)
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.tuples(inner)
        | st.tuples(inner, inner)
        | st.dictionaries(hashable, inner, max_size=4)
        | st.sets(hashable, max_size=4)
    ),
    max_leaves=12,
)


def normal(value: Any) -> Any:
    """A value that equals another's only if both are equal and of one type all the way down, and both have one repr."""
    kind = type(value).__name__
    if isinstance(value, (list, tuple)):
        return kind, [normal(each) for each in value]
    if isinstance(value, (set, frozenset)):
        return kind, sorted((normal(each) for each in value), key=repr)
    if isinstance(value, dict):
        return kind, sorted(((normal(key), normal(each)) for key, each in value.items()), key=repr)
    return kind, repr(value)


@given(values, values)
def test_two_values_have_one_key_if_they_are_equal_and_of_the_same_types_and_only_then(one: Any, other: Any) -> None:
    assert (hash_of(one) == hash_of(other)) == (normal(one) == normal(other))


@given(values)
def test_a_copy_has_the_same_key_and_a_list_around_it_another(value: Any) -> None:
    import pickle

    assert hash_of(pickle.loads(pickle.dumps(value))) == hash_of(value)
    assert hash_of([value]) != hash_of(value) != hash_of((value,))


class Hostile:
    """What it is asked for it refuses, each time with another error."""

    def __cache_key__(self) -> Any:
        return self.anything

    def __getattr__(self, name: str) -> Any:
        raise [ValueError, KeyError, RecursionError, MemoryError][len(name) % 4](name)


SHOWN = [each for each in DISTINCT if not isinstance(each, int)]  # of the largest there is no repr

anything: Any = st.recursive(
    values
    | st.datetimes(timezones=st.none() | st.timezones())
    | st.dates()
    | st.timedeltas()
    | st.decimals()
    | st.fractions()
    | st.uuids()
    | st.ip_addresses()
    | st.integers(0, len(SHOWN) - 1).map(SHOWN.__getitem__)
    | st.builds(Hostile)
    | st.builds(Unknown)
    | st.functions(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(max_size=3), inner, max_size=3)
        | st.builds(functools.partial, st.just(print), inner)
        | st.builds(Point, inner, inner)
        | st.builds(collections.deque, st.lists(inner, max_size=2))
    ),
    max_leaves=6,
)


@given(anything)
def test_whatever_it_is_there_is_a_key_or_a_key_error(value: Any) -> None:
    try:
        first = hash_of(value)
    except CacheKeyError as exc:
        assert "argument 'value'" in str(exc)
    else:
        assert re.fullmatch("[0-9a-f]{64}", first)
        assert hash_of(value) == first


GOLDEN = """
import datetime, decimal, enum, pathlib, uuid
from daglite.cache import default_cache_hash

class Color(enum.Enum):
    RED = "r"

print(default_cache_hash(None, {
    "one": {"b": {1, 2.5, "x"}, "a": [None, True, b"y", (3j,)], 7: frozenset({"p", "q"})},
    "two": [datetime.datetime(2026, 1, 2, 3, 4), decimal.Decimal("1.5"), uuid.UUID(int=5), pathlib.PurePosixPath("a/b")],
    "three": [Color.RED, int, "\\u00e9" * 70_000],
}))
"""


@pytest.mark.parametrize("seed", ["0", "1"])
def test_keys_are_the_same_in_every_process_hash_seed_and_version(seed: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", GOLDEN],
        env={**os.environ, "PYTHONHASHSEED": seed},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "ea7028d80acb2fa0e5bf70644e04b486db9b763b03e4ef55a96514240423ba63"


def test_paths_count_by_the_name_of_their_class_which_moves_between_versions() -> None:
    moved = type("PosixPath", (), {"__module__": "pathlib._local", "__str__": lambda self: "a"})
    assert "pathlib" in moved.__module__  # as Python 3.13 has it
    assert hash_of(pathlib.PurePosixPath("a")) == hash_of(pathlib.PurePosixPath("a/"))


# What is refused.


class Failing:
    def __cache_key__(self) -> int:
        raise ValueError("no key today")


def deep(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = [value]
    return value


def cyclic() -> list[Any]:
    value: list[Any] = []
    value.append(value)
    return value


def many() -> Any:
    """A small object that is enormous when it is written out."""
    value: Any = 1
    for _ in range(90):
        value = (value, value)
    return value


REFUSED: list[tuple[Callable[[], Any], str]] = [
    (Unknown, r"Unknown, of which nobody knows what counts.*register_encoder\(\).*__cache_key__.*cache_hash="),
    (lambda: [{"a": Unknown()}], "Unknown"),
    (lambda: {Unknown(): 1}, "Unknown"),
    (lambda: Words("a"), "Words, derived from list, of which nobody knows what it has besides"),
    (Failing, "ValueError: no key today"),
    (cyclic, "contains itself, or is more than 100 levels deep"),
    (lambda: deep(101), "contains itself, or is more than 100 levels deep"),
    (many, "is too large for a key: more than 256 MiB, or about a million"),
    (lambda: (lambda: Unknown())(), "Unknown"),
    (object, "object, of which nobody knows what counts"),
    (lambda: iter([1]), "list_iterator, of which nobody knows what counts"),
]


@pytest.mark.parametrize(("make", "message"), REFUSED)
def test_what_cannot_be_encoded_is_an_error_that_names_the_argument_and_the_way_out(make: Any, message: str) -> None:
    ran = []

    @task(cache="memory://refused", version=1, retries=3)
    def work(first: int, second: Any) -> None:
        ran.append(second)

    with pytest.raises(
        CacheKeyError, match=f"(?s)task 'work': no key can be made of the argument 'second': .*{message}"
    ):
        work(1, make())
    assert not ran


def test_a_hundred_levels_are_not_too_many() -> None:
    assert hash_of(deep(99)) != hash_of(deep(98))


def test_a_key_error_is_one_of_ours() -> None:
    assert issubclass(CacheKeyError, DagliteError)


# Encoders.


def test_a_registered_encoder_says_what_counts() -> None:
    class Box:
        def __init__(self, content: object, label: str) -> None:
            self.content, self.label = content, label

    class Crate(Box):
        pass

    register_encoder(Box, lambda box: box.content)
    assert hash_of(Box(1, "a")) == hash_of(Box(1, "b")) != hash_of(Box(2, "a"))
    assert hash_of(Box(1, "a")) != hash_of(1)
    with pytest.raises(CacheKeyError, match="Crate"):
        hash_of(Crate(1, "a"))
    register_encoder(Box, lambda box: (box.content, box.label))
    assert hash_of(Box(1, "a")) != hash_of(Box(1, "b"))
    register_encoder(Words, list)
    assert hash_of(Words("ab")) == hash_of(Words("ab")) != hash_of(["a", "b"])


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((3, str), TypeError, "3 is not a class"),
        ((Client, 3), TypeError, "the encoder of Client must be a function, not 3"),
        ((int, str), ValueError, "int has an encoding already"),
        ((pathlib.Path("a").__class__, str), ValueError, "has an encoding already"),
    ],
)
def test_wrong_encoders_are_errors(arguments: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        register_encoder(*arguments)


# The function's part.


def key(func: Callable[..., Any], *args: Any, **options: Any) -> str:
    made = task(cache="memory://keys", **options)(func)
    assert isinstance(made, (SyncTask, AsyncTask))
    return made.cache_key(*args)


def made_by(code: str, name: str = "work", **names: Any) -> Callable[..., Any]:
    namespace: dict[str, Any] = {"__name__": "made", **names}
    exec(compile(code, f"<{id(code)}>", "exec"), namespace)
    made = namespace[name]
    assert callable(made)
    return made  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    "other",
    [
        "def work(x): return x.lower()",  # the name of a method, which is all that differs
        "def work(x): return x.upper",
        "def work(y): return y.upper()",
        "def work(x, y=1): return x.upper()",
        "def work(x): return x.upper() + 'a'",
        "def work(x): return (lambda: x.upper())()",
        "async def work(x): return x.upper()",
    ],
)
def test_a_function_with_other_code_has_other_keys(other: str) -> None:
    assert key(made_by("def work(x): return x.upper()"), "a") != key(made_by(other), "a")


def test_where_a_function_is_written_does_not_count() -> None:
    one = made_by("def work(x): return x.upper()")
    other = made_by("\n\n# moved\n\ndef work(x):\n    return x.upper()")
    assert key(one, "a") == key(other, "a")
    assert key(one, "a") != key(made_by("def work(x): return x.upper()", __name__="elsewhere"), "a")
    assert key(one, "a") != key(made_by("def play(x): return x.upper()", "play"), "a")


def test_nested_code_counts_and_the_order_of_a_set_does_not() -> None:
    code = "def work(x): return [each for each in x if each in {%s}]"
    assert key(made_by(code % "'a', 'b', 'c'"), "a") == key(made_by(code % "'c', 'b', 'a'"), "a")
    assert key(made_by(code % "'a', 'b', 'c'"), "a") != key(made_by(code % "'a', 'b', 'd'"), "a")


@pytest.mark.skipif(sys.version_info < (3, 11), reason="there is no such table")
def test_the_table_of_exceptions_counts() -> None:
    one = made_by("def work(x):\n  try:\n    a()\n    b()\n  except E: pass")
    code = one.__code__
    other = types.FunctionType(code.replace(co_exceptiontable=code.co_exceptiontable + b"\0"), one.__globals__, "work")
    assert key(one, 1) != key(other, 1)


def test_defaults_and_what_a_function_closes_over_count() -> None:
    def made(factor: Any, least: int = 0) -> Callable[..., Any]:
        def work(x: int, *, least: int = least) -> Any:
            return x * factor

        return work

    assert key(made(2), 1) == key(made(2), 1) != key(made(3), 1)
    assert key(made(2, 5), 1) != key(made(2), 1)
    with pytest.raises(
        CacheKeyError, match="(?s)task 'work' cannot be cached by its code: .*closes over 'factor'.*Client.*version="
    ):
        key(made(Client()), 1)


def test_a_version_stands_in_place_of_code_and_closure() -> None:
    def made(factor: Any) -> Callable[..., Any]:
        def work(x: int) -> Any:
            return x * factor

        return work

    assert key(made(Client()), 1, version=1) == key(made(3), 1, version=1)
    assert len({key(made(2), 1, version=version) for version in (None, 1, "1", 2)}) == 4
    upper, lower = (made_by(f"def work(x): return x.{each}()") for each in ("upper", "lower"))
    assert key(upper, "a", version=1) == key(lower, "a", version=1)
    assert key(upper, "a", version=1) != key(upper, "b", version=1)


def test_a_task_that_calls_itself_by_a_closure_counts_by_its_name() -> None:
    def made(step: int) -> SyncTask[[int], int]:
        @task(cache="memory://keys")
        def count(n: int) -> int:
            return 0 if n <= 0 else 1 + count(n - step)

        return count

    assert made(1).cache_key(3) == made(1).cache_key(3) != made(2).cache_key(3)
    assert made(1)(3) == 3


def test_functions_that_call_each_other_can_be_encoded() -> None:
    def made() -> Callable[..., Any]:
        def even(n: int) -> bool:
            return n == 0 or odd(n - 1)

        def odd(n: int) -> bool:
            return n != 0 and even(n - 1)

        return even

    assert key(made(), 1) == key(made(), 1)


def test_tasks_count_by_their_function_where_they_are_arguments() -> None:
    @task
    def one(x: int) -> int:
        return x

    @task
    def other(x: int) -> int:
        return x + 1

    hashes = [hash_of(each) for each in (one, other, one.partial(1), one.partial(2), one.with_options(version=2))]
    assert len(set(hashes)) == 5
    assert hash_of(one.with_options(retries=3)) == hash_of(one)


# Inputs.


def test_arguments_count_as_they_are_bound_with_defaults() -> None:
    @task(cache="memory://keys")
    def work(a: int, b: int = 2, *, c: int = 3) -> None: ...

    same = [
        work.cache_key(1),
        work.cache_key(1, 2),
        work.cache_key(a=1),
        work.cache_key(1, c=3),
        work.cache_key(b=2, a=1),
    ]
    assert len(set(same)) == 1
    assert len({work.cache_key(1), work.cache_key(2), work.cache_key(1, 3), work.cache_key(1, c=4)}) == 4
    assert work.cache_key(1) != work.cache_key(1.0)  # type: ignore[arg-type]

    @task(cache="memory://keys")
    def rest(*args: int, **kwargs: int) -> None: ...

    assert rest.cache_key(1, 2, a=1, b=2) == rest.cache_key(1, 2, b=2, a=1) != rest.cache_key(1, 2, a=2, b=1)
    with pytest.raises(TypeError, match="task 'work': missing a required argument: 'a'"):
        work.cache_key()  # type: ignore[call-arg]


def test_what_was_fixed_counts_as_what_is_given() -> None:
    @task(cache="memory://keys")
    def work(a: int, b: int) -> None: ...

    assert work.partial(1).cache_key(2) == work.partial(b=2).cache_key(1) == work.cache_key(1, 2)
    assert key(functools.partial(pow, 2), 3) != key(functools.partial(pow, 3), 3)


class Service:
    def __init__(self, number: int) -> None:
        self.number = number

    def __cache_key__(self) -> int:
        return self.number

    @task(cache="memory://keys")
    def load(self, x: int) -> int:
        return x

    @task(cache="memory://keys")
    @classmethod
    def make(cls, x: int) -> int:
        return x

    def plain(self, x: int) -> int:
        return x

    def __call__(self, x: int) -> int:
        return x


class Other(Service):
    pass


class Plain:
    @task(cache="memory://keys")
    def load(self, x: int) -> int:
        return x


def test_self_is_an_input_like_any_other() -> None:
    assert Service(1).load.cache_key(2) == Service(1).load.cache_key(2) == Service.load.cache_key(Service(1), 2)
    assert Service(1).load.cache_key(2) != Service(2).load.cache_key(2) != Other(2).load.cache_key(2)
    classes: list[Any] = [Service, Other]
    assert len({each.make.cache_key(1) for each in classes}) == 2
    with pytest.raises(CacheKeyError, match=r"argument 'self': it holds something that is a .*\.Plain"):
        Plain().load(1)
    for version in (None, 1):
        assert key(Service(1).plain, 1, version=version) != key(Service(2).plain, 1, version=version)
        assert key(Service(1), 1, version=version) != key(Service(2), 1, version=version)


def test_the_part_of_the_function_is_made_once_for_all_objects_of_a_class(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []

    class Counting(Service):
        @task(cache="memory://keys")
        def load(self, x: int) -> int:
            return x

    from daglite.cache import _keys

    write = _keys.write_function

    def counted(*args: Any) -> None:
        made.append(args)
        write(*args)

    monkeypatch.setattr(_keys, "write_function", counted)
    for number in range(3):
        Counting(number).load.cache_key(1)
        Counting(number).load.partial(x=1).cache_key()
        Counting.load.with_options(name="other").cache_key(Counting(number), 1)
    assert len(made) == 1
    Counting(1).load.with_options(version=2).cache_key(1)
    assert len(made) == 2


# Keys by hand.


def test_cache_hash_replaces_the_part_of_the_inputs() -> None:
    seen: list[Any] = []

    def by_url(func: Callable[..., Any], inputs: Mapping[str, Any]) -> str:
        seen.append((func, dict(inputs)))
        return str(inputs["url"])

    @task(cache="memory://keys", cache_hash=by_url)
    def fetch(client: object, url: str, depth: int = 1) -> str:
        return url

    assert fetch.cache_key(Client(), "a") == fetch.cache_key(Client(), "a", 5) != fetch.cache_key(Client(), "b")
    assert seen[0][0] is fetch.func
    assert list(seen[0][1]) == ["client", "url", "depth"]
    other = task(cache="memory://keys", cache_hash=by_url)(made_by("def fetch(client, url): return url", "fetch"))
    assert other.cache_key(Client(), "a") != fetch.cache_key(Client(), "a")


def test_a_cache_hash_that_fails_or_gives_no_text_is_a_key_error() -> None:
    def failing(func: Any, inputs: Any) -> str:
        raise LookupError("no such thing")

    def refusing(func: Any, inputs: Any) -> str:
        return default_cache_hash(func, {"client": Client()})

    for cache_hash, message in [
        (failing, "task 'work': its cache_hash failed: LookupError: no such thing"),
        (lambda func, inputs: 3, "task 'work': its cache_hash gave 3, which is no str"),
        (refusing, "task 'work': .*argument 'client': it holds something that is a .*Client"),
    ]:

        @task(cache="memory://keys", cache_hash=cache_hash)  # type: ignore[arg-type]
        def work(x: int) -> None: ...

        with pytest.raises(CacheKeyError, match=message):
            work(1)
