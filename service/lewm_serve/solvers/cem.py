"""The cross-entropy method and its improved version."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import cache
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from lewm_models.card import SolverConfig
from lewm_serve.solvers.solver import Array, GaussianSolver, SearchSpace, coloured_noise

ICEM_KEPT_ELITES = 5
"""Elites that iCEM keeps, with their costs, for the next iteration."""

ICEM_SAMPLE_DECAY = 1.25
"""iCEM divides its number of samples by this factor from one iteration to the next."""


class CEM(GaussianSolver):
    """CEM as LeWM plans with it (arXiv 2603.19312; there 300 samples × 30 iterations, 30 elites).

    Each iteration samples around the mean and fits mean and deviation to the elites. Candidate 0 is
    the current mean. After the last iteration the final mean is scored as well. The answer is the
    best sequence that was scored. Its cost is that of this sequence, not the average of the elites.

    Source: Rubinstein and Kroese, The Cross-Entropy Method, 2004.
    """

    own_settings: ClassVar[Mapping[str, float]] = {
        "elites": 30,
        "momentum": 0.0,
        "deviation": 1.0,
    }

    @classmethod
    def candidates_per_ask(cls, settings: SolverConfig) -> list[int]:
        """See `Solver.candidates_per_ask`. The last `ask` holds the final mean alone."""
        return [*super().candidates_per_ask(settings), 1]

    def ask(self) -> Tensor:
        """See `Solver.ask`."""
        if self._scores_final_mean:
            return self.mean.unsqueeze(0)
        shape = (self.settings.samples, *self.mean.shape)
        noise = torch.from_numpy(self.generator.standard_normal(shape, dtype=np.float32))
        noise[0] = 0
        return self.around_mean(noise)

    @property
    def _scores_final_mean(self) -> bool:
        return self.converged or self.iterations == self.settings.iterations

    def _learn(self, candidates: Tensor, costs: Tensor, _gradients: Tensor | None) -> None:
        if self._scores_final_mean:
            self.done = True
            return
        self.iterations += 1
        order = costs.numpy().argsort(kind="stable")
        elites = candidates.numpy()[order[: self.settings.elites]]
        weights = np.full(len(elites), 1 / len(elites), dtype=np.float32)
        spread = self._fit(elites, weights, self.own_setting("momentum"))
        self.converged = self._has_converged(spread)


class ICEM(GaussianSolver):
    """iCEM (Pinneri et al., Sample-efficient Cross-Entropy Method, CoRL 2020, arXiv 2008.06389).

    It differs from CEM in three ways. The noise is correlated in time. Each iteration has fewer
    samples than the one before; ``samples`` is the number of the first one. Some elites are kept
    and compete again. The mean is a candidate of the first and of the last iteration. The answer is
    the best sequence that was scored.

    Two things differ from the paper. Kept elites also keep their costs instead of being scored
    again, because the model is deterministic. Better elites have larger weights (`rank_weights`),
    because that finds better plans with the same number of candidates.
    """

    own_settings: ClassVar[Mapping[str, float]] = {
        "elites": 30,
        "momentum": 0.1,
        "deviation": 1.0,
        "noise_exponent": 2.0,
    }

    def __init__(self, settings: SolverConfig, space: SearchSpace, seed: int) -> None:
        super().__init__(settings, space, seed)
        self.kept_elites: Array = np.empty((0, *space.start.shape), dtype=np.float32)
        self.kept_costs: Array = np.empty(0, dtype=np.float32)

    @classmethod
    def candidates_per_ask(cls, settings: SolverConfig) -> list[int]:
        """See `Solver.candidates_per_ask`: fewer each time, but at least twice the elites."""
        fewest = 2 * settings.elites
        return [
            min(settings.samples, max(int(settings.samples * ICEM_SAMPLE_DECAY**-step), fewest))
            for step in range(settings.iterations)
        ]

    def ask(self) -> Tensor:
        """See `Solver.ask`."""
        samples = self.candidates_per_ask(self.settings)[self.iterations]
        exponent = self.own_setting("noise_exponent")
        noise = coloured_noise(self.generator, self.space, samples=samples, exponent=exponent)
        if self.iterations in (0, self.settings.iterations - 1):
            noise[0] = 0
        return self.around_mean(noise)

    def _learn(self, candidates: Tensor, costs: Tensor, _gradients: Tensor | None) -> None:
        pool = np.concatenate([candidates.numpy(), self.kept_elites])
        pool_costs = np.concatenate([costs.numpy(), self.kept_costs])
        order = pool_costs.argsort(kind="stable")
        elites = pool[order[: self.settings.elites]]
        kept = order[: min(ICEM_KEPT_ELITES, self.settings.elites)]
        self.kept_elites, self.kept_costs = pool[kept], pool_costs[kept]
        weights = rank_weights(len(elites))
        self._end_iteration(self._fit(elites, weights, self.own_setting("momentum")))


@cache
def rank_weights(count: int) -> Array:
    """Weights (count,) that sum to 1, for elites in order: log(count + ½) − log(rank), normalised.

    Source: Hansen, The CMA Evolution Strategy: A Tutorial, arXiv 1604.00772, where ``count`` is
    half of the samples.
    """
    weights = math.log(count + 0.5) - np.log(np.arange(1, count + 1))
    normalised: Array = (weights / weights.sum()).astype(np.float32)
    return normalised
