"""By the clock, over the wire: a fallback's answer is with the client before the deadline."""

import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest

from lewm_client import PlannerClient, PlannerError
from tests.lewm_serve.support.requests import SOLVER, plan
from tests.lewm_serve.support.frames import picture
from tests.lewm_serve.support.server_process import ServerProcess
from tests.lewm_serve.support.faulty_lewm import FAULTY_LEWM, STUCK_HORIZON
from tests.patience import PATIENCE_S

HOLD = {"controller": "hold"}
SAMPLES = 65_536
LONG = {"samples": SAMPLES, "iterations": 1, "horizon": 50}
"""Its one iteration takes much longer than any deadline here, also on a fast machine."""
DEADLINES_S = (2.0, 4.0, 8.0)
"""Of attempts: on a busy machine the 20 ms that are left for an answer's way may once be few."""


class Robot:
    """Asks for plans over one protocol, with a deadline, and looks at its own clock."""

    def __init__(self, client: httpx.Client | PlannerClient) -> None:
        self._client = client

    def ask(self, deadline_s: float, solver: dict[str, Any]) -> dict[str, Any]:
        """The answer to a plan with a fallback."""
        if isinstance(self._client, PlannerClient):
            wanted: dict[str, Any] = {"solver": solver, "fallback": HOLD}
            frames, goal = [picture(0)], picture(1)
            answer = self._client.plan(frames, goal, **wanted, timeout_s=deadline_s)
            report = None if answer.fallback is None else vars(answer.fallback)
            return {"status": answer.status, "fallback": report}
        asked = plan(solver=solver, fallback=HOLD, deadline_ms=1000 * deadline_s)
        document: dict[str, Any] = self._client.post("/plan", json=asked).json()
        return document

    def is_answered_in_time(self, deadline_s: float, solver: dict[str, Any]) -> bool:
        """Whether the fallback's answer was there before the deadline."""
        started = time.monotonic()
        try:
            answer = self.ask(deadline_s, solver)
        except PlannerError as late:
            if late.code != "deadline_exceeded":
                raise
            return False
        took_s = time.monotonic() - started
        assert answer["status"] == "fallback"
        assert answer["fallback"] == {"controller": "hold", "reason": "deadline"}
        return took_s < deadline_s


@pytest.fixture(scope="module")
def robots(
    tmp_path_factory: pytest.TempPathFactory, model_folder: Path
) -> Iterator[dict[str, Robot]]:
    """One a protocol, which have been answered before."""
    log = tmp_path_factory.mktemp("troubled") / "log.jsonl"
    flags = ("--models", str(model_folder), "--max-samples", str(SAMPLES))
    with ExitStack() as stack:
        server = stack.enter_context(ServerProcess(log, *flags, program=FAULTY_LEWM)).wait_ready()
        rest = stack.enter_context(httpx.Client(base_url=server.url, timeout=PATIENCE_S))
        rpc = stack.enter_context(PlannerClient(server.target, retries=0))
        robots = {"rest": Robot(rest), "grpc": Robot(rpc)}
        for robot in robots.values():
            assert robot.ask(PATIENCE_S, SOLVER)["status"] == "completed"
        yield robots
        assert server.stop() == 0, server.errors()


@pytest.mark.parametrize("protocol", ["rest", "grpc"])
def test_an_iteration_that_is_longer_than_the_deadline(
    robots: dict[str, Robot], protocol: str
) -> None:
    assert robots[protocol].is_answered_in_time(DEADLINES_S[0], LONG)


@pytest.mark.parametrize("protocol", ["rest", "grpc"])
def test_an_engine_that_is_stuck_in_a_step(robots: dict[str, Robot], protocol: str) -> None:
    """From the first attempt on, for good."""
    robot, stuck = robots[protocol], SOLVER | {"horizon": STUCK_HORIZON}
    assert any(robot.is_answered_in_time(deadline_s, stuck) for deadline_s in DEADLINES_S)
