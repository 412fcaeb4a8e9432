"""The answer of a fallback reaches the client before its deadline, by the client's clock."""

import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest

from lewm_client import PlannerClient, PlannerError
from tests.lewm_serve.support.faulty_lewm import FAULTY_LEWM, STUCK_HORIZON
from tests.lewm_serve.support.frames import picture
from tests.lewm_serve.support.requests import HOLD, SMALL_SOLVER, plan
from tests.lewm_serve.support.server_process import ServerProcess
from tests.patience import PATIENCE_S

MAX_SAMPLES = 65_536
LONG_ITERATION = {"samples": MAX_SAMPLES, "iterations": 1, "horizon": 50}
"""Its iteration takes much longer than any deadline here, on a fast machine too."""

DEADLINES_S = (2.0, 4.0, 8.0)
"""Deadlines to try: on a busy machine the 20 ms that an answer has for its way may be too few."""


class Robot:
    """Sends plans with a deadline over one protocol."""

    def __init__(self, client: httpx.Client | PlannerClient) -> None:
        self._client = client

    def plan(self, deadline_s: float, solver: dict[str, Any]) -> dict[str, Any]:
        """The answer to a plan with a fallback."""
        if isinstance(self._client, PlannerClient):
            answer = self._client.plan(
                [picture(0)], picture(1), solver=solver, fallback=HOLD, timeout_s=deadline_s
            )
            report = None if answer.fallback is None else vars(answer.fallback)
            return {"status": answer.status, "fallback": report}
        request = plan(solver=solver, fallback=HOLD, deadline_ms=1000 * deadline_s)
        document: dict[str, Any] = self._client.post("/plan", json=request).json()
        return document

    def gets_fallback_in_time(self, deadline_s: float, solver: dict[str, Any]) -> bool:
        """Whether the fallback's answer comes before the deadline."""
        started = time.monotonic()
        try:
            answer = self.plan(deadline_s, solver)
        except PlannerError as error:
            if error.code != "deadline_exceeded":
                raise
            return False
        duration_s = time.monotonic() - started
        assert answer["status"] == "fallback"
        assert answer["fallback"] == {"controller": "hold", "reason": "deadline"}
        return duration_s < deadline_s


@pytest.fixture(scope="module")
def robots(
    tmp_path_factory: pytest.TempPathFactory, model_folder: Path
) -> Iterator[dict[str, Robot]]:
    """One robot for each protocol, each with a warm connection."""
    log = tmp_path_factory.mktemp("faulty") / "log.jsonl"
    flags = ("--models", str(model_folder), "--max-samples", str(MAX_SAMPLES))
    with ExitStack() as stack:
        server = stack.enter_context(ServerProcess(log, *flags, program=FAULTY_LEWM)).wait_ready()
        rest = stack.enter_context(httpx.Client(base_url=server.url, timeout=PATIENCE_S))
        rpc = stack.enter_context(PlannerClient(server.target, retries=0))
        robots = {"rest": Robot(rest), "grpc": Robot(rpc)}
        for robot in robots.values():
            assert robot.plan(PATIENCE_S, SMALL_SOLVER)["status"] == "completed"
        yield robots
        assert server.stop() == 0, server.errors()


@pytest.mark.parametrize("protocol", ["rest", "grpc"])
def test_an_iteration_that_takes_longer_than_the_deadline(
    robots: dict[str, Robot], protocol: str
) -> None:
    assert robots[protocol].gets_fallback_in_time(DEADLINES_S[0], LONG_ITERATION)


@pytest.mark.parametrize("protocol", ["rest", "grpc"])
def test_an_engine_that_is_stuck(robots: dict[str, Robot], protocol: str) -> None:
    """After the first attempt the engine is stuck for good."""
    robot, stuck = robots[protocol], SMALL_SOLVER | {"horizon": STUCK_HORIZON}
    assert any(robot.gets_fallback_in_time(deadline_s, stuck) for deadline_s in DEADLINES_S)
