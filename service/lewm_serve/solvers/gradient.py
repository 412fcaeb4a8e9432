"""Gradient descent on the actions, through the roll-out."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from lewm_models.card import SolverConfig
from lewm_serve.solvers.solver import SearchSpace, Solver, coloured_noise

ADAM_BETA1, ADAM_BETA2, ADAM_EPSILON = 0.9, 0.999, 1e-8
"""Adam's decay rates of the mean gradient and of its square, and its least denominator."""

START_NOISE_EXPONENT = 2.0
"""The ``exponent`` of the noise that separates the starting points; see `coloured_noise`."""


class Gradient(Solver):
    """Adam through the roll-out, from many starting points at once, clipped to the bounds.

    Candidate 0 starts at the start of the search space. The others start around it, at distances
    that the setting ``deviation`` gives. Each iteration moves every candidate by one Adam step and
    clips it to the bounds. ``learning_rate`` is the length of a step and falls to 0 along half a
    cosine. The answer is the best sequence that was scored. Where a cost or a gradient is not
    finite, the candidate continues with its momentum.

    The search has converged when the next step of the best candidate, at the full learning rate,
    would move every component by at most ``tolerance``.

    Sources: Kingma and Ba, Adam, arXiv 1412.6980; for planning Henaff et al., Model-Based Planning
    with Discrete and Continuous Actions, arXiv 1705.07177.
    """

    own_settings: ClassVar[Mapping[str, float]] = {"learning_rate": 0.2, "deviation": 1.0}
    needs_gradients = True

    def __init__(self, settings: SolverConfig, space: SearchSpace, seed: int) -> None:
        super().__init__(settings, space, seed)
        noise = coloured_noise(
            self.generator, space, samples=settings.samples, exponent=START_NOISE_EXPONENT
        )
        noise[0] = 0
        self.points = self.clip(space.start + self.own_setting("deviation") * noise)
        self.first_moment = torch.zeros_like(self.points)
        self.second_moment = torch.zeros_like(self.points)

    def ask(self) -> Tensor:
        """See `Solver.ask`: the same candidates in each iteration, one step further."""
        return self.points

    def _learn(self, candidates: Tensor, costs: Tensor, gradients: Tensor | None) -> None:
        if gradients is None:
            raise ValueError("gradients: expected those of the costs, received none")
        is_valid = costs.isfinite()[:, None, None] & gradients.isfinite()
        gradients = gradients.where(is_valid, 0.0)
        self.first_moment = gradients.lerp(self.first_moment, ADAM_BETA1)
        self.second_moment = gradients.square().lerp(self.second_moment, ADAM_BETA2)
        count = self.iterations + 1
        deviation = (self.second_moment / (1 - ADAM_BETA2**count)).sqrt()
        direction = self.first_moment / (1 - ADAM_BETA1**count) / (deviation + ADAM_EPSILON)
        step = self.own_setting("learning_rate") * direction
        fraction = count / self.settings.iterations
        self.points = self.clip(candidates - step * (1 + math.cos(math.pi * fraction)) / 2)
        best = int(costs.argmin())
        next_step = self.clip(candidates[best] - step[best]) - candidates[best]
        spread = float(next_step.abs().max()) if costs[best].isfinite() else math.inf
        self._end_iteration(spread)
