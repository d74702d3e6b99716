"""`DatasetStore`: values in files below a root, which no key leaves, and which are whole whenever somebody looks."""

import errno
import json
import logging
import os
import pickle
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from daglite.datasets import DatasetFormat, DatasetStore, _folders, _formats, register_format
from daglite.exceptions import DatasetError

from . import tasks_for_pickle

LEAVING = [
    "",
    ".",
    "..",
    "../a.json",
    "a/../../b.json",
    "a/..",
    "..\\a.json",
    "a\\..\\..\\b.json",
    "/a.json",
    "//server/share/a.json",
    "\\\\server\\share\\a.json",
    "C:a.json",
    "c:/a.json",
    "C:\\a.json",
    "file:///a.json",
    "file:/a.json",
    "s3://bucket/a.json",
    "memory:/a.json",
    "a//b.json",
    "a/",
    "./a.json",
    "a/./b.json",
    ".. /a.json",
    "../.. /a.json",
    "a/ .json/ . /b.json",
    "a\0.json",
    "\0",
    "a/\ud800.json",
    ".daglite/a.json",
    ".DAGLITE/a.json",
    "x" * 256,
]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "root"


@pytest.fixture
def store(root: Path) -> DatasetStore:
    return DatasetStore(root)


@pytest.fixture
def formats(monkeypatch: pytest.MonkeyPatch) -> None:
    """The registry, to be changed for one test."""
    monkeypatch.setattr(_formats, "_formats", dict(_formats._formats))
    monkeypatch.setattr(_formats, "_by_extension", dict(_formats._by_extension))
    monkeypatch.setattr(_formats, "_refused", set())


def files_below(folder: Path) -> set[str]:
    """All files, those of the store's own folder included."""
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir()}


@pytest.mark.parametrize(
    ("key", "value", "content"),
    [
        ("a.json", {"b": [1, 2.5, None, "ü"]}, '{"b": [1, 2.5, null, "ü"]}'.encode()),
        ("a/b/c.txt", "naïve\r\n", "naïve\r\n".encode()),
        ("a.text", "", b""),
        ("a.bin", b"\x00\xff", b"\x00\xff"),
        ("a.bytes", bytearray(b"ab"), b"ab"),
        ("A.JSON", 1, b"1"),
        ("2026-11-30T10:30:00 [3] ~ {x} *.json", 1, b"1"),
        (".json", 1, b"1"),
        ("surrogate.json", "\udc80", b'"\xed\xb2\x80"'),
        ("v1.2/a.b.json", 1, b"1"),
    ],
)
def test_a_value_is_a_file_that_others_can_read(
    store: DatasetStore, root: Path, key: str, value: Any, content: bytes
) -> None:
    store.save(key, value)
    assert (root / key).read_bytes() == content
    assert store.load(key) == value
    assert store.exists(key)
    assert store.list_keys() == [key]
    assert files_below(root) == {key}


def test_a_pickle_is_of_any_value(store: DatasetStore) -> None:
    for key in ("a.pickle", "a.pkl"):
        store.save(key, {1: {tasks_for_pickle.double}})
        assert store.load(key) == {1: {tasks_for_pickle.double}}


def test_a_format_that_is_named_counts_and_not_the_extension(store: DatasetStore, root: Path) -> None:
    store.save("a.json", b"no json", format="bytes")
    assert (root / "a.json").read_bytes() == b"no json"
    assert store.load("a.json", format="bytes") == b"no json"
    store.save("no extension", [1], "json")
    assert store.load("no extension", list, "json") == [1]


def test_options_are_for_the_format(store: DatasetStore, root: Path) -> None:
    store.save("a.json", {"b": 1}, options={"indent": 1})
    assert (root / "a.json").read_text() == '{\n "b": 1\n}'
    assert store.load("a.json", options={"parse_int": float}) == {"b": 1.0}
    store.save("a.txt", "ü", options={"encoding": "latin-1"})
    assert (root / "a.txt").read_bytes() == b"\xfc"
    assert store.load("a.txt", str, options={"encoding": "latin-1"}) == "ü"
    with pytest.raises(DatasetError, match="dataset 'a.json' cannot be saved as json: TypeError: .*'colour'"):
        store.save("a.json", 1, options={"colour": "red"})


def test_a_class_can_be_asked_for(store: DatasetStore) -> None:
    store.save("a.json", True)
    assert store.load("a.json", int) is True  # which a bool is
    with pytest.raises(DatasetError, match="dataset 'a.json' is of class bool, and not dict"):
        store.load("a.json", dict)
    store.save("a.bin", b"ab")
    assert type(store.load("a.bin", bytearray)) is bytearray
    with pytest.raises(TypeError, match="dataset 'a.json': type must be a class, not list\\[int\\]"):
        store.load("a.json", list[int])


def test_what_was_never_saved_is_not_there(store: DatasetStore, root: Path) -> None:
    for _ in range(2):  # without a root, and with one
        assert not store.exists("b.json")
        assert not store.exists("a.json/b.json")
        for forget in (store.load, store.delete):
            with pytest.raises(FileNotFoundError, match="there is no such dataset in '.*root': 'b.json'"):
                forget("b.json")
            with pytest.raises(FileNotFoundError, match="there is no such dataset in '.*root': 'a.json/b.json'"):
                forget("a.json/b.json")
        assert store.list_keys() == (["a.json"] if root.exists() else [])
        store.save("a.json", 1)
    store.delete("a.json")
    assert store.list_keys() == []


def test_a_new_value_is_in_place_of_the_old_one(store: DatasetStore, root: Path) -> None:
    store.save("a.txt", "a long text")
    store.save("a.txt", "b")
    assert (root / "a.txt").read_text() == "b"
    assert files_below(root) == {"a.txt"}


def test_keys_are_listed_in_order_and_are_those_that_can_be_loaded(store: DatasetStore, root: Path) -> None:
    for key in ("b/c.json", "a.json", "b/a.json", "z"):
        store.save(key, 1, "json")
    (root / "empty").mkdir()
    (root / "a\\b.json").write_text("1")
    (root / "link.json").symlink_to(root / "a.json")
    (root / "folder").symlink_to(root / "b")
    (root / ".daglite" / ("0" * 32)).write_text("half a va")
    os.mkfifo(root / "pipe.json")
    assert store.list_keys() == ["a.json", "b/a.json", "b/c.json", "z"]


def test_a_store_is_where_it_was_first_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    store = DatasetStore("data")
    store.save("a.json", 1)
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert store.load("a.json") == 1
    assert repr(store) == "DatasetStore('data')"
    copy = pickle.loads(pickle.dumps(DatasetStore(tmp_path / "data", storage_options={})))
    assert copy.load("a.json") == 1
    assert repr(copy) == f"DatasetStore({str(tmp_path / 'data')!r}, storage_options=...)"


def test_a_file_url_is_the_folder(root: Path, store: DatasetStore) -> None:
    DatasetStore(f"file://{root}").save("a.json", 1)
    assert DatasetStore(f"local://{root}").load("a.json") == store.load("a.json") == 1


@pytest.mark.parametrize(
    ("path", "error"),
    [
        ("", "must not be empty"),
        ("a\0", "must not be empty or hold a NUL"),
        (b"bytes", "path must be text"),
        (3, "PathLike"),
    ],
)
def test_what_is_no_root_is_refused(path: Any, error: str) -> None:
    with pytest.raises((ValueError, TypeError), match=error):
        DatasetStore(path)


# Keys.


@pytest.mark.parametrize("key", LEAVING)
@pytest.mark.parametrize("do", ["save", "load", "exists", "delete"])
def test_a_key_that_may_lead_elsewhere_is_refused_before_a_file_is_touched(
    store: DatasetStore, root: Path, key: str, do: str
) -> None:
    with pytest.raises(ValueError, match="is no key, for .*a key is a path below the store's root"):
        if do == "save":
            store.save(key, 1, "json")
        elif do == "load":
            store.load(key, format="json")
        else:
            getattr(store, do)(key)
    assert not root.exists()


@pytest.mark.parametrize("key", [None, b"a.json", Path("a.json"), 1])
def test_a_key_is_text(store: DatasetStore, key: Any) -> None:
    for do in (store.load, store.exists, store.delete, lambda key: store.save(key, 1)):
        with pytest.raises(TypeError, match="a key must be a str, not"):
            do(key)


@pytest.mark.parametrize("by_number", [True, False], ids=["by number", "by path"])
def test_no_link_is_followed_wherever_it_leads(
    store: DatasetStore, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, by_number: bool
) -> None:
    monkeypatch.setattr(_folders, "_BY_NUMBER", by_number)
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "a.json").write_text('"secret"')
    store.save("inside/a.json", 1)
    (root / "folder").symlink_to(outside)
    (root / "nowhere").symlink_to(outside / "missing")
    (root / "inner").symlink_to("inside")
    (root / "a.json").symlink_to(outside / "a.json")
    before = files_below(tmp_path)
    for key in ("folder/a.json", "folder/new.json", "nowhere/a.json", "inner/a.json", "a.json", "nowhere"):
        for do in (store.load, store.exists, store.delete, lambda key, **given: store.save(key, 2, "json")):
            with pytest.raises(ValueError, match="is a symbolic link in this store, and none is followed"):
                do(key, format="json") if do == store.load else do(key)
    assert files_below(tmp_path) == before
    assert (outside / "a.json").read_text() == '"secret"'
    assert store.list_keys() == ["inside/a.json"]


def test_a_link_that_takes_a_folders_place_is_not_followed(
    store: DatasetStore, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.save("a/b/c.json", 1)
    outside = tmp_path / "outside"
    outside.mkdir()
    inner = _folders.Folder.inner

    def swapped(folder: Any, name: str) -> Any:
        found = inner(folder, name)
        if name == "a":  # it is open: what has its name now is something else
            (root / "a").rename(root / "moved")
            (root / "a").symlink_to(outside)
        return found

    monkeypatch.setattr(_folders.Folder, "inner", swapped)
    store.save("a/b/c.json", 2)
    assert json.loads((root / "moved/b/c.json").read_text()) == 2
    assert files_below(outside) == set()


def test_the_root_itself_may_be_a_link(tmp_path: Path, root: Path, store: DatasetStore) -> None:
    (tmp_path / "real").mkdir()
    root.symlink_to(tmp_path / "real")
    store.save("a.json", 1)
    assert (tmp_path / "real/a.json").read_text() == "1"


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    key=st.one_of(
        st.text(max_size=20),
        st.lists(
            st.sampled_from(["..", ".", "/", "\\", "a", ".json", " ", "\0", ":", "C", "~", "%2e"]), max_size=8
        ).map("".join),
    )
)
def test_whatever_a_key_is_it_is_refused_or_stays_below_the_root(tmp_path: Path, key: str) -> None:
    outside = tmp_path / "a/b"
    outside.mkdir(parents=True, exist_ok=True)
    store = DatasetStore(outside / "root")
    try:
        store.save(key, "value", "text")
    except (ValueError, DatasetError):  # the latter if it is a folder by now
        pass
    else:
        assert store.load(key, str, "text") == "value"
        assert key in store.list_keys()
        store.delete(key)
    assert {path.name for path in outside.iterdir()} <= {"root"}
    assert {path.name for path in tmp_path.iterdir()} <= {"a"}


# Formats.


@pytest.mark.parametrize(
    ("do", "error"),
    [
        (lambda s: s.save("a", 1), "dataset 'a': 'a' has no extension .*name a format: 'bytes', 'csv', 'json'"),
        (lambda s: s.load("folder.json/a"), "has no extension"),
        (lambda s: s.save("a.", 1), "no format has the extension '' of 'a.'"),
        (
            lambda s: s.save("a.zip", 1),
            "no format has the extension 'zip' of 'a.zip'; .*use one of the extensions 'bin'",
        ),
        (
            lambda s: s.save("a.json", 1, "yaml"),
            "dataset 'a.json': there is no format 'yaml'; there are 'bytes', 'csv'",
        ),
        (lambda s: s.load("a.json", format=""), "there is no format ''"),
        (lambda s: s.load("a.json", format=json), "format must be the name of one, not <module"),
    ],
)
def test_an_unknown_format_is_an_error_that_names_those_there_are(
    store: DatasetStore, root: Path, do: Any, error: str
) -> None:
    with pytest.raises((ValueError, TypeError), match=error):
        do(store)
    assert not root.exists()


@pytest.mark.parametrize(
    ("key", "value", "error"),
    [
        ("a.txt", b"bytes", "cannot be saved as text: TypeError: text is for a str, not for builtins.bytes"),
        (
            "a.bin",
            "text",
            "cannot be saved as bytes: TypeError: bytes is for bytes, a bytearray .*not for builtins.str",
        ),
        ("a.json", {1, 2}, "cannot be saved as json: TypeError: Object of type set is not JSON serializable"),
        ("a.pkl", lambda: 0, "cannot be saved as pickle: .*<lambda>"),
        ("a.csv", [[1]], "csv is for a DataFrame of pandas or polars, or a Table of pyarrow, not for builtins.list"),
        ("a.parquet", 1, "parquet is for a DataFrame of pandas or polars, or a Table of pyarrow, not for builtins.int"),
        ("a.npy", [1], "npy is for an array of NumPy, not for builtins.list"),
    ],
)
def test_a_value_of_another_type_is_an_error_and_what_was_saved_before_stays(
    store: DatasetStore, root: Path, key: str, value: Any, error: str
) -> None:
    store.save(key, "before", "text")
    with pytest.raises(DatasetError, match=error) as caught:
        store.save(key, value)
    assert caught.value.__cause__ is not None
    assert store.load(key, str, "text") == "before"
    assert files_below(root) == {key}


@pytest.mark.parametrize("key", ["a.json", "a.pkl", "a.txt"])
def test_a_damaged_file_is_an_error_that_names_it(store: DatasetStore, root: Path, key: str) -> None:
    root.mkdir()
    (root / key).write_bytes(b"\xff\xfe{")
    with pytest.raises(DatasetError, match=f"dataset '{key}' cannot be loaded as .*Error: ") as caught:
        store.load(key)
    assert caught.value.__cause__ is not None
    assert store.exists(key)  # it is not ours to remove


class Rows:
    name = "rows"
    extensions = ("tsv", "tab.txt")

    def dump(self, value: Any, file: BinaryIO, *, separator: str = "\t") -> None:
        file.write("\n".join(separator.join(row) for row in value).encode())

    def load(self, file: BinaryIO, type: type | None, *, separator: str = "\t") -> Any:
        return [line.split(separator) for line in file.read().decode().split("\n")]


@pytest.mark.usefixtures("formats")
def test_a_format_can_be_registered(store: DatasetStore, root: Path) -> None:
    rows = Rows()
    register_format(rows)
    register_format(rows)
    for key in ("a.tsv", "a.b.tab.txt"):
        store.save(key, [["a", "b"]])
        assert (root / key).read_text() == "a\tb"
        assert store.load(key) == [["a", "b"]]
    store.save("a.txt", "text")
    store.save("a.json", [["a"], ["b"]], "rows", {"separator": ";"})
    assert (root / "a.json").read_text() == "a\nb"


@pytest.mark.usefixtures("formats")
def test_a_class_that_is_defined_again_is_in_place_of_the_old_one(store: DatasetStore) -> None:
    register_format(Rows())
    for value in (1, 2):
        again: Any = type("Rows", (Rows,), {"load": lambda self, file, type, value=value: value})
        again.__module__, again.__qualname__ = Rows.__module__, Rows.__qualname__
        register_format(again())
        store.save("a.tsv", [["a"]])
        assert store.load("a.tsv") == value


def made(**attributes: Any) -> Any:
    return type("Made", (Rows,), attributes)()


@pytest.mark.parametrize(
    ("format", "error"),
    [
        (Rows, "a format is an object with name, extensions, dump"),
        (object(), "a format is an object with name, extensions, dump"),
        (made(name=3), "needs a name that is a str"),
        (made(extensions=["tsv"]), "needs a name that is a str, and a tuple of extensions"),
        (made(name="a b"), "'a b' is no name for a format"),
        (made(extensions=(".tsv",)), "'.tsv' is no extension; write it in lower case, without the first dot"),
        (made(extensions=("TSV",)), "'TSV' is no extension"),
        (made(extensions=(3,)), "3 is no extension"),
        (made(extensions=("json",)), "the extension 'json' is that of format 'json'"),
        (made(name="json"), "there is a format 'json' already"),
    ],
)
@pytest.mark.usefixtures("formats")
def test_what_is_no_format_is_refused_and_nothing_is_changed(format: Any, error: str) -> None:
    before = dict(_formats._formats), dict(_formats._by_extension)
    with pytest.raises((TypeError, ValueError), match=error):
        register_format(format)
    assert (_formats._formats, _formats._by_extension) == before


ENTRY_POINTS = f"""
[daglite.formats]
rows = {__name__}:Rows
broken = nothing.of.that.name:Format
taken = {__name__}:TAKEN
"""
TAKEN = made(name="json", extensions=())


@pytest.mark.usefixtures("formats")
def test_an_installed_package_offers_formats_and_a_broken_one_harms_none(
    store: DatasetStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    offer = tmp_path / "offer-1.0.dist-info"
    offer.mkdir()
    (offer / "METADATA").write_text("Metadata-Version: 2.1\nName: offer\nVersion: 1.0\n")
    (offer / "entry_points.txt").write_text(ENTRY_POINTS)
    monkeypatch.syspath_prepend(str(tmp_path))
    with caplog.at_level(logging.WARNING, "daglite"):
        store.save("a.tsv", [["a", "b"]])
        assert store.load("a.tsv", format="rows") == [["a", "b"]]
        with pytest.raises(ValueError, match="there is no format 'nope'; there are .*'rows'"):
            store.save("a", 1, "nope")
    told = [record.getMessage() for record in caplog.records]
    assert len(told) == 2
    assert "the dataset format 'broken' of 'nothing.of.that.name:Format' cannot be used: ModuleNotFoundError" in told[0]


def test_a_library_is_not_imported_before_its_format_needs_it(tmp_path: Path) -> None:
    program = f"""
import sys
import daglite
assert not any(name.startswith("daglite.datasets") for name in sys.modules)
from daglite.datasets import DatasetStore
store = DatasetStore({str(tmp_path)!r})
store.save("a.json", 1), store.save("a.pkl", 1), store.load("a.json")
try:
    store.save("a.csv", 1)
except daglite.exceptions.DatasetError:
    pass
print(sorted({{"pandas", "polars", "pyarrow", "numpy", "fsspec"}} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=50)
    assert done.stdout == "[]\n"


def test_a_format_without_its_library_says_what_to_install(
    store: DatasetStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("numpy", "pandas", "polars", "pyarrow"):
        monkeypatch.setitem(sys.modules, name, None)
    for key, what in (("a.csv", "pandas"), ("a.parquet", "pandas"), ("a.npy", "numpy")):
        store.save(key, b"", "bytes")
        with pytest.raises(DatasetError, match=f"cannot be loaded as .*: ImportError: .* needs .*: pip install {what}"):
            store.load(key)


def test_formats_are_what_the_protocol_says() -> None:
    assert all(isinstance(each, DatasetFormat) for each in (Rows(), *_formats._formats.values()))


# What goes wrong while it is written.


def test_a_root_that_cannot_be_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        store = DatasetStore(path)
        with pytest.raises(DatasetError, match="dataset 'a.json' cannot be saved as json: .*Error"):
            store.save("a.json", 1)
        with pytest.raises(FileNotFoundError):
            store.load("a.json")


def test_what_is_no_file_is_neither_read_nor_replaced(store: DatasetStore, root: Path) -> None:
    store.save("folder.json/a.json", 1)
    os.mkfifo(root / "pipe.json")
    for key in ("folder.json", "pipe.json"):
        assert not store.exists(key)
        with pytest.raises(DatasetError, match=f"dataset '{key}' cannot be loaded as json: .*Error"):
            store.load(key)
    with pytest.raises(DatasetError, match="cannot be saved as json: IsADirectoryError: .*'folder.json'"):
        store.save("folder.json", 1)
    with pytest.raises(DatasetError, match="cannot be saved as json: NotADirectoryError"):
        store.save("pipe.json/a.json", 1)
    assert stat.S_ISFIFO(os.lstat(root / "pipe.json").st_mode)
    assert files_below(root) == {"folder.json/a.json", "pipe.json"}


class Interrupt(BaseException):
    """As Ctrl-C, but for tests."""


@pytest.mark.usefixtures("formats")
@pytest.mark.parametrize("error", [ValueError("half"), Interrupt()])
def test_a_writer_that_fails_half_way_leaves_what_was_there(
    store: DatasetStore, root: Path, error: BaseException
) -> None:
    class Half(Rows):
        def dump(self, value: Any, file: BinaryIO, **options: Any) -> None:
            file.write(b"half a va")
            file.flush()
            raise error

    register_format(Half())
    store.save("a.tsv", "before", "text")
    with pytest.raises(DatasetError if isinstance(error, Exception) else Interrupt):
        store.save("a.tsv", [])
    with pytest.raises(DatasetError if isinstance(error, Exception) else Interrupt):
        store.save("new.tsv", [])
    assert store.load("a.tsv", format="text") == "before"
    assert files_below(root) == {"a.tsv"}


@pytest.mark.usefixtures("formats")
def test_a_writer_may_close_its_file_and_seek_in_it(
    store: DatasetStore, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Closing(Rows):
        def dump(self, value: Any, file: BinaryIO, **options: Any) -> None:
            file.write(b"....ab")
            file.seek(0)
            file.write(b"size")
            assert file.read() == b"ab"
            file.close()

    register_format(Closing())
    synced: list[str] = []
    fsync = os.fsync

    def noted(number: int) -> None:
        synced.append("folder" if stat.S_ISDIR(os.fstat(number).st_mode) else "file")
        fsync(number)

    monkeypatch.setattr(os, "fsync", noted)
    store.save("a.tsv", [])
    assert (root / "a.tsv").read_bytes() == b"sizeab"
    assert synced[-2:] == ["file", "folder"]  # it is on the disk before it has its name, and that right after


@pytest.mark.parametrize("step", ["open", "fsync", "replace"])
def test_a_disk_that_fails_leaves_what_was_there(
    store: DatasetStore, root: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    store.save("a.json", "before")
    real = getattr(os, step)

    def failing(*args: Any, **kwargs: Any) -> Any:
        if step == "open" and not args[1] & os.O_CREAT:
            return real(*args, **kwargs)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(os, step, failing)
        with pytest.raises(DatasetError, match="cannot be saved as json: OSError: .*No space left"):
            store.save("a.json", "after")
    assert store.load("a.json") == "before"
    assert files_below(root) == {"a.json"}


def test_a_disk_that_is_full_keeps_what_was_there(tmp_path: Path) -> None:
    program = f"""
import resource, signal
from daglite.datasets import DatasetStore
from daglite.exceptions import DatasetError
store = DatasetStore({str(tmp_path / "root")!r})
store.save("a.bin", b"before")
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
try:
    store.save("a.bin", bytes(100_000))
except DatasetError as exc:
    print(exc)
print(store.load("a.bin"), store.list_keys())
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=50)
    assert "File too large" in done.stdout
    assert done.stdout.endswith("b'before' ['a.bin']\n")
    assert files_below(tmp_path / "root") == {"a.bin"}


def test_what_killed_writers_have_left_is_swept_and_nothing_else(store: DatasetStore, root: Path) -> None:
    own = root / ".daglite"
    own.mkdir(parents=True)
    for name, age in (("old", 7200), ("new", 60)):
        (own / name).write_text("half a va")
        os.utime(own / name, (time.time() - age,) * 2)
    (root / "old.json").write_text("1")
    os.utime(root / "old.json", (0, 0))
    store.save("a.json", 1)
    assert files_below(root) == {".daglite/new", "old.json", "a.json"}


WRITER = """
import sys
from daglite.datasets import DatasetStore
store, mine = DatasetStore(sys.argv[1]), sys.argv[2]
print("ready", flush=True)
while True:
    store.save("shared.json", [mine] * 20_000)
"""


@pytest.fixture
def writers(tmp_path: Path) -> Iterator[list[Any]]:
    command = [sys.executable, "-c", WRITER, str(tmp_path / "root")]
    running = [subprocess.Popen([*command, name], stdout=subprocess.PIPE, text=True) for name in ("a", "b")]
    yield running
    for each in running:
        each.kill()
        each.communicate()


def test_of_two_that_save_to_one_key_one_wins_whole_also_when_they_are_killed(
    writers: list[Any], store: DatasetStore, root: Path
) -> None:
    for each in writers:
        assert each.stdout.readline() == "ready\n"
    found: set[str] = set()
    deadline = time.monotonic() + 30
    while len(found) < 2 and time.monotonic() < deadline:
        if store.exists("shared.json"):
            (name,) = set(store.load("shared.json", list))
            found.add(name)
    assert found == {"a", "b"}
    for each in writers:
        each.send_signal(signal.SIGKILL)
        each.wait()
    assert len(set(store.load("shared.json", list))) == 1
    assert store.list_keys() == ["shared.json"]
