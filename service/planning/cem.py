"""The cross-entropy method, as LeWM plans with it (arXiv 2603.19312)."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from models.card import SolverDefaults
from service.planning.solver import Problem, Solver


class CEM(Solver):
    """Sample around a mean, keep the elites, refit mean and deviation; 300 × 30 × 30 in the paper.

    Candidate 0 is the current mean. Candidates are clipped to the bounds where they live, in
    z-scored space, so the elites, the mean and the answer respect them too. After the last
    iteration the mean itself is scored, and the best sequence ever scored is the answer: its cost
    is its own, not the elites'. Source: Rubinstein and Kroese, The Cross-Entropy Method, 2004.

    ``momentum`` is the share of the old mean and deviation in the new ones: none.

    Converged: the elites' deviation is at most ``tolerance`` in every component, in deviations
    of the training actions; a tolerance of 0 never stops early.
    """

    momentum = 0.0

    def __init__(self, settings: SolverDefaults, problem: Problem, seed: int) -> None:
        super().__init__(settings, problem, seed)
        self.mean = problem.start
        self.std = torch.ones_like(problem.start)

    def workload(self) -> list[int]:
        """See `Solver.workload`; the closing mean is one more."""
        return [*super().workload(), 1]

    def ask(self) -> Tensor:
        """See `Solver.ask`; the closing one holds the mean alone."""
        return self.mean.unsqueeze(0) if self._closing else self._sample()

    @property
    def _closing(self) -> bool:
        return self.converged or self.iterations == self.settings.iterations

    def _sample(self) -> Tensor:
        shape = (self.settings.samples, *self.mean.shape)
        noise = torch.from_numpy(self.generator.standard_normal(shape, dtype=np.float32))
        noise[0] = 0
        return self.clip(self.mean + self.std * noise)

    def _learn(self, candidates: Tensor, costs: Tensor) -> None:
        if self._closing:
            self.done = True
            return
        self.iterations += 1
        elites = candidates[costs.argsort(stable=True)[: self.settings.elites]]
        self.mean = self.mean.lerp(elites.mean(dim=0), 1 - self.momentum)
        # One elite has no deviation; the search then goes on around it as widely as before.
        if len(elites) > 1:
            self.std = self.std.lerp(elites.std(dim=0), 1 - self.momentum)
            tolerance = self.settings.tolerance
            self.converged = tolerance > 0 and float(self.std.max()) <= tolerance
