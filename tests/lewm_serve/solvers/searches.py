"""Searches on toy costs, where the optimum is known."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from lewm_models.card import SolverDefaults
from lewm_serve.solvers import make_solver
from lewm_serve.solvers.solver import Problem, Solver

LOW, HIGH = torch.full((2,), -1.5), torch.full((2,), 1.0)

Cost = Callable[[Tensor], Tensor]


def problem(horizon: int = 3, start: float = 0.0) -> Problem:
    """A horizon of blocks of one step each, of two action dimensions."""
    return Problem(LOW, HIGH, torch.full((horizon, 2), start), action_dim=2)


def to_point(target: float) -> Cost:
    """A bowl whose ground, 0, lies where every component is the target."""
    return lambda candidates: (candidates - target).square().sum(dim=(1, 2))


def two_valleys(candidates: Tensor) -> Tensor:
    """Valleys at −1 (cost 0.5) and +0.8 (cost 0)."""
    return torch.minimum(to_point(-1)(candidates) + 0.5, to_point(0.8)(candidates))


def ripples(candidates: Tensor) -> Tensor:
    """A bowl around 0.5 (cost 0), with two dozen local minima around it in the mean action."""
    mean = candidates.mean(dim=1) - 0.5
    waves = 0.1 * (1 - torch.cos(4 * torch.pi * mean))
    return to_point(0.5)(candidates) + waves.sum(dim=1)


def new(name: str, seed: int = 1, start: float = 0.0, **settings: Any) -> Solver:
    """A solver of modest settings, changed."""
    modest = {"samples": 300, "iterations": 30, "elites": 10, "horizon": 3}
    resolved = SolverDefaults(name, **modest | settings)
    return make_solver(resolved, problem(resolved.horizon, start), seed)


def tell(solver: Solver, candidates: Tensor, cost: Cost) -> None:
    """Tell the candidates' costs, and their gradients to a solver that needs them."""
    points = candidates.clone().requires_grad_()
    costs = cost(points)
    gradients = None
    if solver.needs_gradients:
        (gradients,) = torch.autograd.grad(costs.sum(), points)
    solver.tell(candidates, costs.detach(), gradients)


def run(solver: Solver, cost: Cost) -> Iterator[Tensor]:
    """Search to the end; what was asked each time, once it has been told."""
    while not solver.done:
        candidates = solver.ask()
        tell(solver, candidates, cost)
        yield candidates


def search(name: str, cost: Cost, **settings: Any) -> Solver:
    """A search that has ended."""
    solver = new(name, **settings)
    for _ in run(solver, cost):
        pass
    return solver
