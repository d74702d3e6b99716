"""Each store, held against a dictionary."""

import os
import shutil
import tempfile
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from daglite import _clock
from daglite.cache import CACHE_MISS, CacheStore, FileCacheStore, MemoryCacheStore

keys = st.sampled_from(["a", "b", "", "é/..", "x" * 300])
values = st.none() | st.integers() | st.text(max_size=5) | st.lists(st.integers(), max_size=3)
ttls = st.none() | st.sampled_from([0.5, 1.0, 10.0, 100.0])


class StoreModel(RuleBasedStateMachine):
    """What is put is there until its time is up; what is done to a value that was given or taken changes nothing."""

    kind = "memory"
    scale = 1.0  # of times, for a store that has a clock besides

    @initialize()
    def begin(self) -> None:
        self.real = _clock.monotonic, _clock.wall
        self.now = 1_000_000.0
        _clock.monotonic = _clock.wall = lambda: self.now
        self.folder = tempfile.mkdtemp()
        self.store = self.opened()
        self.store.clear()
        self.model: dict[str, tuple[Any, float]] = {}

    def opened(self) -> CacheStore:
        if self.kind == "memory":
            return MemoryCacheStore()
        return FileCacheStore(self.folder, b"key" if self.kind == "signed files" else None)

    def teardown(self) -> None:
        if hasattr(self, "real"):
            _clock.monotonic, _clock.wall = self.real
            shutil.rmtree(self.folder)

    @rule(key=keys, value=values, ttl=ttls)
    def put(self, key: str, value: Any, ttl: float | None) -> None:
        ttl = None if ttl is None else self.scale * ttl
        self.store.put(key, value, ttl)
        kept = list(value) if isinstance(value, list) else value
        self.model[key] = kept, float("inf") if ttl is None else self.now + ttl
        if isinstance(value, list):
            value.append("changed")

    @rule(key=keys)
    def get(self, key: str) -> None:
        value = self.store.get(key)
        expected, expires = self.model.get(key, (CACHE_MISS, 0))
        assert value == (expected if self.now < expires else CACHE_MISS)
        if isinstance(value, list):
            value.append("changed")

    @rule(key=keys)
    def delete(self, key: str) -> None:
        self.store.delete(key)
        self.model.pop(key, None)

    @rule()
    def clear(self) -> None:
        self.store.clear()
        self.model.clear()

    @rule(seconds=st.sampled_from([0.4, 1.0, 50.0]))
    def wait(self, seconds: float) -> None:
        self.now += self.scale * seconds

    @rule(key=keys)
    def fail(self, key: str) -> None:
        with pytest.raises(Exception, match="(?i)pickle|local"):
            self.store.put(key, lambda: None)

    @rule()
    def open_again(self) -> None:
        if self.kind != "memory":
            self.store = self.opened()

    @invariant()
    def everything_is_there(self) -> None:
        if hasattr(self, "store"):
            for key in list(self.model):
                self.get(key)


@pytest.mark.parametrize("kind", ["memory", "files", "signed files"])
def test_a_store_does_what_a_dictionary_does(kind: str) -> None:
    run(type("Model", (StoreModel,), {"kind": kind}))


def run(machine: type[StoreModel]) -> None:
    examples = int(os.environ.get("DAGLITE_EXAMPLES", "30"))
    run_state_machine_as_test(machine, settings=settings(max_examples=examples, stateful_step_count=20, deadline=None))


# What a store in memory has besides.


def test_a_store_in_memory_forgets_what_was_not_used_for_longest() -> None:
    store = MemoryCacheStore(max_items=3)
    for key in "abc":
        store.put(key, key)
    store.get("a")
    store.put("d", "d")
    assert [store.get(key) for key in "abcd"] == ["a", CACHE_MISS, "c", "d"]
    assert len(store) == 3


def test_a_store_in_memory_has_no_more_bytes_than_it_may() -> None:
    store = MemoryCacheStore(max_bytes=1000)
    store.put("a", b"x" * 400)
    store.put("b", b"x" * 400)
    store.put("b", b"x" * 500)
    assert store.get("a") is not CACHE_MISS
    store.put("c", b"x" * 300)
    assert [store.get(key) is CACHE_MISS for key in "abc"] == [False, True, False]
    with pytest.raises(ValueError, match="a value of 1.* bytes is too large for a store of 1000 bytes"):
        store.put("a", b"x" * 1000)
    assert store.get("a") is not CACHE_MISS
    store.clear()
    store.put("d", b"x" * 900)
    assert store.get("d") is not CACHE_MISS


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"max_items": 0}, ValueError, "max_items must be at least 1"),
        ({"max_bytes": 0}, ValueError, "max_bytes must be at least 1"),
        ({"max_items": None}, TypeError, "max_items must be a whole number"),
        ({"max_bytes": True}, TypeError, "max_bytes must be a whole number"),
    ],
)
def test_a_store_in_memory_checks_what_it_is_given(options: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"MemoryCacheStore: {message}"):
        MemoryCacheStore(**options)


@pytest.mark.parametrize("ttl", [0, -1, float("nan"), float("inf"), "1", True])
def test_a_store_in_memory_takes_no_time_that_is_none(ttl: Any) -> None:
    store = MemoryCacheStore()
    with pytest.raises((TypeError, ValueError), match="MemoryCacheStore.put: ttl must be"):
        store.put("a", 1, ttl)
    assert len(store) == 0


def test_a_miss_is_one_of_its_kind() -> None:
    import copy
    import pickle

    assert repr(CACHE_MISS) == "CACHE_MISS"
    assert pickle.loads(pickle.dumps(CACHE_MISS)) is CACHE_MISS is copy.deepcopy(CACHE_MISS)


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
def test_a_forked_process_has_its_own_store_in_memory() -> None:
    store = MemoryCacheStore()
    store.put("a", 1)
    with store._lock:  # as a thread that the child does not have
        child = os.fork()
        if not child:
            try:
                store.put("b", 2)
                os._exit(0 if (store.get("a"), store.get("b")) == (1, 2) else 1)
            finally:
                os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert store.get("b") is CACHE_MISS
