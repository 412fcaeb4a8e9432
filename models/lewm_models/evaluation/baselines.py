"""Planners that know nothing: every figure is shown beside what they reach."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from lewm_models.environments.environment import Environment, Frame
from lewm_models.evaluation.episode import Actions, Planner


@dataclass(frozen=True)
class RestingPlanner:
    """Does nothing: ``steps`` times the environment's neutral action."""

    environment: Environment
    steps: int

    def __call__(self, frame: Frame, goal_frame: Frame, seed: int) -> tuple[Actions, float]:
        return np.tile(self.environment.neutral_action, (self.steps, 1)), 0.0


@dataclass(frozen=True)
class RandomPlanner:
    """``steps`` actions, uniform within the environment's bounds."""

    environment: Environment
    steps: int

    def __call__(self, frame: Frame, goal_frame: Frame, seed: int) -> tuple[Actions, float]:
        low, high = self.environment.action_low, self.environment.action_high
        drawn = np.random.default_rng(seed).uniform(low, high, (self.steps, len(low)))
        return drawn.astype(np.float32), 0.0


BASELINES: Mapping[str, Callable[[Environment, int], Planner]] = {
    "rest": RestingPlanner,
    "random": RandomPlanner,
}
"""The baselines by name. They need no frames."""
