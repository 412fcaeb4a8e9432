"""A server that freezes during a call: no call hangs, and the robot goes on when it is back."""

import signal
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from lewm_client import Driver, Move, PlannerClient, PlannerError
from tests.lewm_serve.support.frames import picture
from tests.lewm_serve.support.random_model import write_random_model
from tests.lewm_serve.support.server_process import ServerProcess
from tests.patience import PATIENCE_S, wait_until

FRAME, GOAL = picture(0), picture(1)
SHORT_TIMEOUT_S = 4.0
MAX_WAIT_S = 5 * SHORT_TIMEOUT_S
"""A call with the short timeout takes less than this, however busy the machine is."""
LONG_PLAN: dict[str, Any] = {
    "solver": {"samples": 4096, "iterations": 200, "horizon": 5},
    "min_iterations": 1,
}
"""A plan that takes longer than its deadline on any machine."""
SHORT_PLAN: dict[str, Any] = {"solver": {"samples": 16, "iterations": 1, "elites": 4}}
STOP_ACTIONS = np.zeros((5, 2), np.float32)


def make_driver(client: PlannerClient, settings: dict[str, Any], timeout_s: float) -> Driver:
    return Driver(
        client,
        GOAL,
        steps=5,
        timeout_s=timeout_s,
        local=lambda _setback: STOP_ACTIONS,
        settings=settings,
    )


def wait_until_planning(server: ServerProcess, stepping: Future[Move]) -> None:
    """Wait until the server is searching, or the step is over."""
    wait_until(lambda: stepping.done() or server.metric("lewm_active_plans") == 1)


def test_a_server_that_freezes_during_a_call(tmp_path: Path) -> None:
    folder = write_random_model(tmp_path / "model")
    with (
        ServerProcess(tmp_path / "log", "--models", str(folder)).wait_ready() as server,
        PlannerClient(server.target) as client,
        ThreadPoolExecutor(1) as pool,
    ):
        assert make_driver(client, SHORT_PLAN, PATIENCE_S).step(FRAME).source == "plan"

        # On a busy machine a short timeout may end before the search begins.
        for timeout_s in (SHORT_TIMEOUT_S, 2 * SHORT_TIMEOUT_S, 4 * SHORT_TIMEOUT_S):
            started = time.monotonic()
            stepping = pool.submit(make_driver(client, LONG_PLAN, timeout_s).step, FRAME)
            wait_until_planning(server, stepping)
            if not stepping.done():
                break
        assert not stepping.done()
        server.signal(signal.SIGSTOP)
        try:
            move = stepping.result(PATIENCE_S)
            assert timeout_s <= time.monotonic() - started < 2 * MAX_WAIT_S
            assert move.source == "local"
            assert np.array_equal(move.actions, STOP_ACTIONS)
            assert move.error is not None
            assert move.error.status is grpc.StatusCode.DEADLINE_EXCEEDED

            # The connection still looks alive to the next calls.
            started = time.monotonic()
            assert make_driver(client, SHORT_PLAN, SHORT_TIMEOUT_S).step(FRAME).source == "local"
            with pytest.raises(PlannerError) as caught:
                client.models(timeout_s=0.5)
            assert caught.value.temporary
            assert time.monotonic() - started < MAX_WAIT_S
        finally:
            server.signal(signal.SIGCONT)
        assert make_driver(client, SHORT_PLAN, PATIENCE_S).step(FRAME).source == "plan"
