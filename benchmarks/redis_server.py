"""A Redis of the benchmark's own, which can be hurt."""

from __future__ import annotations

import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from redis import Redis

START_S = 20.0
PASSWORD, ANOTHER = "correct-horse", "changed"


class RedisServer:
    """`redis-server` on a free port of this machine, without persistence, with a password.

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
        return f"redis://:{PASSWORD}@127.0.0.1:{self._port}"

    def start(self) -> None:
        """Start it, empty; it takes connections when this returns."""
        flags = ["--port", str(self._port), "--bind", "127.0.0.1", "--requirepass", PASSWORD]
        self._process = subprocess.Popen(
            ["redis-server", *flags, "--save", ""], stdout=subprocess.DEVNULL
        )
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

    def restart(self) -> None:
        """End it at once and start it again, empty."""
        self.kill()
        self.start()

    def fill(self) -> None:
        """Have it refuse all writes for want of memory."""
        self._tell(PASSWORD, maxmemory="1")

    def empty(self) -> None:
        """Have it take writes again."""
        self._tell(PASSWORD, maxmemory="0")

    def lock(self) -> None:
        """Change the password, and cut the connections that know the old one."""
        self._tell(PASSWORD, requirepass=ANOTHER)

    def unlock(self) -> None:
        """Take the first password again."""
        self._tell(ANOTHER, requirepass=PASSWORD)

    def _tell(self, password: str, **settings: str) -> None:
        with Redis(port=self._port, password=password) as admin:
            for name, value in settings.items():
                admin.config_set(name, value)
            if "requirepass" in settings:
                admin.client_kill_filter(_type="normal", skipme=True)

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
