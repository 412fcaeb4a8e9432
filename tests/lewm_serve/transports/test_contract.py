"""Every case of the table over both protocols, and what holds across them."""

import httpx
import numpy as np
import pytest

from lewm_client import PlannerClient
from lewm_serve.solvers import SOLVERS
from tests.lewm_serve.support.requests import CASES, Case, given, plan, searched_by, solver
from tests.lewm_serve.support.drivers import Driver, RestDriver, GrpcDriver
from tests.lewm_serve.support.frames import pixels

PAIRS = [
    pytest.param(protocol, case, id=f"{protocol}-{case}")
    for protocol in ("rest", "grpc")
    for case in CASES
    if case.only in (None, protocol)
]


@pytest.mark.parametrize(("driver", "case"), PAIRS, indirect=["driver"])
def test_case(driver: Driver, case: Case) -> None:
    answer = driver.send(case.method, case.request)
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


@pytest.mark.parametrize("name", SOLVERS)
def test_seeded_plan_is_the_same_over_both(
    rest: httpx.Client, rpc: PlannerClient, name: str
) -> None:
    drivers: list[Driver] = [RestDriver(rest), GrpcDriver(rpc)]
    request = searched_by(name) | {"include": ["trajectory"]}
    first, second = (driver.send("plan", request).document for driver in drivers)
    for exact in ("status", "iterations", "candidates", "seed", "latent_ids"):
        assert first[exact] == second[exact]
    assert given(first["solver"]) == given(second["solver"])
    for numbers in ("actions", "cost", "trajectory"):
        # JSON writes the shortest decimal that is the same float32.
        assert np.array_equal(np.float32(first[numbers]), np.float32(second[numbers]))


@pytest.mark.parametrize("name", SOLVERS)
def test_another_seed_gives_another_plan_no_dearer_than_standing_still(
    driver: Driver, name: str
) -> None:
    first, second = (
        driver.send("plan", searched_by(name) | {"seed": seed}).document for seed in (1, 2)
    )
    assert first["actions"] != second["actions"]
    still = driver.send("plan", searched_by("cem", samples=1, iterations=1)).document
    assert max(first["cost"], second["cost"]) <= still["cost"] * (1 + 1e-5)


def test_a_setting_of_another_solver_is_named_with_those_there_are(driver: Driver) -> None:
    detail = driver.send("plan", solver(temperature=1)).detail
    assert detail.startswith("solver.temperature: ")
    assert "cem, which has elites, momentum, deviation" in detail


def test_latents_can_be_named(driver: Driver) -> None:
    frames = [pixels(11), pixels(12)]
    first = driver.send("encode", {"frames": frames}).document
    start, goal = ({"latent_id": item["latent_id"]} for item in first["latents"])
    again = driver.send("encode", {"frames": frames}).document
    assert [item["cached"] for item in again["latents"]] == [True, True]
    assert [item["latent"] for item in again["latents"]] == [
        item["latent"] for item in first["latents"]
    ]
    named = driver.send("plan", plan(frames=[start], goal=goal)).document
    shown = driver.send("plan", plan(frames=frames[:1], goal=frames[1])).document
    assert named["actions"] == shown["actions"]
    assert named["latent_ids"] == {"frames": [start["latent_id"]], "goal": goal["latent_id"]}
