"""Events, kept for a test to look at."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, TypeVar

from .._bus import LISTENERS
from ..events import Event

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["EventRecorder"]

E = TypeVar("E", bound=Event)


class EventRecorder:
    """Keeps the events of all sessions that are entered in its `with`, in whatever part of the program.

    ```python
    import anyio
    from daglite import session, task
    from daglite.events import TaskRetrying, TaskSucceeded
    from daglite.testing import EventRecorder


    @task(retries=1)
    async def fetch() -> str:
        attempts.append("again")
        if len(attempts) == 1:
            raise ConnectionError("refused")
        return "here"


    attempts: list[str] = []


    async def application() -> None:
        async with session():
            await fetch()


    with EventRecorder() as recorder:
        anyio.run(application)

    (retrying,) = recorder.of(TaskRetrying)
    assert retrying.error == "ConnectionError: refused"
    assert [event.metadata.name for event in recorder.of(TaskSucceeded)] == ["fetch"]
    ```

    An event is there at once, when the line that led to it has run: nothing has to be waited for. It is held as long as the
    recorder is; what its metadata is made of with it.

    With pytest, the fixture `recorded_events` is one for the time of a test.

    Attributes:
        events: The events, in the order in which they were published.
    """

    # What a session asks of those that listen: it is told of until the session has ended.
    _lasting = True

    def __init__(self) -> None:
        self.events: list[Event] = []

    def __enter__(self) -> Self:
        LISTENERS.append(self)
        return self

    def __exit__(self, *exc_info: object) -> None:
        LISTENERS.remove(self)

    def of(self, *kinds: type[E]) -> list[E]:
        """The events of one kind, or of several.

        Args:
            kinds: Classes of `daglite.events`.
        """
        return [event for event in self.events if isinstance(event, kinds)]

    def clear(self) -> None:
        """Forget what has been."""
        self.events.clear()

    def __iter__(self) -> Iterator[Event]:
        return iter(self.events)

    def __len__(self) -> int:
        return len(self.events)

    def __bool__(self) -> bool:
        return True  # one that has heard of nothing yet is there all the same

    def _put(self, event: Event, call: Any) -> None:
        if self in LISTENERS:  # a session may outlast it
            self.events.append(event)

    def _end(self) -> None:
        pass
