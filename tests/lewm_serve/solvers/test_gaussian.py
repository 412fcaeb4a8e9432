"""The solvers that fit a Gaussian: CEM, iCEM and MPPI."""

import math

import numpy as np
import pytest
import torch

from lewm_serve.solvers.cem import rank_weights
from lewm_serve.solvers.mppi import path_weights
from lewm_serve.solvers.solver import GaussianSolver, Solver
from tests.lewm_serve.solvers.toy_searches import bowl, new_solver, run


def mean_of(solver: Solver) -> torch.Tensor:
    assert isinstance(solver, GaussianSolver)
    return solver.mean


def test_cem_scores_its_final_mean_too() -> None:
    solver = new_solver("cem", samples=50, iterations=2)
    *_, last = run(solver, bowl(0))
    assert solver.candidates_per_ask(solver.settings) == [50, 50, 1]
    assert torch.equal(last[0], mean_of(solver))


def test_icem_has_fewer_samples_in_each_iteration() -> None:
    solver = new_solver("icem", samples=50, iterations=5, elites=13)
    assert solver.candidates_per_ask(solver.settings) == [50, 40, 32, 26, 26]


def test_icem_scores_its_mean_first_and_last() -> None:
    solver = new_solver("icem", samples=10, iterations=4, elites=3)
    while not solver.done:
        mean = mean_of(solver).clone()
        candidates = solver.ask()
        assert torch.equal(candidates[0], mean) == (solver.iterations in (0, 3))
        solver.tell(candidates, bowl(0.3)(candidates))


def test_icem_keeps_elites_with_their_costs() -> None:
    solver = new_solver("icem", samples=10, iterations=2, elites=1, momentum=0.0)
    candidates = solver.ask()
    solver.tell(candidates, bowl(0.3)(candidates))
    best, worse = solver.best, solver.ask()
    assert best is not None
    assert not any(torch.equal(candidate, best.actions) for candidate in worse[1:])
    solver.tell(worse, torch.full((len(worse),), 100.0))
    assert torch.equal(mean_of(solver), best.actions)


def test_path_weights_fall_exponentially_with_the_cost() -> None:
    # The costs above the best are 0, 1 and 2, and their mean is 1.
    weights = path_weights(torch.tensor([5.0, 6.0, 7.0]), temperature=0.5)
    assert weights.sum() == pytest.approx(1)
    assert (weights[1:] / weights[:-1]).log() == pytest.approx(torch.tensor([-2.0, -2.0]))


def test_path_weights_do_not_depend_on_the_unit_of_the_cost() -> None:
    costs = torch.tensor([5.0, 6.5, 7.0, 30.0])
    weights = path_weights(costs, temperature=0.3)
    for scale, shift in ((1e-6, 0.0), (1e6, 0.0), (1.0, 1e3)):
        assert path_weights(scale * costs + shift, 0.3) == pytest.approx(weights, abs=1e-3)


def test_path_weights_of_extreme_costs_and_temperatures() -> None:
    assert path_weights(torch.tensor([2.0, math.inf, 1.0]), 1e-300).tolist() == [0, 0, 1]
    assert path_weights(torch.tensor([2.0, 1.0]), 1e300).tolist() == [0.5, 0.5]
    assert path_weights(torch.tensor([3.0, 3.0]), 0.1).tolist() == [0.5, 0.5]
    assert path_weights(torch.tensor([math.inf, math.inf]), 0.1).tolist() == [0.5, 0.5]
    assert path_weights(torch.tensor([math.inf, 1.0]), 0.1).tolist() == [0, 1]


def test_rank_weights_fall_with_the_rank() -> None:
    assert rank_weights(1).tolist() == [1]
    weights = rank_weights(10)
    assert weights.sum() == pytest.approx(1)
    assert weights.min() > 0
    assert (np.diff(weights) < 0).all()
    # CMA-ES weighs the better ten of twenty in this way.
    assert weights[0] / weights[1] == pytest.approx(math.log(10.5) / math.log(10.5 / 2))
