"""Keys of arrays, tables and models: by what is in them, whatever lies where."""

import contextlib
import copy
import importlib
import pickle
from typing import Any

import pytest

from daglite.cache import default_cache_hash
from daglite.exceptions import CacheKeyError


@pytest.fixture(scope="module", autouse=True)
def _imported_once() -> None:
    """polars keeps files of the system open from when it is first used."""
    with contextlib.suppress(ImportError):
        importlib.import_module("polars").DataFrame({"a": [1, 2]})[::-1]


def hash_of(value: Any) -> str:
    return default_cache_hash(hash_of, {"value": value})


def check(distinct: list[Any]) -> None:
    """No two of them have the same key, and every copy has that of its original."""
    hashes = [hash_of(value) for value in distinct]
    assert len(set(hashes)) == len(distinct), [hashes.count(each) for each in hashes]
    for value, its in zip(distinct, hashes, strict=True):
        assert hash_of(pickle.loads(pickle.dumps(value))) == its
        assert hash_of(copy.deepcopy(value)) == its


def test_numpy() -> None:
    np = pytest.importorskip("numpy")
    a = np.arange(6)
    check([
        a, a.astype("int32"), a.astype(float), a.reshape(2, 3), a.reshape(3, 2), a[:5], a + 1, a.astype(str),
        a.astype(object), np.array([1, None], dtype=object), np.array([1, "None"], dtype=object), np.array(3), np.array([3]),
        np.zeros((0, 2)), np.zeros((2, 0)), np.array([(1, 2.0)], dtype=[("x", int), ("y", float)]),
        np.array([(1, 2.0)], dtype=[("x", int), ("z", float)]), np.array(["2026-01-01"], dtype="M8[D]"),
        np.array(["2026-01-01"], dtype="M8[s]"), np.int64(3), np.int32(3), np.float64(3), np.bool_(True), np.datetime64("2026"),
        np.str_("a"), np.dtype("int64"), np.dtype("int32"), np.sin, np.cos, 3, 3.0, True, [0, 1, 2, 3, 4, 5], np.random.default_rng(1).random(20_000),
    ])  # fmt: skip
    assert hash_of(a.astype(">i8")) != hash_of(a)
    wide = np.arange(12).reshape(3, 4)
    assert hash_of(wide.T) == hash_of(np.ascontiguousarray(wide.T)) == hash_of(np.asfortranarray(wide.T))
    assert hash_of(wide[:, ::2]) == hash_of(wide[:, ::2].copy()) != hash_of(wide[:, 1::2])
    with pytest.raises(CacheKeyError, match="MaskedArray"):
        hash_of(np.ma.masked_array([1, 2], mask=[True, False]))
    with pytest.raises(CacheKeyError, match="object, of which nobody knows"):
        hash_of(np.array([object()], dtype=object))


def test_pandas() -> None:
    pd = pytest.importorskip("pandas")
    frame = pd.DataFrame({"a": [1, 2], "b": ["x", None]})
    times = pd.date_range("2026-01-01", periods=2, tz="Europe/Berlin")
    check([
        frame, frame.rename(columns={"a": "c"}), frame[["b", "a"]], frame.set_index("a"), frame.iloc[:1], frame.iloc[::-1],
        frame.astype({"a": float}), frame.astype({"a": "Int64"}), frame.astype({"b": "category"}), frame.assign(b="x"),
        frame["a"], frame["b"], frame["a"].rename("b"), frame["a"].astype("Int64"), pd.Series([1, None], dtype="Int64"),
        pd.Series([1.0, None]), pd.Series(["a", "b"], dtype="string"), pd.Series(times), pd.Series(times.tz_convert("UTC")),
        pd.Series(["a", "b"], dtype="category"), pd.Series(["a", "b"], dtype=pd.CategoricalDtype(["b", "a"])),
        pd.Series(["a", "b"], dtype=pd.CategoricalDtype(["a", "b"], ordered=True)), pd.Series([], dtype=float),
        pd.Index([1, 2]), pd.Index([1, 2], name="x"), pd.RangeIndex(1, 3), times, pd.MultiIndex.from_tuples([(1, "a"), (2, "b")]),
        pd.MultiIndex.from_tuples([(1, "a"), (2, "c")]), pd.PeriodIndex(["2026-01"], freq="M"), pd.Timestamp("2026-01-01"),
        pd.Timestamp("2026-01-01", tz="UTC"), pd.Timedelta("1D"), pd.NA, pd.NaT,
        pd.Interval(0, 1), pd.Interval(0, 1, closed="left"), pd.interval_range(0, 2), pd.Period("2026-01"), pd.Period("2026"),
    ])  # fmt: skip
    apart = pd.DataFrame({"a": [1, 2]}).assign(b=["x", None])
    assert hash_of(apart) == hash_of(frame)
    with pytest.raises(CacheKeyError, match="object, of which nobody knows"):
        hash_of(pd.DataFrame({"a": [object()]}))


def test_polars() -> None:
    pl = pytest.importorskip("polars")
    frame = pl.DataFrame({"a": [1, 2], "b": ["x", None]})
    check([
        frame, frame.rename({"a": "c"}), frame.select("b", "a"), frame[:1], frame[::-1], frame.cast({"a": pl.Int32}),
        frame["a"], frame["b"], frame["a"].alias("b"), frame["a"].cast(pl.Float64), pl.Series("a", [1, None]),
        pl.Series("a", [[1], [2, 3]]), pl.Series("a", [[1, 2], [3]]), pl.Series("a", [{"x": 1}]), pl.Series("a", [True]),
        pl.Series("a", ["a"], dtype=pl.Categorical), pl.DataFrame(), pl.Int32, pl.Int64, pl.List(pl.Int32),
    ])  # fmt: skip
    assert hash_of(pl.concat([frame[:1], frame[1:]])) == hash_of(frame)
    with pytest.raises(CacheKeyError, match="LazyFrame"):
        hash_of(frame.lazy())


def test_pydantic() -> None:
    pydantic = pytest.importorskip("pydantic")

    class User(pydantic.BaseModel):  # type: ignore[name-defined,misc]
        name: str
        age: int = 3

    class Other(User):
        pass

    class Open(pydantic.BaseModel):  # type: ignore[name-defined,misc]
        model_config = pydantic.ConfigDict(extra="allow")
        _seen: int = pydantic.PrivateAttr(default=0)

    seen = Open()
    seen._seen = 5
    values = [User(name="a"), User(name="b"), User(name="a", age=4), Other(name="a"), Open(), Open(x=1), seen]
    assert len({hash_of(value) for value in values}) == len(values)
    assert hash_of(User(name="a")) == hash_of(User(name="a", age=3))
    with pytest.raises(CacheKeyError, match="object, of which nobody knows"):
        hash_of(Open(x=object()))
