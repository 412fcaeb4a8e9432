"""What is expected of a request's work."""

import math

import pytest
import torch

from lewm_models.card import SolverDefaults
from lewm_serve.engine.admission import QueuedRequest
from lewm_serve.engine.latency_model import LatencyModel, Shape
from lewm_serve.solvers import SOLVERS, make_solver
from lewm_serve.solvers.solver import Problem
from tests.lewm_serve.engine.fakes import FakeClock


@pytest.mark.parametrize("name", sorted(SOLVERS))
@pytest.mark.parametrize(
    ("samples", "iterations", "elites"), [(96, 6, 10), (300, 30, 30), (1, 1, 1)]
)
def test_a_solvers_workload_is_what_it_asks_for(
    name: str, samples: int, iterations: int, elites: int
) -> None:
    settings = SolverDefaults(name, samples, iterations, elites, horizon=2)
    bound = torch.ones(4)
    solver = make_solver(settings, Problem(-bound, bound, torch.zeros(2, 4), action_dim=2), seed=1)
    expected, asked = solver.workload(), []
    while not solver.done:
        candidates = solver.ask()
        asked.append(len(candidates))
        solver.tell(candidates, candidates.square().sum(dim=(1, 2)), 2 * candidates)
    assert asked == expected


@pytest.fixture
def ticket() -> QueuedRequest:
    """Three iterations of 10, 20 and 30 ms."""
    pace = LatencyModel([(1, 0.001)], clock=FakeClock())
    return QueuedRequest(pace, 0.0, rows=(10, 20, 30), shape=Shape(1))


def test_iterations_within_a_time(ticket: QueuedRequest) -> None:
    assert ticket.solve_s() == pytest.approx(0.06)
    assert [ticket.within(seconds) for seconds in (-1, 0.0, 0.009, 0.011, 0.031, 1, math.inf)] == [
        0, 0, 0, 1, 2, 3, 3,
    ]  # fmt: skip
    ticket.done = 1
    assert ticket.solve_s() == pytest.approx(0.05)
    assert [ticket.within(seconds) for seconds in (0.0, 0.021, 0.051)] == [1, 2, 3]


def test_its_expectations_follow_the_pace(ticket: QueuedRequest) -> None:
    ticket.pace.observe(10, Shape(1), 0.02)
    assert ticket.solve_s() == pytest.approx(0.12)
    assert ticket.within(0.031) == 1
