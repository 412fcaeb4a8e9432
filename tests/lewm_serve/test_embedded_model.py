"""The models that come with the project: size, cards, and how well robots plan with them."""

import math

import numpy as np
import pytest

from lewm_client import PlannerClient
from lewm_models import checkpoint
from lewm_models.card import read_card
from lewm_models.checkpoint import PRETRAINED
from lewm_models.environments.environment import Environment
from lewm_models.environments.push_t_environment import PUSH_T
from lewm_models.environments.reacher import REACHER
from lewm_models.environments.two_room_environment import TWO_ROOM
from lewm_models.evaluation.episode import run_episodes
from lewm_models.evaluation.protocol import sample_episodes
from lewm_serve.cli.closed_loop import RemotePlanner, to_png
from lewm_serve.cli.local_server import local_server
from lewm_serve.solvers import SOLVERS

MODEL_FOLDER = PRETRAINED / "two-room"
MAX_SIZE_MB = 14

ENVIRONMENTS: dict[str, Environment] = {
    "two-room": TWO_ROOM,
    "reacher": REACHER,
    "push-t": PUSH_T,
}


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_their_files_are_small_and_their_cards_are_complete(name: str) -> None:
    size = sum(path.stat().st_size for path in (PRETRAINED / name).iterdir())
    assert size <= MAX_SIZE_MB * 1e6
    card = read_card(PRETRAINED / name / checkpoint.CARD_FILE)
    assert card.name == name
    assert card.calibration is not None
    assert card.provenance["command"].startswith(f"lewm train --env {name} ")
    assert card.figures["paper"]["episodes"] >= 500


def test_two_room_plans_by_the_distance() -> None:
    card = read_card(MODEL_FOLDER / checkpoint.CARD_FILE)
    assert card.provenance["distance"]["command"].startswith("lewm models distance two-room --env")
    figures = {
        name: card.figures[name] for name in ("paper", "cross-room", "offset-100-budget-150")
    }
    for measured in figures.values():
        assert measured["episodes"] == 2000
        assert measured["interval_95"][0] >= 0.99
        assert measured["detour_median"] <= 1.25
        assert measured["solver"]["objective"] == card.solver.objective == "distance"
    assert sum(SOLVERS[card.solver.name].candidates_per_ask(card.solver)) <= 50


def test_a_plan_to_coordinates_leads_around_a_disc() -> None:
    """The way is that of the simulator, and the disc lies on the straight one."""
    start, goal, centre = (60.0, 165.0), (60.0, 75.0), (60.0, 120.0)
    disc = {"centre": {"x": centre[0], "y": centre[1]}, "radius": 20.0}
    solver = {"samples": 128, "iterations": 4, "elites": 12}
    simulation = TWO_ROOM.simulation()
    nearest = {}
    with local_server(MODEL_FOLDER, threads=1) as server, PlannerClient(server.target) as client:
        for avoid in ([], [disc]):
            simulation.reset(np.array(start, np.float32))
            frame = to_png(simulation.frame())
            states = {"x": goal[0], "y": goal[1]}
            plan = client.plan([frame], states, avoid=avoid, solver=solver, seed=0)
            way = [start]
            for action in plan.actions:
                simulation.step(action)
                way.append(tuple(simulation.state().tolist()))
            assert plan.states is not None
            for point, imagined in ((way[0], plan.states.start), (way[-1], plan.states.end)):
                assert math.dist(point, (imagined["x"], imagined["y"])) < 10
            assert math.dist(way[-1], goal) < 16
            assert not plan.violations
            nearest[bool(avoid)] = min(math.dist(point, centre) for point in way)
    assert nearest[False] < 20 < nearest[True]


@pytest.mark.parametrize(
    ("name", "protocol", "least"),
    [
        ("two-room", "paper", 9),
        ("two-room", "cross-room", 9),
        ("reacher", "paper", 8),
        ("push-t", "paper", 6),
    ],
)
def test_robots_reach_their_goals_from_frames_alone(name: str, protocol: str, least: int) -> None:
    episodes = sample_episodes(ENVIRONMENTS[name], protocol, 10, seed=3)
    with (
        local_server(PRETRAINED / name, threads=1) as server,
        PlannerClient(server.target) as client,
    ):
        outcomes = run_episodes(
            lambda: RemotePlanner(client, episodes.plan_steps), episodes, seed=3, robots=5
        )
    assert sum(outcome.reached for outcome in outcomes) >= least
