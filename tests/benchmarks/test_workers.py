"""Processes that work for a benchmark."""

import os
import signal
import subprocess
import sys
from pathlib import Path

from benchmarks.workers import worker_processes

ROOT = Path(__file__).parents[2]
PARENT = """
import os, signal
from benchmarks.workers import worker_processes

if __name__ == "__main__":
    with worker_processes(1) as pool:
        print(pool.submit(os.getpid).result(), flush=True)
        signal.pause()
"""


def test_work_is_done_elsewhere() -> None:
    with worker_processes(1) as pool:
        assert pool.submit(os.getpid).result() != os.getpid()


def test_workers_do_not_outlive_a_killed_parent(tmp_path: Path) -> None:
    program = tmp_path / "parent.py"
    program.write_text(PARENT)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, (ROOT, ROOT / "proto")))}
    with subprocess.Popen(
        [sys.executable, program], env=environment, stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        worker = int(parent.stdout.readline())
        os.kill(worker, 0)
        parent.send_signal(signal.SIGKILL)
        # The worker holds the pipe too: it ends when both have.
        assert parent.stdout.read() == ""
