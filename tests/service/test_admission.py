"""Who comes in, who goes first, and what becomes of those inside when the server goes down."""

import json
import math
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

from tests.patience import PATIENCE_S, wait_until
from tests.service.cases import plan
from tests.service.drivers import Driver, RestDriver, RpcDriver
from tests.service.endless import endless_plan
from tests.service.frames import picture, pixels
from tests.service.process import ServerProcess

ROBOTS = 12

SHORT = {"name": "cem", "samples": 64, "elites": 8, "iterations": 4}
LONG = {"name": "cem", "samples": 256, "iterations": 200}
ENDLESS = {"name": "cem", "samples": 4096, "iterations": 200}
"""A plan of a minute at least, which no test waits for: its client goes away."""


def figure(rest: httpx.Client, name: str) -> float:
    """One of the server's figures."""
    lines = rest.get("/metrics").text.splitlines()
    return next(float(line.split()[-1]) for line in lines if line.startswith(name + " "))


def plans_inside(rest: httpx.Client) -> float:
    """Plans admitted and not yet answered."""
    waiting = figure(rest, 'lewm_queued_requests{endpoint="plan"}')
    return waiting + figure(rest, "lewm_active_plans")


@contextmanager
def robot(server: ServerProcess, **request: Any) -> Iterator[socket.socket]:
    """A client whose plan is inside; at the end it goes away without a word, and is dropped."""
    body = json.dumps(plan(**request))
    head = "POST /plan HTTP/1.1\r\nHost: robot\r\nContent-Type: application/json\r\n"
    address = "127.0.0.1", server.ready["http_port"]
    with httpx.Client(base_url=server.url) as rest:
        before = plans_inside(rest)
        with socket.create_connection(address) as connection:
            connection.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n{body}".encode())
            wait_until(lambda: plans_inside(rest) > before or is_answered(connection))
            assert not is_answered(connection), connection.recv(4096)
            yield connection
        wait_until(lambda: plans_inside(rest) <= before)


def is_answered(connection: socket.socket) -> bool:
    """Whether something has come back."""
    return bool(select.select([connection], [], [], 0)[0])


def test_requests_beyond_the_limit_are_refused_until_there_is_room(
    tmp_path: Path, model_folder: Path
) -> None:
    flags = ("--models", str(model_folder), "--max-queue", "2")
    with (
        ServerProcess(tmp_path / "log", *flags).wait_ready() as server,
        PlannerClient(server.target) as rpc,
        httpx.Client(base_url=server.url, timeout=PATIENCE_S) as rest,
    ):
        with robot(server, solver=ENDLESS), robot(server, solver=ENDLESS):
            refused = rest.post("/plan", json=plan())
            assert (refused.status_code, refused.json()["code"]) == (429, "overloaded")
            assert int(refused.headers["retry-after"]) >= 1
            with pytest.raises(PlannerError) as caught:
                rpc.encode([picture(0)])
            assert caught.value.code == "overloaded"
            assert caught.value.retry_after_s
        assert rest.post("/plan", json=plan()).status_code == 200


def test_a_plan_that_would_come_too_late_is_told_when_to_come_again(
    server: ServerProcess, rest: httpx.Client, rpc: PlannerClient
) -> None:
    with robot(server, solver=ENDLESS, priority=9):
        refused = rest.post("/plan", json=plan(deadline_ms=2000))
        assert (refused.status_code, refused.json()["code"]) == (429, "overloaded")
        with pytest.raises(PlannerError) as caught:
            rpc.plan([picture(0)], picture(1), deadline_ms=2000)
        assert caught.value.code == "overloaded"
        assert caught.value.retry_after_s is not None
        header = int(refused.headers["retry-after"])
        assert header >= 1
        assert header == pytest.approx(math.ceil(caught.value.retry_after_s), rel=0.5, abs=1)


def test_a_more_urgent_plan_overtakes(server: ServerProcess, rest: httpx.Client) -> None:
    with robot(server, solver=ENDLESS) as long:
        urgent = rest.post("/plan", json=plan(deadline_ms=30_000, priority=9)).json()
        assert urgent["status"] == "completed"
        assert not is_answered(long)


def test_a_plan_may_be_content_with_fewer_iterations(server: ServerProcess, driver: Driver) -> None:
    """Behind one that takes all the time until its own deadline."""
    with robot(server, solver=LONG, deadline_ms=3000, priority=9):
        request = plan(solver=LONG, deadline_ms=4000)
        refused = driver.ask("plan", request)
        assert (refused.status, refused.code) == (driver.status(429), "overloaded")
        admitted = driver.ask("plan", request | {"min_iterations": 1})
        assert admitted.code == "ok"
        assert admitted.document["status"] == "deadline"
        assert 1 <= admitted.document["iterations"] < 200


def test_fewer_than_the_least_iterations_are_of_no_use(rest: httpx.Client) -> None:
    huge = ENDLESS | {"horizon": 20}
    refused = rest.post("/plan", json=plan(solver=huge, deadline_ms=2000, min_iterations=200))
    assert (refused.status_code, refused.json()["code"]) == (504, "deadline_exceeded")


def test_who_goes_away_makes_room(server: ServerProcess, rest: httpx.Client) -> None:
    with robot(server, solver=ENDLESS):
        pass
    assert rest.post("/plan", json=plan(deadline_ms=30_000)).json()["status"] == "completed"


def test_the_same_plan_alone_and_in_a_crowd(server: ServerProcess, rest: httpx.Client) -> None:
    """Other plans come between its iterations, whatever their urgency."""
    mine = plan(solver=SHORT | {"iterations": 20})
    alone = rest.post("/plan", json=mine).json()
    with (
        robot(server, solver=ENDLESS),
        httpx.Client(base_url=server.url, timeout=PATIENCE_S) as strangers,
        ThreadPoolExecutor(4) as pool,
    ):
        crowd = [
            pool.submit(strangers.post, "/plan", json=plan(priority=6 + seed % 4, seed=seed))
            for seed in range(12)
        ]
        together = rest.post("/plan", json=mine | {"priority": 7}).json()
        assert all(stranger.result().status_code == 200 for stranger in crowd)
    assert np.array_equal(alone["actions"], together["actions"])
    assert alone["cost"] == together["cost"]


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
    refused = rest.post("/plan", json=plan(deadline_ms=deadline_ms))
    assert (refused.status_code, refused.json()["code"]) == (504, "deadline_exceeded")


def test_an_iteration_that_does_not_fit_is_refused_before_any_work(rest: httpx.Client) -> None:
    huge = {"name": "cem", "samples": 4096, "horizon": 50}
    refused = rest.post("/plan", json=plan(solver=huge, deadline_ms=200))
    assert (refused.status_code, refused.json()["code"]) == (504, "deadline_exceeded")
    assert plans_inside(rest) == 0
