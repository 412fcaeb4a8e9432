"""How backends are compared: by the time of a plan, and by how they rank candidates."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from lewm_models.card import ModelCard
from lewm_serve.backends.backend import Backend, ThreadedBackend
from lewm_serve.objectives import Objective
from lewm_serve.objectives.latent import LATENT

SCREENING_SAMPLES, SCREENING_ROUNDS, SCREENING_LIMIT_S = 32, 3, 1.0
"""All options are first timed with few candidates, in as many rounds as fit in the limit, at most
three."""

CLEARLY_SLOWER = 2.0
"""Options that then take more than this many times as long as the fastest are dropped."""

TIMING_ROUNDS, TIMING_LIMIT_S = 5, 1.5
"""The remaining options are timed with the solver's own number of candidates, in as many rounds as
fit in the limit, at most five. If not even one round fits, they are timed with fewer candidates."""

RANKED_CANDIDATES, BEST_CANDIDATES = 300, 30
"""Candidates and elites of the paper's CEM."""

RANKED_PAIRS = 4
"""Pairs of start and goal on which rankings are compared."""

Option = tuple[ThreadedBackend, int]
"""A backend on a number of threads."""


@dataclass(frozen=True)
class BackendTiming:
    """A backend on a number of threads, and the seconds that a plan takes with it.

    For a clearly slower option the seconds are estimated from a plan of fewer candidates.
    """

    backend: ThreadedBackend
    threads: int
    plan_s: float


class _Run(NamedTuple):
    """One timed run: the seconds of a plan that it indicates, and the seconds that it took."""

    plan_s: float
    elapsed_s: float


class _Timer:
    """Times options in turns, so that a disturbance of the machine affects all of them."""

    def __init__(
        self,
        plan_seconds: Callable[[ThreadedBackend, int], float],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._plan_seconds = plan_seconds
        self._clock = clock

    def rounds(
        self, options: Sequence[Option], samples: int, *, max_rounds: int, limit_s: float
    ) -> list[list[_Run]]:
        """Run each option once a round, with this many candidates.

        There is at least one round. There are more, up to ``max_rounds``, if they fit in
        ``limit_s``.
        """
        rounds: list[list[_Run]] = []
        elapsed_s = round_s = 0.0
        while not rounds or (len(rounds) < max_rounds and elapsed_s + round_s <= limit_s):
            rounds.append([self._run(option, samples) for option in options])
            round_s = sum(run.elapsed_s for run in rounds[-1])
            elapsed_s += round_s
        return rounds

    def _run(self, option: Option, samples: int) -> _Run:
        backend, threads = option
        backend.threads = threads
        begin = self._clock()
        plan_s = self._plan_seconds(backend, samples)
        return _Run(plan_s, self._clock() - begin)


def time_options(
    options: Sequence[Option],
    *,
    samples: int,
    plan_seconds: Callable[[ThreadedBackend, int], float],
    clock: Callable[[], float] = time.monotonic,
) -> list[BackendTiming]:
    """Time backends on numbers of threads. The time of an option is the median of its runs.

    ``samples`` is the number of candidates of the solver. ``plan_seconds`` times a plan with a
    number of candidates.
    """
    timer = _Timer(plan_seconds, clock)
    few = min(SCREENING_SAMPLES, samples)
    timer.rounds(options, few, max_rounds=1, limit_s=0)  # fills caches and builds graphs
    screening = timer.rounds(options, few, max_rounds=SCREENING_ROUNDS, limit_s=SCREENING_LIMIT_S)
    plan_s = _median_plan_s(options, screening)
    fastest_s = min(plan_s.values())
    remaining = [option for option in options if plan_s[option] <= CLEARLY_SLOWER * fastest_s]
    if len(remaining) > 1:
        few_s = sum(
            run.elapsed_s
            for option, run in zip(options, screening[-1], strict=True)
            if option in remaining
        )
        affordable = int(few * TIMING_LIMIT_S / few_s) if few_s else samples
        rounds = timer.rounds(
            remaining,
            max(few, min(samples, affordable)),
            max_rounds=1 + TIMING_ROUNDS,
            limit_s=TIMING_LIMIT_S,
        )
        # The first round allocates memory for more candidates, so it counts only if it is alone.
        plan_s |= _median_plan_s(remaining, rounds[1:] or rounds)
    return [
        BackendTiming(backend, threads, plan_s[backend, threads]) for backend, threads in options
    ]


def _median_plan_s(
    options: Sequence[Option], rounds: Sequence[Sequence[_Run]]
) -> dict[Option, float]:
    runs_of_options = zip(*rounds, strict=True)
    return {
        option: statistics.median(run.plan_s for run in runs)
        for option, runs in zip(options, runs_of_options, strict=True)
    }


def plan_seconds(backend: Backend, card: ModelCard, samples: int) -> float:
    """Seconds of a plan by the card's solver: an encode and its iterations.

    One iteration is timed, with ``samples`` candidates; the time of the solver's own number of
    candidates is taken to be proportional.
    """
    config, solver = card.config, card.solver
    frame = torch.zeros(1, config.image_size, config.image_size, 3, dtype=torch.uint8)
    start = time.monotonic()
    backend.encode(frame)
    encoded = time.monotonic()
    roll_out_once(backend, card, samples)
    iteration_s = (time.monotonic() - encoded) * solver.samples / samples
    return encoded - start + solver.iterations * iteration_s


def roll_out_once(backend: Backend, card: ModelCard, samples: int) -> None:
    """The roll-out of one iteration of the card's solver, from one frame."""
    config = card.config
    latents = torch.zeros(1, 1, config.latent_dim)
    past_actions = torch.empty(1, 0, config.block_width)
    candidates = torch.zeros(1, samples, card.solver.horizon, config.block_width)
    backend.rollout(latents, past_actions, candidates)


def ranking_overlap(
    backend: Backend,
    reference: Backend,
    card: ModelCard,
    *,
    frames: Tensor | None,
    objective: Objective = LATENT,
    reference_objective: Objective | None = None,
) -> float:
    """How far two backends agree on the best candidates: 0 to 1.

    CEM uses the order of the costs only, to find its elites. So this is the share of the
    reference's 30 best of 300 candidates that are among the backend's 30 best, by ``objective``. If
    the backend computes that in its own way, ``reference_objective`` is that of the reference.

    It is the mean over pairs of start and goal among ``frames`` (N, size, size, 3) uint8, N ≥ 2, or
    among synthetic frames. Each backend encodes the frames itself.
    """
    reference_objective = reference_objective or objective
    if frames is None:
        frames = synthetic_frames(card.config.image_size)
    frames = frames[: RANKED_PAIRS + 1]
    generator = torch.Generator().manual_seed(0)
    shape = (1, RANKED_CANDIDATES, card.solver.horizon, card.config.block_width)
    latents, reference_latents = backend.encode(frames), reference.encode(frames)
    overlaps = []
    for start in range(len(frames) - 1):
        candidates = torch.randn(shape, generator=generator)
        pair = slice(start, start + 2)
        best = _best(backend, latents[pair], candidates, objective)
        reference_best = _best(
            reference, reference_latents[pair], candidates, reference_objective or objective
        )
        overlaps.append(len(best & reference_best) / BEST_CANDIDATES)
    return sum(overlaps) / len(overlaps)


def _best(
    backend: Backend, start_and_goal: Tensor, candidates: Tensor, objective: Objective
) -> set[int]:
    """The indices of the best candidates from a start to a goal, latents (2, D)."""
    start, goal = start_and_goal
    predicted = backend.rollout(start.expand(1, 1, -1), candidates[:, 0, :0], candidates)
    costs = objective(predicted, goal.unsqueeze(0))[0]
    return set(costs.topk(BEST_CANDIDATES, largest=False).indices.tolist())


def synthetic_frames(size: int) -> Tensor:
    """Frames (N, size, size, 3) uint8 of large coloured patches, each of a different scene."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(RANKED_PAIRS + 1, 3, 4, 4, generator=generator)
    smooth = F.interpolate(coarse, (size, size), mode="bicubic").clamp(0, 1)
    return (255 * smooth).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous()
