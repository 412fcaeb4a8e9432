"""A server that is started while another process keeps the processor busy."""

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lewm_client import PlannerClient
from tests.lewm_serve.support.frames import picture
from tests.lewm_serve.support.server_process import ServerProcess
from tests.patience import PATIENCE_S

CORES = len(os.sched_getaffinity(0))
PROCESSES_A_CORE = 3
BUSY_UNTIL_ORPHANED = "import os; parent = os.getppid()\nwhile os.getppid() == parent: pass"
FREE_CORES_S = 60.0
MAX_PLANS = 1000
SOLVER: dict[str, Any] = {"name": "cem", "samples": 320, "iterations": 20, "horizon": 5}


@contextmanager
def one_free_core() -> Iterator[None]:
    """Processes that keep all cores but one busy: several on each, so that they get most of it."""
    command = [sys.executable, "-c", BUSY_UNTIL_ORPHANED]
    _, *cores = os.sched_getaffinity(0)
    processes = []
    try:
        for core in PROCESSES_A_CORE * cores:
            processes.append(subprocess.Popen(command))
            os.sched_setaffinity(processes[-1].pid, {core})
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def cores_are_free() -> bool:
    """Whether two threads compute nearly twice as much as one, at this moment."""
    matrix = np.ones((1000, 1000), np.float32)

    def seconds(threads: int) -> float:
        with ThreadPoolExecutor(threads) as pool:
            start = time.monotonic()
            list(pool.map(lambda _: [np.sort(matrix, axis=None) for _ in range(5)], range(threads)))
            return time.monotonic() - start

    return seconds(2) < 1.2 * seconds(1)


def rollout_threads(server: ServerProcess) -> int:
    """The threads on which the server runs the roll-outs of `SOLVER`, by its log."""
    (chosen,) = (line for line in server.log_lines() if line["event"] == "backend chosen")
    threads = [chosen["threads"]]
    pattern = rf"threads changed: (\d+) for roll-outs .* of about {SOLVER['samples']} rows"
    for line in server.log_lines():
        change = re.fullmatch(pattern, line["event"])
        threads += [] if change is None else [int(change[1])]
    return int(threads[-1])


@pytest.mark.skipif(CORES < 2, reason="there is one core")
def test_a_server_started_on_a_busy_machine_takes_all_cores_when_they_are_free(
    tmp_path: Path, model_folder: Path
) -> None:
    def plan() -> bytes:
        """The bits of the actions."""
        response = client.plan(
            [picture(0)], picture(1), solver=SOLVER, seed=1, timeout_s=PATIENCE_S
        )
        return response.actions.tobytes()

    log = tmp_path / "log.jsonl"
    with ServerProcess(log, "--models", str(model_folder), threads=None) as server:
        with one_free_core():
            server.wait_ready()
            client = PlannerClient(server.target)
            actions = {plan() for _ in range(3)}
        plans = 0
        end = time.monotonic() + FREE_CORES_S
        with client:
            while rollout_threads(server) != CORES:
                if time.monotonic() > end and not cores_are_free():
                    pytest.skip("other processes keep the cores busy")
                assert plans < MAX_PLANS
                actions.add(plan())
                plans += 1
        assert len(actions) == 1
