"""The control loop with a real server, which dies on the way. The limits are loose."""

import signal
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np

from lewm_client import Driver, PlannerClient, PlanResponse, Setback
from tests.lewm_serve.support.frames import picture
from tests.lewm_serve.support.random_model import write_random_model
from tests.lewm_serve.support.server_process import ServerProcess
from tests.patience import PATIENCE_S, wait_until

RATE_HZ = 20
STEPS_WITH_SERVER = 20


class CountingClient(PlannerClient):
    """A client that counts its plans."""

    plans = 0

    def plan(self, *args: Any, **kwargs: Any) -> PlanResponse:
        plan = super().plan(*args, **kwargs)
        self.plans += 1
        return plan


def test_a_robot_moves_on_when_its_server_dies(tmp_path: Path) -> None:
    folder = write_random_model(tmp_path / "model")
    actions: list[Any] = []
    setbacks: list[Setback] = []
    with (
        ServerProcess(tmp_path / "log", "--models", str(folder)).wait_ready() as server,
        CountingClient(server.target) as client,
    ):

        def act(action: Any) -> None:
            actions.append(action)
            if len(actions) >= STEPS_WITH_SERVER and client.plans >= 3:
                server.signal(signal.SIGKILL)

        def brake(setback: Setback) -> list[list[float]]:
            setbacks.append(setback)
            return [[0.0, 0.0]]

        def is_over() -> bool:
            is_killed = server.process.poll() is not None
            return is_killed and len(setbacks) > 0 and setbacks[-1].error.code == "unavailable"

        driver = Driver(
            client,
            picture(1),
            steps=5,
            timeout_s=PATIENCE_S,
            history=3,
            local=brake,
            solver={"samples": 16, "iterations": 1, "elites": 4},
        )
        started = time.monotonic()
        summary = driver.run(observe=lambda: picture(0), act=act, until=is_over, rate_hz=RATE_HZ)
        seconds = time.monotonic() - started
        wait_until(lambda: not any(t.name.startswith("lewm-plan") for t in threading.enumerate()))
    assert len(actions) == sum(summary.steps.values())
    assert np.isfinite(actions).all()
    assert seconds > 0.95 * (len(actions) - 1) / RATE_HZ
    assert summary.steps["plan"] >= STEPS_WITH_SERVER
    assert summary.plans >= 3
    assert summary.steps["local"] > 0
