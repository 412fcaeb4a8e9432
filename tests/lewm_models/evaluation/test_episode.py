"""Closed-loop episodes, with planners that are known to be good, bad or broken."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from lewm_models.environments import two_room
from lewm_models.environments.two_room_policy import DataPolicy, waypoint_actions
from lewm_models.evaluation.episode import Actions, Frame, run_episode, run_episodes
from lewm_models.evaluation.protocol import cross_room_episodes, paper_episodes
from lewm_models.evaluation.report import EvaluationReport


def dot(frame: Frame) -> Tensor:
    """Where the red dot is, (1, 2): the mean of the pixels, weighted by their redness."""
    redness = frame[..., 0].astype(np.float64) - frame[..., 1]
    rows, columns = np.indices(redness.shape)
    centre = (columns * redness).sum(), (rows * redness).sum()
    return torch.tensor([centre], dtype=torch.float32) / float(redness.sum())


def oracle(frame: Frame, goal_frame: Frame, seed: int) -> tuple[Actions, float]:
    """Know the environment, see the dots, and head for the goal."""
    position, goal = dot(frame), dot(goal_frame)
    actions = []
    for _ in range(25):
        actions.append(waypoint_actions(position, goal))
        position = two_room.move(position, actions[-1])
    return torch.cat(actions).numpy(), 0.25


def idler(frame: Frame, goal_frame: Frame, seed: int) -> tuple[Actions, float]:
    """Stay where it is."""
    return np.zeros((25, 2), np.float32), 0.75


def wanderer(frame: Frame, goal_frame: Frame, seed: int) -> tuple[Actions, float]:
    """Head for the goal with noise that only the seed decides."""
    policy = DataPolicy(torch.Generator().manual_seed(seed))
    position, goal = dot(frame), dot(goal_frame)
    actions = torch.cat([policy.actions(position, goal) for _ in range(25)])
    return actions.numpy(), 0.0


def test_an_oracle_reaches_the_paper_goals_and_an_idler_none() -> None:
    episodes = paper_episodes(60, seed=1)
    seen = run_episodes(lambda: oracle, episodes, seed=0, robots=2)
    report = EvaluationReport.of("paper", seen)
    assert report.successes == 60
    assert report.steps_mean is not None
    assert 3 < report.steps_mean < 20
    assert 60 <= report.plans <= 120

    idle = EvaluationReport.of("paper", run_episodes(lambda: idler, episodes, seed=0, robots=2))
    assert (idle.successes, idle.plans, idle.steps_mean) == (0, 120, None)


def test_an_oracle_crosses_rooms() -> None:
    episodes = cross_room_episodes(12, seed=1)
    assert all(item.reached for item in run_episodes(lambda: oracle, episodes, seed=0, robots=2))


def test_an_outcome_is_the_way_it_went() -> None:
    episodes = paper_episodes(8, seed=2)
    for index in range(8):
        outcome = run_episode(oracle, episodes, index, seed=0)
        path, goal = torch.from_numpy(outcome.path), episodes.goals[index]
        inside = two_room.distance(path, goal.expand_as(path)) < two_room.GOAL_RADIUS
        assert inside.tolist() == [False] * outcome.steps + [True]
        assert torch.equal(path[0], episodes.starts[index])
        assert len(outcome.plan_s) == -(-outcome.steps // 25)


@pytest.mark.parametrize(("plan_steps", "plans"), [(10, 5), (25, 2), (30, 2), (20, 3)])
def test_plans_follow_each_other_until_the_budget_is_spent(plan_steps: int, plans: int) -> None:
    episodes = replace(paper_episodes(1, seed=0), plan_steps=plan_steps)
    outcome = run_episode(idler, episodes, 0, seed=0)
    assert not outcome.reached
    assert outcome.steps == 50
    assert len(outcome.plan_s) == plans


def test_success_is_latched_within_the_budget_only() -> None:
    episodes = cross_room_episodes(20, seed=1)
    steps = [run_episode(oracle, episodes, index, seed=0).steps for index in range(20)]
    just, short = (replace(episodes, budget=max(steps) - less) for less in (0, 1))
    slowest = steps.index(max(steps))
    assert run_episode(oracle, just, slowest, seed=0).reached
    assert not run_episode(oracle, short, slowest, seed=0).reached


def test_outcomes_do_not_depend_on_how_many_run_at_once() -> None:
    episodes = paper_episodes(12, seed=3)
    alone, together, other = (
        run_episodes(lambda: wanderer, episodes, seed=seed, robots=robots)
        for seed, robots in ((5, 1), (5, 6), (6, 6))
    )
    assert [item.index for item in together] == list(range(12))
    for one, same in zip(alone, together, strict=True):
        assert np.array_equal(one.path, same.path)
    assert any(one.steps != another.steps for one, another in zip(alone, other, strict=True))


@pytest.mark.parametrize("shape", [(0, 2), (25, 3), (25,)])
def test_impossible_plans_are_refused(shape: tuple[int, ...]) -> None:
    def broken(frame: Frame, goal_frame: Frame, seed: int) -> tuple[Actions, float]:
        return np.zeros(shape, np.float32), 0.0

    with pytest.raises(ValueError, match="expected actions of shape"):
        run_episodes(lambda: broken, paper_episodes(3, seed=0), seed=0, robots=2)


def test_a_report_is_json_with_the_figures() -> None:
    episodes = paper_episodes(10, seed=0)
    report = EvaluationReport.of("paper", run_episodes(lambda: oracle, episodes, seed=0, robots=1))
    figures = json.loads(json.dumps(report.to_json()))
    assert figures["success_rate"] == 1.0
    assert figures["interval_95"] == [0.7225, 1.0]
    assert figures["plan_latency_p50_ms"] == figures["plan_latency_p99_ms"] == 250.0
