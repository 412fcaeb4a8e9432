"""Model predictive path integral control: every candidate counts, the better ones more."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from lewm_serve.planning.gaussian import GaussianSolver
from lewm_serve.planning.noise import coloured_noise


class MPPI(GaussianSolver):
    """MPPI (Williams et al., Information Theoretic MPC, ICRA 2017; arXiv 1707.02342).

    The next mean is that of all candidates weighted by exp(−(cost − best) / λ). Costs are squared
    latent distances, which have no unit that two models share, so λ is ``temperature`` times the
    spread of the iteration's costs: their mean distance from the best. A cost scaled or shifted
    gives the same plan, and 1 means that an average candidate counts 1/e of the best.

    In the papers the deviation stays as it is, as suits one iteration a control step. Here it is
    fitted by the same weights, so that a search of several iterations closes in. Candidate 0 is the
    current mean; the noise is coloured; the best sequence ever scored is the answer.
    """

    own: ClassVar[Mapping[str, float]] = {
        "temperature": 0.1,
        "deviation": 1.0,
        "noise_exponent": 2.0,
    }

    def ask(self) -> Tensor:
        """See `Solver.ask`."""
        noise = coloured_noise(
            self.generator, self.problem, self.settings.samples, self.setting("noise_exponent")
        )
        noise[0] = 0
        return self.around(noise)

    def _learn(self, candidates: Tensor, costs: Tensor, _gradients: Tensor | None) -> None:
        weights = path_weights(costs, self.setting("temperature"))
        self._end_iteration(self._refit(candidates.numpy(), weights.numpy(), momentum=0.0))


def path_weights(costs: Tensor, temperature: float) -> Tensor:
    """Weights (S,) that sum to 1 for costs (S,): exp(−(cost − best) / λ), λ in units of the spread.

    An infinite cost gets no weight, unless all are: then they are alike.
    """
    above = costs.double() - costs.min()
    finite = above.isfinite()
    if not finite.any():
        return torch.full_like(costs, 1 / len(costs))
    spread = above[finite].mean().clamp(min=torch.finfo(torch.float64).tiny)
    return (-above / spread / temperature).softmax(dim=0).to(costs.dtype)
