"""A Redis of the benchmark's own, which can be hurt."""

from __future__ import annotations

import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

START_S = 20.0


class RedisServer:
    """`redis-server` on a free port of this machine, without persistence.

    Raises:
        RuntimeError: there is no such program, or it does not start.
    """

    def __init__(self) -> None:
        if shutil.which("redis-server") is None:
            raise RuntimeError("redis-server is not installed")
        with socket.create_server(("127.0.0.1", 0)) as free:
            self._port = free.getsockname()[1]
        self.start()

    @property
    def url(self) -> str:
        """What `LEWM_REDIS_URL` takes."""
        return f"redis://127.0.0.1:{self._port}"

    def start(self) -> None:
        """Start it, empty; it takes connections when this returns."""
        flags = ["--port", str(self._port), "--bind", "127.0.0.1", "--save", ""]
        self._process = subprocess.Popen(["redis-server", *flags], stdout=subprocess.DEVNULL)
        end = time.monotonic() + START_S
        while time.monotonic() < end:
            with suppress(ConnectionError), socket.create_connection(("127.0.0.1", self._port)):
                return
            time.sleep(0.01)
        self.kill()
        raise RuntimeError("redis-server does not start")

    def kill(self) -> None:
        """End it at once."""
        self._process.kill()
        self._process.wait()

    def freeze(self) -> None:
        """Keep its connections open and answer nothing."""
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Go on."""
        self._process.send_signal(signal.SIGCONT)


@contextmanager
def redis_server() -> Iterator[RedisServer]:
    """A running Redis, for as long as it is needed."""
    server = RedisServer()
    try:
        yield server
    finally:
        server.kill()
