"""What plans cost on this machine, measured through a server of its own, for `lewm pilot`."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lewm_client import PlannerClient, PlannerError
from lewm_models.card import ModelCard
from lewm_serve.cli.local_server import LocalServer, local_server
from lewm_serve.cli.process_usage import (
    NO_ENERGY,
    energy_j,
    joules_between,
    tree_peak_mib,
    tree_processor_s,
)
from lewm_serve.solvers import SOLVERS, solver_names

WARM_UP_PLANS = 5
TIMEOUT_S = 120.0
MAX_SECONDS, MIN_PLANS = 60.0, 5
"""A slow solver makes fewer plans: as many as take this long, and at least some."""

DEADLINE_STEP_S = 0.005

Frames = NDArray[np.uint8]


@dataclass(frozen=True)
class SolverCost:
    """What the plans of one solver cost.

    Attributes:
        solver: its name.
        is_default: whether it is the card's, with the card's settings.
        p50_s: the median seconds of a plan, from the client's call to its answer, with a new frame.
        p99_s: the 99th percentile.
        processor_s: seconds of processor time of a plan, in all processes of the server.
        energy_j: joules of processors and NVIDIA devices during a plan, with whatever else they
            did; None where they are not counted.
        predictor_tokens: the latents that are predicted for a plan.
    """

    solver: str
    is_default: bool
    p50_s: float
    p99_s: float
    processor_s: float
    energy_j: float | None
    predictor_tokens: int


@dataclass(frozen=True)
class Machine:
    """What was measured on this machine.

    Attributes:
        cores: the cores that this process may use.
        encode_p50_s: the median seconds to encode one new frame.
        encode_p99_s: the 99th percentile.
        frame_tokens: the patches of a frame and one more, which the encoder sees.
        peak_memory_mib: the most memory of the server's processes.
        solvers: the default first.
        rate_hz: plans a second of a robot.
        robots_per_core: how many such robots take one core, by processor time.
        recommended_solver: the default, or the fastest one if the default is too slow.
        recommended_deadline_ms: twice its p99, or the time between two plans if that is less.
        notes: what could not be measured, one sentence each.
    """

    cores: int
    encode_p50_s: float
    encode_p99_s: float
    frame_tokens: int
    peak_memory_mib: int
    solvers: tuple[SolverCost, ...]
    rate_hz: float
    robots_per_core: float
    recommended_solver: str
    recommended_deadline_ms: float
    notes: tuple[str, ...]

    @property
    def recommended(self) -> SolverCost:
        """The costs of the recommended solver."""
        return next(cost for cost in self.solvers if cost.solver == self.recommended_solver)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def measure_machine(
    folder: Path,
    card: ModelCard,
    frames: Sequence[Frames],
    *,
    rate_hz: float,
    plans: int,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Machine:
    """Serve a model here, and time its encodes and plans.

    Args:
        folder: the model's folder.
        card: its card.
        frames: recorded frames, at least two.
        rate_hz: plans a second of a robot.
        plans: how many plans of each solver are timed.
        progress: called after each solver with the number done and in all.

    Raises:
        LocalServerError: the server did not start.
        PlannerError: it made no plan with the default solver.
    """
    notes: list[str] = []
    names = solver_names(card.solver.name)
    with local_server(folder) as server, PlannerClient(server.target) as client:
        numbered = _new_frames(frames)
        for _ in range(WARM_UP_PLANS):
            client.plan([next(numbered)], frames[-1], timeout_s=TIMEOUT_S)
        encodes = [
            _seconds(lambda: client.encode([next(numbered)], timeout_s=TIMEOUT_S))
            for _ in range(plans)
        ]
        costs = []
        for number, name in enumerate(names, 1):
            try:
                costs.append(_cost(server, client, card, name, numbered, frames[-1], plans))
            except PlannerError as error:
                if name == card.solver.name:
                    raise
                notes.append(f"{name} was not measured: {error}")
            progress(number, len(names))
        peak_memory_mib = tree_peak_mib(server.pid)
    default, *others = costs
    period_s = 1 / rate_hz
    chosen = default
    if default.p99_s > period_s:
        chosen = min([default, *others], key=lambda cost: cost.p99_s)
    step = 1000 * DEADLINE_STEP_S
    deadline_ms = math.ceil(2000 * chosen.p99_s / step) * step
    if default.energy_j is None:
        notes.append(NO_ENERGY)
    if chosen is not default:
        notes.append(f"The judgement is of {default.solver}, and not of {chosen.solver}.")
    return Machine(
        cores=len(os.sched_getaffinity(0)),
        encode_p50_s=float(np.quantile(encodes, 0.5)),
        encode_p99_s=float(np.quantile(encodes, 0.99)),
        frame_tokens=(card.config.image_size // card.config.patch_size) ** 2 + 1,
        peak_memory_mib=peak_memory_mib,
        solvers=tuple(costs),
        rate_hz=rate_hz,
        robots_per_core=1 / (chosen.processor_s * rate_hz),
        recommended_solver=chosen.solver,
        recommended_deadline_ms=min(deadline_ms, 1000 * period_s),
        notes=tuple(notes),
    )


def _cost(
    server: LocalServer,
    client: PlannerClient,
    card: ModelCard,
    name: str,
    frames: Iterator[Frames],
    goal: Frames,
    plans: int,
) -> SolverCost:
    settings = None if name == card.solver.name else {"name": name}
    used_before_s, before_j = tree_processor_s(server.pid), energy_j()
    seconds: list[float] = []
    while len(seconds) < plans and (len(seconds) < MIN_PLANS or sum(seconds) < MAX_SECONDS):
        seconds.append(
            _seconds(
                lambda: client.plan([next(frames)], goal, solver=settings, timeout_s=TIMEOUT_S)
            )
        )
    used_s = tree_processor_s(server.pid) - used_before_s
    plans_j = joules_between(before_j, energy_j())
    candidates = sum(SOLVERS[name].candidates_per_ask(card.solver))
    return SolverCost(
        solver=name,
        is_default=settings is None,
        p50_s=float(np.quantile(seconds, 0.5)),
        p99_s=float(np.quantile(seconds, 0.99)),
        processor_s=max(used_s, 1e-6) / len(seconds),
        energy_j=None if plans_j is None else plans_j / len(seconds),
        predictor_tokens=candidates * card.solver.horizon,
    )


def _new_frames(frames: Sequence[Frames]) -> Iterator[Frames]:
    """Recorded frames without end, each changed in one pixel, so that no cache holds it."""
    number = 0
    while True:
        frame = frames[number % len(frames)].copy()
        frame[0, 0] = (number >> 16 & 255, number >> 8 & 255, number & 255)
        yield frame
        number += 1


def _seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started
