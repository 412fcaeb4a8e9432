"""The improved cross-entropy method: coloured noise, elites kept, fewer and fewer samples."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import cache
from typing import ClassVar

import numpy as np
from torch import Tensor

from lewm_models.card import SolverDefaults
from lewm_serve.planning.gaussian import Array, GaussianSolver
from lewm_serve.planning.noise import coloured_noise
from lewm_serve.planning.solver import Problem

KEPT = 5
"""Elites that are remembered, with their costs, for the choice of the next elites."""

DECAY = 1.25
"""The sample count shrinks by this factor from one iteration to the next."""


class ICEM(GaussianSolver):
    """iCEM (Pinneri et al., Sample-efficient Cross-Entropy Method, CoRL 2020, arXiv 2008.06389).

    CEM with noise that is correlated in time, fewer samples in each iteration than in the one
    before (``samples`` is the first one's count), and elites that may be chosen again. The mean is
    a candidate of the first and of the last iteration, and the best sequence ever scored is the
    answer. Two things differ from the paper. The model is deterministic, so elites that are kept
    keep their costs too, instead of being scored again. And better elites weigh more, as in CMA-ES
    (`rank_weights`): at the same number of candidates, plans cost less.
    """

    own: ClassVar[Mapping[str, float]] = {
        "elites": 30,
        "momentum": 0.1,
        "deviation": 1.0,
        "noise_exponent": 2.0,
    }

    def __init__(self, settings: SolverDefaults, problem: Problem, seed: int) -> None:
        super().__init__(settings, problem, seed)
        self.kept: Array = problem.start.numpy()[None][:0]
        self.kept_costs: Array = np.empty(0, dtype=np.float32)

    def workload(self) -> list[int]:
        """See `Solver.workload`: fewer each time, but enough to choose elites from."""
        most, least = self.settings.samples, 2 * self.settings.elites
        return [
            min(most, max(int(most * DECAY**-iteration), least))
            for iteration in range(self.settings.iterations)
        ]

    def ask(self) -> Tensor:
        """See `Solver.ask`."""
        samples = self.workload()[self.iterations]
        noise = coloured_noise(
            self.generator, self.problem, samples, self.setting("noise_exponent")
        )
        if self.iterations in (0, self.settings.iterations - 1):
            noise[0] = 0
        return self.around(noise)

    def _learn(self, candidates: Tensor, costs: Tensor, _gradients: Tensor | None) -> None:
        known = np.concatenate([candidates.numpy(), self.kept])
        known_costs = np.concatenate([costs.numpy(), self.kept_costs])
        order = known_costs.argsort(kind="stable")
        elites = known[order[: self.settings.elites]]
        kept = order[: min(KEPT, self.settings.elites)]
        self.kept, self.kept_costs = known[kept], known_costs[kept]
        self._end_iteration(
            self._refit(elites, rank_weights(len(elites)), self.setting("momentum"))
        )


@cache
def rank_weights(count: int) -> Array:
    """Weights (count,) that sum to 1, the best first: log(count + ½) − log(rank), normalised.

    Source: Hansen, The CMA Evolution Strategy: A Tutorial, arXiv 1604.00772, where count is half
    of the samples.
    """
    weights = math.log(count + 0.5) - np.log(np.arange(1, count + 1))
    normalised: Array = (weights / weights.sum()).astype(np.float32)
    return normalised
