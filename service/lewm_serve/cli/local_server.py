"""A server in a process of its own, on free ports, for the duration of a command."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import IO

HOST = "127.0.0.1"
START_TIMEOUT_S = 300.0
"""A large model on a slow machine takes this long to load and warm up."""
STOP_TIMEOUT_S = 20.0
REPORTED_ERROR_LINES = 5

PROTECTION_VARIABLES = (
    "LEWM_KEYS_FILE",
    "LEWM_METRICS_PORT",
    "LEWM_TLS_CERT",
    "LEWM_TLS_CLIENT_CA",
    "LEWM_TLS_KEY",
)
"""Settings of a server for other machines. Commands reach their own server without them."""


class LocalServerError(RuntimeError):
    """The server did not start. The message has the last lines of its standard error."""


@dataclass(frozen=True)
class LocalServer:
    """A server that is ready: its ports on this machine, its models' names, and its process."""

    http_port: int
    grpc_port: int
    models: tuple[str, ...]
    pid: int

    @property
    def target(self) -> str:
        """The address of gRPC."""
        return f"{HOST}:{self.grpc_port}"

    @property
    def url(self) -> str:
        """The address of REST."""
        return f"http://{HOST}:{self.http_port}"


@contextmanager
def local_server(
    models: Path | None = None, *, timeout_s: float = START_TIMEOUT_S, **settings: object
) -> Iterator[LocalServer]:
    """Run `lewm serve` for the duration of the block.

    In the main thread, SIGTERM stops the server too, and ends this process with `SystemExit`.

    Args:
        models: the models to serve; None: the embedded model.
        timeout_s: the longest time until the server is ready.
        **settings: settings of the server, such as ``log_level="debug"``. Environment variables
            give the others, except those for clients of other machines.

    Raises:
        LocalServerError: the server ended, or it was not ready in time.
    """
    values = {"host": HOST, "http_port": 0, "grpc_port": 0, "log_level": "warning"} | settings
    if models is not None:
        values["models"] = models
    command = [sys.executable, "-m", "lewm_serve.cli.main", "serve"]
    for name, value in values.items():
        command += [f"--{name.replace('_', '-')}", str(value)]
    environment = {
        name: value for name, value in os.environ.items() if name not in PROTECTION_VARIABLES
    }
    with (
        tempfile.TemporaryFile("w+", errors="replace") as errors,
        subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=errors, text=True
        ) as process,
        _stopped_by_sigterm(process),
    ):
        try:
            yield _wait_ready(process, errors, timeout_s)
        finally:
            _stop(process)


@contextmanager
def _stopped_by_sigterm(process: subprocess.Popen[str]) -> Iterator[None]:
    """Stop the server on SIGTERM, which would end this process and leave the server running."""
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may handle signals
        return

    def stop(number: int, _frame: FrameType | None) -> None:
        # Stop the server first: threads that wait for its answers may delay the exit.
        process.terminate()
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _wait_ready(process: subprocess.Popen[str], errors: IO[str], timeout_s: float) -> LocalServer:
    """Wait for the ready line, the only line on standard output."""
    assert process.stdout is not None
    started = time.monotonic()
    readable, _, _ = select.select([process.stdout], [], [], timeout_s)
    line = process.stdout.readline() if readable else ""
    if not line:
        waited = f"was not ready after {time.monotonic() - started:.0f} s"
        what = f"ended with code {process.wait(STOP_TIMEOUT_S)}" if readable else waited
        errors.seek(0)
        last = [line.rstrip() for line in errors if line.strip()][-REPORTED_ERROR_LINES:]
        raise LocalServerError("\n".join([f"the server {what}", *last]))
    ready = json.loads(line)
    return LocalServer(ready["http_port"], ready["grpc_port"], tuple(ready["models"]), process.pid)


def _stop(process: subprocess.Popen[str]) -> None:
    process.terminate()
    try:
        process.wait(STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()
