"""The search for actions: solvers by the name that requests and model cards use."""

from lewm_serve.solvers.cem import CEM, ICEM
from lewm_serve.solvers.gradient import Gradient
from lewm_serve.solvers.mppi import MPPI
from lewm_serve.solvers.predictive_sampling import PredictiveSampling
from lewm_serve.solvers.solver import Solver

SOLVERS: dict[str, type[Solver]] = {
    "cem": CEM,
    "icem": ICEM,
    "mppi": MPPI,
    "random": PredictiveSampling,
    "gradient": Gradient,
}


def solver_names(first: str) -> list[str]:
    """The names of all solvers, this one first."""
    return [first, *(name for name in SOLVERS if name != first)]
