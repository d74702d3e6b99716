"""`DatasetStore` and the objects of pandas, polars, pyarrow and NumPy."""

import importlib
import io
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from daglite import aload_dataset, session, task
from daglite.datasets import DatasetStore
from daglite.exceptions import DatasetError

np: Any = pytest.importorskip("numpy")
pd: Any = pytest.importorskip("pandas")
pl: Any = pytest.importorskip("polars")
pa: Any = pytest.importorskip("pyarrow")

COLUMNS = {"number": [1, 2, 3], "text": ["a", "ü", ""], "real": [0.5, -1.0, 2.25]}
CLASSES = {"pandas": pd.DataFrame, "polars": pl.DataFrame, "pyarrow": pa.Table}


def table(library: str) -> Any:
    return pa.table(COLUMNS) if library == "pyarrow" else CLASSES[library](COLUMNS)


def columns(value: Any) -> dict[str, list[Any]]:
    """What is in a table, of whatever library."""
    if isinstance(value, pd.DataFrame):
        return {name: value[name].tolist() for name in value.columns}
    found: dict[str, list[Any]] = value.to_pydict() if isinstance(value, pa.Table) else value.to_dict(as_series=False)
    return found


@pytest.fixture(scope="module", autouse=True)
def engines() -> None:
    """Polars and pyarrow begin threads with what they read first, which stay as long as the process."""
    file = io.BytesIO()
    table("polars").write_parquet(file)
    pl.read_parquet(io.BytesIO(file.getvalue()))
    importlib.import_module("pyarrow.csv").read_csv(io.BytesIO(b"a\n1\n"))
    importlib.import_module("pyarrow.parquet").read_table(io.BytesIO(file.getvalue()))


@pytest.fixture
def store(tmp_path: Path) -> DatasetStore:
    return DatasetStore(tmp_path / "root")


@pytest.mark.parametrize("written", CLASSES)
@pytest.mark.parametrize("read", CLASSES)
def test_a_table_in_parquet_is_the_same_for_all(store: DatasetStore, written: str, read: str) -> None:
    for key in ("a.parquet", "a.pq"):
        store.save(key, table(written))
        found = store.load(key, CLASSES[read])
        assert isinstance(found, CLASSES[read])
        assert columns(found) == COLUMNS


@pytest.mark.parametrize("library", CLASSES)
def test_a_table_in_csv_comes_back(store: DatasetStore, library: str) -> None:
    whole = {name: values for name, values in COLUMNS.items() if name != "text"}
    store.save("a.csv", pa.table(whole) if library == "pyarrow" else CLASSES[library](whole))
    found = store.load("a.csv", CLASSES[library])
    assert isinstance(found, CLASSES[library])
    assert columns(found) == whole


def test_without_a_class_the_first_library_that_is_installed_reads(
    store: DatasetStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.save("a.parquet", table("polars"))
    for library in CLASSES:
        assert isinstance(store.load("a.parquet"), CLASSES[library])
        monkeypatch.setitem(sys.modules, library, None)


def test_the_numbers_of_rows_are_no_column_and_an_index_is(store: DatasetStore, tmp_path: Path) -> None:
    frame = table("pandas")
    store.save("a.csv", frame)
    assert (tmp_path / "root/a.csv").read_text() == frame.to_csv(index=False)
    store.save("b.csv", frame.set_index("text"))
    assert (tmp_path / "root/b.csv").read_text() == frame.set_index("text").to_csv()
    assert store.load("b.csv", options={"index_col": "text"}).index.name == "text"
    store.save("c.csv", frame, options={"index": True, "sep": ";"})
    assert (tmp_path / "root/c.csv").read_text() == frame.to_csv(sep=";")


def test_the_index_of_pandas_stays_in_parquet(store: DatasetStore) -> None:
    frame = table("pandas").set_index("text")
    store.save("a.parquet", frame)
    assert store.load("a.parquet").equals(frame)


def test_a_class_made_of_a_table_is_one_of_its_library(store: DatasetStore) -> None:
    class Sales(pd.DataFrame):  # type: ignore[misc]
        pass

    store.save("a.csv", Sales({"a": [1]}))
    with pytest.raises(DatasetError, match="dataset 'a.csv' is of class DataFrame, and not .*Sales"):
        store.load("a.csv", Sales)


def test_a_class_that_is_no_table_is_an_error(store: DatasetStore) -> None:
    store.save("a.csv", table("pandas"))
    with pytest.raises(DatasetError, match="TypeError: csv gives a DataFrame of pandas or polars, .*and no dict"):
        store.load("a.csv", dict)


def test_an_array_comes_back_with_its_type_and_shape(store: DatasetStore, tmp_path: Path) -> None:
    array = np.arange(6, dtype=">i4").reshape(2, 3)
    store.save("a.npy", array)
    found = store.load("a.npy", np.ndarray)
    assert (found.dtype, found.tolist()) == (array.dtype, array.tolist())
    assert np.load(tmp_path / "root/a.npy").tolist() == array.tolist()
    store.save("b.npy", np.float32(1.5))
    assert store.load("b.npy") == 1.5


def test_an_array_of_objects_is_refused_for_that_is_pickle(store: DatasetStore) -> None:
    objects = np.array([{1}], dtype=object)
    with pytest.raises(DatasetError, match="cannot be saved as npy: ValueError: Object arrays cannot be saved"):
        store.save("a.npy", objects)
    store.save("a.npy", objects, options={"allow_pickle": True})
    with pytest.raises(DatasetError, match="cannot be loaded as npy: ValueError: Object arrays cannot be loaded"):
        store.load("a.npy")
    assert store.load("a.npy", options={"allow_pickle": True}).tolist() == [{1}]


@pytest.mark.parametrize("key", ["a.csv", "a.parquet", "a.npy"])
def test_a_damaged_file_is_an_error_that_names_it(store: DatasetStore, key: str) -> None:
    store.save(key, b"\xff\x00 no table", "bytes")
    with pytest.raises(DatasetError, match=f"dataset '{key}' cannot be loaded as"):
        store.load(key)


async def test_tasks_save_and_load_tables(tmp_path: Path) -> None:
    @task(dataset="{name}.parquet")
    def load(library: str) -> Any:
        return table(library)

    async with session(dataset_store=tmp_path):
        for library in CLASSES:
            await load.with_options(name=library).to_thread(library)
            assert columns(await aload_dataset(f"{library}.parquet", CLASSES[library])) == COLUMNS


@pytest.mark.parametrize("library", ["pandas", "polars", "pyarrow"])
def test_one_library_imports_none_of_the_others(tmp_path: Path, library: str) -> None:
    others = {"pandas": {"polars"}, "polars": {"pandas"}, "pyarrow": {"polars"}}[library]
    make = "pyarrow.table" if library == "pyarrow" else f"{library}.DataFrame"
    program = f"""
import sys
import {library}
from daglite.datasets import DatasetStore
store = DatasetStore({str(tmp_path)!r})
store.save("a.csv", {make}({{"a": [1]}}))
print(type(store.load("a.csv", {library}.{CLASSES[library].__name__})).__module__.split(".")[0])
print(sorted({others!r} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=50)
    assert done.stdout == f"{library}\n[]\n"


def test_what_is_written_to_a_file_can_be_read_from_memory(store: DatasetStore, tmp_path: Path) -> None:
    store.save("a.parquet", table("polars"))
    assert columns(pd.read_parquet(io.BytesIO((tmp_path / "root/a.parquet").read_bytes()))) == COLUMNS
