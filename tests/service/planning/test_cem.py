"""CEM on toy costs, where the optimum is known."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from models.card import SolverDefaults
from service.planning.cem import CEM
from service.planning.solver import Problem

LOW, HIGH = torch.full((2,), -1.5), torch.full((2,), 1.0)


def problem(horizon: int = 3) -> Problem:
    return Problem(LOW, HIGH, torch.zeros(horizon, 2))


Cost = Callable[[Tensor], Tensor]


def to_point(target: float) -> Cost:
    return lambda candidates: (candidates - target).square().sum(dim=(1, 2))


def solve(solver: CEM, cost: Cost, watch: Callable[[CEM, Tensor], object] = lambda *_: None) -> CEM:
    while not solver.done:
        candidates = solver.ask()
        watch(solver, candidates)
        solver.tell(candidates, cost(candidates))
    return solver


def two_valleys(candidates: Tensor) -> Tensor:
    """Valleys at −1 (cost 0.5) and +0.8 (cost 0)."""
    left = (candidates + 1).square().sum(dim=(1, 2)) + 0.5
    return torch.minimum(left, (candidates - 0.8).square().sum(dim=(1, 2)))


@pytest.mark.parametrize("cost", [to_point(0.7), two_valleys])
def test_it_finds_the_optimum(cost: Cost) -> None:
    solver = solve(CEM(SolverDefaults(samples=300, elites=30), problem(), seed=1), cost)
    assert solver.best is not None
    assert solver.best.cost == pytest.approx(0, abs=1e-3)


def test_an_optimum_outside_the_bounds_is_met_at_the_bound() -> None:
    solver = solve(CEM(SolverDefaults(samples=300, elites=30), problem(), seed=1), to_point(5))
    assert solver.best is not None
    assert torch.allclose(solver.best.actions, HIGH.expand(3, 2), atol=1e-6)


@settings(max_examples=50, deadline=None)
@given(
    samples=st.integers(1, 40),
    elites=st.integers(1, 40),
    iterations=st.integers(1, 6),
    horizon=st.integers(1, 4),
    target=st.floats(-3, 3),
    seed=st.integers(0, 2**63 - 1),
)
def test_the_best_never_gets_worse_and_stays_in_bounds(
    samples: int, elites: int, iterations: int, horizon: int, target: float, seed: int
) -> None:
    asked = SolverDefaults(samples=samples, iterations=iterations, elites=min(elites, samples))
    bests: list[float] = []

    def watch(solver: CEM, candidates: Tensor) -> None:
        assert ((candidates >= LOW) & (candidates <= HIGH)).all()
        if solver.best is not None:
            bests.append(solver.best.cost)

    cost = to_point(target)
    solver = solve(CEM(asked, problem(horizon), seed), cost, watch)
    assert solver.best is not None
    assert bests == sorted(bests, reverse=True)
    assert solver.best.cost <= bests[-1]
    assert solver.iterations == iterations
    assert solver.candidates == samples * iterations + 1
    assert solver.best.cost == float(cost(solver.best.actions.unsqueeze(0)))


def test_the_seed_fixes_the_search_whatever_else_draws_numbers() -> None:
    def run() -> Tensor:
        solver = CEM(SolverDefaults(samples=20, iterations=4, elites=4), problem(), seed=7)
        solve(solver, to_point(0.3), lambda *_: torch.rand(3))
        assert solver.best is not None
        return solver.best.actions

    assert torch.equal(run(), run())


def test_the_first_candidate_is_the_warm_start() -> None:
    start = torch.full((3, 2), 0.4)
    solver = CEM(SolverDefaults(), Problem(LOW, HIGH, start), seed=0)
    assert torch.equal(solver.ask()[0], start)


def test_the_mean_of_the_last_iteration_is_scored_too() -> None:
    solver = solve(
        CEM(SolverDefaults(samples=50, iterations=2, elites=5), problem(), 3), to_point(0)
    )
    assert solver.ask().shape[0] == 1


def test_it_converges_only_when_asked_to() -> None:
    patient = solve(CEM(SolverDefaults(samples=64, elites=8), problem(), 0), to_point(0.2))
    assert (patient.iterations, patient.converged) == (30, False)
    eager = SolverDefaults(samples=64, elites=8, tolerance=0.05)
    quick = solve(CEM(eager, problem(), 0), to_point(0.2))
    assert quick.converged
    assert quick.iterations < 30


def test_costs_that_are_no_numbers_lose() -> None:
    def broken(candidates: Tensor) -> Tensor:
        cost = to_point(0.5)(candidates)
        cost[1::2] = torch.nan
        return cost

    solver = solve(CEM(SolverDefaults(samples=300, elites=30), problem(), 2), broken)
    assert solver.best is not None
    assert solver.best.cost < 0.01
