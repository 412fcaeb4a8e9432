"""The solvers by name."""

from __future__ import annotations

from models.card import SolverDefaults
from service.planning.cem import CEM
from service.planning.gradient import Gradient
from service.planning.icem import ICEM
from service.planning.mppi import MPPI
from service.planning.predictive_sampling import PredictiveSampling
from service.planning.solver import Problem, Solver

SOLVERS: dict[str, type[Solver]] = {
    "cem": CEM,
    "icem": ICEM,
    "mppi": MPPI,
    "random": PredictiveSampling,
    "gradient": Gradient,
}


def make_solver(settings: SolverDefaults, problem: Problem, seed: int) -> Solver:
    """The solver that the settings name; `KeyError` for an unknown one."""
    return SOLVERS[settings.name](settings, problem, seed)
