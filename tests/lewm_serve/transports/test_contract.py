"""Every case of the contract over both protocols, and what must hold across them."""

from collections.abc import Sequence
from typing import Any

import httpx
import numpy as np
import pytest
from google.protobuf.json_format import MessageToDict

from lewm_client import PlannerClient
from lewm_serve.solvers import SOLVERS
from tests.lewm_serve.support.drivers import DRIVERS, Driver, GrpcDriver, RestDriver
from tests.lewm_serve.support.frames import ACTION_BLOCK, pixels
from tests.lewm_serve.support.requests import plan, plan_by, plan_with_solver, rows
from tests.lewm_serve.transports.contract_cases import (
    CASES,
    VECTOR_CASES,
    Case,
    with_vector,
)
from tests.lewm_serve.transports.contract_checks import CHECKS, given


def protocols_and(cases: Sequence[Case]) -> list[Any]:
    """Every case over every protocol that has a form for it."""
    return [
        pytest.param(protocol, case, id=f"{protocol}-{case}")
        for protocol in DRIVERS
        for case in cases
        if case.only in (None, protocol)
    ]


@pytest.mark.parametrize(("driver", "case"), protocols_and(CASES), indirect=["driver"])
def test_case(driver: Driver, case: Case) -> None:
    check(driver, case)


@pytest.mark.parametrize(
    ("states_driver", "case"), protocols_and(VECTOR_CASES), indirect=["states_driver"]
)
def test_case_of_a_model_that_takes_states(states_driver: Driver, case: Case) -> None:
    check(states_driver, case)


def check(driver: Driver, case: Case) -> None:
    """Send the case, and compare the answer."""
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


@pytest.mark.parametrize("cases", [CASES, VECTOR_CASES], ids=["cases", "vectors"])
def test_names_are_unique(cases: list[Case]) -> None:
    names = [str(case) for case in cases]
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


def test_the_vector_decides_over_the_latent_and_its_id(states_driver: Driver) -> None:
    """Frames of the same pixels are different ones if their vectors are."""
    frames = [
        pixels(21),
        with_vector(pixels(21), 40, 120),
        with_vector(pixels(21), 40, 121),
        with_vector(pixels(21), 40, 120),
    ]
    first = states_driver.send("encode", {"frames": frames}).document["latents"]
    again = states_driver.send("encode", {"frames": frames}).document["latents"]
    for found in (first, again):
        hidden, shown, moved, same = (item["latent"] for item in found)
        assert hidden != shown
        assert shown != moved
        assert shown == same
        assert len({item["latent_id"] for item in found}) == 3
    assert [item["latent"] for item in again] == [item["latent"] for item in first]
    assert [item["cached"] for item in again] == [True] * 4


def test_a_plan_depends_on_the_vectors(states_driver: Driver) -> None:
    def cost(**changes: Any) -> Any:
        return states_driver.send("plan", plan(**changes)).document["cost"]

    frame, goal = pixels(22), pixels(23)
    costs = [
        cost(frames=[frame], goal=goal),
        cost(frames=[with_vector(frame)], goal=goal),
        cost(frames=[frame], goal=with_vector(goal)),
        cost(frames=[with_vector(frame)], goal=with_vector(goal)),
    ]
    assert len(set(costs)) == len(costs)
    assert costs[3] == cost(frames=[with_vector(frame)], goal=with_vector(goal))


@pytest.mark.parametrize(
    ("vector", "field", "text"),
    [
        ([1.0], "frames[1].vector", "received 1 numbers, expected 2 numbers (x, y)"),
        ([1.0, 1e12], "frames[1].vector[1]", "expected y within 1e+06 deviations (40) of its mean"),
        ([1.0, float("nan")], "frames[1].vector[1]", "received nan, expected a finite number"),
    ],
)
def test_a_wrong_vector_is_refused_with_its_place_and_the_names_of_the_states(
    states_driver: Driver, vector: list[float], field: str, text: str
) -> None:
    frames = [pixels(), with_vector(pixels(1), *vector)]
    detail = states_driver.send("encode", {"frames": frames}).detail
    assert detail.startswith(f"{field}: ")
    assert text in detail


def test_a_model_of_pixels_says_that_it_takes_no_vector(driver: Driver) -> None:
    detail = driver.send("plan", plan(goal=with_vector(pixels(1)))).detail
    assert detail == (
        "goal.vector: received 2 numbers, expected no vector: random has no state input, it sees "
        "pixels only"
    )


def test_the_card_names_the_states(states_rest: httpx.Client, states_rpc: PlannerClient) -> None:
    expected = {"names": ["x", "y"], "mean": [100.0, 100.0], "std": [50.0, 40.0]}
    (described,) = states_rest.get("/models").json()["models"]
    assert described["card"]["state_input"] == expected
    (model,) = states_rpc.models()
    assert MessageToDict(model.card)["state_input"] == expected
