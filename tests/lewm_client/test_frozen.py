"""A server that is stopped in its tracks while it answers: no call hangs, and all goes on after."""

import signal
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from lewm_client import Move, Pilot, PlannerClient, PlannerError
from tests.lewm_serve.checkpoint import write_random_model
from tests.lewm_serve.frames import picture
from tests.lewm_serve.process import ServerProcess
from tests.patience import PATIENCE_S, wait_until

FRAME, GOAL = picture(0), picture(1)
BRIEF_S = 4.0
FOREVER_S = 5 * BRIEF_S
"""Nobody waits so long, however busy the machine."""
LENGTHY: dict[str, Any] = {
    "solver": {"samples": 4096, "iterations": 200, "horizon": 5},
    "min_iterations": 1,
}
"""Longer than the deadline on any machine, and begun well before it."""
QUICK: dict[str, Any] = {"solver": {"samples": 16, "iterations": 1, "elites": 4}}
STOP = np.zeros((5, 2), np.float32)


def pilot(client: PlannerClient, settings: dict[str, Any], timeout_s: float) -> Pilot:
    return Pilot(
        client, GOAL, steps=5, timeout_s=timeout_s, local=lambda _: STOP, settings=settings
    )


def wait_until_begun(server: ServerProcess, stepping: Future[Move]) -> None:
    """Wait until the server is in the middle of a plan, or the step over."""
    wait_until(lambda: stepping.done() or server.figure("lewm_active_plans") == 1)


def test_a_server_that_freezes_in_the_middle_of_a_call(tmp_path: Path) -> None:
    folder = write_random_model(tmp_path / "model")
    with (
        ServerProcess(tmp_path / "log", "--models", str(folder)).wait_ready() as server,
        PlannerClient(server.target) as client,
        ThreadPoolExecutor(1) as pool,
    ):
        assert pilot(client, QUICK, PATIENCE_S).step([FRAME]).source == "plan"

        # A busy machine may not come as far as an iteration in a brief time.
        for timeout_s in (BRIEF_S, 2 * BRIEF_S, 4 * BRIEF_S):
            started = time.monotonic()
            stepping = pool.submit(pilot(client, LENGTHY, timeout_s).step, [FRAME])
            wait_until_begun(server, stepping)
            if not stepping.done():
                break
        assert not stepping.done()
        server.signal(signal.SIGSTOP)
        try:
            move = stepping.result(PATIENCE_S)
            assert timeout_s <= time.monotonic() - started < 2 * FOREVER_S
            assert (move.source, move.actions.tolist()) == ("local", STOP.tolist())
            assert move.error is not None
            assert move.error.status is grpc.StatusCode.DEADLINE_EXCEEDED

            # And so with the next, on the connection that looks alive.
            started = time.monotonic()
            assert pilot(client, QUICK, BRIEF_S).step([FRAME]).source == "local"
            with pytest.raises(PlannerError) as caught:
                client.models(timeout_s=0.5)
            assert caught.value.temporary
            assert time.monotonic() - started < FOREVER_S
        finally:
            server.signal(signal.SIGCONT)
        assert pilot(client, QUICK, PATIENCE_S).step([FRAME]).source == "plan"
