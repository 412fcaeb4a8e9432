"""Model predictive path integral control."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from lewm_serve.solvers.solver import GaussianSolver, coloured_noise


class MPPI(GaussianSolver):
    """MPPI (Williams et al., Information Theoretic MPC, ICRA 2017; arXiv 1707.02342).

    All candidates contribute, with weights exp(−(cost − best cost) / λ). Costs have no unit that
    two models share, so λ is ``temperature`` times the mean of (cost − best cost) in this
    iteration. Scaling or shifting all costs therefore does not change the plan. With a temperature
    of 1, an average candidate has 1/e of the weight of the best.

    In the papers the deviation is constant, because they run one iteration per control step. Here
    it is fitted with the same weights, so that a search of several iterations narrows down.
    Candidate 0 is the current mean. The noise is coloured. The answer is the best sequence that was
    scored.
    """

    own_settings: ClassVar[Mapping[str, float]] = {
        "temperature": 0.1,
        "deviation": 1.0,
        "noise_exponent": 2.0,
    }

    def ask(self) -> Tensor:
        """See `Solver.ask`."""
        noise = coloured_noise(
            self.generator,
            self.space,
            samples=self.settings.samples,
            exponent=self.own_setting("noise_exponent"),
        )
        noise[0] = 0
        return self.around_mean(noise)

    def _learn(self, candidates: Tensor, costs: Tensor, _gradients: Tensor | None) -> None:
        weights = path_weights(costs, self.own_setting("temperature"))
        self._end_iteration(self._fit(candidates.numpy(), weights.numpy(), momentum=0.0))


def path_weights(costs: Tensor, temperature: float) -> Tensor:
    """Weights (S,) that sum to 1 for costs (S,); see `MPPI`.

    Infinite costs get no weight. If all costs are infinite, all weights are equal.
    """
    above_best = costs.double() - costs.min()
    finite = above_best.isfinite()
    if not finite.any():
        return torch.full_like(costs, 1 / len(costs))
    spread = above_best[finite].mean().clamp(min=torch.finfo(torch.float64).tiny)
    return (-above_best / spread / temperature).softmax(dim=0).to(costs.dtype)
