"""The Two-Room protocols: which starts and goals, how many steps, how often to plan."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from lewm_models.environments import two_room
from lewm_models.environments.two_room_motion import simulate

SEEDS = 2**31
"""Evaluation seeds are below this, and so are those of training data.

torch's CPU generator looks at a seed's lower 32 bits only. Evaluation takes the upper half of what
they can be, so no evaluation repeats the draws of any training data.
"""

PAPER_OFFSET = 25
"""Steps from the start to the goal on one trajectory."""
TRAJECTORY_STEPS = 150
"""Length of the trajectories from which starts and goals are taken, as in the training data."""

PLAN_STEPS = 25
DRAWN_AT_ONCE = 256
"""Episodes drawn together, whatever count is asked for: the first n are the same n of any count."""

Pairs = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Episodes:
    """N tasks: ``starts`` and ``goals`` (N, 2) float32 pixels.

    An episode ends after ``budget`` steps; ``plan_steps`` of a plan's actions are run before the
    next plan.
    """

    protocol: str
    starts: Tensor
    goals: Tensor
    budget: int
    plan_steps: int

    def __len__(self) -> int:
        return len(self.starts)


def paper_episodes(count: int, seed: int) -> Episodes:
    """Start and goal 25 steps apart on one trajectory of the data-collecting policy; 50 steps.

    Starts that lie within the goal already are left out. All 25 actions of a plan are run, so an
    episode has two plans at most. Source: arXiv 2603.19312.

    Raises:
        ValueError: the count is below 1 or the seed outside [0, 2³¹).
    """
    starts, goals = _draw(count, seed, _along_trajectories)
    return Episodes("paper", starts, goals, budget=50, plan_steps=PLAN_STEPS)


def cross_room_episodes(count: int, seed: int) -> Episodes:
    """Start and goal in different rooms, the goal where an agent can stand; 150 steps.

    Raises:
        ValueError: the count is below 1 or the seed outside [0, 2³¹).
    """
    starts, goals = _draw(count, seed, _across_the_wall)
    return Episodes("cross-room", starts, goals, budget=150, plan_steps=PLAN_STEPS)


PROTOCOLS: Mapping[str, Callable[[int, int], Episodes]] = {
    "paper": paper_episodes,
    "cross-room": cross_room_episodes,
}


def evaluation_generator(seed: int) -> torch.Generator:
    """The source of randomness for one evaluation seed, apart from all of training's.

    Raises:
        ValueError: the seed lies outside [0, 2³¹).
    """
    if not 0 <= seed < SEEDS:
        raise ValueError(f"seed: expected 0 to {SEEDS - 1}, got {seed}")
    return torch.Generator().manual_seed(SEEDS + seed)


def _draw(count: int, seed: int, source: Callable[[torch.Generator], Pairs]) -> Pairs:
    """The first ``count`` pairs that a source gives, a few hundred at a time."""
    if count < 1:
        raise ValueError(f"episodes: expected at least 1, got {count}")
    generator = evaluation_generator(seed)
    starts, goals = source(generator)
    while len(starts) < count:
        more_starts, more_goals = source(generator)
        starts, goals = torch.cat((starts, more_starts)), torch.cat((goals, more_goals))
    return starts[:count], goals[:count]


def _along_trajectories(generator: torch.Generator) -> Pairs:
    """One pair from a random place on each of many trajectories, those too close left out."""
    trajectories, _ = simulate(DRAWN_AT_ONCE, TRAJECTORY_STEPS, generator)
    last_start = TRAJECTORY_STEPS - PAPER_OFFSET
    first = torch.randint(last_start + 1, (DRAWN_AT_ONCE,), generator=generator)
    agents = torch.arange(DRAWN_AT_ONCE)
    starts, goals = trajectories[first, agents], trajectories[first + PAPER_OFFSET, agents]
    apart = two_room.distance(starts, goals) >= two_room.GOAL_RADIUS
    return starts[apart], goals[apart]


def _across_the_wall(generator: torch.Generator) -> Pairs:
    starts = two_room.sample_positions(DRAWN_AT_ONCE, generator)
    goals = two_room.sample_goals(DRAWN_AT_ONCE, generator)
    apart = ~two_room.same_room(starts, goals)
    return starts[apart], goals[apart]
