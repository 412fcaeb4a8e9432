"""Searches on toy costs whose optimum is known."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from lewm_models.card import SolverConfig
from lewm_serve.solvers import SOLVERS
from lewm_serve.solvers.solver import SearchSpace, Solver

LOW, HIGH = torch.full((2,), -1.5), torch.full((2,), 1.0)

Cost = Callable[[Tensor], Tensor]
"""Candidates (S, T, A) → costs (S,)."""


def space(horizon: int = 3, start: float = 0.0) -> SearchSpace:
    """A search space with blocks of one step and two action dimensions."""
    return SearchSpace(LOW, HIGH, torch.full((horizon, 2), start), action_dim=2)


def bowl(target: float) -> Cost:
    """The squared distance from a point whose components are all ``target``."""
    return lambda candidates: (candidates - target).square().sum(dim=(1, 2))


def two_valleys(candidates: Tensor) -> Tensor:
    """Valleys at −1 (cost 0.5) and +0.8 (cost 0)."""
    return torch.minimum(bowl(-1)(candidates) + 0.5, bowl(0.8)(candidates))


def ripples(candidates: Tensor) -> Tensor:
    """A bowl around 0.5 (cost 0), with two dozen local minima around it in the mean action."""
    mean = candidates.mean(dim=1) - 0.5
    waves = 0.1 * (1 - torch.cos(4 * torch.pi * mean))
    return bowl(0.5)(candidates) + waves.sum(dim=1)


def new_solver(name: str, seed: int = 1, start: float = 0.0, **changes: Any) -> Solver:
    """A solver with moderate settings, changed."""
    moderate = {"samples": 300, "iterations": 30, "elites": 10, "horizon": 3}
    settings = SolverConfig(name, **moderate | changes)
    return SOLVERS[name](settings, space(settings.horizon, start), seed)


def tell(solver: Solver, candidates: Tensor, cost: Cost) -> None:
    """Tell the costs of candidates, and their gradients to a solver that needs them."""
    points = candidates.clone().requires_grad_()
    costs = cost(points)
    gradients = None
    if solver.needs_gradients:
        (gradients,) = torch.autograd.grad(costs.sum(), points)
    solver.tell(candidates, costs.detach(), gradients)


def run(solver: Solver, cost: Cost) -> Iterator[Tensor]:
    """Search to the end. Yields the candidates of each `ask` after their costs were told."""
    while not solver.done:
        candidates = solver.ask()
        tell(solver, candidates, cost)
        yield candidates


def search(name: str, cost: Cost, **changes: Any) -> Solver:
    """A solver whose search has ended."""
    solver = new_solver(name, **changes)
    for _ in run(solver, cost):
        pass
    return solver
