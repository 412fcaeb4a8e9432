"""The model that comes with the project: its size, its card, and how well robots plan with it."""

from lewm_client import PlannerClient
from lewm_models import checkpoint
from lewm_models.card import read_card
from lewm_models.checkpoint import PRETRAINED
from lewm_models.environments.two_room_environment import TWO_ROOM
from lewm_models.evaluation.episode import run_episodes
from lewm_models.evaluation.protocol import sample_episodes
from lewm_serve.cli.closed_loop import RemotePlanner
from lewm_serve.cli.local_server import local_server

MODEL_FOLDER = PRETRAINED / "two-room"
MAX_SIZE_MB = 12


def test_its_files_are_small_and_its_card_is_complete() -> None:
    size = sum(path.stat().st_size for path in MODEL_FOLDER.iterdir())
    assert size <= MAX_SIZE_MB * 1e6
    card = read_card(MODEL_FOLDER / checkpoint.CARD_FILE)
    assert card.calibration is not None
    assert card.provenance["command"].startswith("lewm train --env two-room --preset edge")
    assert card.figures["paper"]["episodes"] == 500
    assert card.figures["paper"]["success_rate"] >= 0.95
    assert card.figures["cross-room"]["episodes"] >= 200


def test_robots_reach_their_goals_from_frames_alone() -> None:
    episodes = sample_episodes(TWO_ROOM, "paper", 10, seed=3)
    with local_server(MODEL_FOLDER, threads=1) as server, PlannerClient(server.target) as client:
        outcomes = run_episodes(
            lambda: RemotePlanner(client, episodes.plan_steps), episodes, seed=3, robots=5
        )
    assert sum(outcome.reached for outcome in outcomes) >= 9
