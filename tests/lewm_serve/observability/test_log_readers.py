"""A server whose log is not read, or cannot be written, answers and stops like any other."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from tests.lewm_serve.support.server_process import ROOT, ServerProcess
from tests.patience import PATIENCE_S, wait_until

DROPPED = "lewm_log_lines_dropped_total"


@pytest.fixture
def fifo(tmp_path: Path) -> Path:
    path = tmp_path / "fifo"
    os.mkfifo(path)
    return path


@contextmanager
def reader_of(fifo: Path) -> Iterator[int]:
    """The reading end of a named pipe."""
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    try:
        yield reader
    finally:
        os.close(reader)


def send_requests(server: ServerProcess, count: int) -> None:
    """Requests that are logged with long lines."""
    headers = {"traceparent": "x" * 100}
    with httpx.Client(base_url=server.url, timeout=PATIENCE_S, headers=headers) as rest:
        assert {rest.get("/models").status_code for _ in range(count)} == {200}


def test_a_reader_that_stops_and_goes_and_comes_back(fifo: Path, model_folder: Path) -> None:
    flags = ("--models", str(model_folder))
    with reader_of(fifo), ServerProcess(fifo, *flags).wait_ready() as server:
        # The pipe holds about 200 lines. Nobody reads them.
        send_requests(server, 1000)
        assert server.metric(DROPPED) == 0
    # At the end of the block nobody reads the log, and yet a signal has ended the server.
    assert server.process.returncode == 0


def test_a_dead_reader(fifo: Path, model_folder: Path) -> None:
    with reader_of(fifo):
        server = ServerProcess(fifo, "--models", str(model_folder))
    with server.wait_ready():
        send_requests(server, 3)
        wait_until(lambda: server.metric(DROPPED) >= 3)
        with reader_of(fifo) as reader:
            answer = httpx.get(f"{server.url}/models/nobody", headers={"X-Request-ID": "back"})
            assert answer.status_code == 404
            received = b""

            def line_is_there() -> bool:
                nonlocal received
                try:
                    received += os.read(reader, 1 << 16)
                except BlockingIOError:
                    return False
                return b'"request_id":"back"' in received

            wait_until(line_is_there)
        server.signal(signal.SIGINT)
        assert server.wait_stopped() == 0


def test_a_full_disk(model_folder: Path) -> None:
    flags = ("--models", str(model_folder))
    with ServerProcess(Path("/dev/full"), *flags).wait_ready() as server:
        send_requests(server, 3)
        wait_until(lambda: server.metric(DROPPED) >= 3)
        assert server.stop() == 0


ODD_LINES = """
import logging, sys, threading, warnings
from lewm_serve.observability.logging import configure_logs, log
from lewm_serve.settings import Settings

configure_logs(Settings(log_format=sys.argv[1]))
class Unreadable:
    def __repr__(self): raise RuntimeError("no repr")
    def __str__(self): raise RuntimeError("no str")

logging.getLogger("x").error("%d apples", "many")
logging.getLogger("x").error("%s", Unreadable())
log.info("\\udce4", number=1 << 70, name="\\udcff", thing=Unreadable())
log.info("cyclic", **{"line": (cycle := [])}) if not (cycle := []).append(cycle) else None
warnings.warn("beware")
def fail(): raise ValueError("in a thread")
thread = threading.Thread(target=fail)
thread.start()
thread.join()
print("last", file=sys.stderr)
"""


@pytest.mark.parametrize("log_format", ["console", "json"])
def test_lines_that_are_hard_to_write(log_format: str) -> None:
    command = [sys.executable, "-c", ODD_LINES, log_format]
    process = subprocess.run(command, capture_output=True, cwd=ROOT, check=False)
    text = process.stderr.decode()
    assert process.returncode == 0, text
    for part in ("%d apples", "dce4", "dcff", str(1 << 70), "beware", "in a thread", "last"):
        assert part in text
    assert "Logging error" not in text
