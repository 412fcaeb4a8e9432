"""One plan in process: the search as the engine runs it, without the engine."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from lewm_models.card import SolverDefaults
from lewm_serve.backends.backend import Backend, goal_costs
from lewm_serve.registry.registry import LoadedModel
from lewm_serve.solvers import make_solver
from lewm_serve.solvers.solver import Problem, Solution

Predict = Callable[[Tensor, Tensor], Tensor]
"""FrameLatents (1, D), candidates (S, T, A) → the last predicted latents (S, D)."""


class Search:
    """A solver and what rolls its candidates out, from ``latent`` to ``goal``, both (D,)."""

    def __init__(
        self,
        model: LoadedModel,
        settings: SolverDefaults,
        latent: Tensor,
        goal: Tensor,
        seed: int = 0,
        predict: Predict | None = None,
    ) -> None:
        config = model.card.config
        mean = torch.zeros(settings.horizon, config.block_width).clamp(model.low, model.high)
        problem = Problem(model.low, model.high, mean, config.action_dim)
        self.solver = make_solver(settings, problem, seed)
        self._latents = latent.unsqueeze(0)
        self._goal = goal
        self._predict = served_rollout(model.backend) if predict is None else predict

    def iterate(self) -> None:
        """Ask, roll out, score, tell."""
        candidates = self.solver.ask()
        predicted = self._predict(self._latents, candidates)
        self.solver.tell(candidates, goal_costs(predicted.unsqueeze(1), self._goal))

    def run(self) -> Solution:
        """Iterate to the end."""
        while not self.solver.done:
            self.iterate()
        assert self.solver.best is not None  # every iteration scores candidates
        return self.solver.best


def served_rollout(backend: Backend) -> Predict:
    """The backend's roll-out for one plan, from one frame."""

    def predict(latents: Tensor, candidates: Tensor) -> Tensor:
        past = candidates.new_empty(1, 0, candidates.shape[-1])
        return backend.rollout(latents.unsqueeze(0), past, candidates.unsqueeze(0))[0, :, -1]

    return predict


def repeated(search: Search, iterations: int) -> Callable[[], None]:
    """So many iterations as a task to time; the search must be long enough for all of them."""

    def run() -> None:
        for _ in range(iterations):
            search.iterate()

    return run
