"""Every case of the contract over both protocols, and what must hold across them."""

import httpx
import numpy as np
import pytest

from lewm_client import PlannerClient
from lewm_serve.solvers import SOLVERS
from tests.lewm_serve.support.drivers import DRIVERS, Driver, GrpcDriver, RestDriver
from tests.lewm_serve.support.frames import ACTION_BLOCK, pixels
from tests.lewm_serve.support.requests import plan, plan_by, plan_with_solver, rows
from tests.lewm_serve.transports.contract_cases import CASES, Case
from tests.lewm_serve.transports.contract_checks import CHECKS, given

PROTOCOLS_AND_CASES = [
    pytest.param(protocol, case, id=f"{protocol}-{case}")
    for protocol in DRIVERS
    for case in CASES
    if case.only in (None, protocol)
]


@pytest.mark.parametrize(("driver", "case"), PROTOCOLS_AND_CASES, indirect=["driver"])
def test_case(driver: Driver, case: Case) -> None:
    answer = driver.send(case.method, case.request)
    status = driver.status(case.http_status)
    assert (answer.status, answer.code) == (status, case.code), answer.detail
    assert answer.request_id
    if case.code == "ok":
        CHECKS[case.method](case.request, answer.document)
        for name, value in case.expected.items():
            assert answer.document[name] == value
    else:
        assert answer.detail
        assert "Traceback" not in answer.detail
        assert "/" not in answer.detail.replace("shape ", "")


def test_names_are_unique() -> None:
    names = [str(case) for case in CASES]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("name", SOLVERS)
def test_a_seeded_plan_is_the_same_over_both_protocols(
    rest: httpx.Client, rpc: PlannerClient, name: str
) -> None:
    drivers: list[Driver] = [RestDriver(rest), GrpcDriver(rpc)]
    request = plan_by(name) | {"include": ["trajectory"]}
    first, second = (driver.send("plan", request).document for driver in drivers)
    for exact in ("status", "iterations", "candidates", "seed", "latent_ids"):
        assert first[exact] == second[exact]
    assert given(first["solver"]) == given(second["solver"])
    for numbers in ("actions", "cost", "trajectory"):
        # JSON holds the shortest decimal of the same float32.
        assert np.array_equal(np.float32(first[numbers]), np.float32(second[numbers]))


@pytest.mark.parametrize("name", SOLVERS)
def test_another_seed_gives_another_plan_that_is_no_worse_than_the_mean_action(
    driver: Driver, name: str
) -> None:
    first, second = (
        driver.send("plan", plan_by(name) | {"seed": seed}).document for seed in (1, 2)
    )
    assert first["actions"] != second["actions"]
    mean_action = driver.send("plan", plan_by("cem", samples=1, iterations=1)).document
    assert max(first["cost"], second["cost"]) <= mean_action["cost"] * (1 + 1e-5)


def test_the_search_starts_at_the_warm_start(driver: Driver) -> None:
    """The only candidate of one sample is the start. The rest of the horizon is the mean action."""
    warm_start = rows(2 * ACTION_BLOCK + 2, 0.25)
    one_candidate = {"samples": 1, "iterations": 1, "elites": 1, "horizon": 4}
    with_start = driver.send("plan", plan(solver=one_candidate, warm_start=warm_start)).document
    assert with_start["actions"] == warm_start + rows(4 * ACTION_BLOCK - len(warm_start), 0.0)
    without = driver.send("plan", plan(solver=one_candidate)).document
    assert without["actions"] == rows(4 * ACTION_BLOCK, 0.0)
    assert with_start["cost"] != without["cost"]


def test_a_setting_of_another_solver_is_refused_with_the_settings_there_are(
    driver: Driver,
) -> None:
    detail = driver.send("plan", plan_with_solver(temperature=1)).detail
    assert detail.startswith("solver.temperature: ")
    assert "only settings of cem: elites, momentum, deviation" in detail


def test_latent_ids_stand_for_their_frames(driver: Driver) -> None:
    frames = [pixels(11), pixels(12)]
    first = driver.send("encode", {"frames": frames}).document
    start, goal = ({"latent_id": item["latent_id"]} for item in first["latents"])
    again = driver.send("encode", {"frames": frames}).document
    assert [item["cached"] for item in again["latents"]] == [True, True]
    assert [item["latent"] for item in again["latents"]] == [
        item["latent"] for item in first["latents"]
    ]
    by_ids = driver.send("plan", plan(frames=[start], goal=goal)).document
    by_frames = driver.send("plan", plan(frames=frames[:1], goal=frames[1])).document
    assert by_ids["actions"] == by_frames["actions"]
    assert by_ids["latent_ids"] == {"frames": [start["latent_id"]], "goal": goal["latent_id"]}
