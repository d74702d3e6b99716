"""`DatasetStore` with a URL: the same through fsspec, which the extra `remote` brings."""

import os
import pickle
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import fsspec
import pytest
from fsspec.implementations.local import LocalFileSystem
from fsspec.implementations.memory import MemoryFileSystem

from daglite import aload_dataset, load_dataset, session, task
from daglite.datasets import DatasetStore, _formats, register_format
from daglite.events import DatasetSaved
from daglite.exceptions import DatasetError
from daglite.settings import Settings
from daglite.testing import EventRecorder

from .test_dataset_store import LEAVING, Interrupt, Rows


class DiskFileSystem(LocalFileSystem):  # type: ignore[misc]
    """fsspec's local files under a name of their own, for `file://` is no business of fsspec's here."""

    protocol = "disk"

    @classmethod
    def _strip_protocol(cls, path: Any) -> Any:
        return super()._strip_protocol(path.removeprefix("disk://"))


class BucketFileSystem(MemoryFileSystem):  # type: ignore[misc]
    """An object store, where to move is to copy."""

    protocol = "s3"
    store: ClassVar[dict[str, Any]] = {}
    pseudo_dirs: ClassVar[list[str]] = [""]

    @classmethod
    def _strip_protocol(cls, path: Any) -> Any:
        return "/" + path.removeprefix("s3://").strip("/")

    def cp_file(self, path1: str, path2: str, **kwargs: Any) -> None:
        raise AssertionError("it was copied")


@pytest.fixture(autouse=True)
def file_systems(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    known = sys.modules["fsspec.registry"]._registry
    monkeypatch.setitem(known, "disk", DiskFileSystem)
    monkeypatch.setitem(known, "s3", BucketFileSystem)
    yield
    MemoryFileSystem.store.clear()
    MemoryFileSystem.pseudo_dirs[:] = [""]
    BucketFileSystem.store.clear()


@pytest.fixture(params=["memory", "disk", "s3"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return f"disk://{tmp_path / 'root'}" if request.param == "disk" else f"{request.param}://bucket/root"


@pytest.fixture
def store(url: str) -> DatasetStore:
    return DatasetStore(url)


def all_files(url: str) -> set[str]:
    """All files below a root, also those of the store itself."""
    files, root = fsspec.url_to_fs(url)
    return {path.removeprefix(root).lstrip("/") for path in files.find(root)}


def test_a_value_is_a_file_elsewhere(store: DatasetStore, url: str) -> None:
    for key, value in (("a/b/c.json", {"a": 1}), ("a.txt", "text"), ("square[1]*?.pkl", {3}), ("ä ~.bin", b"1")):
        assert not store.exists(key)
        store.save(key, value)
        store.save(key, value)
        assert store.exists(key)
        assert store.load(key) == store.load(key, type(value)) == value
    assert store.list_keys() == ["a.txt", "a/b/c.json", "square[1]*?.pkl", "ä ~.bin"]
    assert all_files(url) == set(store.list_keys())
    with fsspec.open(f"{url}/a.txt") as file:
        assert file.read() == b"text"
    store.delete("square[1]*?.pkl")
    store.delete("a.txt")
    assert store.list_keys() == ["a/b/c.json", "ä ~.bin"]


def test_what_was_never_saved_is_not_there(store: DatasetStore) -> None:
    assert store.list_keys() == []
    assert not store.exists("a.json")
    for forget in (store.load, store.delete):
        with pytest.raises(FileNotFoundError, match="there is no such dataset in '.*root': 'a.json'"):
            forget("a.json")


@pytest.mark.parametrize("key", LEAVING)
def test_no_key_leads_out_of_the_root(store: DatasetStore, url: str, key: str) -> None:
    for do in (store.load, store.exists, store.delete, lambda key, **given: store.save(key, 1, "json")):
        with pytest.raises(ValueError, match="is no key, for"):
            do(key, format="json") if do == store.load else do(key)
    assert all_files(url) == set()


@pytest.mark.parametrize("error", [ValueError("half"), Interrupt()])
def test_a_writer_that_fails_half_way_touches_nothing(
    store: DatasetStore, url: str, error: BaseException, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    class Half(Rows):
        def dump(self, value: Any, file: Any, **options: Any) -> None:
            file.write(b"half a va")
            raise error

    monkeypatch.setattr(_formats, "_formats", dict(_formats._formats))
    monkeypatch.setattr(_formats, "_by_extension", dict(_formats._by_extension))
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    register_format(Half())
    store.save("a.tsv", "before", "text")
    with pytest.raises((DatasetError, Interrupt)):
        store.save("a.tsv", [])
    assert store.load("a.tsv", format="text") == "before"
    assert all_files(url) == {"a.tsv"}
    assert list(temporary.iterdir()) == []


@pytest.mark.parametrize("step", ["put_file", "cp_file", "rm_file", "mv"])
def test_an_upload_that_fails_leaves_what_was_there(
    store: DatasetStore, url: str, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.save("a.json", "before")
    files, _ = fsspec.url_to_fs(url)
    used = {"memory": ("put_file", "cp_file"), "disk": ("put_file", "mv"), "s3": ("put_file",)}
    if step not in used[url.partition(":")[0]]:
        return

    def failing(self: Any, *args: Any, **kwargs: Any) -> None:
        raise OSError("connection lost")

    with monkeypatch.context() as patched:
        patched.setattr(type(files), step, failing)
        with pytest.raises(DatasetError, match="dataset 'a.json' cannot be saved as json: OSError: connection lost"):
            store.save("a.json", "after")
    assert store.load("a.json") == "before"
    assert all_files(url) == {"a.json"}


def test_only_object_stores_are_trusted_to_show_nothing_by_half(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put: list[str] = []
    for files in (MemoryFileSystem, LocalFileSystem):
        real = files.put_file

        def noted(self: Any, local: str, path: str, *, real: Any = real, **kwargs: Any) -> None:
            put.append(path)
            real(self, local, path, **kwargs)

        monkeypatch.setattr(files, "put_file", noted)
    for url in ("memory://root", f"disk://{tmp_path}", "s3://root"):
        DatasetStore(url).save("a.json", 1)
    assert [path.rpartition("/")[0] for path in put] == ["/root/.daglite", f"{tmp_path}/.daglite", "/root"]
    assert put[2] == "/root/a.json"


def test_a_folder_is_not_replaced(store: DatasetStore) -> None:
    store.save("a.json/b.json", 1)
    with pytest.raises(DatasetError, match="cannot be saved as json: IsADirectoryError"):
        store.save("a.json", 1)
    assert store.list_keys() == ["a.json/b.json"]


async def test_tasks_save_there(url: str, recorded_events: EventRecorder) -> None:
    @task(dataset="{number}.json")
    async def square(number: int) -> int:
        return number**2

    async with session(dataset_store=url), session():
        assert await square(3) == 9
        assert await aload_dataset("3.json") == load_dataset("3.json") == 9
        assert await square.with_options(dataset_store=f"{url}/other")(4) == 16
    assert DatasetStore(url).list_keys() == ["3.json", "other/4.json"]
    assert len(recorded_events.of(DatasetSaved)) == 2


def test_options_are_for_fsspec(tmp_path: Path) -> None:
    store = DatasetStore(f"disk://{tmp_path}/root", storage_options={"auto_mkdir": True})
    copy = pickle.loads(pickle.dumps(store))
    copy.save("a.json", 1)
    assert store.load("a.json") == 1
    assert copy._root()._files.auto_mkdir
    assert repr(DatasetStore("memory://ada:secret@host/root")) == "DatasetStore('memory://...@host/root')"


def test_one_file_system_may_be_reached_through_another(tmp_path: Path) -> None:
    store = DatasetStore(
        f"simplecache::disk://{tmp_path}/root",
        storage_options={"simplecache": {"cache_storage": str(tmp_path / "cache")}},
    )
    DatasetStore(f"disk://{tmp_path}/root").save("a.json", 1)
    assert store.load("a.json") == 1


@pytest.mark.parametrize(
    "where", [DatasetStore, lambda url: session(dataset_store=url), lambda url: Settings(dataset_store=url)]
)
def test_a_url_that_nobody_knows_is_an_error_at_once(where: Any) -> None:
    with pytest.raises(ValueError, match="DatasetStore: there is no store for 'nope://a/b': Protocol not known: nope"):
        where("nope://a/b")
    with pytest.raises(ImportError, match="'sftp://...@host/b' needs more than fsspec: .*paramiko"):
        where("sftp://ada:secret@host/b")


def test_without_fsspec_the_error_says_what_to_install(tmp_path: Path) -> None:
    program = f"""
import sys
sys.modules["fsspec"] = None
from daglite.datasets import DatasetStore
DatasetStore({str(tmp_path)!r}).save("a.json", 1)
DatasetStore("file://" + {str(tmp_path)!r}).load("a.json")
try:
    DatasetStore("s3://bucket")
except ImportError as exc:
    print(exc)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=50)
    assert done.stdout == "DatasetStore: 's3://bucket' needs fsspec: pip install 'daglite[remote]'\n"
    assert sorted(os.listdir(tmp_path)) == [".daglite", "a.json"]
