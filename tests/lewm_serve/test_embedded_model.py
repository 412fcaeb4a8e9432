"""The model that ships with the project, and robots that rely on it."""

from lewm_client import PlannerClient
from lewm_models import checkpoint
from lewm_models.card import read_card
from lewm_models.checkpoint import PRETRAINED
from lewm_models.evaluation.episode import run_episodes
from lewm_models.evaluation.protocol import paper_episodes
from lewm_serve.cli.closed_loop import RemotePlanner
from lewm_serve.cli.local_server import local_server

FOLDER = PRETRAINED / "two-room"
LARGEST_MB = 12


def test_it_is_small_and_its_card_is_full() -> None:
    size = sum(path.stat().st_size for path in FOLDER.iterdir())
    assert size <= LARGEST_MB * 1e6
    card = read_card(FOLDER / checkpoint.CARD_FILE)
    assert card.calibration is not None
    assert card.provenance["command"].startswith("lewm train --env two-room --preset edge")
    assert card.figures["paper"]["episodes"] == 500
    assert card.figures["paper"]["success_rate"] >= 0.95
    assert card.figures["cross-room"]["episodes"] >= 200


def test_robots_reach_their_goals_from_frames_alone() -> None:
    episodes = paper_episodes(10, seed=3)
    with local_server(FOLDER, threads=1) as server, PlannerClient(server.target) as client:
        outcomes = run_episodes(
            lambda: RemotePlanner(client, episodes.plan_steps), episodes, seed=3, robots=5
        )
    assert sum(outcome.reached for outcome in outcomes) >= 9
