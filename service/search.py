"""How far a request's search came: what a plan, or the fallback in its place, is answered from."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from service.engine.jobs import PlanOutcome
from service.engine.ticket import Ticket
from service.latents import Latents
from service.planning.solver import Solver
from service.served import ServedModel


@dataclass
class Search:
    """One search with its ``past`` actions (H − 1, A), z-scored; the rest is None at first.

    ``latents`` are those of the frames and, last, the goal.
    """

    model: ServedModel
    ticket: Ticket
    solver: Solver
    past: Tensor
    latents: Latents | None = None
    outcome: PlanOutcome | None = None
