"""What searches by a Gaussian over sequences have in common."""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lewm_models.card import SolverDefaults
from lewm_serve.planning.solver import Problem, Solver

Array = NDArray[np.float32]

LEAST_FREEDOM = 1e-4
"""With less of the weight on others, one candidate is alone."""


class GaussianSolver(Solver):
    """Candidates drawn around a mean (T, A), to the better of which the next one is fitted.

    Each component has a deviation of its own, at first ``deviation`` in all of them. Candidates are
    clipped where they live, in z-scored space, so what is fitted to them respects the bounds too.

    Converged: the deviation of what the mean is fitted to is at most ``tolerance`` in every
    component, in deviations of the training actions; a tolerance of 0 never stops early.
    """

    def __init__(self, settings: SolverDefaults, problem: Problem, seed: int) -> None:
        super().__init__(settings, problem, seed)
        self.mean = problem.start
        self.std = torch.full_like(problem.start, self.setting("deviation"))

    def around(self, noise: Tensor) -> Tensor:
        """Candidates (S, T, A) that lie by noise of unit deviation around the mean."""
        return self.clip(torch.addcmul(self.mean, self.std, noise))

    def _refit(self, candidates: Array, weights: Array, momentum: float) -> float:
        """Fit to candidates (S, T, A) by weights (S,) that sum to 1; their largest deviation.

        ``momentum`` is the share of the old mean and deviation in the new ones. The deviation is
        the unbiased one. One candidate alone has none: the search goes on around it as widely as
        before.
        """
        weights = weights[:, None, None]
        mean = (weights * candidates).sum(axis=0)
        freedom = float(1 - np.square(weights).sum())
        self.mean = _blend(mean, self.mean, momentum)
        if freedom < LEAST_FREEDOM:
            return math.inf
        variance = (weights * np.square(candidates - mean)).sum(axis=0) / np.float32(freedom)
        self.std = _blend(np.sqrt(variance), self.std, momentum)
        return float(self.std.numpy().max())


def _blend(new: Array, old: Tensor, share: float) -> Tensor:
    """What is new, and so large a share of what is old."""
    return torch.from_numpy(new + np.float32(share) * (old.numpy() - new))
