"""`FileCacheStore`: what is read is what was written, or nothing, whatever happens to the folder."""

import errno
import logging
import os
import pickle
import re
import resource
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from daglite import _clock, session, task
from daglite.cache import CACHE_MISS, CacheStore, FileCacheStore
from daglite.cache._entries import Unreadable, packed, unpacked
from daglite.events import CacheFailed, CacheHit
from daglite.settings import Settings
from daglite.testing import EventRecorder, VirtualClock

CALLED: list[str] = []


def call_me() -> str:
    """What a pickle of `Trap` calls when it is loaded."""
    CALLED.append("called")
    return "trapped"


class Trap:
    def __reduce__(self) -> Any:
        return call_me, ()


def files_in(store: FileCacheStore) -> list[Path]:
    """Its entries."""
    return [path for path in Path(store.location).glob("??/*") if path.parent.name != "tmp"]


def only_file(store: FileCacheStore) -> Path:
    (path,) = files_in(store)
    return path


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]


@pytest.fixture
def store(tmp_path: Path) -> FileCacheStore:
    return FileCacheStore(tmp_path / "cache")


# What it is for.


def test_values_are_kept_for_other_objects_and_processes(store: FileCacheStore) -> None:
    value = {"a": [1, 2.5, None], "b": b"\0" * 100_000}
    assert store.get("a") is CACHE_MISS
    store.put("a", value)
    store.put("b", None)
    other = FileCacheStore(store.path)
    assert other.get("a") == value
    assert other.get("b") is None
    code = f"from daglite.cache import *; print(FileCacheStore({store.path!r}).get('a')['a'])"
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "[1, 2.5, None]\n"
    other.delete("a")
    other.delete("a")
    assert store.get("a") is CACHE_MISS
    store.clear()
    assert store.get("b") is CACHE_MISS
    assert files_in(store) == []


@pytest.mark.parametrize("key", ["", "..", "../../x", "/etc/passwd", "a\0b", "\ud800", "x" * 10_000, "con", "é"])
def test_a_key_may_be_any_text(store: FileCacheStore, key: str) -> None:
    store.put(key, key)
    assert FileCacheStore(store.path).get(key) == key
    assert only_file(store).is_relative_to(store.location)


def test_what_it_makes_is_for_this_account_alone(store: FileCacheStore) -> None:
    store.put("a", 1)
    entry = only_file(store)
    modes = {path: stat.S_IMODE(path.stat().st_mode) for path in (entry, entry.parent, entry.parent.parent)}
    assert list(modes.values()) == [0o600, 0o700, 0o700]
    assert stat.S_IMODE(Path(store.path).stat().st_mode) == 0o700


def test_each_version_of_python_and_each_key_has_a_folder_of_its_own(tmp_path: Path) -> None:
    stores = [FileCacheStore(tmp_path), FileCacheStore(tmp_path, "one"), FileCacheStore(tmp_path, b"two")]
    names = [Path(each.location).name for each in stores]
    version = f"v1-python{sys.version_info.major}.{sys.version_info.minor}-"
    assert names[0] == version + "unsigned"
    assert all(name.startswith(version) for name in names)
    assert len(set(names)) == 3
    assert FileCacheStore(tmp_path, b"one").location == stores[1].location
    for number, each in enumerate(stores):
        each.put("a", number)
    stores[0].clear()
    assert [each.get("a") for each in stores] == [CACHE_MISS, 1, 2]


def test_a_path_is_one_of_the_folder_that_is_current_at_first_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    store = FileCacheStore("cache")
    monkeypatch.chdir(tmp_path / "one")
    store.put("a", 1)
    monkeypatch.chdir(tmp_path / "two")
    assert store.get("a") == 1
    assert (tmp_path / "one" / "cache").is_dir()
    assert not (tmp_path / "two" / "cache").exists()


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((3,), TypeError, "PathLike"),
        ((b"x",), TypeError, "path must be text"),
        (("",), ValueError, "path must not be empty"),
        (("a\0b",), ValueError, "path must not be empty or hold a NUL"),
        (("a", 3), TypeError, "signing_key must be a str or bytes$"),
        (("a", b""), ValueError, "signing_key must not be empty"),
        (("a", None, 0), ValueError, "max_bytes must be at least 1, not 0"),
        (("a", None, 1.5), TypeError, "max_bytes must be a whole number"),
    ],
)
def test_wrong_arguments_are_errors(arguments: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        FileCacheStore(*arguments)


def test_its_key_is_not_shown(tmp_path: Path) -> None:
    store = FileCacheStore(tmp_path, "hunter2", 10)
    assert "hunter2" not in repr(store)
    copy = pickle.loads(pickle.dumps(store))
    assert (copy.location, copy.max_bytes) == (store.location, 10)


# Damage.


def damage_byte(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def lengthen_life(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[16] ^= 0x40  # of when it expires
    path.write_bytes(data)


def as_link(path: Path) -> None:
    path.rename(path.with_name("elsewhere"))
    path.symlink_to(path.with_name("elsewhere"))


def as_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "a changed byte": (damage_byte, "it is not what was written"),
    "another expiry": (lengthen_life, "it is not what was written"),
    "half of it": (lambda path: os.truncate(path, 70), r"it has \d+ of \d+ bytes"),
    "less than a header": (lambda path: os.truncate(path, 20), "it has 20 bytes, which is less than a header"),
    "nothing": (lambda path: os.truncate(path, 0), "it has 0 bytes, which is less than a header"),
    "too much": (lambda path: path.write_bytes(path.read_bytes() + b"x"), r"it has \d+ of \d+ bytes"),
    "another file": (lambda path: path.write_bytes(b"PK\3\4" + b"x" * 100), "it does not begin like an entry"),
    "a text": (lambda path: path.write_text("hello " * 30), "it does not begin like an entry"),
    "another version": (lambda path: path.write_bytes(b"daglite\2" + b"x" * 100), "it does not begin like an entry"),
    "a link": (as_link, "it is a symbolic link"),
    "a pipe": (as_pipe, "it is no file"),
}


@pytest.mark.parametrize("kind", DAMAGE)
async def test_what_is_damaged_is_a_miss_is_logged_and_gone(
    kind: str, store: FileCacheStore, caplog: pytest.LogCaptureFixture, recorded_events: EventRecorder
) -> None:
    damage, message = DAMAGE[kind]
    runs = []

    @task(cache=store, version=1)
    async def work(number: int) -> list[int]:
        runs.append(number)
        return [number] * 5

    async with session():
        await work(1)
        path = only_file(store)
        damage(path)
        assert await work(1) == [1] * 5
        assert await work(1) == [1] * 5
    assert runs == [1, 1]
    (warning,) = warnings_of(caplog)
    assert re.fullmatch(
        rf"cache '.*': the entry {re.escape(str(path))} cannot be read, and is removed: {message}", warning
    )
    assert len(recorded_events.of(CacheHit)) == 1
    assert not recorded_events.of(CacheFailed)


async def test_a_copied_entry_is_not_one_of_another_key(
    store: FileCacheStore, caplog: pytest.LogCaptureFixture
) -> None:
    store.put("a", "of a")
    first = only_file(store)
    store.put("b", "of b")
    (second,) = set(files_in(store)) - {first}
    second.write_bytes(first.read_bytes())
    assert store.get("b") is CACHE_MISS
    assert store.get("a") == "of a"
    assert not second.exists()
    assert "it is not what was written" in caplog.text


def test_a_folder_in_place_of_an_entry_is_a_miss_and_is_left(
    store: FileCacheStore, caplog: pytest.LogCaptureFixture
) -> None:
    store.put("a", 1)
    path = only_file(store)
    path.unlink()
    path.mkdir()
    assert store.get("a") is CACHE_MISS
    assert path.is_dir()
    with pytest.raises(OSError):
        store.put("a", 2)
    store.clear()
    assert path.is_dir()
    assert list(Path(store.location, "tmp").iterdir()) == []
    assert "it is no file" in caplog.text


def test_a_value_whose_class_is_gone_is_a_miss(store: FileCacheStore, caplog: pytest.LogCaptureFixture) -> None:
    class Gone:
        pass

    Gone.__qualname__ = "Gone"
    Gone.__module__ = __name__
    globals()["Gone"] = Gone
    store.put("a", Gone())
    del globals()["Gone"]
    assert store.get("a") is CACHE_MISS
    assert files_in(store) == []
    assert "its value cannot be loaded: AttributeError" in caplog.text


def test_with_a_signing_key_nothing_is_loaded_that_was_not_signed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    CALLED.clear()
    signed, unsigned = FileCacheStore(tmp_path, b"key"), FileCacheStore(tmp_path)
    signed.put("a", "value")
    path = only_file(signed)
    unsigned.put("a", Trap())
    assert only_file(unsigned).name == path.name
    for forged in (
        only_file(unsigned).read_bytes(),
        packed("a", pickle.dumps(Trap()), time.time(), None, b"another key"),
        packed("b", pickle.dumps(Trap()), time.time(), None, b"key"),
    ):
        path.write_bytes(forged)
        assert signed.get("a") is CACHE_MISS
        assert not path.exists()
    assert CALLED == []
    assert caplog.text.count("it was not written by this store") == 3
    assert unsigned.get("a") == "trapped"  # which is what a signing key is for
    assert CALLED == ["called"]


def test_settings_have_the_key_of_stores_that_are_paths(tmp_path: Path) -> None:
    from daglite._opening import opened

    here = opened(str(tmp_path), "key")
    assert isinstance(here, FileCacheStore)
    assert here.location == FileCacheStore(tmp_path, b"key").location
    assert opened(str(tmp_path) + "/.", "key") is here is opened(str(tmp_path), "key")
    assert opened(str(tmp_path), None) is not here

    @task(cache=True)
    def work() -> int:
        return 1

    async def main() -> None:
        async with session(settings=Settings(cache_store=str(tmp_path / "signed"), cache_key="secret")):
            await work.to_thread()

    anyio.run(main)
    assert "unsigned" not in os.listdir(tmp_path / "signed")[0]


@given(st.binary(max_size=200))
def test_no_bytes_are_taken_for_an_entry(data: bytes) -> None:
    for key in (None, b"key"):
        with pytest.raises(Unreadable):
            unpacked("a", data, 0, key)


@given(
    st.binary(max_size=60), st.text(max_size=5), st.none() | st.binary(min_size=1, max_size=5), st.data(),
)  # fmt: skip
def test_no_change_of_an_entry_goes_unnoticed(payload: bytes, key: str, signing_key: bytes | None, data: Any) -> None:
    entry = packed(key, payload, 1000.0, None, signing_key)
    whole = unpacked(key, entry, 1000.0, signing_key)
    assert whole is not None
    assert bytes(whole) == payload
    at = data.draw(st.integers(0, len(entry) - 1))
    changed = bytearray(entry)
    changed[at] ^= data.draw(st.integers(1, 255))
    for other in (bytes(changed), entry[:at], entry + payload[:1] + b"x", entry[at:] + entry[:at]):
        if other != entry:
            with pytest.raises(Unreadable):
                unpacked(key, other, 1000.0, signing_key)
    with pytest.raises(Unreadable):
        unpacked(key + "x", entry, 1000.0, signing_key)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(changes=st.lists(st.tuples(st.integers(0, 200), st.integers(0, 255)), max_size=4), end=st.integers(0, 200))
def test_a_store_survives_whatever_is_in_its_files(
    changes: list[tuple[int, int]], end: int, caplog: pytest.LogCaptureFixture
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        store = FileCacheStore(folder)
        store.put("a", ["value"] * 3)
        path = only_file(store)
        before = path.read_bytes()
        data = bytearray(before)
        for at, value in changes:
            if at < len(data):
                data[at] = value
        path.write_bytes(data[:end])
        if data[:end] == before:
            assert store.get("a") == ["value"] * 3
        else:
            assert store.get("a") is CACHE_MISS
            assert not path.exists()
        store.put("a", 2)
        assert store.get("a") == 2


# Time.


async def test_an_entry_holds_for_its_ttl(store: FileCacheStore, virtual_clock: VirtualClock) -> None:
    store.put("a", 1, 60)
    store.put("b", 2)
    await anyio.sleep(59)
    assert store.get("a") == 1
    await anyio.sleep(1)
    assert store.get("a") is CACHE_MISS
    assert store.get("b") == 2
    for ttl, error in [
        (0, ValueError),
        (-1, ValueError),
        (float("nan"), ValueError),
        ("1", TypeError),
        (True, TypeError),
    ]:
        with pytest.raises(error, match="FileCacheStore.put: ttl must be"):
            store.put("c", 3, ttl)  # type: ignore[arg-type]
    assert store.get("c") is CACHE_MISS


async def test_a_clock_that_is_set_back_makes_misses_and_loses_nothing(
    store: FileCacheStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = []

    @task(cache=store, version=1, cache_ttl=600)
    async def work() -> int:
        runs.append(0)
        return len(runs)

    now = time.time()
    monkeypatch.setattr(_clock, "wall", lambda: now)
    assert await work() == 1
    monkeypatch.setattr(_clock, "wall", lambda: now - 59)  # as the clocks of machines differ that share a folder
    assert await work() == 1
    monkeypatch.setattr(_clock, "wall", lambda: now - 3600)
    assert await work() == 2
    assert await work() == 2


# A disk that does not take it.


async def test_a_folder_that_is_a_file_is_no_cache_and_no_error(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, recorded_events: EventRecorder
) -> None:
    path = tmp_path / "file"
    path.write_text("mine")

    @task(cache=path, version=1)
    async def work(number: int) -> int:
        return number

    async with session():
        assert await work(1) == 1
        with pytest.raises(NotADirectoryError):
            await work.invalidate(1)
    assert [each.operation for each in recorded_events.of(CacheFailed)] == ["get", "put"]
    assert all("NotADirectoryError" in each.error for each in recorded_events.of(CacheFailed))
    assert len(warnings_of(caplog)) == 2
    assert path.read_text() == "mine"


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no such device")
async def test_a_disk_that_is_full_keeps_nothing_and_what_was_kept(
    store: FileCacheStore,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    recorded_events: EventRecorder,
) -> None:
    store.put("old", 1)
    real = os.open

    def opened(path: str, flags: int, *mode: int) -> int:
        return real("/dev/full", os.O_WRONLY) if flags & os.O_WRONLY else real(path, flags, *mode)

    @task(cache=store, version=1)
    async def work(number: int) -> int:
        return number

    monkeypatch.setattr(os, "open", opened)
    async with session():
        assert await work(1) == 1
    with pytest.raises(OSError) as caught:
        store.put("old", 2)
    monkeypatch.undo()
    assert caught.value.errno == errno.ENOSPC
    (failed,) = recorded_events.of(CacheFailed)
    assert (failed.operation, "No space left" in failed.error) == ("put", True)
    assert len(warnings_of(caplog)) == 1
    assert store.get("old") == 1
    assert len(files_in(store)) == 1


LIMITED = """
import resource, sys
from daglite.cache import FileCacheStore
store = FileCacheStore(sys.argv[1])
store.put("small", "kept")
store.put("large", "kept")
resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
try:
    store.put("large", b"x" * 100_000)
except OSError as exc:
    print(exc.strerror)
print(store.get("small"), store.get("large"))
"""


def test_a_file_that_may_not_become_so_large_is_an_error_and_leaves_nothing(store: FileCacheStore) -> None:
    done = subprocess.run([sys.executable, "-c", LIMITED, store.path], capture_output=True, text=True, check=True)
    assert done.stdout == "File too large\nkept kept\n"
    assert len(files_in(store)) == 2
    assert list(Path(store.location, "tmp").iterdir()) == []
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] != 50_000


def test_a_folder_that_is_removed_is_made_again(store: FileCacheStore) -> None:
    for number in range(2):
        store.put("a", number)
        assert store.get("a") == number
        shutil.rmtree(store.path)
        assert store.get("a") is CACHE_MISS


# How much there is.


def test_what_was_not_used_for_longest_is_removed_when_there_is_too_much(tmp_path: Path) -> None:
    store = FileCacheStore(tmp_path, max_bytes=20_000)
    for number in range(19):
        store.put(str(number), b"x" * 900)
        os.utime(store._path_of(str(number)), (time.time() - 5000 + number,) * 2)
    assert store.get("0") == b"x" * 900  # which counts as use
    for number in range(19, 24):
        store.put(str(number), b"x" * 900)
    kept = [number for number in range(24) if store.get(str(number)) is not CACHE_MISS]
    assert kept[0] == 0
    assert {19, 20, 21, 22, 23} <= set(kept)
    assert 1 not in kept
    assert sum(path.stat().st_size for path in files_in(store)) <= 20_000
    with pytest.raises(ValueError, match="a value of .* bytes is too large for a store of 20000 bytes"):
        store.put("large", b"x" * 30_000)


def test_a_hit_touches_a_file_at_most_once_a_minute(store: FileCacheStore) -> None:
    store.put("a", 1)
    path = only_file(store)
    now = time.time()
    for age, is_touched in [(30, False), (90, True)]:
        os.utime(path, (now - age, now - age))
        store.get("a")
        assert (path.stat().st_mtime > now - age + 1) == is_touched


def test_what_killed_writers_have_left_is_swept_and_nothing_else(store: FileCacheStore) -> None:
    store.put("a", 1)
    folder = Path(store.location, "tmp")
    old, young, foreign = folder / ("0" * 32), folder / ("1" * 32), folder / "mine.txt"
    for path in (old, young, foreign):
        path.write_bytes(b"x")
    beside = only_file(store).with_name("mine.txt")
    beside.write_text("mine")
    for path in (old, foreign, beside):
        os.utime(path, (time.time() - 7200,) * 2)
    other = FileCacheStore(store.path)
    other.put("b", 1)
    assert not old.exists()
    assert young.exists()
    other.clear()
    assert foreign.exists()
    assert beside.exists()
    assert other.get("a") is CACHE_MISS


# Several processes.

WRITER = """
import sys, itertools
from daglite.cache import FileCacheStore
store = FileCacheStore(sys.argv[1])
print("ready", flush=True)
for number in itertools.count():
    store.put(str(number % 4), [sys.argv[2], number, "x" * (number % 7 * 3000)] * 3)
"""


def test_writers_that_are_killed_leave_only_whole_values(
    store: FileCacheStore, caplog: pytest.LogCaptureFixture
) -> None:
    seen = 0
    for _ in range(3):
        writers = [
            subprocess.Popen([sys.executable, "-c", WRITER, store.path, name], stdout=subprocess.PIPE) for name in "ab"
        ]
        for writer in writers:
            assert writer.stdout is not None
            writer.stdout.readline()
        while not all(isinstance(store.get(str(number)), list) for number in range(4)):
            pass
        for writer in writers:
            writer.send_signal(signal.SIGKILL)
            writer.communicate()
        for number in range(4):
            value = store.get(str(number))
            assert value == value[:3] * 3
            assert value[2] == "x" * (value[1] % 7 * 3000)
            seen += 1
    assert seen == 12
    assert warnings_of(caplog) == []


EIGHT = """
import sys, anyio
from daglite import task, gather_tasks
runs = []
@task(cache=sys.argv[1], version=1)
def work(number):
    runs.append(number)
    return [number] * 1000
async def main():
    for _ in range(3):
        for number, value in enumerate(await gather_tasks(work, range(40))):
            assert value == [number] * 1000
anyio.run(main)
assert len(runs) <= 40
print(len(runs))
"""


def test_eight_processes_on_an_empty_cache(tmp_path: Path) -> None:
    programs = [
        subprocess.Popen([sys.executable, "-c", EIGHT, str(tmp_path / "cache")], stdout=subprocess.PIPE, text=True, stderr=subprocess.PIPE)
        for _ in range(8)
    ]  # fmt: skip
    outputs = [program.communicate(timeout=50) for program in programs]
    assert [error for _, error in outputs] == [""] * 8
    runs = [int(output) for output, _ in outputs]
    assert max(runs) == 40
    assert len(files_in(FileCacheStore(tmp_path / "cache"))) == 40


def test_threads_that_read_and_write_one_key(store: FileCacheStore, caplog: pytest.LogCaptureFixture) -> None:
    errors: list[BaseException] = []

    def work(name: str) -> None:
        try:
            for number in range(100):
                store.put("a", [name] * number)
                value = store.get("a")
                assert value is CACHE_MISS or len(set(value)) <= 1
                if number % 10 == 0:
                    store.delete("a")
        except BaseException as exc:
            errors.append(exc)

    threads = [threading.Thread(target=work, args=(name,)) for name in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert warnings_of(caplog) == []


def test_a_store_of_files_is_a_store(store: FileCacheStore) -> None:
    as_store: CacheStore = store
    assert as_store is store
