"""The comparison of solvers: what is kept of it, and that it plans as a server does."""

from pathlib import Path

import numpy as np

from benchmarks.flops import PAPER_CEM
from benchmarks.in_process import load_like_server
from benchmarks.report import RunOptions
from benchmarks.solvers import (
    EpisodeRecord,
    EpisodeResult,
    InProcessPlanner,
    run_all_episodes,
    solver_key,
)
from lewm_client import PlannerClient
from lewm_models.environments.two_room_environment import TWO_ROOM
from lewm_models.evaluation.protocol import sample_episodes
from lewm_serve.cli.closed_loop import RemotePlanner
from lewm_serve.cli.local_server import LocalServer
from tests.benchmarks.conftest import SHORT_SEARCH


def some_result(episode: int) -> EpisodeResult:
    """A result of the paper's CEM."""
    settings = {"name": "cem", "samples": 300, "iterations": 30, "elites": 30, "horizon": 5}
    return EpisodeResult(
        solver=settings | {"tolerance": 0.0},
        episode=episode,
        reached=True,
        candidates=(9001, 9001),
        seconds=1.5,
    )


def test_an_interrupted_run_continues(tmp_path: Path) -> None:
    path = tmp_path / "new" / "record.jsonl"
    record = EpisodeRecord(path)
    assert record.read() == {}
    record.add(some_result(0))
    with path.open("a") as file:
        file.write('{"solver": {"na')
    record.add(some_result(1))
    assert record.read() == {
        (solver_key(PAPER_CEM), episode): some_result(episode) for episode in range(2)
    }
    # No result is missing, so no episode is run.
    assert run_all_episodes(record, (PAPER_CEM,), 2, options=RunOptions()) == record.read()


def test_plans_are_those_of_the_server(quick_folder: Path, quick_server: LocalServer) -> None:
    episodes = sample_episodes(TWO_ROOM, "paper", 1, 0)
    simulation, shown = TWO_ROOM.simulation(), []
    for state in (episodes.starts[0], episodes.goals[0]):
        simulation.reset(state)
        shown.append(simulation.frame())
    frame, goal = shown
    model = load_like_server(quick_folder, threads=1)
    in_process = InProcessPlanner(model, SHORT_SEARCH)
    with PlannerClient(quick_server.target) as client:
        expected, _ = RemotePlanner(client, 25)(frame, goal, 7)
    actions, _ = in_process(frame, goal, 7)
    # The backends may differ.
    assert np.allclose(actions, expected, atol=1e-4)
    assert in_process.candidates == [5]
