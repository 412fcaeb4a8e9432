"""Every solver on toy costs, where the optimum is known."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from models.card import SolverDefaults
from service.planning.icem import coloured_noise
from service.planning.solver import Problem, Solver
from service.planning.solvers import SOLVERS, make_solver

LOW, HIGH = torch.full((2,), -1.5), torch.full((2,), 1.0)


def problem(horizon: int = 3) -> Problem:
    return Problem(LOW, HIGH, torch.zeros(horizon, 2), action_dim=2)


Cost = Callable[[Tensor], Tensor]


def to_point(target: float) -> Cost:
    return lambda candidates: (candidates - target).square().sum(dim=(1, 2))


def search(
    name: str,
    cost: Cost,
    watch: Callable[[Solver, Tensor], object] = lambda *_: None,
    *,
    samples: int = 300,
    iterations: int = 30,
    elites: int = 10,
    tolerance: float = 0.0,
    horizon: int = 3,
    seed: int = 1,
) -> Solver:
    settings = SolverDefaults(name, samples, iterations, elites, horizon, tolerance)
    solver = make_solver(settings, problem(horizon), seed)
    while not solver.done:
        candidates = solver.ask()
        watch(solver, candidates)
        solver.tell(candidates, cost(candidates))
    return solver


def two_valleys(candidates: Tensor) -> Tensor:
    """Valleys at −1 (cost 0.5) and +0.8 (cost 0)."""
    left = (candidates + 1).square().sum(dim=(1, 2)) + 0.5
    return torch.minimum(left, (candidates - 0.8).square().sum(dim=(1, 2)))


@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize("cost", [to_point(0.7), two_valleys])
def test_it_finds_the_optimum(name: str, cost: Cost) -> None:
    solver = search(name, cost)
    assert solver.best is not None
    assert solver.best.cost == pytest.approx(0, abs=1e-3)


@pytest.mark.parametrize("name", SOLVERS)
def test_an_optimum_outside_the_bounds_is_met_at_the_bound(name: str) -> None:
    solver = search(name, to_point(5))
    assert solver.best is not None
    assert torch.allclose(solver.best.actions, HIGH.expand(3, 2), atol=1e-3)


@pytest.mark.parametrize("name", SOLVERS)
@settings(max_examples=40)
@given(
    samples=st.integers(1, 40),
    elites=st.integers(1, 40),
    iterations=st.integers(1, 6),
    horizon=st.integers(1, 4),
    target=st.floats(-3, 3),
    seed=st.integers(0, 2**63 - 1),
)
def test_the_best_never_gets_worse_and_stays_in_bounds(
    name: str,
    samples: int,
    elites: int,
    iterations: int,
    horizon: int,
    target: float,
    seed: int,
) -> None:
    bests: list[float] = []
    scored = 0

    def watch(solver: Solver, candidates: Tensor) -> None:
        nonlocal scored
        scored += len(candidates)
        assert candidates.shape[1:] == (horizon, 2)
        assert ((candidates >= LOW) & (candidates <= HIGH)).all()
        if solver.best is not None:
            bests.append(solver.best.cost)

    cost = to_point(target)
    solver = search(
        name,
        cost,
        watch,
        samples=samples,
        elites=min(elites, samples),
        iterations=iterations,
        horizon=horizon,
        seed=seed,
    )
    assert solver.best is not None
    assert bests == sorted(bests, reverse=True)
    assert solver.best.cost <= bests[-1]
    assert (solver.iterations, solver.candidates) == (iterations, scored)
    assert solver.best.cost == pytest.approx(float(cost(solver.best.actions[None])), rel=1e-5)


@pytest.mark.parametrize("name", SOLVERS)
def test_the_seed_fixes_the_search_whatever_else_draws_numbers(name: str) -> None:
    def actions(seed: int) -> Tensor:
        solver = search(name, to_point(0.3), lambda *_: torch.rand(3), iterations=3, seed=seed)
        assert solver.best is not None
        return solver.best.actions

    assert torch.equal(actions(7), actions(7))
    assert not torch.equal(actions(7), actions(7 + 2**32))


@pytest.mark.parametrize("name", SOLVERS)
def test_the_warm_start_is_scored_in_the_first_iteration(name: str) -> None:
    start = torch.full((3, 2), 0.4)
    solver = make_solver(SolverDefaults(name), Problem(LOW, HIGH, start, action_dim=2), seed=0)
    assert any(torch.equal(candidate, start) for candidate in solver.ask())


@pytest.mark.parametrize("name", SOLVERS)
def test_it_converges_only_when_asked_to(name: str) -> None:
    patient = search(name, to_point(0.2))
    assert (patient.iterations, patient.converged) == (30, False)
    eager = search(name, to_point(0.2), tolerance=0.05)
    assert eager.converged
    assert eager.iterations < 30


@pytest.mark.parametrize("name", SOLVERS)
def test_costs_that_are_no_numbers_lose(name: str) -> None:
    def broken(candidates: Tensor) -> Tensor:
        cost = to_point(0.5)(candidates)
        cost[1::2] = torch.nan
        return cost

    solver = search(name, broken)
    assert solver.best is not None
    assert solver.best.cost < 0.01


def test_cem_scores_its_last_mean_too() -> None:
    asked: list[int] = []
    search("cem", to_point(0), lambda _, c: asked.append(len(c)), samples=50, iterations=2)
    assert asked == [50, 50, 1]


def test_icem_samples_less_and_less_and_keeps_elites() -> None:
    asked: list[int] = []
    search(
        "icem", to_point(0), lambda _, c: asked.append(len(c)), samples=50, iterations=5, elites=13
    )
    assert asked == [50 + 1, 40 + 5, 32 + 5, 26 + 5, 26 + 5, 1]


def test_coloured_noise_drifts_and_white_noise_does_not() -> None:
    noise = coloured_noise(np.random.default_rng(0), samples=2000, steps=25, action_dim=3)
    assert noise.shape == (2000, 25, 3)
    assert noise.square().mean(dim=1) == pytest.approx(torch.ones(2000, 3), abs=1e-5)
    # The mean of 25 white values would deviate by 0.2.
    assert float(noise.mean(dim=1).std()) > 0.4
    assert coloured_noise(np.random.default_rng(0), 2000, 1, 3).std() == pytest.approx(1, abs=0.05)
