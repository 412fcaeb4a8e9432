"""A real Ray with two replicas: its answers are those of `lewm serve`, and no robot notices that a
replica is killed or replaced."""

from __future__ import annotations

import os
import re
import signal
import threading
import time
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest

from lewm_client import PlannerClient, PlannerError
from tests.lewm_serve.ray_serve.cluster import RayProcess, ray_environment
from tests.lewm_serve.support.frames import encoded, image
from tests.lewm_serve.support.keys import add_key
from tests.lewm_serve.support.ports import free_port
from tests.lewm_serve.support.requests import SMALL_SOLVER, Document, plan
from tests.lewm_serve.support.server_process import ServerProcess
from tests.patience import PATIENCE_S, wait_until

pytestmark = [pytest.mark.long, pytest.mark.timeout(1800)]

FRAMES = [encoded("PNG", seed) for seed in range(16)]
ROBOTS = 8
REPEATS = 10
"""How often a robot repeats a request."""
PAUSE_S = 0.1

Args = dict[str, Any]


@pytest.fixture(scope="module")
def args() -> Args:
    """Settings with which two planners plan alike."""
    return {"backend": "onnx", "metrics_port": free_port(), "max_candidate_steps": 1 << 40}


@pytest.fixture(scope="module")
def cluster(args: Args, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RayProcess]:
    """The cluster."""
    log = tmp_path_factory.mktemp("ray") / "log"
    with RayProcess(ray_environment(), log, args=args) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """`lewm serve`, to compare with."""
    with ServerProcess(tmp_path_factory.mktemp("server") / "log.jsonl") as server:
        yield server.wait_ready()


def comparable(answer: httpx.Response) -> tuple[int, str, Document]:
    """Status, type and body of an answer without what differs each time."""
    body = answer.json()
    assert answer.headers.get_list("x-request-id") == [body.pop("request_id")]
    body.pop("timing_ms", None)
    body["detail"] = re.sub(r"\d+ ms", "some ms", body.get("detail", ""))
    return answer.status_code, answer.headers["content-type"], body


REQUESTS: list[tuple[str, str, Any]] = [
    ("POST", "/plan", plan(frames=[image(seed=0)], goal=image(seed=1))),
    ("POST", "/v1/plan", plan()),
    ("POST", "/plan", plan(model="nobody")),
    ("POST", "/plan", plan(goal=...)),
    ("POST", "/plan", plan(deadline_ms=0.001)),
    ("POST", "/plan", plan(frames=[{"image": "AAAA"}])),
    ("POST", "/encode", {"frames": [{"latent_id": "0" * 32}]}),
    ("POST", "/nothing", {}),
    ("DELETE", "/plan", None),
]


@pytest.mark.parametrize(("method", "path", "document"), REQUESTS)
def test_http_answers_are_those_of_the_server(
    cluster: RayProcess, server: ServerProcess, method: str, path: str, document: Any
) -> None:
    answers = [
        comparable(httpx.request(method, f"{url}{path}", json=document, timeout=PATIENCE_S))
        for url in (cluster.url, server.url)
    ]
    assert answers[0] == answers[1]


def test_bodies_that_are_not_json(cluster: RayProcess, server: ServerProcess) -> None:
    answers = [
        comparable(httpx.post(f"{url}/plan", content=b"{", timeout=PATIENCE_S))
        for url in (cluster.url, server.url)
    ]
    assert answers[0] == answers[1]


def test_request_ids_are_those_of_the_client(cluster: RayProcess) -> None:
    headers = {"x-request-id": "my-request"}
    answer = httpx.post(f"{cluster.url}/plan", json=plan(), headers=headers, timeout=PATIENCE_S)
    assert (
        answer.headers.get_list("x-request-id") == [answer.json()["request_id"]] == ["my-request"]
    )


def test_there_is_no_websocket(cluster: RayProcess) -> None:
    upgrade = {
        "connection": "upgrade",
        "upgrade": "websocket",
        "sec-websocket-version": "13",
        "sec-websocket-key": "dGhlIHNhbXBsZSBub25jZQ==",
    }
    assert httpx.get(cluster.url, headers=upgrade, timeout=PATIENCE_S).status_code == 403


def test_plans_over_grpc_are_those_of_the_server(
    cluster: RayProcess, server: ServerProcess
) -> None:
    plans = []
    for target in (cluster.target, server.target):
        with PlannerClient(target) as client:
            plans.append(
                client.plan(
                    FRAMES[:1], FRAMES[1], solver=SMALL_SOLVER, seed=7, timeout_s=PATIENCE_S
                )
            )
            assert [model.name for model in client.models()] == ["two-room"]
    on_ray, alone = plans
    assert on_ray.actions.tolist() == alone.actions.tolist()
    assert (on_ray.cost, on_ray.backend) == (alone.cost, alone.backend)


def test_errors_over_grpc_are_those_of_the_server(
    cluster: RayProcess, server: ServerProcess
) -> None:
    errors = []
    for target in (cluster.target, server.target):
        with PlannerClient(target) as client, pytest.raises(PlannerError) as caught:
            client.plan(FRAMES[:1], FRAMES[1], model="nobody", timeout_s=PATIENCE_S)
        errors.append(caught.value)
        assert caught.value.request_id
    assert len({(error.status, error.code, error.detail) for error in errors}) == 1
    assert errors[0].status is grpc.StatusCode.NOT_FOUND


def requests_of_replicas(args: Args) -> list[float]:
    """How many encode requests each replica has answered, by its own port for metrics."""
    totals = []
    for port in range(args["metrics_port"], args["metrics_port"] + 16):
        try:
            metrics = httpx.get(f"http://127.0.0.1:{port}/metrics", timeout=PATIENCE_S)
        except httpx.TransportError:
            continue
        totals.append(
            sum(
                float(line.split()[-1])
                for line in metrics.text.splitlines()
                if line.startswith('lewm_requests_total{code="ok",endpoint="encode"')
            )
        )
    return totals


def test_a_robot_finds_its_frames(cluster: RayProcess, args: Args) -> None:
    before = requests_of_replicas(args)
    for number in range(ROBOTS):
        robot, frame = f"robot-{number}", encoded("PNG", 100 + number)
        with cluster.client(robot) as rpc, cluster.rest(robot) as rest:
            assert not rpc.encode([frame], timeout_s=PATIENCE_S).latents[0].cached
            for _ in range(3):
                assert rpc.encode([frame], timeout_s=PATIENCE_S).latents[0].cached
                document = {"frames": [image(seed=100 + number)]}
                (latent,) = rest.post("/encode", json=document).json()["latents"]
                assert latent["cached"]
    answered = [now - then for now, then in zip(requests_of_replicas(args), before, strict=True)]
    assert sum(answered) == ROBOTS * 7
    assert min(answered) >= 7, "one replica has all robots"


class Robots:
    """Robots that plan in a closed loop inside of the block, over both protocols in turn.

    Over HTTP they repeat what the answer allows: see docs/ray.md.

    Attributes:
        plans: how many plans they have.
        repeats: how many requests over HTTP they have repeated.
        failed: what became of the other requests.
        longest_s: the longest time until a plan.
    """

    def __init__(self, cluster: RayProcess) -> None:
        self.plans = 0
        self.repeats = 0
        self.failed: list[str] = []
        self.longest_s = 0.0
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._threads = [
            threading.Thread(target=self._drive, args=(cluster, index)) for index in range(ROBOTS)
        ]

    def _drive(self, cluster: RayProcess, index: int) -> None:
        robot = f"robot-{index}"
        with cluster.client(robot, retries=REPEATS) as rpc, cluster.rest(robot) as rest:
            for step in count(index):
                if self._stopping.is_set():
                    return
                started = time.monotonic()
                try:
                    if step % 2:
                        self._plan_over_http(rest, step)
                    else:
                        plan_over_grpc(rpc, step)
                except (AssertionError, PlannerError) as error:
                    self.failed.append(repr(error))
                with self._lock:
                    self.plans += 1
                    self.longest_s = max(self.longest_s, time.monotonic() - started)

    def _plan_over_http(self, client: httpx.Client, step: int) -> None:
        document = plan(frames=[image(seed=step % 16)], goal=image(seed=(step + 1) % 16))
        for _ in range(REPEATS):
            answer = client.post("/plan", json=document)
            if answer.status_code not in (500, 503) or is_of_planner(answer, 500):
                break
            with self._lock:
                self.repeats += 1
            time.sleep(PAUSE_S)
        assert answer.status_code == 200, answer.text

    def wait_plans(self, number: int) -> None:
        """Wait for so many more plans."""
        enough = self.plans + number
        wait_until(lambda: self.plans >= enough, f"{number} plans")

    def report(self) -> str:
        """What happened, in a line."""
        return (
            f"{self.plans} plans, {len(self.failed)} failed, {self.repeats} repeated over HTTP, "
            f"the longest took {self.longest_s:.1f} s"
        )

    def __enter__(self) -> Robots:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        for thread in self._threads:
            thread.join()


def is_of_planner(answer: httpx.Response, status: int) -> bool:
    """Whether the planner itself has answered with this status, and not a proxy."""
    is_problem = answer.headers["content-type"] == "application/problem+json"
    return is_problem and answer.status_code == status


def plan_over_grpc(client: PlannerClient, step: int) -> None:
    """A small plan."""
    frame, goal = FRAMES[step % 16], FRAMES[(step + 1) % 16]
    client.plan([frame], goal, solver=SMALL_SOLVER, timeout_s=PATIENCE_S)


def test_no_request_fails_if_a_replica_is_killed(cluster: RayProcess) -> None:
    before = cluster.replicas()
    victim = min(before)
    with Robots(cluster) as robots:
        robots.wait_plans(100)
        os.kill(victim, signal.SIGKILL)
        robots.wait_plans(100)
        wait_until(lambda: len(cluster.replicas() - {victim}) == 2, "another replica")
        robots.wait_plans(100)
    print(robots.report())
    assert robots.failed == [], robots.report()
    assert robots.repeats > 0, "nothing was in progress when the replica was killed"
    assert len(cluster.replicas() & before) == 1


def test_no_request_fails_during_an_update(cluster: RayProcess, args: Args) -> None:
    before = cluster.replicas()
    with Robots(cluster) as robots:
        robots.wait_plans(100)
        after = cluster.deploy(args=args | {"max_samples": 100})
        robots.wait_plans(100)
    print(robots.report())
    assert robots.failed == [], robots.report()
    assert robots.repeats == 0
    assert len(after) == 2
    assert not after & before
    refused = httpx.post(
        f"{cluster.url}/plan", json=plan(solver={"samples": 101}), timeout=PATIENCE_S
    )
    assert refused.status_code == 422


def test_keys(cluster: RayProcess, args: Args, tmp_path: Path) -> None:
    key = add_key(tmp_path / "keys", "arm-1", "infer")
    cluster.deploy(args=args | {"insecure": False, "keys_file": str(tmp_path / "keys")})
    with cluster.client() as client, pytest.raises(PlannerError) as caught:
        plan_over_grpc(client, 0)
    assert caught.value.code == "unauthenticated"
    with PlannerClient(cluster.target, api_key=key) as client:
        plan_over_grpc(client, 0)
    with cluster.rest() as rest:
        assert rest.post("/plan", json=plan()).json()["code"] == "unauthenticated"
        bearer = {"authorization": f"Bearer {key}"}
        assert rest.post("/plan", json=plan(), headers=bearer).status_code == 200
