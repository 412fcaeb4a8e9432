"""The searches that fit a Gaussian: CEM, iCEM, MPPI."""

import math

import numpy as np
import pytest
import torch

from lewm_serve.solvers.cem import rank_weights
from lewm_serve.solvers.mppi import path_weights
from tests.lewm_serve.solvers.searches import new, run, to_point

INFINITE = float("inf")


def test_cem_scores_its_last_mean_too() -> None:
    solver = new("cem", samples=50, iterations=2)
    *_, last = run(solver, to_point(0))
    assert solver.workload() == [50, 50, 1]
    assert torch.equal(last[0], solver.mean)  # type: ignore[attr-defined]


def test_icem_samples_less_and_less() -> None:
    assert new("icem", samples=50, iterations=5, elites=13).workload() == [50, 40, 32, 26, 26]


def test_icem_scores_its_mean_first_and_last() -> None:
    solver = new("icem", samples=10, iterations=4, elites=3)
    while not solver.done:
        mean = solver.mean.clone()  # type: ignore[attr-defined]
        candidates = solver.ask()
        assert torch.equal(candidates[0], mean) == (solver.iterations in (0, 3))
        solver.tell(candidates, to_point(0.3)(candidates))


def test_icem_remembers_its_elites_instead_of_scoring_them_again() -> None:
    solver = new("icem", samples=10, iterations=2, elites=1, momentum=0.0)
    candidates = solver.ask()
    solver.tell(candidates, to_point(0.3)(candidates))
    best, worse = solver.best, solver.ask()
    assert best is not None
    assert not any(torch.equal(candidate, best.actions) for candidate in worse[1:])
    solver.tell(worse, torch.full((len(worse),), 100.0))
    assert torch.equal(solver.mean, best.actions)  # type: ignore[attr-defined]


def test_path_weights_follow_the_exponential_of_the_cost() -> None:
    # Distances from the best are 0, 1, 2: their mean is 1.
    weights = path_weights(torch.tensor([5.0, 6.0, 7.0]), temperature=0.5)
    assert weights.sum() == pytest.approx(1)
    assert (weights[1:] / weights[:-1]).log() == pytest.approx(torch.tensor([-2.0, -2.0]))


def test_path_weights_have_no_unit() -> None:
    costs = torch.tensor([5.0, 6.5, 7.0, 30.0])
    weights = path_weights(costs, temperature=0.3)
    for scale, shift in ((1e-6, 0.0), (1e6, 0.0), (1.0, 1e3)):
        assert path_weights(scale * costs + shift, 0.3) == pytest.approx(weights, abs=1e-3)


def test_path_weights_at_the_edges() -> None:
    assert path_weights(torch.tensor([2.0, INFINITE, 1.0]), 1e-300).tolist() == [0, 0, 1]
    assert path_weights(torch.tensor([2.0, 1.0]), 1e300).tolist() == [0.5, 0.5]
    assert path_weights(torch.tensor([3.0, 3.0]), 0.1).tolist() == [0.5, 0.5]
    assert path_weights(torch.tensor([INFINITE, INFINITE]), 0.1).tolist() == [0.5, 0.5]
    assert path_weights(torch.tensor([INFINITE, 1.0]), 0.1).tolist() == [0, 1]


def test_rank_weights_fall_with_the_rank() -> None:
    assert rank_weights(1).tolist() == [1]
    weights = rank_weights(10)
    assert weights.sum() == pytest.approx(1)
    assert weights.min() > 0
    assert (np.diff(weights) < 0).all()
    # As CMA-ES weighs the better ten of twenty.
    assert weights[0] / weights[1] == pytest.approx(math.log(10.5) / math.log(10.5 / 2))
