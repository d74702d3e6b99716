"""What holds where nothing else is said, and where it comes from."""

import dataclasses
import pickle
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from daglite import session
from daglite.settings import Settings, get_settings, hide, set_settings


@pytest.fixture(autouse=True)
def settings_of_its_own(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for each in dataclasses.fields(Settings):
        monkeypatch.delenv(f"DAGLITE_{each.name.upper()}", raising=False)
    set_settings(None)
    yield
    set_settings(None)


def test_the_defaults() -> None:
    assert get_settings() == Settings() == Settings.from_env({})
    assert Settings() == Settings(backend="thread", max_threads=40, grace=5.0, on_background_error="raise", redact=None)


@pytest.mark.parametrize(
    ("variable", "text", "expected"),
    [
        ("DAGLITE_BACKEND", "inline", Settings(backend="inline")),
        ("DAGLITE_MAX_THREADS", " 8 ", Settings(max_threads=8)),
        ("DAGLITE_GRACE", "0.5", Settings(grace=0.5)),
        ("DAGLITE_GRACE", "", Settings()),
        ("DAGLITE_ON_BACKGROUND_ERROR", "log", Settings(on_background_error="log")),
        ("DAGLITE_REDACT", "password, token", Settings(redact=hide("token", "password"))),
        ("DAGLITE_OTHER", "anything", Settings()),
    ],
)
def test_each_setting_comes_from_its_variable(
    variable: str, text: str, expected: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert Settings.from_env({variable: text}) == expected
    monkeypatch.setenv(variable, text)
    assert get_settings() == expected


@pytest.mark.parametrize(
    ("variable", "text", "reason"),
    [
        ("DAGLITE_BACKEND", "gpu", "there is no backend 'gpu'; there are 'inline', 'thread'"),
        ("DAGLITE_MAX_THREADS", "many", "invalid literal for int"),
        ("DAGLITE_MAX_THREADS", "0", "max_threads must be at least 1, not 0"),
        ("DAGLITE_GRACE", "soon", "could not convert string to float"),
        ("DAGLITE_GRACE", "nan", "grace must be finite, not nan"),
        ("DAGLITE_GRACE", "-1", "grace must be at least 0, not -1.0"),
        ("DAGLITE_ON_BACKGROUND_ERROR", "ignore", "on_background_error must be 'raise' or 'log', not 'ignore'"),
    ],
)
def test_a_bad_value_names_its_variable(variable: str, text: str, reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError) as caught:
        Settings.from_env({variable: text})
    assert str(caught.value).startswith(f"the environment variable {variable} is {text!r}: {reason}")
    monkeypatch.setenv(variable, text)
    with pytest.raises(ValueError, match=variable):
        get_settings()
    monkeypatch.delenv(variable)
    assert get_settings() == Settings()  # a bad value was not kept


BAD: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"backend": 1}, TypeError, "backend must be a str, not 1"),
    ({"backend": "gpu"}, ValueError, "there is no backend 'gpu'"),
    ({"max_threads": 0}, ValueError, "max_threads must be at least 1, not 0"),
    ({"max_threads": True}, TypeError, "max_threads must be a whole number, not True"),
    ({"max_threads": None}, TypeError, "max_threads must be a whole number, not None"),
    ({"grace": -1}, ValueError, "grace must be at least 0, not -1"),
    ({"grace": float("inf")}, ValueError, "grace must be finite, not inf"),
    ({"grace": "5"}, TypeError, "grace must be a number, not '5'"),
    ({"on_background_error": "ignore"}, ValueError, "on_background_error must be 'raise' or 'log', not 'ignore'"),
    ({"on_background_error": None}, ValueError, "on_background_error must be 'raise' or 'log', not None"),
]


@pytest.mark.parametrize(("given", "error", "message"), BAD)
def test_bad_settings_and_arguments_of_sessions_are_refused_at_once(
    given: dict[str, Any], error: type[Exception], message: str
) -> None:
    for where, make in (("Settings", Settings), ("session", session)):
        with pytest.raises(error) as caught:
            make(**given)
        assert str(caught.value).startswith(f"{where}: ")
        assert message in str(caught.value)


def test_other_bad_input_is_refused_too() -> None:
    with pytest.raises(
        TypeError, match="Settings: redact must be a function of the inputs, not 'password'; hide\\(\\)"
    ):
        Settings(redact="password")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="hide: the name of a parameter must be a str, not 1"):
        hide(1)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="set_settings\\(\\) takes a daglite.settings.Settings, not {'grace': 1}"):
        set_settings({"grace": 1})  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="settings must be a daglite.settings.Settings, not None"):
        session(settings=None)  # type: ignore[arg-type]


def test_what_is_set_replaces_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DAGLITE_GRACE", "1")
    set_settings(Settings(max_threads=3))
    assert get_settings() == Settings(max_threads=3)
    set_settings(None)
    assert get_settings() == Settings(grace=1.0)


def test_hidden_arguments_are_hidden_at_any_depth_and_nothing_else_is_touched() -> None:
    inputs = {
        "user": "ada",
        "token": 1,
        "options": {"token": 2, "more": {"token": 3, "page": 4}},
        "rows": [{"token": 5}],
    }
    shown = hide("token", "password")(inputs)
    assert shown == {
        "user": "ada",
        "token": "<redacted>",
        "options": {"token": "<redacted>", "more": {"token": "<redacted>", "page": 4}},
        "rows": [{"token": 5}],
    }
    assert inputs["token"] == 1
    assert repr(hide("b", "a")) == "hide('a', 'b')"


def test_settings_are_frozen_comparable_and_can_be_pickled() -> None:
    settings = Settings(redact=hide("password"), grace=1)
    assert pickle.loads(pickle.dumps(settings)) == settings
    with pytest.raises(dataclasses.FrozenInstanceError):
        settings.grace = 2  # type: ignore[misc]


def test_importing_daglite_reads_no_variable() -> None:
    """A bad one would be an error of whoever imports it."""
    done = subprocess.run(
        [sys.executable, "-c", "import daglite"],
        env={"DAGLITE_GRACE": "soon", "PYTHONPATH": ":".join(sys.path)},
        capture_output=True,
        text=True,
        check=False,
        timeout=50,
    )
    assert (done.returncode, done.stderr) == (0, "")
