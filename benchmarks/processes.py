"""Processes that a benchmark starts and ends: a Redis server, a server of a checkout."""

from __future__ import annotations

import json
import os
import select
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
from redis import Redis

from lewm_serve.cli.local_server import (
    HOST,
    START_TIMEOUT_S,
    STOP_TIMEOUT_S,
    LocalServer,
    LocalServerError,
)

REDIS_START_TIMEOUT_S = 20.0
PASSWORD, OTHER_PASSWORD = "correct-horse", "changed"


class RedisServer:
    """`redis-server` on a free port, with a password and without persistence. It can be disturbed.

    Raises:
        RuntimeError: there is no such program, or it does not start.
    """

    def __init__(self) -> None:
        if shutil.which("redis-server") is None:
            raise RuntimeError("redis-server is not installed")
        with socket.create_server((HOST, 0)) as free:
            self._port = free.getsockname()[1]
        self.start()

    @property
    def url(self) -> str:
        """What `LEWM_REDIS_URL` takes."""
        return f"redis://:{PASSWORD}@{HOST}:{self._port}"

    def start(self) -> None:
        """Start it without data and wait until it accepts connections."""
        flags = ["--port", str(self._port), "--bind", HOST, "--requirepass", PASSWORD]
        self._process = subprocess.Popen(
            ["redis-server", *flags, "--save", ""], stdout=subprocess.DEVNULL
        )
        end = time.monotonic() + REDIS_START_TIMEOUT_S
        while time.monotonic() < end:
            with suppress(ConnectionError), socket.create_connection((HOST, self._port)):
                return
            time.sleep(0.01)
        self.kill()
        raise RuntimeError("redis-server does not start")

    def kill(self) -> None:
        """End it at once."""
        self._process.kill()
        self._process.wait()

    def restart(self) -> None:
        """End it at once and start it without data."""
        self.kill()
        self.start()

    def freeze(self) -> None:
        """Keep its connections open, but answer nothing."""
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Answer again."""
        self._process.send_signal(signal.SIGCONT)

    def refuse_writes(self) -> None:
        """Refuse all writes because memory is full."""
        self._configure(PASSWORD, maxmemory="1")

    def accept_writes(self) -> None:
        """Accept writes again."""
        self._configure(PASSWORD, maxmemory="0")

    def change_password(self) -> None:
        """Take another password, and close the connections that used the first one."""
        self._configure(PASSWORD, requirepass=OTHER_PASSWORD)

    def restore_password(self) -> None:
        """Take the first password again."""
        self._configure(OTHER_PASSWORD, requirepass=PASSWORD)

    def _configure(self, password: str, **settings: str) -> None:
        with Redis(port=self._port, password=password) as admin:
            for name, value in settings.items():
                admin.config_set(name, value)
            if "requirepass" in settings:
                admin.client_kill_filter(_type="normal", skipme=True)


@contextmanager
def redis_server() -> Iterator[RedisServer]:
    """A Redis server for the duration of the block."""
    server = RedisServer()
    try:
        yield server
    finally:
        server.kill()


@contextmanager
def checkout_server(checkout: Path, flags: Sequence[str] = ()) -> Iterator[LocalServer]:
    """The server of another checkout of this project, for the duration of the block.

    `lewm_serve.cli.local_server` starts the server of this checkout. This one uses only what all
    revisions have in common: the command line and the ready line.

    Raises:
        LocalServerError: it did not start. The message ends with its standard error.
    """
    command = [str(lewm_program(checkout)), "serve", "--host", HOST]
    command += ["--http-port", "0", "--grpc-port", "0", *flags]
    with (
        tempfile.TemporaryDirectory(prefix="lewm-server-") as folder,
        tempfile.TemporaryFile("w+", errors="replace") as errors,
        subprocess.Popen(
            command,
            cwd=folder,
            env=clean_environment(),
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        ) as process,
    ):
        try:
            assert process.stdout is not None
            readable, _, _ = select.select([process.stdout], [], [], START_TIMEOUT_S)
            line = process.stdout.readline() if readable else ""
            if not line:
                errors.seek(0)
                raise LocalServerError(f"{command[0]} did not start:\n{errors.read()}")
            ready = json.loads(line)
            yield LocalServer(
                ready["http_port"], ready["grpc_port"], tuple(ready["models"]), process.pid
            )
        finally:
            process.terminate()
            try:
                process.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                process.kill()


def pin_to_cores(server: LocalServer, load: int) -> None:
    """Run a server's engine on one core, and its other processes and the load on another one.

    Args:
        server: a server with an engine in a process of its own.
        load: the process that puts load on the server.

    Raises:
        RuntimeError: this process may use one core only, or the engine has no process of its own.
    """
    cores = sorted(os.sched_getaffinity(0))
    launchers = psutil.Process(server.pid).children()
    engines = [engine.pid for launcher in launchers for engine in launcher.children()]
    if len(cores) < 2 or len(engines) != 1:
        raise RuntimeError(f"{len(cores)} cores and {len(engines)} engines, expected 2 and 1")
    for pid, core in ((server.pid, cores[0]), (load, cores[0]), (engines[0], cores[1])):
        for thread in psutil.Process(pid).threads():
            os.sched_setaffinity(thread.id, {core})


def server_memory_mib(pid: int, *, peak: bool = False) -> int:
    """Memory of a server's processes together: now, or the most since `forget_peaks`."""
    field = "VmHWM" if peak else "VmRSS"
    return sum(_status_kib(process, field) for process in _processes(pid)) // 1024


def forget_peaks(pid: int) -> None:
    """Let the peaks of the memory of a server's processes start again."""
    for process in _processes(pid):
        Path(f"/proc/{process}/clear_refs").write_text("5")


def _processes(pid: int) -> list[int]:
    return [pid, *(child.pid for child in psutil.Process(pid).children(recursive=True))]


def _status_kib(pid: int, field: str) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field))


def lewm_program(checkout: Path) -> Path:
    """The program `lewm` of a checkout on which `make setup` has run.

    Raises:
        FileNotFoundError: there is none.
    """
    program = checkout.resolve() / ".venv" / "bin" / "lewm"
    if not program.exists():
        raise FileNotFoundError(f"{program} does not exist: run `make setup` in {checkout}")
    return program


def clean_environment() -> dict[str, str]:
    """The environment without what would change a checkout's server.

    These are settings of the server, import paths, and the spin count that this package sets.
    """
    return {
        name: value
        for name, value in os.environ.items()
        if name not in ("PYTHONPATH", "GOMP_SPINCOUNT") and not name.startswith("LEWM_")
    }
