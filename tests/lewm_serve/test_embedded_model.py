"""The model that comes with the project: its size, its card, and how well robots plan with it."""

import pytest

from lewm_client import PlannerClient
from lewm_models import checkpoint
from lewm_models.card import read_card
from lewm_models.checkpoint import PRETRAINED
from lewm_models.environments.two_room_environment import TWO_ROOM
from lewm_models.evaluation.episode import run_episodes
from lewm_models.evaluation.protocol import sample_episodes
from lewm_serve.cli.closed_loop import RemotePlanner
from lewm_serve.cli.local_server import local_server
from lewm_serve.solvers import SOLVERS

MODEL_FOLDER = PRETRAINED / "two-room"
MAX_SIZE_MB = 12


def test_its_files_are_small_and_its_card_is_complete() -> None:
    size = sum(path.stat().st_size for path in MODEL_FOLDER.iterdir())
    assert size <= MAX_SIZE_MB * 1e6
    card = read_card(MODEL_FOLDER / checkpoint.CARD_FILE)
    assert card.calibration is not None
    assert card.provenance["command"].startswith("lewm train --env two-room --preset edge")
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


@pytest.mark.parametrize("protocol", ["paper", "cross-room"])
def test_robots_reach_their_goals_from_frames_alone(protocol: str) -> None:
    episodes = sample_episodes(TWO_ROOM, protocol, 10, seed=3)
    with local_server(MODEL_FOLDER, threads=1) as server, PlannerClient(server.target) as client:
        outcomes = run_episodes(
            lambda: RemotePlanner(client, episodes.plan_steps), episodes, seed=3, robots=5
        )
    assert sum(outcome.reached for outcome in outcomes) >= 9
