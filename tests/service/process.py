"""A real server in a process of its own."""

import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any, Self

ROOT = Path(__file__).parents[2]


class ServerProcess:
    """`lewm serve` on free ports; `ready` is its ready line."""

    def __init__(self, log: Path, *flags: str, **environment: str) -> None:
        self.log = log
        command = [sys.executable, "-m", "service.cli.main", "serve"]
        # Two servers that are compared have to run on the same number of threads.
        ports = ["--http-port", "0", "--grpc-port", "0", "--log-format", "json", "--threads", "1"]
        with log.open("wb") as errors:
            self.process = subprocess.Popen(
                [*command, *ports, *flags],
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

    def wait_ready(self, timeout_s: float = 120.0) -> Self:
        """Wait for the ready line, the only one on standard output."""
        line = self.lines.get(timeout=timeout_s)
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
        return [json.loads(line) for line in self.errors().splitlines() if line.startswith("{")]

    def logged(self, request_id: str, count: int = 1) -> list[dict[str, Any]]:
        """The lines of a request; a line may be written a moment after its answer is sent."""
        lines: list[dict[str, Any]] = []
        end = time.monotonic() + 15
        while len(lines) < count and time.monotonic() < end:
            lines = [line for line in self.log_lines() if line.get("request_id") == request_id]
            time.sleep(0.02)
        return lines

    def memory(self, field: str) -> int:
        """`VmRSS` (now) or `VmHWM` (at its highest) in MiB."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        line = next(line for line in status.splitlines() if line.startswith(field))
        return int(line.split()[1]) // 1024

    def signal(self, number: signal.Signals) -> None:
        """Send a signal."""
        self.process.send_signal(number)

    def stop(self, timeout_s: float = 20.0) -> int:
        """Ask the server to stop; its exit code."""
        if self.process.poll() is None:
            self.signal(signal.SIGTERM)
        try:
            return self.process.wait(timeout_s)
        finally:
            if self.process.poll() is None:
                self.process.kill()
                self.process.wait()
            self._reader.join(5)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
