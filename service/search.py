"""How far a request's search came: what a plan, or the fallback in its place, is answered from."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from service.engine.jobs import PlanOutcome
from service.engine.ticket import Ticket
from service.latents import Latents
from service.planning.solver import Solver
from service.responses import Health
from service.served import ServedModel


@dataclass
class Search:
    """One search with its ``past`` actions (H − 1, A), z-scored; what it finds is None at first.

    ``guarded``: a fallback answers in its place for what is anomalous.
    ``latents`` are those of the frames and, last, the goal; ``expected`` (D,) is what the newest
    frame's was predicted to be; ``health`` is there before the end where nothing was to be
    predicted.
    """

    model: ServedModel
    ticket: Ticket
    solver: Solver
    past: Tensor
    guarded: bool = False
    latents: Latents | None = None
    outcome: PlanOutcome | None = None
    expected: Tensor | None = None
    health: Health | None = None
