"""The cross-entropy method, as LeWM plans with it (arXiv 2603.19312)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from lewm_serve.planning.gaussian import GaussianSolver


class CEM(GaussianSolver):
    """Sample around a mean, keep the elites, refit mean and deviation; 300 × 30 × 30 in the paper.

    Candidate 0 is the current mean. After the last iteration the mean itself is scored, and the
    best sequence ever scored is the answer: its cost is its own, not the elites'. Source:
    Rubinstein and Kroese, The Cross-Entropy Method, 2004.
    """

    own: ClassVar[Mapping[str, float]] = {"elites": 30, "momentum": 0.0, "deviation": 1.0}

    def workload(self) -> list[int]:
        """See `Solver.workload`; the closing mean is one more."""
        return [*super().workload(), 1]

    def ask(self) -> Tensor:
        """See `Solver.ask`; the closing one holds the mean alone."""
        if self._closing:
            return self.mean.unsqueeze(0)
        shape = (self.settings.samples, *self.mean.shape)
        noise = torch.from_numpy(self.generator.standard_normal(shape, dtype=np.float32))
        noise[0] = 0
        return self.around(noise)

    @property
    def _closing(self) -> bool:
        return self.converged or self.iterations == self.settings.iterations

    def _learn(self, candidates: Tensor, costs: Tensor, _gradients: Tensor | None) -> None:
        if self._closing:
            self.done = True
            return
        self.iterations += 1
        order = costs.numpy().argsort(kind="stable")
        elites = candidates.numpy()[order[: self.settings.elites]]
        weights = np.full(len(elites), 1 / len(elites), dtype=np.float32)
        self.converged = self._settled(self._refit(elites, weights, self.setting("momentum")))
