"""Predictive sampling: sample around the best sequence so far and keep the best."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from torch import Tensor

from lewm_models.card import SolverConfig
from lewm_serve.solvers.solver import SearchSpace, Solver, coloured_noise

DEVIATION_DECAY = 0.5
"""The noise shrinks by this factor after an iteration that found nothing better."""


class PredictiveSampling(Solver):
    """Predictive sampling (Howell et al., Predictive Sampling, 2022, arXiv 2212.00541).

    Candidates are drawn around the best sequence so far. The noise has the same deviation in every
    component. It is coloured, which makes it smooth; the paper uses splines instead. In the paper
    the deviation is constant, because it runs one iteration per control step. Here the deviation
    halves when an iteration finds nothing better, so that a search of several iterations narrows
    down. It does not halve after the first iteration.

    The search has converged when the deviation of the noise is at most ``tolerance``.
    """

    own_settings: ClassVar[Mapping[str, float]] = {"deviation": 1.0, "noise_exponent": 2.0}

    def __init__(self, settings: SolverConfig, space: SearchSpace, seed: int) -> None:
        super().__init__(settings, space, seed)
        self.centre = space.start
        self.deviation = self.own_setting("deviation")

    def ask(self) -> Tensor:
        """See `Solver.ask`. Candidate 0 of the first iteration is the start itself."""
        noise = coloured_noise(
            self.generator,
            self.space,
            samples=self.settings.samples,
            exponent=self.own_setting("noise_exponent"),
        )
        if self.iterations == 0:
            noise[0] = 0
        return self.clip(self.centre + self.deviation * noise)

    def _learn(self, _candidates: Tensor, _costs: Tensor, _gradients: Tensor | None) -> None:
        assert self.best is not None  # `tell` sets it before it calls this method
        if self.best.actions is self.centre:  # the same object: nothing better was found
            self.deviation *= DEVIATION_DECAY
        self.centre = self.best.actions
        self._end_iteration(self.deviation)
