"""The protocols of Two-Room: starts, goals, the budget of steps, and how often to plan."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from lewm_models.environments import two_room
from lewm_models.environments.two_room_policy import simulate_trajectories

SEED_COUNT = 2**31
"""Seeds of training and of evaluation are 0 to this - 1, see `evaluation_generator`."""

PAPER_GOAL_STEPS = 25
"""The steps from a start to its goal on one trajectory, in the protocol ``paper``."""

TRAJECTORY_STEPS = 150
"""The length of trajectories that starts and goals are taken from, as in the training data."""

PLAN_STEPS = 25
"""The actions of a plan that are executed before the next plan."""

PAIRS_PER_DRAW = 256
"""Starts and goals that are drawn together. It is the same for all counts, so that the first n
episodes of a seed are always the same."""

Pairs = tuple[Tensor, Tensor]
"""Starts and goals, (N, 2) float32 each."""


@dataclass(frozen=True)
class Episodes:
    """N tasks.

    Args:
        protocol: the protocol's name.
        starts: (N, 2) float32 pixels.
        goals: (N, 2) float32 pixels.
        budget: the steps after which an episode ends.
        plan_steps: the actions of a plan that are executed before the next plan.
    """

    protocol: str
    starts: Tensor
    goals: Tensor
    budget: int
    plan_steps: int

    def __len__(self) -> int:
        return len(self.starts)


def paper_episodes(count: int, seed: int) -> Episodes:
    """Goals 25 steps after their starts on a trajectory of the data policy; a budget of 50 steps.

    Starts that are already at their goals are left out. All 25 actions of a plan are executed, so
    an episode has at most two plans. Source: arXiv 2603.19312.

    Raises:
        ValueError: the count is below 1, or the seed is outside [0, 2³¹).
    """
    starts, goals = _draw(count, seed, _pairs_on_trajectories)
    return Episodes("paper", starts, goals, budget=50, plan_steps=PLAN_STEPS)


def cross_room_episodes(count: int, seed: int) -> Episodes:
    """Random starts and goals in different rooms; a budget of 150 steps.

    Raises:
        ValueError: the count is below 1, or the seed is outside [0, 2³¹).
    """
    starts, goals = _draw(count, seed, _pairs_across_rooms)
    return Episodes("cross-room", starts, goals, budget=150, plan_steps=PLAN_STEPS)


PROTOCOLS: Mapping[str, Callable[[int, int], Episodes]] = {
    "paper": paper_episodes,
    "cross-room": cross_room_episodes,
}


def evaluation_generator(seed: int) -> torch.Generator:
    """The random generator of an evaluation seed; no training seed draws the same numbers.

    torch's CPU generator uses the lower 32 bits of a seed. Training has the lower half of these
    seeds and evaluation the upper half.

    Raises:
        ValueError: the seed is outside [0, 2³¹).
    """
    if not 0 <= seed < SEED_COUNT:
        raise ValueError(f"seed: expected 0 to {SEED_COUNT - 1}, got {seed}")
    return torch.Generator().manual_seed(SEED_COUNT + seed)


def _draw(count: int, seed: int, draw_pairs: Callable[[torch.Generator], Pairs]) -> Pairs:
    """The first ``count`` pairs."""
    if count < 1:
        raise ValueError(f"episodes: expected at least 1, got {count}")
    generator = evaluation_generator(seed)
    starts, goals = draw_pairs(generator)
    while len(starts) < count:
        more_starts, more_goals = draw_pairs(generator)
        starts, goals = torch.cat((starts, more_starts)), torch.cat((goals, more_goals))
    return starts[:count], goals[:count]


def _pairs_on_trajectories(generator: torch.Generator) -> Pairs:
    """A pair from a random place on each of many trajectories, without those too close."""
    trajectories, _ = simulate_trajectories(PAIRS_PER_DRAW, TRAJECTORY_STEPS, generator)
    last_start = TRAJECTORY_STEPS - PAPER_GOAL_STEPS
    start_steps = torch.randint(last_start + 1, (PAIRS_PER_DRAW,), generator=generator)
    agents = torch.arange(PAIRS_PER_DRAW)
    starts = trajectories[start_steps, agents]
    goals = trajectories[start_steps + PAPER_GOAL_STEPS, agents]
    is_apart = two_room.distance(starts, goals) >= two_room.GOAL_RADIUS
    return starts[is_apart], goals[is_apart]


def _pairs_across_rooms(generator: torch.Generator) -> Pairs:
    starts = two_room.sample_positions(PAIRS_PER_DRAW, generator)
    goals = two_room.sample_goals(PAIRS_PER_DRAW, generator)
    is_across = ~two_room.same_room(starts, goals)
    return starts[is_across], goals[is_across]
