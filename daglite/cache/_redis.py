"""A store in a Redis server, which several machines share."""

from __future__ import annotations

import hashlib
import math
import pickle
import re
from contextlib import suppress
from typing import Any

from .. import _checks, _clock
from .._log import described, logger
from .._stores import CACHE_MISS, without_password
from ._entries import Unreadable, packed, part_of, unpacked

__all__ = ["RedisCacheStore"]

_AT_ONCE = 1000  # keys that are removed by one command
_FOREVER = 1 << 53  # milliseconds: a server takes no more than fits into its clock


class RedisCacheStore:
    """Keeps values in a Redis server, for all machines that use it.

    ```python
    import os

    from daglite import task
    from daglite.cache import RedisCacheStore


    @task(cache=RedisCacheStore("redis://localhost:6379/0", signing_key=os.urandom(32)))
    def square(number: int) -> int:
        return number**2
    ```

    Each value is one key of the server, which forgets it when its `ttl` has passed, and may forget it sooner, as its `maxmemory-policy`
    says. Needs `daglite[redis]`. It connects when it is first asked something, and again when the connection is lost.

    Values are **pickled, and who can write to the server can run code** in all who read it. With a `signing_key` nothing is unpickled that
    was not written with the same key; a server that others use should be given no values without.

    Args:
        url: The server, as `redis://host:6379/0`, `rediss://` for TLS, or `unix://` and the path of a socket; with `user:password@` before
            the host if it asks for that.
        signing_key: A secret with which entries are signed; `None`, the default, for a digest that notices only damage.
        prefix: What the server's keys begin with; `"daglite"` by default. After it they have a part for each version of Python and each
            signing key, and a digest of the task's key.
        timeout: Seconds that the server has for a connection, and for each answer; 1 by default. After that it counts as failed.

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: The URL is none of a Redis server, the key or the prefix is empty, or `timeout` is not above 0.
        ImportError: redis is not installed.
    """

    blocking = True

    def __init__(
        self,
        url: str,
        signing_key: str | bytes | None = None,
        *,
        prefix: str = "daglite",
        timeout: float = 1.0,
    ) -> None:
        if not isinstance(url, str):
            raise TypeError(f"RedisCacheStore: url must be a str, not {url!r}")
        self.url: str = url
        self.prefix: str = _checks.name("RedisCacheStore: prefix", prefix)
        self.timeout: float = _checks.finite("RedisCacheStore: timeout", timeout, least=0, above=True)
        self._key: bytes | None = _checks.secret("RedisCacheStore: signing_key", signing_key)
        self._begins = f"{prefix}:{part_of(self._key)}:"
        self._client: Any = _client_of(url, timeout)

    def __repr__(self) -> str:
        signed = "" if self._key is None else ", signing_key=..."
        return f"RedisCacheStore({_shown(self.url)!r}{signed}, prefix={self.prefix!r}, timeout={self.timeout:g})"

    def __reduce__(self) -> tuple[Any, ...]:
        return _made, (self.url, self._key, self.prefix, self.timeout)

    @property
    def location(self) -> tuple[str, str]:
        """The server, and what the keys in it begin with."""
        return _shown(self.url), self._begins

    def get(self, key: str) -> Any:
        """The value of a key; `daglite.cache.CACHE_MISS` if there is none that can be read.

        Raises:
            redis.exceptions.RedisError: The server does not answer, or refuses to.
        """
        name = self._name_of(key)
        data = self._client.get(name)
        if data is None:
            return CACHE_MISS
        try:
            payload = unpacked(key, data, _clock.wall(), self._key)
            return CACHE_MISS if payload is None else pickle.loads(payload)
        except Exception as exc:  # not only UnpicklingError: whatever its class does, or that it is gone
            why = str(exc) if isinstance(exc, Unreadable) else f"its value cannot be loaded: {described(exc)}"
            logger().warning(
                "cache %r: the entry %s cannot be read, and is removed: %s", _shown(self.url), name.decode(), why
            )
            with suppress(Exception):  # of the server: it will be noticed again
                self._client.delete(name)
            return CACHE_MISS

    def put(self, key: str, value: Any, ttl: float | None = None) -> None:
        """Keep a value.

        Args:
            key: What to keep it under.
            value: The value, which must be one that pickle takes.
            ttl: For how many seconds; `None` if it stays.

        Raises:
            ValueError: `ttl` is not above 0.
            redis.exceptions.RedisError: The server does not answer, or has no room.
        """
        milliseconds = None
        if ttl is not None:
            ttl = _checks.finite("RedisCacheStore.put: ttl", ttl, least=0, above=True)
            milliseconds = min(math.ceil(min(ttl, _FOREVER) * 1000), _FOREVER)
        payload = pickle.dumps(value, pickle.HIGHEST_PROTOCOL)
        self._client.set(self._name_of(key), packed(key, payload, _clock.wall(), ttl, self._key), px=milliseconds)

    def delete(self, key: str) -> None:
        """Forget the value of a key, if there is one.

        Raises:
            redis.exceptions.RedisError: The server does not answer.
        """
        self._client.delete(self._name_of(key))

    def clear(self) -> None:
        """Forget all values that this store could read, and none of another prefix, version of Python or signing key.

        Raises:
            redis.exceptions.RedisError: The server does not answer.
        """
        pattern = re.sub(r"([][*?\\])", r"\\\1", self._begins) + "*"
        batch: list[bytes] = []
        for name in self._client.scan_iter(match=pattern, count=_AT_ONCE):
            batch.append(name)
            if len(batch) == _AT_ONCE:
                self._client.unlink(*batch)
                batch.clear()
        if batch:
            self._client.unlink(*batch)

    def close(self) -> None:
        """Close the connections. Whoever asks something again opens others."""
        self._client.close()

    def _name_of(self, key: str) -> bytes:
        # Whatever the key is: it is short, and says nothing of the arguments.
        return f"{self._begins}{hashlib.sha256(key.encode('utf-8', 'surrogatepass')).hexdigest()}".encode()


def _client_of(url: str, timeout: float) -> Any:
    try:
        import redis
    except ModuleNotFoundError:
        raise ImportError(f"RedisCacheStore: {_shown(url)!r} needs redis: pip install 'daglite[redis]'") from None
    from redis.backoff import NoBackoff
    from redis.retry import Retry

    # A server that was started anew has closed the connections: those are lost at the next command, which is sent once more. One that
    # is slow is not asked twice, nor waited for: the call computes.
    retry = Retry(NoBackoff(), 1, supported_errors=(redis.ConnectionError,))
    try:
        return redis.Redis.from_url(url, socket_timeout=timeout, socket_connect_timeout=timeout, retry=retry)
    except ValueError as exc:
        raise ValueError(f"RedisCacheStore: {_shown(url)!r} is no URL of a Redis server: {exc}") from None


def _made(url: str, signing_key: bytes | None, prefix: str, timeout: float) -> RedisCacheStore:
    return RedisCacheStore(url, signing_key, prefix=prefix, timeout=timeout)


def _shown(url: str) -> str:
    """The URL without what may be secret in it: the password, and options, of which one is that too."""
    return without_password(url).partition("?")[0]
