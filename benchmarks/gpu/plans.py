"""Plans through the engine, without a web stack: what is planned, and the clients."""

from __future__ import annotations

import math
import statistics
import threading
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, NamedTuple, cast

import torch
from torch import Tensor

from benchmarks.flops import PAPER_CEM
from lewm_models import checkpoint
from lewm_models.card import ModelCard, SolverConfig
from lewm_models.config import PRESETS
from lewm_models.lewm import LeWM
from lewm_models.random_weights import random_card, random_model
from lewm_serve.backends.backend import Backend
from lewm_serve.backends.choice import (
    BackendChoice,
    BackendSettings,
    Precision,
    choose_backend,
)
from lewm_serve.backends.comparison import synthetic_frames
from lewm_serve.engine.admission import DeadlinePassed
from lewm_serve.engine.device_jobs import warm_up_searches
from lewm_serve.engine.engine import Engine
from lewm_serve.engine.jobs import PlanJob, PlanOutcome, Search
from lewm_serve.engine.latency_model import LatencyModel, RolloutShape
from lewm_serve.engine.queued_request import QueuedRequest
from lewm_serve.engine.scheduler import Scheduler
from lewm_serve.objectives.distance import DistanceObjective
from lewm_serve.objectives.latent import LATENT
from lewm_serve.solvers import SOLVERS
from lewm_serve.solvers.solver import SearchSpace

SMALL_CONFIG = replace(PRESETS["edge"], encoder_depth=1, predictor_depth=1)
SMALL_CEM = SolverConfig("cem", samples=12, iterations=3, elites=4, horizon=5)
STOP_TIMEOUT_S = 10.0

TRIED_CURVE = ((1, 1e-3), (1000, 1e-3))
"""Rows and seconds a step of roll-outs on a CPU, where they are only tried: as if batches paid."""


@dataclass(frozen=True)
class Subject:
    """A model and the search that is measured.

    Attributes:
        model: in float32, on the CPU.
        card: its card, with the solver.
        distance: its learned distance on the device; None: plans minimise the latent distance.
    """

    model: LeWM
    card: ModelCard
    distance: DistanceObjective | None = None


def paper_subject(*, small: bool) -> Subject:
    """A model of the paper's size with random weights, or a tiny one."""
    config, solver = (SMALL_CONFIG, SMALL_CEM) if small else (PRESETS["paper"], PAPER_CEM)
    return Subject(random_model(config), replace(random_card("random", config, {}), solver=solver))


def embedded_subject(folder: Path, device: torch.device, *, small: bool) -> Subject:
    """A model that comes with the project, with its card's solver and objective, or a short one."""
    loaded = checkpoint.load(folder)
    card, distance = loaded.card, None
    if loaded.distance is not None and card.solver.objective == "distance":
        distance = DistanceObjective(loaded.distance, device)
    if small:
        card = replace(card, solver=replace(card.solver, samples=8, iterations=2, elites=2))
    return Subject(loaded.model, card, distance)


def choose(
    subject: Subject, device: torch.device, *, precision: str = "auto", on_host: bool = False
) -> BackendChoice:
    """PyTorch's backend; its searches run on the device, or on the host."""
    return choose_backend(
        subject.model,
        subject.card,
        frames=None,
        device=device,
        settings=BackendSettings(
            backend="torch",
            precision=cast(Literal["auto"] | Precision, precision),
            search="host" if on_host else "device",
            threads=1,
        ),
        objective=subject.distance or LATENT,
    )


class Answer(NamedTuple):
    """A plan: seconds from submission to answer; its outcome, None if the deadline passed first."""

    seconds: float
    outcome: PlanOutcome | None


class EnginePlanner:
    """Plans of one subject through the engine. Threads may share it; `stop` ends the engine."""

    def __init__(self, subject: Subject, backend: Backend) -> None:
        self.backend = backend
        self._subject = subject
        card, config = subject.card, subject.card.config
        self.latency = LatencyModel(TRIED_CURVE, max_batched_rows=4 * card.solver.samples)
        if backend.device != "cpu":
            self.latency.measure(backend, config)
        self.objective = subject.distance or LATENT
        began = time.monotonic()
        warm_up_searches(
            backend, config, card.solver, self.objective, self.latency.max_batched_rows
        )
        self.recording_s = time.monotonic() - began
        self.start, self.goal = backend.encode(synthetic_frames(config.image_size))[:2]
        mean, std, low, high = (
            torch.tensor(values)
            for values in (card.action_mean, card.action_std, card.action_low, card.action_high)
        )
        self._low, self._high = (
            ((bound - mean) / std).repeat(config.action_block) for bound in (low, high)
        )
        self._engine = Engine(Scheduler())
        self._engine.start()

    def plan(self, seed: int, deadline_s: float = math.inf) -> Answer:
        """One plan."""
        job = self.job(seed, deadline_s)
        began = time.perf_counter()
        future = self._engine.submit(job)
        try:
            outcome = future.result()
        except DeadlinePassed:
            outcome = None
        return Answer(time.perf_counter() - began, outcome)

    def job(self, seed: int, deadline_s: float = math.inf) -> PlanJob:
        """The job of a plan."""
        solver, config = self._subject.card.solver, self._subject.card.config
        start = torch.zeros(solver.horizon, config.block_width).clamp(self._low, self._high)
        space = SearchSpace(self._low, self._high, start, action_dim=config.action_dim)
        now = time.monotonic()
        queued = QueuedRequest(
            self.latency,
            now,
            candidates_per_iteration=SOLVERS[solver.name].candidates_per_ask(solver),
            shape=RolloutShape(solver.horizon, solver=solver.name, objective=self.objective.name),
            deadline=now + deadline_s,
        )
        queued.expect(1)
        return PlanJob(
            backend=self.backend,
            queued=queued,
            latents=self.start.unsqueeze(0),
            past_actions=torch.empty(0, config.block_width),
            goal=self.goal,
            search=Search(
                solver,
                space,
                seed,
                objective=self.objective,
                distance=self._subject.distance,
                starts_at_proposal=self._subject.distance is not None,
            ),
        )

    def together(self, seeds: range) -> list[PlanOutcome]:
        """Plans that are submitted at once."""
        futures = [self._engine.submit(self.job(seed)) for seed in seeds]
        return [future.result() for future in futures]

    def run_clients(self, count: int, until: float, deadline_s: float = math.inf) -> list[Answer]:
        """The answers to clients that plan without a pause until a time (`time.monotonic`)."""
        answers: list[Answer] = []

        def run_client(seed: int) -> None:
            is_first = True
            while is_first or time.monotonic() < until:
                answers.append(self.plan(seed, deadline_s))
                is_first = False

        threads = [threading.Thread(target=run_client, args=(seed,)) for seed in range(count)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return answers

    def stop(self) -> None:
        """Stop the engine."""
        self._engine.stop(STOP_TIMEOUT_S)


def plans_per_s(planner: EnginePlanner, clients: int, seconds: float) -> float:
    """Throughput of this many clients: answers by the time that all of them take."""
    began = time.monotonic()
    answers = planner.run_clients(clients, began + seconds)
    return len(answers) / (time.monotonic() - began)


def median_ms(seconds: list[float]) -> float:
    """The median in milliseconds."""
    return 1000 * statistics.median(seconds)


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """The norm of the difference, relative to that of what is expected."""
    difference: Tensor = torch.linalg.vector_norm(actual - expected)
    return float(difference / torch.linalg.vector_norm(expected))
