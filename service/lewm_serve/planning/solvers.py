"""The solvers by name."""

from __future__ import annotations

from lewm_models.card import SolverDefaults
from lewm_serve.planning.cem import CEM
from lewm_serve.planning.gradient import Gradient
from lewm_serve.planning.icem import ICEM
from lewm_serve.planning.mppi import MPPI
from lewm_serve.planning.predictive_sampling import PredictiveSampling
from lewm_serve.planning.solver import Problem, Solver

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
