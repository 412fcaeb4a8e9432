"""Closed-loop episodes with planners that are known to be good, bad or broken."""

from dataclasses import replace
from threading import get_ident

import numpy as np
import pytest
import torch
from torch import Tensor

from lewm_models.environments import two_room
from lewm_models.environments.environment import FloatArray, Frame
from lewm_models.environments.two_room_environment import TWO_ROOM, TwoRoom, TwoRoomSimulation
from lewm_models.environments.two_room_policy import DataPolicy, waypoint_actions
from lewm_models.evaluation.baselines import BASELINES
from lewm_models.evaluation.episode import NO_FRAME, Actions, Outcome, run_episode, run_episodes
from lewm_models.evaluation.protocol import sample_episodes
from lewm_models.evaluation.report import EvaluationReport


def find_agent(frame: Frame) -> Tensor:
    """The position (1, 2) of the red dot: the mean of the pixels, weighted by their redness."""
    redness = frame[..., 0].astype(np.float64) - frame[..., 1]
    rows, columns = np.indices(redness.shape)
    centre = (columns * redness).sum(), (rows * redness).sum()
    return torch.tensor([centre], dtype=torch.float32) / float(redness.sum())


def oracle(frame: Frame, goal_frame: Frame, seed: int) -> tuple[Actions, float]:
    """Heads for the goal, with the environment's own motion."""
    position, goal = find_agent(frame), find_agent(goal_frame)
    actions = []
    for _ in range(25):
        actions.append(waypoint_actions(position, goal))
        position = two_room.move(position, actions[-1])
    return torch.cat(actions).numpy(), 0.25


def resting_planner(frame: Frame, goal_frame: Frame, seed: int) -> tuple[Actions, float]:
    """Never moves."""
    return np.zeros((25, 2), np.float32), 0.75


def noisy_planner(frame: Frame, goal_frame: Frame, seed: int) -> tuple[Actions, float]:
    """Heads for the goal with noise that depends on the seed only."""
    policy = DataPolicy(torch.Generator().manual_seed(seed))
    position, goal = find_agent(frame), find_agent(goal_frame)
    actions = torch.cat([policy.actions(position, goal) for _ in range(25)])
    return actions.numpy(), 0.0


def test_an_oracle_reaches_all_goals_and_a_resting_agent_none() -> None:
    episodes = sample_episodes(TWO_ROOM, "paper", 60, seed=1)
    outcomes = run_episodes(lambda: oracle, episodes, seed=0, robots=2)
    report = EvaluationReport.from_outcomes(episodes, outcomes)
    assert report.successes == 60
    assert report.steps_mean is not None
    assert 3 < report.steps_mean < 20
    assert 60 <= report.plans <= 120

    outcomes = run_episodes(lambda: resting_planner, episodes, seed=0, robots=2)
    report = EvaluationReport.from_outcomes(episodes, outcomes)
    assert (report.successes, report.plans, report.steps_mean) == (0, 120, None)


def test_an_oracle_crosses_rooms() -> None:
    episodes = sample_episodes(TWO_ROOM, "cross-room", 12, seed=1)
    outcomes = run_episodes(lambda: oracle, episodes, seed=0, robots=2)
    assert all(outcome.reached for outcome in outcomes)


def test_a_path_leads_from_the_start_to_the_first_position_at_the_goal() -> None:
    episodes = sample_episodes(TWO_ROOM, "paper", 8, seed=2)
    for index in range(8):
        outcome = run_episode(oracle, episodes, index, seed=0)
        inside = [TWO_ROOM.reached(state, episodes.goals[index]) for state in outcome.states]
        assert inside == [False] * outcome.steps + [True]
        assert np.array_equal(outcome.states[0], episodes.starts[index])
        assert len(outcome.plan_seconds) == -(-outcome.steps // 25)


@pytest.mark.parametrize(("plan_steps", "plans"), [(10, 5), (25, 2), (30, 2), (20, 3)])
def test_planning_repeats_until_the_budget_is_used(plan_steps: int, plans: int) -> None:
    episodes = replace(sample_episodes(TWO_ROOM, "paper", 1, seed=0), plan_steps=plan_steps)
    outcome = run_episode(resting_planner, episodes, 0, seed=0)
    assert not outcome.reached
    assert outcome.steps == 50
    assert len(outcome.plan_seconds) == plans


def test_a_goal_counts_only_within_the_budget() -> None:
    episodes = sample_episodes(TWO_ROOM, "cross-room", 20, seed=1)
    steps = [run_episode(oracle, episodes, index, seed=0).steps for index in range(20)]
    slowest = steps.index(max(steps))
    just_enough = replace(episodes, budget=max(steps))
    assert run_episode(oracle, just_enough, slowest, seed=0).reached
    one_too_few = replace(episodes, budget=max(steps) - 1)
    assert not run_episode(oracle, one_too_few, slowest, seed=0).reached


def test_outcomes_do_not_depend_on_the_number_of_robots() -> None:
    episodes = sample_episodes(TWO_ROOM, "paper", 12, seed=3)
    one_robot, six_robots, other_seed = (
        run_episodes(lambda: noisy_planner, episodes, seed=seed, robots=robots)
        for seed, robots in ((5, 1), (5, 6), (6, 6))
    )
    assert [outcome.index for outcome in six_robots] == list(range(12))
    for outcome, same in zip(one_robot, six_robots, strict=True):
        assert np.array_equal(outcome.states, same.states)
    assert [outcome.steps for outcome in one_robot] != [outcome.steps for outcome in other_seed]


def test_each_outcome_is_reported_once() -> None:
    episodes = sample_episodes(TWO_ROOM, "paper", 5, seed=3)
    reported: list[Outcome] = []
    outcomes = run_episodes(
        lambda: resting_planner, episodes, seed=0, robots=2, on_outcome=reported.append
    )
    assert sorted(outcome.index for outcome in reported) == [0, 1, 2, 3, 4]
    assert {id(outcome) for outcome in reported} == {id(outcome) for outcome in outcomes}


@pytest.mark.parametrize("shape", [(0, 2), (25, 3), (25,)])
def test_impossible_plans_are_refused(shape: tuple[int, ...]) -> None:
    def broken_planner(frame: Frame, goal_frame: Frame, seed: int) -> tuple[Actions, float]:
        return np.zeros(shape, np.float32), 0.0

    episodes = sample_episodes(TWO_ROOM, "paper", 3, seed=0)
    with pytest.raises(ValueError, match="expected actions of shape"):
        run_episodes(lambda: broken_planner, episodes, seed=0, robots=2)


def test_a_report_of_real_episodes() -> None:
    episodes = sample_episodes(TWO_ROOM, "paper", 10, seed=0)
    outcomes = run_episodes(lambda: oracle, episodes, seed=0, robots=1)
    report = EvaluationReport.from_outcomes(episodes, outcomes).to_json()
    assert report["success_rate"] == 1.0
    assert report["interval_95"] == [0.7225, 1.0]
    assert report["plan_latency_p50_ms"] == report["plan_latency_p99_ms"] == 250.0
    assert (report["environment"], report["protocol"]) == ("two-room", "paper")
    assert (report["offset"], report["budget"], report["plan_steps"]) == (25, 50, 25)
    assert 0.98 < report["detour_median"] < 1.1


def test_baselines_need_no_frames() -> None:
    class Blind(TwoRoomSimulation):
        def frame(self) -> Frame:
            raise AssertionError("rendered a frame")

    class BlindRoom(TwoRoom):
        def simulation(self) -> Blind:
            return Blind()

    episodes = sample_episodes(BlindRoom(), "paper", 30, seed=0)
    rates = {}
    for name, make in BASELINES.items():
        planner = make(episodes.environment, episodes.plan_steps)
        outcomes = [
            run_episode(planner, episodes, index, seed=0, with_frames=False) for index in range(30)
        ]
        moved = [np.ptp(outcome.states, axis=0).max() for outcome in outcomes]
        assert (max(moved) > 0) == (name == "random")
        rates[name] = EvaluationReport.from_outcomes(episodes, outcomes).success_rate
    assert rates["rest"] == 0
    assert rates["random"] < 0.6


def test_random_actions_fill_the_bounds_and_rest_is_the_neutral_action() -> None:
    class Biased(TwoRoom):
        action_low, action_high = (0.5, -2.0), (1.0, 4.0)

    environment = Biased()
    resting, _ = BASELINES["rest"](environment, 3)(NO_FRAME, NO_FRAME, 0)
    assert resting.tolist() == [[0.5, 0]] * 3
    drawn, _ = BASELINES["random"](environment, 2000)(NO_FRAME, NO_FRAME, 0)
    assert drawn.min(axis=0) == pytest.approx([0.5, -2], abs=0.02)
    assert drawn.max(axis=0) == pytest.approx([1, 4], abs=0.02)
    again, _ = BASELINES["random"](environment, 2000)(NO_FRAME, NO_FRAME, 0)
    assert np.array_equal(drawn, again)


def test_each_thread_has_a_simulation_that_is_closed() -> None:
    threads: dict[str, list[int]] = {"made": [], "closed": []}

    class Watched(TwoRoomSimulation):
        def __init__(self) -> None:
            super().__init__()
            threads["made"].append(get_ident())

        def reset(self, state: FloatArray) -> None:
            assert get_ident() in threads["made"]
            super().reset(state)

        def close(self) -> None:
            threads["closed"].append(get_ident())

    class WatchedRoom(TwoRoom):
        def simulation(self) -> Watched:
            return Watched()

    episodes = sample_episodes(WatchedRoom(), "paper", 6, seed=0)
    run_episodes(lambda: resting_planner, episodes, seed=0, robots=3)
    assert len(set(threads["made"])) == 3
    assert sorted(threads["made"]) == sorted(threads["closed"])
