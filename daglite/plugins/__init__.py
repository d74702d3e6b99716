"""Plugins: objects that observe a session, by hooks or by its events.

A plugin is any object, or a module. A method that is marked with `hook_impl` implements the hook of its name, one of
those in `HookSpecs`, with those of its arguments that it wants. With `async def consume(self, events)` a plugin has a
subscription of its own, as `Session.watch` gives it.
"""

from daglite._hookspecs import HookSpecs, Reporter, hook_impl
from daglite.plugins._logging import LoggingPlugin

__all__ = ["HookSpecs", "LoggingPlugin", "Reporter", "hook_impl"]

for _public in (HookSpecs, LoggingPlugin, Reporter):
    _public.__module__ = __name__
del _public
