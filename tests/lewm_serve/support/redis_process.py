"""A real Redis in a process of its own, which can be made to fail."""

import shutil
import signal
import subprocess
from typing import Self

import pytest
from redis import ConnectionError, Redis

from tests.lewm_serve.support.ports import free_port
from tests.patience import PATIENCE_S, wait_until

PASSWORD = "correct-horse"


class RedisProcess:
    """`redis-server` on a free port, with a password and without persistence."""

    def __init__(self) -> None:
        if shutil.which("redis-server") is None:
            pytest.fail("redis-server is missing: `make setup`, as root on Debian, installs it")
        self.port = free_port()
        self.admin = Redis(port=self.port, password=PASSWORD, socket_timeout=PATIENCE_S)
        self.start()

    @property
    def url(self) -> str:
        """Its URL, with the first password."""
        return f"redis://:{PASSWORD}@127.0.0.1:{self.port}/1"

    def start(self) -> None:
        """Start it, empty, on the same port as before, and wait until it answers."""
        flags = ["--port", str(self.port), "--bind", "127.0.0.1", "--requirepass", PASSWORD]
        self.process = subprocess.Popen(
            ["redis-server", *flags, "--save", "", "--appendonly", "no"],
            stdout=subprocess.DEVNULL,
        )
        wait_until(self._answers, "redis-server answers")

    def _answers(self) -> bool:
        assert self.process.poll() is None, f"redis-server ended with {self.process.returncode}"
        try:
            return bool(self.admin.ping())
        except ConnectionError:
            return False

    def kill(self) -> None:
        """End it at once."""
        self.process.kill()
        self.process.wait()

    def freeze(self) -> None:
        """Suspend it: connections stay open, but nothing is answered."""
        self.process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """End the suspension."""
        self.process.send_signal(signal.SIGCONT)

    def set_full(self, full: bool) -> None:
        """Refuse all writes for lack of memory, or accept them again."""
        self.admin.config_set("maxmemory", "1" if full else "0")

    def set_password(self, password: str) -> None:
        """Change the password and close all connections, which would stay authenticated."""
        self.admin.config_set("requirepass", password)
        self.admin.client_kill_filter(_type="normal", skipme=True)
        self.admin.close()
        self.admin = Redis(port=self.port, password=password, socket_timeout=PATIENCE_S)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.admin.close()
        self.kill()
