"""Plugins: objects that observe a session, by hooks or by its events.

A plugin is any object, or a module. A method that is marked with `hook_impl` implements the hook of its name, one of
those in `HookSpecs`, with those of its arguments that it wants. With `async def consume(self, events)` a plugin has a
subscription of its own, as `Session.watch` gives it.
"""

from typing import TYPE_CHECKING, Any

from daglite._hookspecs import HookSpecs, Reporter, hook_impl
from daglite.plugins._logging import LoggingPlugin

if TYPE_CHECKING:
    from daglite.plugins._opentelemetry import OpenTelemetryPlugin

__all__ = ["HookSpecs", "LoggingPlugin", "OpenTelemetryPlugin", "Reporter", "hook_impl"]

for _public in (HookSpecs, LoggingPlugin, Reporter):
    _public.__module__ = __name__
del _public


def __getattr__(name: str) -> Any:
    if name != "OpenTelemetryPlugin":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        from daglite.plugins._opentelemetry import OpenTelemetryPlugin as plugin
    except ModuleNotFoundError as exc:
        if (exc.name or "").partition(".")[0] != "opentelemetry":
            raise
        raise ImportError(
            f"daglite.plugins.{name} needs OpenTelemetry's API: pip install 'daglite[otel]'", name="opentelemetry"
        ) from exc
    plugin.__module__ = __name__
    return plugin
