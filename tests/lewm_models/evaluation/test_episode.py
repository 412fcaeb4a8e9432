"""Closed-loop episodes with planners that are known to be good, bad or broken."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from lewm_models.environments import two_room
from lewm_models.environments.two_room_policy import DataPolicy, waypoint_actions
from lewm_models.evaluation.episode import Actions, Frame, Outcome, run_episode, run_episodes
from lewm_models.evaluation.protocol import cross_room_episodes, paper_episodes
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
    episodes = paper_episodes(60, seed=1)
    outcomes = run_episodes(lambda: oracle, episodes, seed=0, robots=2)
    report = EvaluationReport.from_outcomes("paper", outcomes)
    assert report.successes == 60
    assert report.steps_mean is not None
    assert 3 < report.steps_mean < 20
    assert 60 <= report.plans <= 120

    outcomes = run_episodes(lambda: resting_planner, episodes, seed=0, robots=2)
    report = EvaluationReport.from_outcomes("paper", outcomes)
    assert (report.successes, report.plans, report.steps_mean) == (0, 120, None)


def test_an_oracle_crosses_rooms() -> None:
    episodes = cross_room_episodes(12, seed=1)
    outcomes = run_episodes(lambda: oracle, episodes, seed=0, robots=2)
    assert all(outcome.reached for outcome in outcomes)


def test_a_path_leads_from_the_start_to_the_first_position_at_the_goal() -> None:
    episodes = paper_episodes(8, seed=2)
    for index in range(8):
        outcome = run_episode(oracle, episodes, index, seed=0)
        path, goal = torch.from_numpy(outcome.path), episodes.goals[index]
        inside = two_room.distance(path, goal.expand_as(path)) < two_room.GOAL_RADIUS
        assert inside.tolist() == [False] * outcome.steps + [True]
        assert torch.equal(path[0], episodes.starts[index])
        assert len(outcome.plan_seconds) == -(-outcome.steps // 25)


@pytest.mark.parametrize(("plan_steps", "plans"), [(10, 5), (25, 2), (30, 2), (20, 3)])
def test_planning_repeats_until_the_budget_is_used(plan_steps: int, plans: int) -> None:
    episodes = replace(paper_episodes(1, seed=0), plan_steps=plan_steps)
    outcome = run_episode(resting_planner, episodes, 0, seed=0)
    assert not outcome.reached
    assert outcome.steps == 50
    assert len(outcome.plan_seconds) == plans


def test_a_goal_counts_only_within_the_budget() -> None:
    episodes = cross_room_episodes(20, seed=1)
    steps = [run_episode(oracle, episodes, index, seed=0).steps for index in range(20)]
    slowest = steps.index(max(steps))
    just_enough = replace(episodes, budget=max(steps))
    assert run_episode(oracle, just_enough, slowest, seed=0).reached
    one_too_few = replace(episodes, budget=max(steps) - 1)
    assert not run_episode(oracle, one_too_few, slowest, seed=0).reached


def test_outcomes_do_not_depend_on_the_number_of_robots() -> None:
    episodes = paper_episodes(12, seed=3)
    one_robot, six_robots, other_seed = (
        run_episodes(lambda: noisy_planner, episodes, seed=seed, robots=robots)
        for seed, robots in ((5, 1), (5, 6), (6, 6))
    )
    assert [outcome.index for outcome in six_robots] == list(range(12))
    for outcome, same in zip(one_robot, six_robots, strict=True):
        assert np.array_equal(outcome.path, same.path)
    assert [outcome.steps for outcome in one_robot] != [outcome.steps for outcome in other_seed]


def test_each_outcome_is_reported_once() -> None:
    episodes = paper_episodes(5, seed=3)
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

    with pytest.raises(ValueError, match="expected actions of shape"):
        run_episodes(lambda: broken_planner, paper_episodes(3, seed=0), seed=0, robots=2)


def test_a_report_of_real_episodes() -> None:
    outcomes = run_episodes(lambda: oracle, paper_episodes(10, seed=0), seed=0, robots=1)
    report = EvaluationReport.from_outcomes("paper", outcomes).to_json()
    assert report["success_rate"] == 1.0
    assert report["interval_95"] == [0.7225, 1.0]
    assert report["plan_latency_p50_ms"] == report["plan_latency_p99_ms"] == 250.0
