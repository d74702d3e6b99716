"""Real Redis servers on this machine, for tests that find the program."""

import os
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from daglite.cache import RedisCacheStore

NEEDED = (
    "DAGLITE_REDIS_URL"  # of a server that is there already: without one it is no error that the program is missing
)


class Server:
    """A server on a port of its own, which keeps nothing on the disk.

    Args:
        folder: Its folder.
        options: Those of its command line.
    """

    def __init__(self, folder: Path, *options: str) -> None:
        self._folder = folder
        self._options = options
        self.port = free_port()
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def start(self) -> None:
        program = shutil.which("redis-server")
        if program is None:
            if NEEDED in os.environ:
                pytest.fail("there is no redis-server")
            pytest.skip("there is no redis-server")
        command = [program, "--bind", "127.0.0.1", "--port", str(self.port), "--dir", str(self._folder), "--save", ""]
        self.process = subprocess.Popen([*command, *self._options], stdout=subprocess.DEVNULL)
        deadline = time.monotonic() + 30
        while not self._answers():
            assert self.process.poll() is None, "the server has ended"
            assert time.monotonic() < deadline, "the server does not answer"
            time.sleep(0.01)

    def _answers(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self.port), 5) as connection:
                connection.sendall(b"PING\r\n")
                return connection.recv(16).startswith((b"+PONG", b"-NOAUTH"))
        except OSError:
            return False

    def stop(self) -> None:
        if self.process is not None:
            self.process.send_signal(signal.SIGKILL)
            self.process.wait()
            self.process = None


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port


def client_of(store: RedisCacheStore) -> Any:
    """What a store talks to its server through."""
    return store._client


def names_of(store: RedisCacheStore) -> list[bytes]:
    """The keys of the server that are this store's."""
    return sorted(set(client_of(store).scan_iter(match=f"{store.prefix}:*")))  # which may come twice
