"""Who comes in, and what becomes of those inside when the server goes down."""

import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from service.rpc.client import PlannerClient, PlannerError
from tests.patience import PATIENCE_S, wait_until
from tests.service.cases import plan
from tests.service.drivers import RestDriver, RpcDriver
from tests.service.endless import endless_plan
from tests.service.frames import picture, pixels
from tests.service.process import ServerProcess

ROBOTS = 12


def test_requests_beyond_the_limit_are_refused_at_once(tmp_path: Path, model_folder: Path) -> None:
    flags = ("--models", str(model_folder), "--max-queue", "2")
    with (
        ServerProcess(tmp_path / "log", *flags).wait_ready() as server,
        PlannerClient(server.target) as rpc,
        httpx.Client(base_url=server.url, timeout=PATIENCE_S) as rest,
        ThreadPoolExecutor(1) as pool,
        endless_plan(server) as running,
    ):
        waiting = pool.submit(rest.post, "/plan", json=plan())
        wait_until(lambda: server.figure('lewm_queued_requests{endpoint="plan"}') == 1)
        refused = rest.post("/plan", json=plan())
        assert (refused.status_code, refused.json()["code"]) == (429, "overloaded")
        assert int(refused.headers["retry-after"]) >= 1
        with pytest.raises(PlannerError) as caught:
            rpc.plan([picture(0)], picture(1))
        assert caught.value.code == "overloaded"
        assert caught.value.retry_after_s is not None
        assert not running.done()
        assert not waiting.done()
        running.cancel()
        assert waiting.result(PATIENCE_S).status_code == 200
        assert rest.post("/plan", json=plan()).status_code == 200


def test_whatever_came_in_before_the_signal_is_finished(tmp_path: Path, model_folder: Path) -> None:
    flags = ("--models", str(model_folder), "--grace-s", "600")
    with (
        ServerProcess(tmp_path / "log", *flags).wait_ready() as server,
        PlannerClient(server.target) as rpc,
        httpx.Client(base_url=server.url, timeout=PATIENCE_S) as rest,
        ThreadPoolExecutor(ROBOTS) as pool,
        endless_plan(server) as before_them,
    ):
        robots = [
            pool.submit(
                (RestDriver(rest) if seed % 2 else RpcDriver(rpc)).ask,
                "plan",
                plan(frames=[pixels(seed)], goal=pixels(seed + 100), seed=seed),
            )
            for seed in range(ROBOTS)
        ]
        wait_until(lambda: server.figure('lewm_queued_requests{endpoint="plan"}') == ROBOTS)
        server.signal(signal.SIGTERM)
        server.wait_draining()
        before_them.cancel()
        assert [robot.result(PATIENCE_S).code for robot in robots] == ["ok"] * ROBOTS
        assert server.wait_stopped() == 0, server.errors()


@pytest.mark.parametrize("deadline_ms", [0.001, 0.5])
def test_a_deadline_that_cannot_be_met_is_told_at_once(
    rest: httpx.Client, deadline_ms: float
) -> None:
    rest.post("/plan", json=plan())
    refused = rest.post("/plan", json=plan(deadline_ms=deadline_ms))
    assert (refused.status_code, refused.json()["code"]) == (504, "deadline_exceeded")


def test_a_huge_iteration_is_not_done_when_it_would_outlast_its_deadline(
    server: ServerProcess, rest: httpx.Client
) -> None:
    rows = 'lewm_batch_rows_sum{kind="rollout"}'
    before = server.figure(rows)
    huge = {"name": "cem", "samples": 4096, "horizon": 20}
    refused = rest.post("/plan", json=plan(solver=huge, deadline_ms=200))
    assert (refused.status_code, refused.json()["code"]) == (504, "deadline_exceeded")
    assert server.figure(rows) - before < 4096
