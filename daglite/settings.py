"""What holds for sessions and calls that say nothing else."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal

from . import _checks
from ._metadata import HIDDEN, Redact
from ._opening import DatasetStoreLike, checked_cache_store, checked_dataset_store
from ._stores import StoreLike, without_password

__all__ = ["Settings", "get_settings", "hide", "set_settings"]


def hide(*names: str) -> Redact:
    """A function for `Settings(redact=...)` that shows all arguments but those of these names.

    ```python
    from daglite.settings import hide

    redact = hide("password")
    shown = redact({"user": "ada", "password": "1815", "options": {"password": "1815"}})
    assert shown == {"user": "ada", "password": "<redacted>", "options": {"password": "<redacted>"}}
    ```

    Args:
        names: Names of parameters, and of keys of arguments that are dictionaries, as `**options` is.

    Raises:
        TypeError: A name is no string.
    """
    for name in names:
        if not isinstance(name, str):
            raise TypeError(f"hide: the name of a parameter must be a str, not {name!r}")
    return _Hide(frozenset(names))


@dataclass(frozen=True)
class _Hide:
    """What `hide` makes: it can be compared, pickled and read."""

    names: frozenset[str]

    def __call__(self, inputs: Mapping[str, Any]) -> Mapping[str, Any]:
        return {name: HIDDEN if name in self.names else self._shown(value) for name, value in inputs.items()}

    def _shown(self, value: Any) -> Any:
        return self(value) if type(value) is dict else value

    def __repr__(self) -> str:
        return f"hide({', '.join(map(repr, sorted(self.names)))})"


def _names(text: str) -> Redact:
    return hide(*(name.strip() for name in text.split(",") if name.strip()))


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What holds for sessions, and for calls outside of them, that say nothing else.

    They come from the environment when they are first needed, from `set_settings`, or for one session and those inside it
    from `session(settings=...)`. `dataclasses.replace(get_settings(), grace=30)` changes one of them.

    ```python
    import anyio
    from daglite import current_task, session, task
    from daglite.settings import Settings, hide


    @task(name="log in {user} {password}")
    async def log_in(user: str, password: str) -> str:
        return current_task().name


    async def main() -> str:
        async with session(settings=Settings(redact=hide("password"))):
            return await log_in("ada", "1815")


    assert anyio.run(main) == "log in ada <redacted>"
    ```

    Args:
        backend: Where fan-outs and `start_soon` run sync functions that do not say: `"thread"` or `"inline"`.
        max_threads: How many worker threads the calls of a session may use at once, and the calls of an event loop outside
            sessions.
        grace: Seconds that cleaning up may take when a session ends.
        on_background_error: `"raise"` if a failed background call cancels its session, which raises the error; `"log"` if
            it is logged, and harms nobody.
        redact: A function of the arguments of a call, by parameter name, that returns those that may be shown, in events,
            hooks, errors and `current_task()`, and in names made of them; `hide` makes one. It is called when something
            reads them, in any thread. If it fails none are shown. The text of errors it does not see.
        cache_store: Where the results of tasks with `cache=True` are kept that name no store: a store, the path of a folder,
            `"memory://name"`, or the `"redis://..."` of a server; `None` if nowhere.
        cache_key: A secret with which stores that are given as paths, or as URLs of servers, sign what they write, so that they read
            nothing that others have written; `None` if they do not. It is never shown.
        dataset_store: Where the datasets of tasks, and of `save_dataset` and `load_dataset`, are that name no store: a
            `daglite.datasets.DatasetStore`, the path of a folder, or a URL; `None` if nowhere.

    Raises:
        TypeError: A setting has the wrong type.
        ValueError: A setting is out of range.
    """

    backend: str = field(default="thread", metadata={"parse": str})
    max_threads: int = field(default=40, metadata={"parse": int})
    grace: float = field(default=5.0, metadata={"parse": float})
    on_background_error: Literal["raise", "log"] = field(default="raise", metadata={"parse": str})
    redact: Redact | None = field(default=None, metadata={"parse": _names})
    cache_store: StoreLike | None = field(default=None, metadata={"parse": str})
    cache_key: str | bytes | None = field(default=None, repr=False, metadata={"parse": str})
    dataset_store: DatasetStoreLike | None = field(default=None, metadata={"parse": str})

    def __post_init__(self) -> None:
        check_settings("Settings", {each.name: getattr(self, each.name) for each in fields(self)})
        for name in ("cache_store", "dataset_store"):
            store = getattr(self, name)
            if isinstance(store, os.PathLike):
                object.__setattr__(self, name, os.fspath(store))  # every call would do it

    def __repr__(self) -> str:
        shown = {each.name: getattr(self, each.name) for each in fields(self) if each.repr}
        for name, value in shown.items():
            if isinstance(value, str):
                shown[name] = without_password(value)
        return f"Settings({', '.join(f'{name}={value!r}' for name, value in shown.items())})"

    @classmethod
    def from_env(cls, environ: Mapping[str, str] | None = None) -> Settings:
        """The settings that environment variables give: `DAGLITE_GRACE` and so on, for each its name in capitals.

        `DAGLITE_REDACT` holds the names to `hide`, separated by commas. A variable that is empty counts as not set.

        ```python
        from daglite.settings import Settings

        assert Settings.from_env({"DAGLITE_MAX_THREADS": "8"}) == Settings(max_threads=8)
        ```

        Args:
            environ: Where to look; `os.environ` by default.

        Raises:
            ValueError: A variable has a value that its setting cannot have; the error names it.
        """
        variables = os.environ if environ is None else environ
        given: dict[str, Any] = {}
        for each in fields(cls):
            variable = f"DAGLITE_{each.name.upper()}"
            text = variables.get(variable, "").strip()
            if text:
                try:
                    given[each.name] = each.metadata["parse"](text)
                    cls(**{each.name: given[each.name]})
                except (TypeError, ValueError) as exc:
                    reason = str(exc).removeprefix("Settings: ")
                    shown = without_password(text) if each.repr else HIDDEN
                    raise ValueError(f"the environment variable {variable} is {shown!r}: {reason}") from None
        return cls(**given)


def check_settings(where: str, given: Mapping[str, Any]) -> None:
    """Check settings, by name.

    Args:
        where: Who was given them, to begin an error message with.
        given: Some or all of them.

    Raises:
        TypeError: A setting has the wrong type.
        ValueError: A setting is out of range.
    """
    for name, value in given.items():
        what = f"{where}: {name}"
        match name:
            case "backend":
                _checks.backend(where, value)
            case "max_threads":
                _checks.whole(what, value, least=1)
            case "grace":
                _checks.finite(what, value, least=0)
            case "on_background_error":
                _checks.one_of(what, value, ("raise", "log"))
            case "cache_store" if value is not None:
                checked_cache_store(what, value)
            case "dataset_store" if value is not None:
                checked_dataset_store(what, value)
            case "cache_key" if value is not None and (not isinstance(value, (str, bytes)) or not value):
                raise TypeError(f"{what} must be a str or bytes, and not empty")  # without showing it
            case "redact" if value is not None and not callable(value):
                raise TypeError(f"{what} must be a function of the inputs, not {value!r}; hide() makes one")


_current: Settings | None = None


def get_settings() -> Settings:
    """What holds in this process where no session says otherwise; read from the environment when it is first needed.

    Raises:
        ValueError: An environment variable has a bad value.
    """
    global _current
    if _current is None:
        _current = Settings.from_env()
    return _current


def set_settings(settings: Settings | None) -> None:
    """Replace what holds in this process. Sessions that are open keep what they have.

    ```python
    from daglite.settings import Settings, get_settings, set_settings

    set_settings(Settings(max_threads=8))
    assert get_settings().max_threads == 8
    ```

    Args:
        settings: The new ones; `None` to read the environment again when they are next needed.

    Raises:
        TypeError: It is something else.
    """
    global _current
    if settings is not None and not isinstance(settings, Settings):
        raise TypeError(f"set_settings() takes a daglite.settings.Settings, not {settings!r}")
    _current = settings
