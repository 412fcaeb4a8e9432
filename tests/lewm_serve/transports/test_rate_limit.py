"""Plans of a model whose card limits how fast actions change."""

from collections.abc import Iterator
from dataclasses import replace

import httpx
import numpy as np
import pytest

from lewm_client import PlannerClient
from lewm_models import checkpoint
from lewm_models.card import ModelCard
from lewm_serve.solvers import SOLVERS
from tests.lewm_serve.support.drivers import DRIVERS, Driver, GrpcDriver, RestDriver
from tests.lewm_serve.support.frames import ACTION_BLOCK, pixels
from tests.lewm_serve.support.random_model import write_random_model
from tests.lewm_serve.support.requests import plan_by
from tests.lewm_serve.support.server_process import ServerProcess
from tests.patience import PATIENCE_S

MEAN, STD = (500.0, -0.01), (3.0, 0.002)
LOW, HIGH = (490.0, -0.02), (510.0, 0.01)
LIMIT = np.array([0.5, 0.0003])
LAST = [508.0, -0.015]


def with_limit(card: ModelCard) -> ModelCard:
    """Actions of very different sizes, so that rounding and z-scores matter."""
    return replace(
        card,
        action_mean=MEAN,
        action_std=STD,
        action_low=LOW,
        action_high=HIGH,
        action_rate_limit=tuple(LIMIT.tolist()),
    )


@pytest.fixture(scope="module")
def limited_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    folder = write_random_model(tmp_path_factory.mktemp("models") / "limited")
    checkpoint.write_card(folder, with_limit(checkpoint.load(folder).card))
    log = tmp_path_factory.mktemp("server") / "log.jsonl"
    with ServerProcess(log, "--models", str(folder)) as process:
        yield process.wait_ready()


@pytest.fixture(scope="module", params=DRIVERS)
def driver(request: pytest.FixtureRequest, limited_server: ServerProcess) -> Iterator[Driver]:
    if request.param == "rest":
        with httpx.Client(base_url=limited_server.url, timeout=PATIENCE_S) as client:
            yield RestDriver(client)
    else:
        with PlannerClient(limited_server.target) as client:
            yield GrpcDriver(client)


def planned(driver: Driver, name: str, **fields: object) -> np.ndarray:
    answer = driver.send("plan", plan_by(name, horizon=3) | fields)
    assert answer.status == driver.status(200), answer.detail
    return np.array(answer.document["actions"], np.float64)


@pytest.mark.parametrize("name", SOLVERS)
def test_no_action_changes_faster_than_the_card_allows(driver: Driver, name: str) -> None:
    rows = planned(driver, name)
    changes = np.abs(np.diff(rows, axis=0))
    assert (changes <= LIMIT).all(), (changes / LIMIT).max(axis=0)
    # The search uses the room that it has.
    assert changes.max(axis=0) == pytest.approx(LIMIT, rel=0.1)
    assert ((rows >= LOW) & (rows <= HIGH)).all()


@pytest.mark.parametrize("name", SOLVERS)
def test_the_first_change_is_measured_from_the_last_executed_action(
    driver: Driver, name: str
) -> None:
    executed = [list(MEAN)] * (ACTION_BLOCK - 1) + [LAST]
    rows = planned(driver, name, frames=[pixels(2), pixels(0)], past_actions=executed)
    changes = np.abs(np.diff(rows, axis=0, prepend=[LAST]))
    assert (changes <= LIMIT).all(), (changes / LIMIT).max(axis=0)


def test_a_warm_start_is_moved_into_the_limit(driver: Driver) -> None:
    """The only candidate is the start: it jumps, and the answer does not."""
    jumps = [[LOW[0], HIGH[1]], [HIGH[0], LOW[1]]] * ACTION_BLOCK
    rows = planned(
        driver,
        "cem",
        solver={"name": "cem", "samples": 1, "iterations": 1, "elites": 1, "horizon": 2},
        warm_start=jumps,
    )
    changes = np.abs(np.diff(rows, axis=0))
    assert rows[0] == pytest.approx(jumps[0])
    assert (changes <= LIMIT).all(), (changes / LIMIT).max(axis=0)
    assert changes == pytest.approx(np.tile(LIMIT, (len(changes), 1)), rel=0.1)


def test_the_card_shows_the_limit(limited_server: ServerProcess) -> None:
    card = limited_server.get("/models/random").json()["card"]
    assert card["action_rate_limit"] == LIMIT.tolist()
