"""Plugins: objects that observe a session, by hooks or by its events.

A plugin is any object, or a module. A method that is marked with `hook_impl` implements the hook of its name, one of
those in `HookSpecs`, with those of its arguments that it wants. With `async def consume(self, events)` a plugin has a
subscription of its own, as `Session.watch` gives it.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from daglite._hookspecs import HookSpecs, Reporter, hook_impl
from daglite.plugins._logging import LoggingPlugin
from daglite.plugins._record import RecordPlugin, read_records

if TYPE_CHECKING:
    from daglite.plugins._opentelemetry import OpenTelemetryPlugin
    from daglite.plugins._progress import ProgressPlugin

__all__ = [
    "HookSpecs",
    "LoggingPlugin",
    "OpenTelemetryPlugin",
    "ProgressPlugin",
    "RecordPlugin",
    "Reporter",
    "hook_impl",
    "read_records",
]

for _public in (HookSpecs, LoggingPlugin, RecordPlugin, Reporter, read_records):
    _public.__module__ = __name__
del _public

# Those that need a package which not everybody has: where they are, what that is called, its module, and the extra that brings it.
OPTIONAL = {
    "OpenTelemetryPlugin": ("_opentelemetry", "OpenTelemetry's API", "opentelemetry", "otel"),
    "ProgressPlugin": ("_progress", "Rich", "rich", "cli"),
}


def __getattr__(name: str) -> Any:
    if name not in OPTIONAL:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    where, package, module, extra = OPTIONAL[name]
    try:
        plugin = getattr(import_module(f"{__name__}.{where}"), name)
    except ModuleNotFoundError as exc:
        if (exc.name or "").partition(".")[0] != module:
            raise
        text = f"{__name__}.{name} needs {package}: pip install 'daglite[{extra}]'"
        raise ImportError(text, name=module) from exc
    plugin.__module__ = __name__
    return plugin
