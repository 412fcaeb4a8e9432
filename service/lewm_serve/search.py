"""How far a request's search came: what a plan, or the fallback in its place, is answered from."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from lewm_serve.engine.jobs import PlanOutcome
from lewm_serve.engine.ticket import Ticket
from lewm_serve.latents import Latents
from lewm_serve.monitor.health import Scores
from lewm_serve.planning.solver import Solver
from lewm_serve.responses import Health
from lewm_serve.served import ServedModel


@dataclass
class Search:
    """One search with its ``past`` actions (H − 1, A), z-scored; what it finds is None at first.

    ``guarded``: a fallback answers in its place for what is anomalous.
    ``latents`` are those of the frames and, last, the goal, and ``scores`` theirs; ``surprise`` is
    there before the end where a guard looked at it, ``health`` where nothing was to be predicted.
    """

    model: ServedModel
    ticket: Ticket
    solver: Solver
    past: Tensor
    guarded: bool = False
    latents: Latents | None = None
    outcome: PlanOutcome | None = None
    scores: Scores | None = None
    surprise: float | None = None
    health: Health | None = None
