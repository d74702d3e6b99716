"""Where results are kept, and under which keys: see `cache=` of `daglite.task`."""

from .._refresh import refresh_cache
from .._stores import CACHE_MISS, CacheMiss, CacheStore
from ._encoding import register_encoder
from ._files import FileCacheStore
from ._keys import default_cache_hash
from ._memory import MemoryCacheStore
from ._redis import RedisCacheStore

__all__ = [
    "CACHE_MISS",
    "CacheStore",
    "FileCacheStore",
    "MemoryCacheStore",
    "RedisCacheStore",
    "default_cache_hash",
    "refresh_cache",
    "register_encoder",
]

for _public in (
    CacheMiss,
    CacheStore,
    FileCacheStore,
    MemoryCacheStore,
    RedisCacheStore,
    default_cache_hash,
    refresh_cache,
    register_encoder,
):
    _public.__module__ = __name__  # where people find them
del _public
