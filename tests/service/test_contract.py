"""Every case of the table over both protocols, and what holds across them."""

import httpx
import numpy as np
import pytest

from service.rpc.client import PlannerClient
from tests.service.cases import CASES, Case, plan
from tests.service.drivers import Driver, RestDriver, RpcDriver
from tests.service.frames import pixels

PAIRS = [
    pytest.param(protocol, case, id=f"{protocol}-{case}")
    for protocol in ("rest", "grpc")
    for case in CASES
    if case.only in (None, protocol)
]


@pytest.mark.parametrize(("driver", "case"), PAIRS, indirect=["driver"])
def test_case(driver: Driver, case: Case) -> None:
    answer = driver.ask(case.method, case.request)
    assert (answer.status, answer.code) == (driver.status(case.status), case.code), answer.detail
    assert answer.request_id
    if case.code == "ok":
        assert case.check(answer.document), answer.document
    else:
        assert answer.detail
        assert "Traceback" not in answer.detail
        assert "/" not in answer.detail.replace("shape ", "")


def test_names_are_unique() -> None:
    names = [str(case) for case in CASES]
    assert len(names) == len(set(names))


def test_seeded_plan_is_the_same_over_both(rest: httpx.Client, rpc: PlannerClient) -> None:
    drivers: list[Driver] = [RestDriver(rest), RpcDriver(rpc)]
    request = plan(include=["trajectory"])
    first, second = (driver.ask("plan", request).document for driver in drivers)
    for exact in ("status", "iterations", "candidates", "solver", "seed", "latent_ids"):
        assert first[exact] == second[exact]
    for numbers in ("actions", "cost", "trajectory"):
        # JSON writes the shortest decimal that is the same float32.
        assert np.array_equal(np.float32(first[numbers]), np.float32(second[numbers]))


def test_latents_can_be_named(driver: Driver) -> None:
    frames = [pixels(11), pixels(12)]
    first = driver.ask("encode", {"frames": frames}).document
    start, goal = ({"latent_id": item["latent_id"]} for item in first["latents"])
    again = driver.ask("encode", {"frames": frames}).document
    assert [item["cached"] for item in again["latents"]] == [True, True]
    assert [item["latent"] for item in again["latents"]] == [
        item["latent"] for item in first["latents"]
    ]
    named = driver.ask("plan", plan(frames=[start], goal=goal)).document
    shown = driver.ask("plan", plan(frames=frames[:1], goal=frames[1])).document
    assert named["actions"] == shown["actions"]
    assert named["latent_ids"] == {"frames": [start["latent_id"]], "goal": goal["latent_id"]}
