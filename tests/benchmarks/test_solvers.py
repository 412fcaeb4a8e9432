"""The comparison of solvers: what is kept of it, and that it plans as the server does."""

from pathlib import Path

import numpy as np

from benchmarks.run import Run
from benchmarks.served import load_served
from benchmarks.solvers import PAPER_CEM, EpisodeResult, InProcess, Record, compare, name
from lewm_client import PlannerClient
from lewm_models.environments.two_room import VectorTwoRoom
from lewm_models.evaluation.protocol import paper_episodes
from lewm_serve.cli.closed_loop import RemotePlanner
from tests.benchmarks.conftest import QUICK
from tests.lewm_serve.support.server_process import ServerProcess


def some_result(episode: int) -> EpisodeResult:
    settings = {"name": "cem", "samples": 300, "iterations": 30, "elites": 30, "horizon": 5}
    return EpisodeResult(settings | {"tolerance": 0.0}, episode, True, (9001, 9001), 1.5)


def test_a_run_that_was_cut_off_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "new" / "record.jsonl"
    record = Record(path)
    assert record.read() == {}
    record.add(some_result(0))
    with path.open("a") as file:
        file.write('{"solver": {"na')
    record.add(some_result(1))
    assert record.read() == {
        (name(PAPER_CEM), episode): some_result(episode) for episode in range(2)
    }
    # Nothing is missing, so nothing is run.
    assert compare(Run(), record, (PAPER_CEM,), 2) == record.read()


def test_plans_are_those_of_the_server(quick_folder: Path, quick_server: ServerProcess) -> None:
    episodes = paper_episodes(1, 0)
    room = VectorTwoRoom(episodes.starts, episodes.goals)
    frame, goal = room.frames()[0].numpy(), room.goal_frames()[0].numpy()
    in_process = InProcess(load_served(quick_folder, threads=1), QUICK)
    with PlannerClient(quick_server.target) as client:
        expected, _ = RemotePlanner(client, 25)(frame, goal, 7)
    actions, _ = in_process(frame, goal, 7)
    assert np.allclose(actions, expected, atol=1e-4)
    assert in_process.candidates == [5]
