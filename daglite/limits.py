"""How many attempts may run at once, or begin in a time: what tasks share that use the same thing."""

from __future__ import annotations

import os
from typing import Any
from weakref import WeakValueDictionary

from . import _checks
from ._gates import Gate, Pace, Tokens

__all__ = ["Limit", "Rate"]


class Shared:
    """What a limit and a rate have in common: a counter in this process, for all who name the same object.

    It may be pickled. In this process that gives the object itself again, in another one that counts there.
    """

    _key: str | None = None  # from when it is pickled

    def __init__(self, gate: Gate, given: dict[str, Any]) -> None:
        self._gate = gate
        self._given = given

    @property
    def name(self) -> str:
        """What events, errors and the tree of calls call it."""
        return self._gate.name

    @property
    def tasks_waiting(self) -> int:
        """How many attempts, or streams, wait for it at this moment."""
        return self._gate.waiting

    def __reduce__(self) -> tuple[Any, ...]:
        if self._key is None:
            self._key = os.urandom(16).hex()
            _pickled[self._key] = self
        return _found, (self._key, type(self), self._given)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{key}={value!r}' for key, value in self._given.items())})"


_pickled: WeakValueDictionary[str, Shared] = WeakValueDictionary()


def _found(key: str, kind: type[Shared], given: dict[str, Any]) -> Shared:
    """The object of a key in this process."""
    found = _pickled.get(key)
    if found is None:
        found = _pickled[key] = kind(**given)
        found._key = key
    return found


class Limit(Shared):
    """So many attempts at once, of all tasks that name this object.

    ```python
    from daglite import Limit, task

    database = Limit("database", 5)


    @task(limit=database)
    async def read(key: str) -> bytes: ...


    @task(limit=database, retries=3)
    async def write(key: str, value: bytes) -> None: ...
    ```

    Who comes first is first, in all event loops and threads of the process. An attempt holds its token from when it begins
    until it ends, or is abandoned at its deadline, and not while its call waits for a retry; a stream for as long as it is
    open. Waiting is outside of the task's `timeout`, and within its `total_timeout`. What is made inside an attempt cannot have
    another token of the same limit: calls that hold some, and wait for more, would wait for each other.

    Args:
        name: What events, errors and the tree of calls call it.
        total_tokens: How many attempts may run at once.

    Raises:
        TypeError: The name is no text, or the number no whole number.
        ValueError: The name is empty, or the number less than 1.
    """

    def __init__(self, name: str, total_tokens: int) -> None:
        _checks.name("Limit: name", name)
        _checks.whole(f"Limit {name!r}: total_tokens", total_tokens, least=1)
        self._tokens = Tokens(name, total_tokens)
        super().__init__(self._tokens, {"name": name, "total_tokens": total_tokens})

    @property
    def total_tokens(self) -> int:
        """How many attempts may run at once."""
        return self._tokens.total

    @property
    def borrowed_tokens(self) -> int:
        """How many do at this moment."""
        return self._tokens.total - self._tokens.free

    @property
    def available_tokens(self) -> int:
        """How many more may begin."""
        return self._tokens.free


class Rate(Shared):
    """So many attempts in a time, of all tasks that name this object.

    ```python
    from daglite import Rate, task


    @task(rate=Rate(60, per=60, burst=5))
    async def search(text: str) -> bytes: ...
    ```

    They begin evenly, one after each `per / count` seconds; after a pause up to `burst` begin at once, which the following
    make up for. Who comes first is first, in all event loops and threads of the process. A retry is an attempt like any
    other. Waiting is outside of the task's `timeout`, and within its `total_timeout`. A task with a limit too has its token while
    it waits for the rate, so that what begins then really begins.

    Args:
        count: How many attempts.
        per: In how many seconds; 1 by default.
        burst: How many of them may begin at once; 1 by default.
        name: What events and the tree of calls call it; by default `"60 per 60 s"`, say.

    Raises:
        TypeError: A number is none, or `burst` no whole number, or the name no text.
        ValueError: A number is not finite, 0 or less, or `burst` less than 1, or the name empty.
    """

    def __init__(self, count: float, per: float = 1.0, burst: int = 1, *, name: str | None = None) -> None:
        _checks.finite("Rate: count", count, least=0, above=True)
        _checks.finite("Rate: per", per, least=0, above=True)
        _checks.whole("Rate: burst", burst, least=1)
        if name is None:
            name = f"{count:g} per {per:g} s"
        _checks.name("Rate: name", name)
        interval = _checks.finite("Rate: per / count", per / count, least=0)
        _checks.finite("Rate: burst", burst, least=1)
        super().__init__(Pace(name, interval, burst), {"count": count, "per": per, "burst": burst, "name": name})

    @property
    def count(self) -> float:
        """How many attempts."""
        return self._given["count"]  # type: ignore[no-any-return]

    @property
    def per(self) -> float:
        """In how many seconds."""
        return self._given["per"]  # type: ignore[no-any-return]

    @property
    def burst(self) -> int:
        """How many of them may begin at once."""
        return self._given["burst"]  # type: ignore[no-any-return]
