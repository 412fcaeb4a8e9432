"""The study of states beside pixels: what planners see, and how episodes are summed up."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks import state_input
from benchmarks.report import RunOptions
from benchmarks.state_input import CONDITIONS, black, measure, summarise, whole, without_agent
from lewm_models.environments.two_room_occluded import OCCLUDED_TWO_ROOM, hides
from lewm_models.evaluation.episode import Outcome
from lewm_models.evaluation.protocol import sample_episodes

TASKS = sample_episodes(OCCLUDED_TWO_ROOM, "paper", 8, 0)


def frame_at(x: float, y: float) -> np.ndarray:
    simulation = OCCLUDED_TWO_ROOM.simulation()
    simulation.reset(np.array([x, y]))
    return simulation.frame()


def test_what_is_left_of_a_frame() -> None:
    frame = frame_at(50, 50)
    assert whole(frame) is frame
    assert not black(frame).any()
    empty = without_agent(frame)
    assert np.array_equal(empty, without_agent(frame_at(150, 60)))
    assert np.array_equal(empty[..., 0], empty[..., 1])  # nothing is red
    assert (frame[..., 0].astype(int) - frame[..., 1]).max() > 200


def test_hidden_episodes_are_those_whose_start_or_goal_is_behind_the_bar() -> None:
    is_hidden = hides(TASKS.starts) | hides(TASKS.goals)
    assert 0 < is_hidden.sum() < len(TASKS)
    outcomes = [
        Outcome(
            index=index,
            reached=not hidden,
            states=np.zeros((4, 2)),
            actions=np.zeros((3, 2)),
            plan_seconds=(0.1,),
        )
        for index, hidden in enumerate(is_hidden)
    ]
    cell = summarise("pixels", TASKS, outcomes)
    assert cell.success == 100 * (1 - is_hidden.mean())
    assert (cell.hidden_success, cell.hidden_episodes) == (0.0, is_hidden.sum())
    assert cell.steps == 3.0


def test_a_quick_run_goes_through_all_conditions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    distance = replace(state_input.DISTANCE, width=16, batch=32)
    monkeypatch.setattr(state_input, "DISTANCE", distance)
    options = RunOptions(quick=True, state_folder=tmp_path)
    report = measure(options)
    assert [cell["name"] for cell in report.details["cells"]] == [each.name for each in CONDITIONS]
    first, *others = report.measurements
    assert first.target is not None
    assert first.target.bound == 95.0
    assert all(measurement.target is None for measurement in others)
    assert (tmp_path / "state_input-quick/with-states/model/model.json").is_file()
