"""What holds for all calls of a session, and is not said by each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["Settings"]


@dataclass(frozen=True)
class Settings:
    """Settings of a session, for `session(settings=...)`; inner sessions take over what they are not given.

    ```python
    import anyio
    from daglite import current_task, session, task
    from daglite.settings import Settings


    def hide_passwords(inputs):
        return {name: "***" if name == "password" else value for name, value in inputs.items()}


    @task(name="log in {user} {password}")
    async def log_in(user: str, password: str) -> str:
        return current_task().name


    async def main() -> str:
        async with session(settings=Settings(redact=hide_passwords)):
            return await log_in("ada", "1815")


    assert anyio.run(main) == "log in ada ***"
    ```

    Args:
        redact: A function of the arguments of a call, by parameter name, that returns those that may be shown, in events,
            hooks, errors and `current_task()`, and in names made of them. It is called when something reads them, in any
            thread. If it fails none are shown. By default all are. The text of errors it does not see.

    Raises:
        TypeError: A setting has the wrong type.
    """

    redact: Callable[[Mapping[str, Any]], Mapping[str, Any]] | None = None

    def __post_init__(self) -> None:
        if self.redact is not None and not callable(self.redact):
            raise TypeError(f"Settings: redact must be a function of the inputs, not {self.redact!r}")
