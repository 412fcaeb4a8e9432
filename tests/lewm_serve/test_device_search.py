"""A server whose searches stay on the device of the model; here that is the CPU."""

import numpy as np

from lewm_client import PlannerClient
from lewm_models.checkpoint import PRETRAINED
from lewm_models.environments.two_room_environment import TWO_ROOM
from lewm_models.evaluation.episode import run_episodes
from lewm_models.evaluation.protocol import sample_episodes
from lewm_serve.cli.closed_loop import RemotePlanner, to_png
from lewm_serve.cli.local_server import local_server

TWO_ROOM_FOLDER = PRETRAINED / "two-room"
BY_LATENT = {"objective": "latent", "samples": 32}


def test_robots_reach_their_goals_and_a_seed_fixes_a_plan() -> None:
    simulation = TWO_ROOM.simulation()
    episodes = sample_episodes(TWO_ROOM, "paper", 10, seed=3)
    with (
        local_server(TWO_ROOM_FOLDER, backend="torch", search="device", threads=1) as server,
        PlannerClient(server.target) as client,
    ):
        frames = []
        for place in ((60.0, 165.0), (60.0, 75.0)):
            simulation.reset(np.array(place, np.float32))
            frames.append(to_png(simulation.frame()))
        start, goal = frames
        plans = [client.plan([start], goal, solver=BY_LATENT, seed=seed) for seed in (5, 5, 6)]
        outcomes = run_episodes(
            lambda: RemotePlanner(client, episodes.plan_steps), episodes, seed=3, robots=5
        )
    assert np.array_equal(plans[0].actions, plans[1].actions)
    assert not np.array_equal(plans[0].actions, plans[2].actions)
    assert sum(outcome.reached for outcome in outcomes) >= 9
