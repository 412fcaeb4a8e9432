"""What training may use of a recording: every rule of docs/recordings.md."""

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from lewm_models.recordings.recording import RecordingError, open_recording
from lewm_models.recordings.usable import (
    RULES,
    Problem,
    ProblemKind,
    StepRange,
    check_episode,
    usable_episodes,
)
from tests.lewm_models.recordings.made_data import STEPS, actions_of, write_hdf5

STEPS_OF_EPISODE = 30
MIN_STEPS = 6


def check(
    *,
    actions: NDArray[np.float32] | None = None,
    states: NDArray[np.float32] | None = None,
    times: NDArray[np.float64] | None = None,
) -> tuple[list[tuple[int, int]], dict[ProblemKind, int]]:
    """Usable ranges and problems of an episode of 30 steps; all is well unless given."""
    if actions is None:
        actions = np.zeros((STEPS_OF_EPISODE, 2), np.float32)
    ranges, problems = check_episode(
        7,
        STEPS_OF_EPISODE,
        actions=actions,
        states=states,
        times=times,
        min_steps=MIN_STEPS,
    )
    assert all(item.episode == 7 for item in ranges)
    assert all(item.episode == 7 for item in problems)
    return [(item.first, item.stop) for item in ranges], {p.kind: p.count for p in problems}


def actions_with(values: dict[int, float]) -> NDArray[np.float32]:
    actions = np.zeros((STEPS_OF_EPISODE, 2), np.float32)
    for step, value in values.items():
        actions[step, 1] = value
    return actions


def test_a_good_episode_is_used_whole() -> None:
    times = 1.05 * np.arange(STEPS_OF_EPISODE, dtype=np.float64)
    times += np.random.default_rng(0).uniform(0, 0.2, 30)
    assert check(times=times) == ([(0, 30)], {})


def test_the_last_action_is_not_used() -> None:
    assert check(actions=actions_with({29: np.nan})) == ([(0, 30)], {})
    assert check(actions=np.zeros((29, 2), np.float32)) == ([(0, 30)], {})


def test_the_episode_is_cut_at_a_missing_and_at_an_infinite_action() -> None:
    ranges, problems = check(actions=actions_with({9: np.nan, 19: -np.inf}))
    assert ranges == [(0, 10), (10, 20), (20, 30)]
    assert problems == {ProblemKind.MISSING_ACTIONS: 1, ProblemKind.INFINITE_ACTIONS: 1}


def test_a_piece_that_is_too_short_is_left_out() -> None:
    ranges, problems = check(actions=actions_with({9: np.nan, 12: np.nan}))
    assert ranges == [(0, 10), (13, 30)]
    assert problems == {ProblemKind.MISSING_ACTIONS: 2, ProblemKind.TOO_SHORT: 1}
    assert check_episode(
        7,
        MIN_STEPS - 1,
        actions=np.zeros((5, 2), np.float32),
        states=None,
        times=None,
        min_steps=MIN_STEPS,
    ) == ([], [Problem(ProblemKind.TOO_SHORT, 7)])


@pytest.mark.parametrize("rows", [0, STEPS_OF_EPISODE])
def test_an_episode_without_actions_is_left_out(rows: int) -> None:
    actions = np.full((rows, 2), np.nan, np.float32)
    assert check(actions=actions) == ([], {ProblemKind.NO_ACTIONS: 1})


def test_the_episode_is_cut_at_gaps_and_where_time_goes_back() -> None:
    times = np.arange(STEPS_OF_EPISODE, dtype=float)
    times[10:] += 1
    times[20:] -= 3
    ranges, problems = check(times=times)
    assert ranges == [(0, 10), (10, 20), (20, 30)]
    assert problems == {ProblemKind.GAPS: 2}


@pytest.mark.parametrize("factor", [0.5, 0.85, 1.15, 2.0])
def test_an_episode_at_another_rate_is_left_out(factor: float) -> None:
    times: NDArray[np.float64] = np.arange(STEPS_OF_EPISODE, dtype=np.float64) * factor
    assert check(times=times) == ([], {ProblemKind.OTHER_RATE: 1})


def test_steps_without_a_finite_state_are_left_out_if_states_are_used() -> None:
    states = np.zeros((STEPS_OF_EPISODE, 1), np.float32)
    states[[0, 12, 13]] = np.nan
    ranges, problems = check(states=states)
    assert ranges == [(1, 12), (14, 30)]
    assert problems == {ProblemKind.MISSING_STATES: 3}


def test_a_whole_recording(tmp_path: Path) -> None:
    actions = actions_of(STEPS)
    actions[STEPS[0] : STEPS[0] + STEPS[1]] = np.nan
    actions[STEPS[0] + STEPS[1] + 29] = np.nan
    write_hdf5(tmp_path / "a.h5", columns={"action": actions})
    with open_recording(tmp_path / "a.h5") as recording:
        usable = usable_episodes(recording, action="action", min_steps=16)
        assert usable.ranges == (StepRange(0, 0, 40), StepRange(2, 0, 30), StepRange(2, 30, 60))
        assert usable.problems == (
            Problem(ProblemKind.NO_ACTIONS, 1),
            Problem(ProblemKind.MISSING_ACTIONS, 2),
        )
        assert (usable.episodes, usable.steps) == (2, 100)
        usable.require_some(recording.path)
        nothing = usable_episodes(recording, action="action", min_steps=100)
        with pytest.raises(
            RecordingError,
            match=r"used: 1 episodes without .*, 2 pieces shorter than .* smaller --action-block",
        ):
            nothing.require_some(recording.path)


def test_every_kind_has_a_rule_that_is_documented() -> None:
    document = (Path(__file__).parents[3] / "docs" / "recordings.md").read_text()
    assert set(RULES) == set(ProblemKind)
    for kind, (what, rule) in RULES.items():
        assert f"| `{kind}` | {what} | {rule}" in document
