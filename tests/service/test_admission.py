"""Who comes in, and what becomes of those inside when the server goes down."""

import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from service.rpc.client import PlannerClient, PlannerError
from tests.service.cases import plan
from tests.service.frames import picture
from tests.service.process import ServerProcess

SHORT = {"name": "cem", "samples": 64, "elites": 8, "iterations": 4}
ENDLESS = {"name": "cem", "samples": 512, "iterations": 200}


@pytest.mark.timeout(180)
def test_requests_beyond_the_limit_are_refused_at_once(tmp_path: Path, model_folder: Path) -> None:
    flags = ("--models", str(model_folder), "--max-queue", "2")
    with (
        ServerProcess(tmp_path / "log", *flags).wait_ready() as server,
        PlannerClient(server.target) as rpc,
        httpx.Client(base_url=server.url, timeout=60) as rest,
        ThreadPoolExecutor(2) as pool,
    ):
        inside = [
            pool.submit(
                rpc.plan, [picture(seed)], picture(9), solver=ENDLESS, deadline_ms=3000, seed=seed
            )
            for seed in range(2)
        ]
        time.sleep(1)
        started = time.monotonic()
        refused = rest.post("/plan", json=plan())
        assert (refused.status_code, refused.json()["code"]) == (429, "overloaded")
        assert int(refused.headers["retry-after"]) >= 1
        with pytest.raises(PlannerError) as caught:
            rpc.plan([picture(0)], picture(1))
        assert caught.value.code == "overloaded"
        assert caught.value.retry_after_s is not None
        assert time.monotonic() - started < 1.5
        statuses = sorted(_outcome(future.exception(30)) for future in inside)
        # The second plan may find no time left behind the first.
        assert statuses in (["answered", "answered"], ["answered", "deadline_exceeded"])
        assert rest.post("/plan", json=plan()).status_code == 200


def _outcome(error: BaseException | None) -> str:
    return "answered" if error is None else getattr(error, "code", repr(error))


@pytest.mark.timeout(180)
def test_whatever_came_in_before_the_signal_is_finished(tmp_path: Path, model_folder: Path) -> None:
    """Also what was still being decoded or encoded then, and had no plan yet."""
    outcomes: list[str] = []
    flags = ("--models", str(model_folder), "--grace-s", "60")
    with (
        ServerProcess(tmp_path / "log", *flags).wait_ready() as server,
        PlannerClient(server.target) as rpc,
    ):

        def ask(seed: int) -> None:
            try:
                start, goal = picture(seed, height=512), picture(seed + 100, height=512)
                rpc.plan([start], goal, solver=SHORT, seed=seed, timeout_s=60)
            except PlannerError as error:
                outcomes.append(error.code)
            else:
                outcomes.append("ok")

        rpc.encode([picture(0)])
        robots = [threading.Thread(target=ask, args=(seed,)) for seed in range(12)]
        for robot in robots:
            robot.start()
        time.sleep(0.25)
        server.signal(signal.SIGTERM)
        for robot in robots:
            robot.join(90)
        assert outcomes == ["ok"] * 12
        assert server.process.wait(30) == 0, server.errors()


@pytest.mark.parametrize("deadline_ms", [0.001, 0.5])
def test_a_deadline_that_cannot_be_met_is_told_at_once(
    rest: httpx.Client, deadline_ms: float
) -> None:
    rest.post("/plan", json=plan())
    refused = rest.post("/plan", json=plan(deadline_ms=deadline_ms))
    assert (refused.status_code, refused.json()["code"]) == (504, "deadline_exceeded")


def test_a_huge_iteration_does_not_outlast_its_deadline(rest: httpx.Client) -> None:
    started = time.monotonic()
    huge = {"name": "cem", "samples": 4096, "horizon": 20}
    refused = rest.post("/plan", json=plan(solver=huge, deadline_ms=200))
    assert refused.status_code == 504
    assert time.monotonic() - started < 1
