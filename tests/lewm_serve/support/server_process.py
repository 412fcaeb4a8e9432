"""A real server in a process of its own."""

import json
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Self

import httpx

from benchmarks.processes import forget_peaks, server_memory_mib
from tests.patience import PATIENCE_S, wait_until

ROOT = Path(__file__).parents[3]
"""The repository."""

FREE_PORTS = ("--http-port", "0", "--grpc-port", "0")

BACKEND = ("--backend", "onnx")
"""Two servers that are compared must run alike, not each with its own fastest backend."""

PATIENT_WATCH = {"LEWM_ENGINE_TIMEOUT_S": "600"}
"""An engine may stand still for as long as a test on a busy machine takes."""

LONG_PLANS = ("--max-candidate-steps", str(1 << 40))
"""Plans of any length are admitted, because tests need a plan that lasts as long as they do."""


class ServerProcess:
    """`lewm serve` on free ports.

    Args:
        log: the file for its standard error.
        flags: flags of `lewm serve`.
        program: the module that is run instead of `lewm`.
        threads: the number of CPU threads of the model; None: the server chooses it.
        environment: environment variables.

    Attributes:
        ready: the ready line; before that, the log line that names the ports.
        lines: the lines on its standard output, and an empty one at the end.
    """

    def __init__(
        self,
        log: Path,
        *flags: str,
        program: str = "lewm_serve.cli.main",
        threads: str | None = "1",
        **environment: str,
    ) -> None:
        self.log = log
        command = [sys.executable, "-m", program, "serve", "--log-format", "json", *BACKEND]
        command += LONG_PLANS
        if threads is not None:
            command += ["--threads", threads]
        with log.open("wb") as errors:
            self.process = subprocess.Popen(
                [*command, *FREE_PORTS, *flags],
                cwd=ROOT,
                env=os.environ | PATIENT_WATCH | environment,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )
        self.lines: queue.Queue[str] = queue.Queue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self.ready: dict[str, Any] = {}

    def _read(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout as lines:
            for line in lines:
                self.lines.put(line)
        self.lines.put("")

    def wait_listening(self) -> Self:
        """Wait until its ports are open, which is before it is ready."""
        wait_until(lambda: self.events("listening") or self.process.poll() is not None)
        if not self.events("listening"):
            raise RuntimeError(f"the server did not start:\n{self.errors()}")
        (self.ready,) = self.events("listening")
        return self

    def wait_ready(self) -> Self:
        """Wait for the ready line, the only one on standard output."""
        line = self.lines.get(timeout=PATIENCE_S)
        if not line:
            raise RuntimeError(f"the server did not start:\n{self.errors()}")
        self.ready = json.loads(line)
        return self

    @property
    def http_port(self) -> int:
        """The port of REST."""
        port: int = self.ready["http_port"]
        return port

    @property
    def grpc_port(self) -> int:
        """The port of gRPC."""
        port: int = self.ready["grpc_port"]
        return port

    @property
    def url(self) -> str:
        """The address of REST."""
        return f"http://127.0.0.1:{self.http_port}"

    @property
    def target(self) -> str:
        """The address of gRPC."""
        return f"127.0.0.1:{self.grpc_port}"

    def errors(self) -> str:
        """What the server has written to standard error."""
        return self.log.read_text()

    def log_lines(self) -> list[dict[str, Any]]:
        """The lines of the log as dictionaries."""
        complete, _, _ = self.errors().rpartition("\n")  # the last line may still be written
        return [json.loads(line) for line in complete.splitlines() if line.startswith("{")]

    def events(self, event: str) -> list[dict[str, Any]]:
        """The log lines of an event."""
        return [line for line in self.log_lines() if line["event"] == event]

    def wait_logged(self, request_id: str, count: int = 1) -> list[dict[str, Any]]:
        """The log lines of a request. A line may be written shortly after its answer is sent."""
        lines: list[dict[str, Any]] = []

        def are_written() -> bool:
            lines[:] = [line for line in self.log_lines() if line.get("request_id") == request_id]
            return len(lines) >= count

        wait_until(are_written)
        return lines

    def get(self, path: str) -> httpx.Response:
        """The answer to a GET request on a connection of its own."""
        return httpx.get(f"{self.url}{path}", timeout=PATIENCE_S)

    def metric(self, series: str) -> float:
        """The value of one series of `/metrics`, by its name and labels as they are written."""
        lines = self.get("/metrics").text.splitlines()
        (value,) = (line.split()[-1] for line in lines if line.startswith(f"{series} "))
        return float(value)

    def engine_pid(self) -> int:
        """The process of its engine that started last."""
        pid: int = self.events("engine started")[-1]["pid"]
        return pid

    @contextmanager
    def paused_engine(self) -> Iterator[Callable[[], None]]:
        """Stop the engine's process, so that requests stay in the queue.

        A long plan could not hold them there, because the clients take turns. The engine goes on at
        the end of the block, or earlier by a call of what the block is given.
        """
        pid = self.engine_pid()
        os.kill(pid, signal.SIGSTOP)
        try:
            yield lambda: os.kill(pid, signal.SIGCONT)
        finally:
            with suppress(ProcessLookupError):  # it has ended with the server
                os.kill(pid, signal.SIGCONT)

    def memory_growth_mib(self, work: Callable[[], object]) -> int:
        """The most MiB by which the memory of its processes grows while the work is done."""
        forget_peaks(self.process.pid)
        before = server_memory_mib(self.process.pid)
        work()
        return server_memory_mib(self.process.pid, peak=True) - before

    def signal(self, number: signal.Signals) -> None:
        """Send a signal."""
        self.process.send_signal(number)

    def wait_draining(self) -> None:
        """Wait until it refuses new requests after a signal to stop."""
        wait_until(lambda: self.get("/readyz").json().get("code") == "draining")

    def wait_stopped(self) -> int:
        """Wait until it ends, and return its exit code."""
        return self.process.wait(PATIENCE_S)

    def stop(self) -> int:
        """Ask the server to stop, and return its exit code."""
        if self.process.poll() is None:
            self.signal(signal.SIGTERM)
        try:
            return self.wait_stopped()
        finally:
            if self.process.poll() is None:
                self.process.kill()
                self.process.wait()
            self._reader.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
