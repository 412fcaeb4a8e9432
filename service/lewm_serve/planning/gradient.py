"""Gradient descent on the actions, through the roll-out."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from lewm_models.card import SolverDefaults
from lewm_serve.planning.noise import coloured_noise
from lewm_serve.planning.solver import Problem, Solver

BETA1, BETA2, EPSILON = 0.9, 0.999, 1e-8
"""Adam's decay rates of the mean gradient and of its square; what it never divides by less than."""

EXPONENT = 2.0
"""The colour of the noise that sets the starts apart; see `coloured_noise`."""


class Gradient(Solver):
    """Adam through the roll-out, from many starts at once, projected on the bounds.

    Candidate 0 starts at the problem's start, the others around it, as far as ``deviation`` says.
    Each iteration moves every candidate by Adam's step and clips it. The step does not depend on
    the cost's unit; ``learning_rate`` is its length in deviations of the training actions, and
    falls to 0 over the iterations on half a cosine. The best sequence ever scored is the answer.
    Where cost or gradient is no number, a candidate goes on as it did.

    Converged: the best candidate's next step, at the full learning rate, would move every component
    by at most ``tolerance``.

    Sources: Kingma and Ba, Adam, arXiv 1412.6980; for planning by it Henaff et al., Model-Based
    Planning with Discrete and Continuous Actions, arXiv 1705.07177.
    """

    own: ClassVar[Mapping[str, float]] = {"learning_rate": 0.2, "deviation": 1.0}
    needs_gradients = True

    def __init__(self, settings: SolverDefaults, problem: Problem, seed: int) -> None:
        super().__init__(settings, problem, seed)
        noise = coloured_noise(self.generator, problem, settings.samples, EXPONENT)
        noise[0] = 0
        self.points = self.clip(problem.start + self.setting("deviation") * noise)
        self.first_moment = torch.zeros_like(self.points)
        self.second_moment = torch.zeros_like(self.points)

    def ask(self) -> Tensor:
        """See `Solver.ask`."""
        return self.points

    def _learn(self, candidates: Tensor, costs: Tensor, gradients: Tensor | None) -> None:
        if gradients is None:
            raise ValueError("gradients: expected those of the costs, got none")
        sound = costs.isfinite()[:, None, None] & gradients.isfinite()
        gradients = gradients.where(sound, 0.0)
        self.first_moment = gradients.lerp(self.first_moment, BETA1)
        self.second_moment = gradients.square().lerp(self.second_moment, BETA2)
        count = self.iterations + 1
        deviation = (self.second_moment / (1 - BETA2**count)).sqrt()
        direction = self.first_moment / (1 - BETA1**count) / (deviation + EPSILON)
        step = self.setting("learning_rate") * direction
        fraction = count / self.settings.iterations
        self.points = self.clip(candidates - step * (1 + math.cos(math.pi * fraction)) / 2)
        leader = int(costs.argmin())
        ahead = self.clip(candidates[leader] - step[leader]) - candidates[leader]
        self._end_iteration(float(ahead.abs().max()) if costs[leader].isfinite() else math.inf)
