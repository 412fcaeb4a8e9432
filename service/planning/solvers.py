"""The solvers by name."""

from __future__ import annotations

from models.card import SolverDefaults
from service.planning.cem import CEM
from service.planning.icem import ICEM
from service.planning.solver import Problem, Solver

SOLVERS: dict[str, type[Solver]] = {"cem": CEM, "icem": ICEM}


def make_solver(settings: SolverDefaults, problem: Problem, seed: int) -> Solver:
    """The solver that the settings name; `KeyError` for an unknown one."""
    return SOLVERS[settings.name](settings, problem, seed)
