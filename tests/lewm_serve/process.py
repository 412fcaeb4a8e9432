"""A real server in a process of its own."""

import json
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import httpx

from tests.patience import PATIENCE_S, wait_until

ROOT = Path(__file__).parents[2]


class ServerProcess:
    """`lewm serve` on free ports; `ready` is its ready line, or until then where it listens.

    ``program`` is the module that stands for `lewm`.
    """

    def __init__(
        self, log: Path, *flags: str, program: str = "lewm_serve.cli.main", **environment: str
    ) -> None:
        self.log = log
        command = [sys.executable, "-m", program, "serve"]
        ports = ["--http-port", "0", "--grpc-port", "0", "--log-format", "json"]
        # Two servers that are compared have to run alike, not each as it happens to be faster.
        alike = ["--backend", "onnx", "--threads", "1"]
        with log.open("wb") as errors:
            self.process = subprocess.Popen(
                [*command, *ports, *alike, *flags],
                cwd=ROOT,
                env=os.environ | environment,
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
        wait_until(lambda: self._said("listening") or self.process.poll() is not None)
        if not self._said("listening"):
            raise RuntimeError(f"the server did not start:\n{self.errors()}")
        (self.ready,) = self._said("listening")
        return self

    def wait_ready(self) -> Self:
        """Wait for the ready line, the only one on standard output."""
        line = self.lines.get(timeout=PATIENCE_S)
        if not line:
            raise RuntimeError(f"the server did not start:\n{self.errors()}")
        self.ready = json.loads(line)
        return self

    @property
    def url(self) -> str:
        """Where REST is served."""
        return f"http://127.0.0.1:{self.ready['http_port']}"

    @property
    def target(self) -> str:
        """Where gRPC is served."""
        return f"127.0.0.1:{self.ready['grpc_port']}"

    def errors(self) -> str:
        """What the server wrote on standard error so far."""
        return self.log.read_text()

    def log_lines(self) -> list[dict[str, Any]]:
        """The log, a dictionary a line."""
        whole, _, _ = self.errors().rpartition("\n")  # the last line may be in the making
        return [json.loads(line) for line in whole.splitlines() if line.startswith("{")]

    def _said(self, event: str) -> list[dict[str, Any]]:
        return [line for line in self.log_lines() if line["event"] == event]

    def logged(self, request_id: str, count: int = 1) -> list[dict[str, Any]]:
        """The lines of a request; a line may be written a moment after its answer is sent."""
        lines: list[dict[str, Any]] = []

        def written() -> bool:
            lines[:] = [line for line in self.log_lines() if line.get("request_id") == request_id]
            return len(lines) >= count

        wait_until(written)
        return lines

    def get(self, path: str) -> httpx.Response:
        """What it answers on a connection of its own."""
        return httpx.get(f"{self.url}{path}", timeout=PATIENCE_S)

    def figure(self, name: str) -> float:
        """One figure of `/metrics`, by its name and labels as they stand there."""
        lines = self.get("/metrics").text.splitlines()
        (value,) = (line.split()[-1] for line in lines if line.startswith(f"{name} "))
        return float(value)

    def growth(self, work: Callable[[], object]) -> int:
        """By how many MiB its memory grows while the work is done, at most."""
        process = Path("/proc", str(self.process.pid))
        (process / "clear_refs").write_text("5")  # the highest so far is what there is now

        def memory(field: str) -> int:
            lines = (process / "status").read_text().splitlines()
            return next(int(line.split()[1]) // 1024 for line in lines if line.startswith(field))

        before = memory("VmRSS")
        work()
        return memory("VmHWM") - before

    def signal(self, number: signal.Signals) -> None:
        """Send a signal."""
        self.process.send_signal(number)

    def wait_draining(self) -> None:
        """Wait until it refuses what comes, having been asked to stop."""
        wait_until(lambda: self.get("/readyz").json().get("code") == "draining")

    def wait_stopped(self) -> int:
        """Wait until it ends; its exit code."""
        return self.process.wait(PATIENCE_S)

    def stop(self) -> int:
        """Ask the server to stop; its exit code."""
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
