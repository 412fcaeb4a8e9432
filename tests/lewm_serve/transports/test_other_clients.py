"""The cases of the contract over openpi's protocol and the Open Inference Protocol.

What they can say is answered as over REST.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import httpx
import numpy as np
import pytest

from lewm_client import PlannerClient
from tests.lewm_serve.support.drivers import Answer, RestDriver
from tests.lewm_serve.support.inexpressible import Inexpressible
from tests.lewm_serve.support.inference_protocol import OipGrpcDriver, OipHttpDriver
from tests.lewm_serve.support.openpi import OpenpiConnection, OpenpiDriver, openpi
from tests.lewm_serve.support.server_process import ServerProcess
from tests.lewm_serve.transports.contract_cases import CASES, VECTOR_CASES, Case

DRIVERS: dict[str, Any] = {kind.name: kind for kind in (OpenpiDriver, OipHttpDriver, OipGrpcDriver)}

EXACT = (
    "status",
    "iterations",
    "candidates",
    "seed",
    "model",
    "solver",
    "fallback",
)
NUMBERS = ("actions", "cost", "trajectory", "latents", "norms")


def can_say(name: str, case: Case) -> bool:
    """Whether a protocol has a form for a case."""
    if case.only is not None:
        return False
    try:
        DRIVERS[name].translate(case.method, case.request)
    except Inexpressible:
        return False
    return True


def drivers_and(cases: Sequence[Case]) -> list[Any]:
    """Every case over every protocol that has a form for it."""
    return [
        pytest.param(name, case, id=f"{name}-{case}")
        for name in DRIVERS
        for case in cases
        if can_say(name, case)
    ]


@pytest.fixture(scope="module")
def drivers(
    server: ServerProcess, rest: httpx.Client, rpc: PlannerClient
) -> Iterator[dict[str, Any]]:
    """A driver of each protocol."""
    with openpi(server) as connection:
        yield drivers_of(connection, rest, rpc)


@pytest.fixture(scope="module")
def states_drivers(
    states_server: ServerProcess, states_rest: httpx.Client, states_rpc: PlannerClient
) -> Iterator[dict[str, Any]]:
    """A driver of each protocol, to the server whose model takes states."""
    with openpi(states_server) as connection:
        yield drivers_of(connection, states_rest, states_rpc)


def drivers_of(
    connection: OpenpiConnection, rest: httpx.Client, rpc: PlannerClient
) -> dict[str, Any]:
    """The drivers by name."""
    return {
        "openpi": OpenpiDriver(connection),
        "oip-http": OipHttpDriver(rest),
        "oip-grpc": OipGrpcDriver(rpc),
    }


@pytest.mark.parametrize(("name", "case"), drivers_and(CASES))
def test_case(name: str, case: Case, drivers: dict[str, Any], rest: httpx.Client) -> None:
    check(name, case, drivers, rest)


@pytest.mark.parametrize(("name", "case"), drivers_and(VECTOR_CASES))
def test_case_of_a_model_that_takes_states(
    name: str, case: Case, states_drivers: dict[str, Any], states_rest: httpx.Client
) -> None:
    check(name, case, states_drivers, states_rest)


def check(name: str, case: Case, drivers: dict[str, Any], rest: httpx.Client) -> None:
    """Send the case, and compare the answer with that of REST."""
    driver = drivers[name]
    answer: Answer = driver.send(case.method, case.request)
    assert answer.code == case.code, answer.detail
    assert answer.request_id
    if name != "openpi":
        assert answer.status == driver.status(case.http_status)
    if case.code == "ok":
        expected = RestDriver(rest).send(case.method, case.request).document
        assert_same(case, answer.document, expected)
    else:
        assert answer.detail
        assert "Traceback" not in answer.detail


def assert_same(case: Case, answer: dict[str, Any], expected: dict[str, Any]) -> None:
    """Check that an answer says the same as that of REST, as far as it goes."""
    if case.method == "encode":
        items = expected["latents"]
        expected = {
            "latents": [item["latent"] for item in items],
            "norms": [item["norm"] for item in items],
            "frame_ids": [item["latent_id"] for item in items],
        }
    is_repeatable = case.method != "plan" or case.request.get("seed") is not None
    compared = set()
    for field in NUMBERS:
        value = answer.get(field)
        if value is None or np.isnan(value).any():
            assert expected.get(field) is None
            continue
        compared.add(field)
        assert np.shape(value) == np.shape(expected[field])
        if is_repeatable:
            assert np.array_equal(np.float32(value), np.float32(expected[field])), field
    for field in EXACT if is_repeatable else ():
        if field in answer:
            assert answer[field] == expected[field], field
    for field in ("states", "violations") if is_repeatable else ():
        assert answer.get(field) == expected.get(field), field
    assert compared >= {"actions"} if case.method == "plan" else {"latents"}
    if case.method == "encode":
        assert answer["frame_ids"] == expected["frame_ids"]


def test_every_protocol_says_most_of_the_cases() -> None:
    for name in DRIVERS:
        methods = {case.method for case in CASES if can_say(name, case)}
        assert methods == ({"plan"} if name == "openpi" else {"encode", "predict", "plan"})
    plans = [case for case in CASES if case.method == "plan" and case.only is None]
    for name in DRIVERS:
        said = [case for case in plans if can_say(name, case)]
        assert len(said) > 0.9 * len(plans), [str(case) for case in plans if case not in said]
