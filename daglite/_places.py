"""Where the result of a call is kept, and under which key."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ._opening import opened
from ._spec import Spec
from ._stores import CacheStore

if TYPE_CHECKING:
    from ._context import Home
    from .cache._keys import Keys

__all__ = ["key_of", "store_of"]


def store_of(spec: Spec, home: Home) -> CacheStore | None:
    """Where the results of a task are kept; `None` if nowhere."""
    options = spec.options
    if not spec.is_cached:
        return None
    store = options.cache_store if options.cache is True else options.cache
    if store is None:
        store = home.settings.cache_store
        if store is None:
            return None
    if isinstance(store, str):
        return opened(store, home.settings.cache_key)
    return store  # type: ignore[no-any-return]


def key_of(spec: Spec, args: tuple[Any, ...], kwargs: Any) -> str:
    """What the result of a call is kept under.

    Raises:
        CacheKeyError: No key can be made of its arguments, or of its function.
    """
    function, options = spec.function, spec.options
    keys = function.root.keys
    made: Keys | None = None if keys is None else keys.get(options.version)
    if made is None:
        made = first_keys(spec)
    if options.cache_hash is not None:
        return made.by(options.cache_hash, function.all_inputs(args, kwargs))
    if not kwargs and len(args) == made.count and function is function.root:
        return made.of_args(args)
    return made.of(function.all_inputs(args, kwargs).items())


def first_keys(spec: Spec) -> Keys:
    """What the keys of a task begin with, found out at its first call; methods that are bound to an object share it."""
    from .cache._keys import Keys  # not by `import daglite`

    root, version = spec.function.root, spec.options.version
    plain = root.plain
    is_positional = plain is not None and plain.positional == len(plain.defaults)
    made = Keys(spec.label, root.call, version, tuple(plain.defaults) if plain and is_positional else None)
    if root.keys is None:
        root.keys = {}
    root.keys[version] = made
    return made
