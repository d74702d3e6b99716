"""Log records that say which call they were made in, and are events."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Any
from uuid import UUID

from daglite._context import whereabouts
from daglite._hookspecs import hook_impl

__all__ = ["LoggingPlugin"]

NO_TASK = "-"


class LoggingPlugin:
    """Says in every log record which call it was made in, and publishes the records of the session as `LogRecorded`.

    ```python
    import logging
    import sys
    import anyio
    from daglite import session, task
    from daglite.plugins import LoggingPlugin


    @task
    async def greet() -> None:
        logging.getLogger("app").warning("hello")


    async def main() -> None:
        async with session(plugins=[LoggingPlugin()]):
            await greet()


    format = logging.Formatter("%(daglite_task_name)s: %(message)s", defaults={"daglite_task_name": "-"})
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(format)
    logging.getLogger("app").addHandler(handler)
    anyio.run(main)  # prints "greet: hello"
    ```

    While a session has it, all records of the process get the attributes `daglite_task_name` and `daglite_task_id`, for
    formatters and filters to use: strings, and `"-"` for what is logged outside of calls. Nothing has to be changed where
    the logging is done, and no logger gets a handler or another level: what a logger is not enabled for makes no record.

    Args:
        level: Records below it are not published; all of them by default.
    """

    def __init__(self, level: int = logging.NOTSET) -> None:
        if isinstance(level, bool) or not isinstance(level, int):
            raise TypeError(f"LoggingPlugin: level must be a number such as logging.INFO, not {level!r}")
        self.level: int = level
        self._sessions: set[UUID] = set()

    @hook_impl(tryfirst=True)
    def before_session_start(self, session_id: UUID) -> None:
        """Begin to mark records."""
        self._sessions.add(session_id)
        add(self)

    @hook_impl(trylast=True)
    def after_session_end(self, session_id: UUID) -> None:
        """Cease to do so."""
        if session_id not in self._sessions:
            return  # an interrupt kept it from starting
        self._sessions.discard(session_id)
        remove(self)

    def _publish(self, record: logging.LogRecord) -> None:
        """Publish a record that was just made, if that was in a session that has this plugin."""
        position = whereabouts()
        session, watcher = position.home.session, position.home.watcher
        if watcher is not None and session.id in self._sessions and record.levelno >= self.level:
            watcher.logged(position.call, position.slot, record)


class Factory:
    """Makes the records of the process while there is a session with the plugin.

    A filter or handler would see less: what is logged by loggers that do not propagate, or before it was added. And a
    handler of the root logger would silence what Python writes to stderr for want of one.

    Args:
        replaced: What makes them otherwise.
    """

    def __init__(self, replaced: Callable[..., logging.LogRecord]) -> None:
        self.replaced: Callable[..., logging.LogRecord] = replaced

    def __call__(self, name: Any, *args: Any, **kwargs: Any) -> logging.LogRecord:
        """Make a record."""
        record = self.replaced(name, *args, **kwargs)
        if _factory is self:
            call = whereabouts().call
            record.daglite_task_name = NO_TASK if call is None else call.metadata.name
            record.daglite_task_id = NO_TASK if call is None else str(call.metadata.id)
            if name is not None:  # else it is one from elsewhere, still to be filled by `logging.makeLogRecord`
                for plugin in dict.fromkeys(_plugins):
                    plugin._publish(record)
        return record


_lock = threading.Lock()  # event loops in other threads have sessions too
_plugins: tuple[LoggingPlugin, ...] = ()  # one for each session
_factory: Factory | None = None  # while there are any


def add(plugin: LoggingPlugin) -> None:
    """Make records for one more session."""
    global _factory, _plugins
    with _lock:
        _plugins = (*_plugins, plugin)
        if _factory is None:
            _factory = Factory(logging.getLogRecordFactory())
            logging.setLogRecordFactory(_factory)


def remove(plugin: LoggingPlugin) -> None:
    """Make records for one session less."""
    global _factory, _plugins
    with _lock:
        left = list(_plugins)
        left.remove(plugin)
        _plugins = tuple(left)
        if not left and _factory is not None:
            # Unless somebody has put another in its place, which calls this one: then it stays, and adds nothing.
            if logging.getLogRecordFactory() is _factory:
                logging.setLogRecordFactory(_factory.replaced)
            _factory = None
