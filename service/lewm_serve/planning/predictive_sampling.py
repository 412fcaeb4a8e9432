"""Predictive sampling: guess, and keep the best guess."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from torch import Tensor

from lewm_models.card import SolverDefaults
from lewm_serve.planning.noise import coloured_noise
from lewm_serve.planning.solver import Problem, Solver

SHRINK = 0.5
"""What an iteration that found nothing better does to the noise."""


class PredictiveSampling(Solver):
    """Predictive sampling (Howell et al., Predictive Sampling, 2022, arXiv 2212.00541).

    Candidates are drawn around the best sequence so far, with noise that is as wide in every
    component; in the paper splines make it smooth, here its colour does. In the paper its deviation
    stays as it is, as suits one iteration a control step. Here it halves when an iteration found
    nothing better, so that a search of several iterations closes in.

    Converged: the noise's deviation is at most ``tolerance``.
    """

    own: ClassVar[Mapping[str, float]] = {"deviation": 1.0, "noise_exponent": 2.0}

    def __init__(self, settings: SolverDefaults, problem: Problem, seed: int) -> None:
        super().__init__(settings, problem, seed)
        self.mean = problem.start
        self.deviation = self.setting("deviation")

    def ask(self) -> Tensor:
        """See `Solver.ask`; the first one's candidate 0 is the start itself."""
        noise = coloured_noise(
            self.generator, self.problem, self.settings.samples, self.setting("noise_exponent")
        )
        if self.iterations == 0:
            noise[0] = 0
        return self.clip(self.mean + self.deviation * noise)

    def _learn(self, _candidates: Tensor, _costs: Tensor, _gradients: Tensor | None) -> None:
        assert self.best is not None  # the costs have just been told
        if self.best.actions is self.mean:
            self.deviation *= SHRINK
        self.mean = self.best.actions
        self._end_iteration(self.deviation)
