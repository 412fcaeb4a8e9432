"""Adam through the roll-out."""

import numpy as np
import pytest
import torch

from tests.lewm_serve.solvers.toy_searches import HIGH, bowl, new_solver, run, tell


def test_it_needs_gradients() -> None:
    solver = new_solver("gradient")
    assert solver.needs_gradients
    candidates = solver.ask()
    with pytest.raises(ValueError, match="gradients"):
        solver.tell(candidates, bowl(0)(candidates))


def test_its_steps_are_those_of_adam() -> None:
    rate, iterations, target = 0.05, 6, 0.9
    solver = new_solver(
        "gradient", samples=4, iterations=iterations, learning_rate=rate, deviation=0.1
    )
    points = solver.ask().double().numpy()
    first, second = np.zeros_like(points), np.zeros_like(points)
    for step, candidates in enumerate(run(solver, bowl(target)), start=1):
        assert candidates.numpy() == pytest.approx(points, abs=1e-5)
        gradients = 2 * (points - target)
        first = 0.9 * first + 0.1 * gradients
        second = 0.999 * second + 0.001 * gradients**2
        direction = first / (1 - 0.9**step) / np.sqrt(second / (1 - 0.999**step))
        points = points - rate * (1 + np.cos(np.pi * step / iterations)) / 2 * direction


def test_candidates_without_a_finite_gradient_stay_where_they_are() -> None:
    solver = new_solver("gradient", samples=3, iterations=2)
    first = solver.ask()
    gradients = torch.ones_like(first)
    gradients[1] = torch.nan
    solver.tell(first, torch.tensor([1.0, 1.0, torch.nan]), gradients)
    second = solver.ask()
    assert torch.equal(second[1:], first[1:])
    assert (second[0] < first[0]).all()


def test_a_step_that_ends_at_the_bounds_is_no_movement() -> None:
    solver = new_solver("gradient", samples=1, iterations=9, tolerance=0.01, start=float(HIGH[0]))
    tell(solver, solver.ask(), bowl(5))
    assert solver.converged
