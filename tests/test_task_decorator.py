"""What `@task` makes of a function, and what it refuses."""

import functools
import inspect
import math
import pickle
from collections.abc import Callable
from typing import Any

import pytest

from daglite import AsyncTask, SyncTask, task
from tests import tasks_for_pickle as module
from tests.tasks_for_pickle import Shelf, double, elsewhere, triple


async def fetch(url: str, retries: int = 3) -> bytes:
    """Get a page."""
    return url.encode() * retries


def load(path: str) -> str:
    return path


def test_a_coroutine_function_becomes_an_async_task() -> None:
    made = task(fetch)
    assert type(made) is AsyncTask
    assert made.is_async
    assert not made.is_generator
    assert inspect.iscoroutinefunction(made.__call__)


def test_any_other_function_becomes_a_sync_task() -> None:
    assert type(task(load)) is SyncTask
    assert type(task(max)) is SyncTask
    assert not task(load).is_async


def test_what_is_callable_is_recognised_for_what_it_is() -> None:
    class Fetcher:
        async def __call__(self, url: str) -> bytes:
            return url.encode()

    @functools.wraps(fetch)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        return fetch(*args, **kwargs)

    assert type(task(Fetcher())) is AsyncTask
    assert task(Fetcher()).name == "Fetcher"
    assert type(task(wrapped)) is AsyncTask
    assert type(task(functools.partial(fetch, retries=1))) is AsyncTask
    assert type(task(functools.partial(load, "x"))) is SyncTask


def test_a_task_keeps_what_its_function_is_known_by() -> None:
    made = task(fetch)
    assert made.__name__ == "fetch"
    assert made.__qualname__ == "fetch"
    assert made.__module__ == __name__
    assert made.__doc__ == made.description == "Get a page."
    assert inspect.unwrap(made) is fetch
    assert inspect.signature(made) == inspect.signature(fetch) == made.signature
    assert made.func is fetch


def test_a_task_is_immutable_and_hashable() -> None:
    made = task(fetch)
    with pytest.raises(AttributeError, match=r"'fetch' is immutable; with_options\(retries=\.\.\.\)"):
        made.retries = 2  # type: ignore[misc]
    with pytest.raises(AttributeError, match="immutable"):
        del made.func
    assert {made: 1}[made] == 1


def test_with_options_is_a_copy_of_the_same_type() -> None:
    made = task(fetch).with_options(retries=2, name="get {url}")
    assert (made.retries, made.name, made.timeout) == (2, "get {url}", None)
    other = made.with_options(timeout=3, name=None, description=None)
    assert (other.retries, other.name, other.timeout, other.description) == (2, "fetch", 3.0, "Get a page.")
    assert type(other) is AsyncTask


@pytest.mark.parametrize("target", [3, None, "fetch", [fetch]])
def test_what_cannot_be_called_is_refused(target: Any) -> None:
    with pytest.raises(TypeError, match="takes a function, not "):
        task(target)


def test_classes_and_tasks_are_refused() -> None:
    with pytest.raises(TypeError, match="not the class 'Shelf'"):
        task(Shelf)
    with pytest.raises(TypeError, match="'fetch' is a task already; use with_options"):
        task(task(fetch))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"retries": -1}, ValueError, "task 'fetch': retries must be at least 0, not -1"),
        ({"retries": 1.0}, TypeError, "task 'fetch': retries must be a whole number, not 1.0"),
        ({"retries": True}, TypeError, "task 'fetch': retries must be a whole number, not True"),
        ({"retries": "3"}, TypeError, "task 'fetch': retries must be a whole number, not '3'"),
        ({"retry_delay": -0.1}, ValueError, "task 'fetch': retry_delay must be at least 0, not -0.1"),
        ({"retry_delay": math.inf}, ValueError, "task 'fetch': retry_delay must be finite, not inf"),
        ({"retry_delay": None}, TypeError, "task 'fetch': retry_delay must be a number, not None"),
        ({"timeout": 0}, ValueError, "task 'fetch': timeout must be more than 0, not 0"),
        ({"timeout": math.nan}, ValueError, "task 'fetch': timeout must be finite, not nan"),
        ({"timeout": 10**400}, ValueError, "task 'fetch': timeout must be finite"),
        ({"timeout": False}, TypeError, "task 'fetch': timeout must be a number, not False"),
        ({"timeout": "1s"}, TypeError, "task 'fetch': timeout must be a number, not '1s'"),
        ({"retry_on": ()}, TypeError, r"task 'fetch': retry_on must be exception types .*, not \(\)"),
        ({"retry_on": 404}, TypeError, "task 'fetch': retry_on must be exception types .*, not 404"),
        ({"retry_on": fetch}, TypeError, "task 'fetch': retry_on must be exception types"),
        ({"retry_on": BaseException}, ValueError, "retry_on=BaseException is not an Exception: cancellation"),
        ({"retry_on": (ValueError, KeyboardInterrupt)}, ValueError, "retry_on=KeyboardInterrupt is not"),
        ({"wrap_errors": None}, TypeError, "task 'fetch': wrap_errors must be a bool, not None"),
        ({"description": 1}, TypeError, "task 'fetch': description must be a str, not 1"),
        ({"name": 1}, TypeError, "task 'fetch': name must be a str, not 1"),
        ({"name": ""}, ValueError, "task 'fetch': name '' must not be empty"),
        ({"name": "a.b"}, ValueError, "task 'fetch': name 'a.b' must not be empty or hold a period"),
        ({"name": "get {ulr}"}, ValueError, r"unknown placeholder {ulr}; available are {url}, {retries}, {map_index}"),
        ({"name": "get {url[0]}"}, ValueError, "not a plain name"),
        ({"name": "get {url!r}"}, ValueError, "not a plain name"),
        ({"name": "get {url:>9}"}, ValueError, "not a plain name"),
        ({"name": "get {}"}, ValueError, "not a plain name"),
        ({"name": "get {url"}, ValueError, "is not a template"),
    ],
)
def test_bad_options_are_refused_at_once(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        task(**options)(fetch)
    with pytest.raises(error, match=message):
        task(fetch).with_options(**options)


@pytest.mark.parametrize("option", ["caching", "retrys"])
def test_there_are_no_other_options(option: str) -> None:
    with pytest.raises(TypeError, match=f"unexpected keyword argument '{option}'"):
        task(**{option: True})  # type: ignore[call-overload]
    with pytest.raises(TypeError, match=f"unexpected keyword argument '{option}'"):
        task(fetch).with_options(**{option: True})  # type: ignore[arg-type]


async def test_a_task_is_a_method_like_a_function() -> None:
    shelf = Shelf(3)
    assert await shelf.count(2) == 5
    assert await Shelf.count(shelf, more=1) == 4
    assert list(shelf.count.signature.parameters) == ["more"]
    assert list(inspect.signature(shelf.count).parameters) == ["more"]
    assert list(inspect.signature(Shelf.count).parameters) == ["self", "more"]
    assert inspect.signature(AsyncTask).parameters is not None
    untyped: Any = Shelf  # what type checkers make of `classmethod` objects differs
    assert untyped.name_of("!") == untyped().name_of("!") == "Shelf!"
    assert untyped.add(1, 2) == untyped().add(1, 2) == 3


async def test_partial_fixes_arguments() -> None:
    assert await double.partial(4)() == 8
    fixed = triple.partial(plus=1)
    assert type(fixed) is SyncTask
    assert fixed(2) == 7
    assert fixed(2, plus=5) == 11
    assert fixed.partial(3)() == 10
    assert triple.partial(plus=1).with_options(retries=2).retries == 2
    assert await Shelf(3).count.partial(more=2)() == 5


def test_partial_refuses_what_the_function_does_not_take() -> None:
    with pytest.raises(TypeError, match="unexpected keyword argument 'pluss'"):
        triple.partial(pluss=1)
    with pytest.raises(TypeError, match="too many positional arguments"):
        triple.partial(1, 2)


def copied(value: Any) -> Any:
    return pickle.loads(pickle.dumps(value))


def test_tasks_are_pickled_by_reference() -> None:
    assert copied(double) is double
    assert copied(Shelf.add) is Shelf.add
    assert b"number" not in pickle.dumps(double)


async def test_copies_with_other_options_are_pickled_with_them() -> None:
    other = copied(double.with_options(retries=5))
    assert (other.retries, other.name) == (5, "double")
    assert await other(2) == 4
    fixed = copied(triple.partial(plus=1).with_options(retries=4))
    assert (fixed(2), fixed.retries) == (7, 4)


async def test_methods_are_pickled_with_their_object() -> None:
    count = copied(Shelf(6).count.with_options(retries=1))
    assert (await count(1), count.retries) == (7, 1)
    assert copied(Shelf.name_of)("?") == "Shelf?"


def test_a_task_whose_name_leads_elsewhere_is_not_pickled() -> None:
    with pytest.raises(pickle.PicklingError, match="'plain' cannot be pickled.*tasks_for_pickle:plain is not this"):
        pickle.dumps(elsewhere)
    local: Callable[..., Any] = lambda: None  # noqa: E731
    with pytest.raises(pickle.PicklingError, match="define it at the top level"):
        pickle.dumps(task(local))


def test_tasks_put_nothing_into_the_users_module() -> None:
    assert {name for name in vars(module) if not name.startswith("_")} == {
        *("AsyncIterator", "task", "double", "triple", "read", "plain", "elsewhere", "Shelf")
    }
    assert vars(module.plain) == {}
