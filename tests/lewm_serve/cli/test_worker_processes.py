"""Processes that work for another one, and end with it."""

import os
import signal
import subprocess
import sys
from pathlib import Path

from lewm_serve.cli.worker_processes import worker_processes

PARENT = """
import os, signal
from lewm_serve.cli.worker_processes import worker_processes

if __name__ == "__main__":
    with worker_processes(1) as pool:
        print(pool.submit(os.getpid).result(), flush=True)
        signal.pause()
"""


def test_workers_are_other_processes() -> None:
    with worker_processes(1) as pool:
        assert pool.submit(os.getpid).result() != os.getpid()


def test_workers_end_with_a_killed_parent(tmp_path: Path) -> None:
    program = tmp_path / "parent.py"
    program.write_text(PARENT)
    import_path = os.pathsep.join(filter(None, sys.path))
    with subprocess.Popen(
        [sys.executable, program],
        env=os.environ | {"PYTHONPATH": import_path},
        stdout=subprocess.PIPE,
        text=True,
    ) as parent:
        assert parent.stdout is not None
        worker = int(parent.stdout.readline())
        os.kill(worker, 0)
        parent.send_signal(signal.SIGKILL)
        # The worker holds the pipe too, so it is closed when both have ended.
        assert parent.stdout.read() == ""
