"""Which plans a real server admits, in which order it runs them, and what it still finishes."""

import json
import select
import signal
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from lewm_client import PlannerClient, PlannerError
from tests.lewm_serve.support.drivers import Driver, GrpcDriver, RestDriver
from tests.lewm_serve.support.endless_plan import ENDLESS_SOLVER
from tests.lewm_serve.support.frames import picture, pixels
from tests.lewm_serve.support.requests import plan
from tests.lewm_serve.support.server_process import ServerProcess
from tests.patience import PATIENCE_S, wait_until

ROBOTS = 12

SHORT_SOLVER = {"name": "cem", "samples": 64, "elites": 8, "iterations": 4}
LONG_SOLVER = {"name": "cem", "samples": 512, "iterations": 200}
"""Many iterations, of which at least one should fit into half a minute."""


def admitted_plans(server: ServerProcess) -> float:
    """The number of plans that are admitted and not answered."""
    queued = server.metric('lewm_queued_requests{endpoint="plan"}')
    return queued + server.metric("lewm_active_plans")


@contextmanager
def robot_with_plan(server: ServerProcess, **request: Any) -> Iterator[socket.socket]:
    """A client whose plan has been admitted, unless it is answered already.

    At the end of the block the client closes its connection, and its plan is dropped.
    """
    body = json.dumps(plan(**request))
    head = "POST /plan HTTP/1.1\r\nHost: robot\r\nContent-Type: application/json\r\n"
    before = admitted_plans(server)
    with socket.create_connection(("127.0.0.1", server.http_port)) as connection:
        connection.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n{body}".encode())
        wait_until(lambda: admitted_plans(server) > before or is_answered(connection))
        yield connection
    wait_until(lambda: admitted_plans(server) <= before)


def is_answered(connection: socket.socket) -> bool:
    """Whether bytes have arrived."""
    return bool(select.select([connection], [], [], 0)[0])


def test_a_full_queue_refuses_requests_until_a_plan_is_done(
    tmp_path: Path, model_folder: Path
) -> None:
    flags = ("--models", str(model_folder), "--max-queue", "2")
    with (
        ServerProcess(tmp_path / "log", *flags).wait_ready() as server,
        PlannerClient(server.target) as rpc,
        httpx.Client(base_url=server.url, timeout=PATIENCE_S) as rest,
    ):
        with (
            robot_with_plan(server, solver=ENDLESS_SOLVER),
            robot_with_plan(server, solver=ENDLESS_SOLVER),
        ):
            refused = rest.post("/plan", json=plan())
            assert (refused.status_code, refused.json()["code"]) == (429, "overloaded")
            assert int(refused.headers["retry-after"]) >= 1
            with pytest.raises(PlannerError) as caught:
                rpc.encode([picture(0)])
            assert caught.value.code == "overloaded"
            assert caught.value.retry_after_s
        assert rest.post("/plan", json=plan()).status_code == 200


@pytest.mark.parametrize("priority", [5, 9])
def test_a_plan_with_a_deadline_overtakes_one_without(
    server: ServerProcess, rest: httpx.Client, priority: int
) -> None:
    """Whatever the priority of the other. A plan that needs time does not stop the robots."""
    with robot_with_plan(server, solver=ENDLESS_SOLVER, priority=priority) as connection:
        urgent = rest.post("/plan", json=plan(deadline_ms=600_000)).json()
        assert urgent["status"] == "completed"
        assert not is_answered(connection)


def test_a_plan_that_needs_more_than_others_leave_is_refused(
    server: ServerProcess, driver: Driver
) -> None:
    """The plan of another client takes all the time until its own deadline.

    Without `min_iterations` there are fewer iterations. On a busy machine the requests themselves
    take some of the time, or one iteration takes more than is left: then there is more time.
    """
    for scale in (1, 4, 16):
        request = plan(solver=LONG_SOLVER, deadline_ms=2000 * scale)
        alone = driver.send("plan", request).document.get("iterations", 0)
        needed = max(2, 4 * alone // 5)
        with robot_with_plan(server, solver=LONG_SOLVER, deadline_ms=1500 * scale, priority=9):
            refused = driver.send("plan", request | {"min_iterations": needed})
            admitted = driver.send("plan", request)
        iterations = admitted.document.get("iterations", 0)
        if (refused.code, admitted.code) == ("overloaded", "ok") and iterations < alone:
            break
    assert (refused.status, refused.code) == (driver.status(429), "overloaded")
    assert (admitted.code, admitted.document.get("status")) == ("ok", "deadline")
    assert 1 <= iterations < alone


def test_a_plan_without_time_for_its_min_iterations_is_refused(driver: Driver) -> None:
    request = plan(solver=ENDLESS_SOLVER, deadline_ms=60_000, min_iterations=200)
    refused = driver.send("plan", request)
    assert (refused.status, refused.code) == (driver.status(504), "deadline_exceeded")


def test_a_dropped_plan_no_longer_counts(server: ServerProcess, rest: httpx.Client) -> None:
    with robot_with_plan(server, solver=ENDLESS_SOLVER):
        pass
    assert rest.post("/plan", json=plan(deadline_ms=600_000)).json()["status"] == "completed"


def test_a_plan_is_the_same_alone_and_among_others(
    server: ServerProcess, rest: httpx.Client
) -> None:
    """Other plans run between its iterations, more and less urgent ones."""
    request = plan(solver=SHORT_SOLVER | {"iterations": 20})
    alone = rest.post("/plan", json=request).json()
    with (
        robot_with_plan(server, solver=ENDLESS_SOLVER),
        httpx.Client(base_url=server.url, timeout=PATIENCE_S) as other_clients,
        ThreadPoolExecutor(4) as pool,
    ):
        others = [
            pool.submit(other_clients.post, "/plan", json=plan(priority=6 + seed % 4, seed=seed))
            for seed in range(12)
        ]
        together = rest.post("/plan", json=request | {"priority": 7}).json()
        assert all(other.result().status_code == 200 for other in others)
    assert np.array_equal(alone["actions"], together["actions"])
    assert alone["cost"] == together["cost"]


def test_plans_that_came_before_the_signal_are_finished(tmp_path: Path, model_folder: Path) -> None:
    flags = ("--models", str(model_folder), "--grace-s", "600")
    with (
        ServerProcess(tmp_path / "log", *flags).wait_ready() as server,
        PlannerClient(server.target) as rpc,
        httpx.Client(base_url=server.url, timeout=PATIENCE_S) as rest,
        ThreadPoolExecutor(ROBOTS) as pool,
        server.paused_engine() as resume,
    ):
        drivers = (GrpcDriver(rpc), RestDriver(rest))
        plans = [
            pool.submit(
                drivers[seed % 2].send,
                "plan",
                plan(frames=[pixels(seed)], goal=pixels(seed + 100), seed=seed),
            )
            for seed in range(ROBOTS)
        ]
        wait_until(lambda: server.metric('lewm_queued_requests{endpoint="plan"}') == ROBOTS)
        server.signal(signal.SIGTERM)
        server.wait_draining()
        resume()
        assert [answer.result(PATIENCE_S).code for answer in plans] == ["ok"] * ROBOTS
        assert server.wait_stopped() == 0, server.errors()


@pytest.mark.parametrize("deadline_ms", [0.001, 0.5])
def test_a_deadline_that_cannot_be_met_is_refused_at_once(
    rest: httpx.Client, deadline_ms: float
) -> None:
    refused = rest.post("/plan", json=plan(deadline_ms=deadline_ms))
    assert (refused.status_code, refused.json()["code"]) == (504, "deadline_exceeded")


def test_an_iteration_that_does_not_fit_is_refused_before_any_work(
    server: ServerProcess, rest: httpx.Client
) -> None:
    rolled_out_rows = 'lewm_batch_rows_sum{kind="rollout"}'
    before = server.metric(rolled_out_rows)
    huge = {"name": "cem", "samples": 4096, "horizon": 50}
    refused = rest.post("/plan", json=plan(solver=huge, deadline_ms=200))
    assert (refused.status_code, refused.json()["code"]) == (504, "deadline_exceeded")
    assert server.metric(rolled_out_rows) == before
    assert admitted_plans(server) == 0
