"""What is in the entry of one value, a file or a key of a server: a header, whose digest covers everything, and the value, pickled.

| bytes | what |
|---|---|
| 7, 1 | `daglite`, and the version of this layout |
| 8, 8 | when it was written, and until when it holds, in seconds of the wall clock; infinity if without end |
| 8 | the length of the value |
| 32 | SHA-256 of all the others and of the key; with a signing key HMAC-SHA256 |

A copy under another key, a torn write and a changed byte are noticed; with a signing key also what somebody else has written.
"""

from __future__ import annotations

import hashlib
import hmac
import math
import struct
import sys

__all__ = ["Unreadable", "packed", "part_of", "unpacked"]

_FACTS = struct.Struct(">7sBddQ")
_DIGEST_SIZE = 32
_SIZE = _FACTS.size + _DIGEST_SIZE
_MAGIC = b"daglite"
_VERSION = 1
SKEW = 60.0  # seconds by which the clocks of those who share a folder may differ


class Unreadable(Exception):
    """It is not what was written, or was written by somebody else."""


def part_of(signing_key: bytes | None) -> str:
    """What those have in common who can read each other's entries: the layout, the version of Python, and the signing key."""
    signed = "unsigned"
    if signing_key is not None:
        signed = hmac.new(signing_key, b"the folder of a daglite cache", "sha256").hexdigest()[:16]
    return f"v{_VERSION}-python{sys.version_info.major}.{sys.version_info.minor}-{signed}"


def packed(key: str, payload: bytes, now: float, ttl: float | None, signing_key: bytes | None) -> bytes:
    """The file of a value.

    Args:
        key: What it is kept under.
        payload: The value, pickled.
        now: The time.
        ttl: For how many seconds it holds; `None` if without end.
        signing_key: What to sign it with, if anything.
    """
    expires = math.inf if ttl is None else now + ttl
    facts = _FACTS.pack(_MAGIC, _VERSION, now, expires, len(payload))
    return b"".join((facts, _digest(facts, key, payload, signing_key), payload))


def unpacked(key: str, data: bytes, now: float, signing_key: bytes | None) -> memoryview | None:
    """The pickled value of a file; `None` if it does not hold now.

    Args:
        key: What it is kept under.
        data: The file.
        now: The time.
        signing_key: What it is signed with, if with anything.

    Raises:
        Unreadable: It cannot be trusted.
    """
    if len(data) < _SIZE:
        raise Unreadable(f"it has {len(data)} bytes, which is less than a header")
    magic, version, created, expires, length = _FACTS.unpack_from(data)
    if magic != _MAGIC or version != _VERSION:
        raise Unreadable("it does not begin like an entry")
    payload = memoryview(data)[_SIZE:]
    if len(payload) != length:
        raise Unreadable(f"it has {len(payload)} of {length} bytes")
    digest = _digest(data[: _FACTS.size], key, payload, signing_key)
    if not hmac.compare_digest(digest, data[_FACTS.size : _SIZE]):
        raise Unreadable("it is not what was written" if signing_key is None else "it was not written by this store")
    # One from the future was written before the clock was set back: nobody knows for how long it holds.
    return None if created > now + SKEW or now >= expires else payload


def _digest(facts: bytes, key: str, payload: bytes | memoryview, signing_key: bytes | None) -> bytes:
    name = key.encode("utf-8", "surrogatepass")
    head = b"%b%b%b" % (facts, struct.pack(">Q", len(name)), name)
    made = hashlib.sha256(head) if signing_key is None else hmac.new(signing_key, head, "sha256")
    made.update(payload)
    return made.digest()
