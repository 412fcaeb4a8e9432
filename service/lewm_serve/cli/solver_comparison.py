"""Which solver an imported model plans with: CEM, as its publication does, or iCEM.

The published search, 300 candidates × 30 iterations, takes seconds on most CPUs. Both solvers plan
between the same pairs of frames with the same number of candidates, which takes the same time: that
of the faster one. The solver with the lower mean cost is chosen. Seeds are fixed.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lewm_models.card import ModelCard, SolverConfig
from lewm_models.lewm import LeWM
from lewm_serve.backends.backend import Backend
from lewm_serve.backends.choice import BackendSettings, choose_backend
from lewm_serve.cli.search import search, search_space
from lewm_serve.objectives.latent import LATENT
from lewm_serve.solvers import SOLVERS
from lewm_serve.solvers.solver import SearchSpace

MAX_PAIRS = 8
FULL_SEARCH_LIMIT_S = 15.0
"""Complete searches of the usual solver are made for as many pairs as fit in this time, at least
one."""

ICEM_SAMPLES, ICEM_ITERATIONS, SAMPLES_PER_ELITE = 96, 6, 6

Progress = Callable[[int, int], None]
"""Called after each pair with the number of pairs done and in all."""


@dataclass(frozen=True)
class SolverResult:
    """How one solver plans.

    Attributes:
        settings: the solver.
        plan_s: the median seconds of a complete plan from one frame.
        at_equal_time: the solver with fewer iterations, so that it takes the time of the other.
        equal_cost: the mean cost of its plans then.
        full_cost: the mean cost of its complete plans, over the pairs for which the usual solver
            had the time.
    """

    settings: SolverConfig
    plan_s: float
    at_equal_time: SolverConfig
    equal_cost: float
    full_cost: float


@dataclass(frozen=True)
class Comparison:
    """The solvers that were compared on ``pairs`` pairs of frames, by ``backend``."""

    usual: SolverResult
    icem: SolverResult
    pairs: int
    backend: str

    @property
    def better(self) -> SolverResult:
        """The solver with the lower cost at equal time; iCEM if both are equal."""
        return self.icem if self.icem.equal_cost <= self.usual.equal_cost else self.usual


def can_be_compared(settings: SolverConfig) -> bool:
    """Whether a solver can be compared with iCEM: it is another one, and needs no gradients."""
    return settings.name != "icem" and not SOLVERS[settings.name].needs_gradients


def compare_solvers(
    model: LeWM,
    card: ModelCard,
    pairs: Tensor,
    *,
    device: torch.device,
    progress: Progress | None = None,
) -> Comparison:
    """Compare the card's solver with iCEM, on the backend that a server would choose here.

    Args:
        model: in ``eval()`` mode.
        card: its card.
        pairs: frames of starts and goals (P, 2, size, size, 3) uint8. At most `MAX_PAIRS` are used.
        device: where the model runs.
        progress: see `Progress`.
    """
    usual = card.solver
    icem = icem_within(candidates(usual), horizon=usual.horizon)
    usual_at_equal_time = within(usual, candidates(icem))
    backend = choose_backend(
        model, card, frames=pairs.flatten(0, 1), device=device, settings=BackendSettings()
    ).backend
    pairs = pairs[:MAX_PAIRS]
    latents = [backend.encode(pair) for pair in pairs]
    space = search_space(card)

    equal_costs: list[float] = []
    full_costs: list[float] = []
    full_s: list[float] = []
    icem_costs: list[float] = []
    icem_s: list[float] = []
    timed_search(
        backend, icem, space, latents[0], seed=0
    )  # what only the first call of a size needs
    for seed, pair in enumerate(latents):
        cost, elapsed_s = timed_search(backend, icem, space, pair, seed=seed)
        icem_costs.append(cost)
        icem_s.append(elapsed_s)
        cost, _ = timed_search(backend, usual_at_equal_time, space, pair, seed=seed)
        equal_costs.append(cost)
        if not full_s or sum(full_s) + full_s[-1] <= FULL_SEARCH_LIMIT_S:
            cost, elapsed_s = timed_search(backend, usual, space, pair, seed=seed)
            full_costs.append(cost)
            full_s.append(elapsed_s)
        if progress is not None:
            progress(seed + 1, len(pairs))
    encode_s = _encode_seconds(backend, pairs[0, :1])
    return Comparison(
        usual=SolverResult(
            settings=usual,
            plan_s=encode_s + statistics.median(full_s),
            at_equal_time=usual_at_equal_time,
            equal_cost=statistics.fmean(equal_costs),
            full_cost=statistics.fmean(full_costs),
        ),
        icem=SolverResult(
            settings=icem,
            plan_s=encode_s + statistics.median(icem_s),
            at_equal_time=icem,
            equal_cost=statistics.fmean(icem_costs),
            full_cost=statistics.fmean(icem_costs[: len(full_costs)]),
        ),
        pairs=len(pairs),
        backend=f"{backend.name}, {backend.precision}, {backend.device}",
    )


def candidates(settings: SolverConfig) -> int:
    """The candidates of a complete search, to which its time is proportional."""
    return sum(SOLVERS[settings.name].candidates_per_ask(settings))


def icem_within(budget: int, *, horizon: int) -> SolverConfig:
    """The usual iCEM, or a smaller one of at most ``budget`` candidates."""
    for samples in range(ICEM_SAMPLES, 1, -1):
        elites = max(2, samples // SAMPLES_PER_ELITE)
        settings = SolverConfig(
            name="icem",
            samples=samples,
            iterations=ICEM_ITERATIONS,
            elites=min(elites, samples),
            horizon=horizon,
        )
        if candidates(settings) <= budget:
            return settings
    return SolverConfig(
        name="icem", samples=max(1, budget), iterations=1, elites=1, horizon=horizon
    )


def within(settings: SolverConfig, budget: int) -> SolverConfig:
    """The same search, with as many iterations as fit in ``budget`` candidates.

    If not even one fits, it has fewer candidates.
    """
    iterations = settings.iterations
    while iterations > 1 and candidates(replace(settings, iterations=iterations)) > budget:
        iterations -= 1
    shorter = replace(settings, iterations=iterations)
    if candidates(shorter) <= budget:
        return shorter
    samples = max(1, settings.samples - (candidates(shorter) - budget))
    return replace(shorter, samples=samples, elites=min(settings.elites, samples))


def timed_search(
    backend: Backend,
    settings: SolverConfig,
    space: SearchSpace,
    pair: Tensor,
    *,
    seed: int,
) -> tuple[float, float]:
    """The cost of a plan from a start to a goal, latents (2, D), and its seconds."""
    start, goal = pair
    begin = time.perf_counter()
    best = search(backend, settings, space, start=start, goal=goal, objective=LATENT, seed=seed)
    return best.cost, time.perf_counter() - begin


def _encode_seconds(backend: Backend, frame: Tensor) -> float:
    begin = time.perf_counter()
    backend.encode(frame)
    return time.perf_counter() - begin
