"""A load in a process of its own."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.results import ROOT
from loadtests.calls import LoadResult, read_result
from loadtests.spec import LoadSpec

START_TIMEOUT_S = 300.0
"""The longest time until the process has drawn its frames and has ended its last calls."""


class RunningLoad:
    """A load that another process puts on a server."""

    def __init__(self, spec: LoadSpec, process: subprocess.Popen[bytes], result: Path) -> None:
        self._process, self._result = process, result
        self._max_seconds = spec.seconds + START_TIMEOUT_S

    @property
    def is_running(self) -> bool:
        """Whether the load has not ended."""
        return self._process.poll() is None

    def wait_started(self) -> None:
        """Wait until its users start.

        Raises:
            RuntimeError: the process ended instead; standard error says why.
        """
        assert self._process.stdout is not None
        if not self._process.stdout.readline():
            raise RuntimeError(f"the load ended with code {self._process.wait()}")

    def wait(self) -> LoadResult:
        """Wait for its end.

        Raises:
            RuntimeError: the process failed; standard error says why.
            subprocess.TimeoutExpired: it hangs.
        """
        code = self._process.wait(self._max_seconds)
        if code:
            raise RuntimeError(f"the load ended with code {code}")
        return read_result(self._result)


@contextmanager
def running_load(spec: LoadSpec) -> Iterator[RunningLoad]:
    """Start a load. At the end of the block its process is ended if it still runs."""
    with tempfile.TemporaryDirectory(prefix="lewm-load-") as folder:
        result = Path(folder) / "result.json"
        command = [sys.executable, "-m", "loadtests.generator", spec.to_json(), str(result)]
        with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) as process:
            try:
                yield RunningLoad(spec, process, result)
            finally:
                process.kill()


def run_load(spec: LoadSpec) -> LoadResult:
    """Put a load on a server, and wait for its end; see `RunningLoad.wait`."""
    with running_load(spec) as load:
        return load.wait()
