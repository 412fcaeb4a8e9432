"""Plans on a GPU: one alone and many at once, by engine and backend, without a web stack.

Clients are threads. Each submits a plan, waits for it and submits the next, as the transports do
for robots. The model has the paper's size and random weights; a plan is CEM, 300 candidates × 30
iterations over a horizon of 5, between random latents.

Targets: one plan takes at most 30 ms at p50; 32 clients get at least 60 plans per second; 8 clients
get at least 5 times the throughput of one. One minute. Without a GPU the report says so.

    python -m benchmarks.gpu_plan                       # on a machine with torch and a GPU
    python -m benchmarks.gpu_plan --device cpu --quick  # the same code with a small model
"""

from __future__ import annotations

import statistics
import threading
import time
from dataclasses import asdict, replace

import torch

from benchmarks.flops import PAPER_CEM
from benchmarks.report import (
    Measurement,
    Report,
    RunOptions,
    at_least,
    at_most,
    run_as_program,
)
from lewm_models.card import SolverConfig
from lewm_models.config import PRESETS, LeWMConfig
from lewm_models.random_weights import random_card, random_model
from lewm_serve.backends.backend import Backend
from lewm_serve.backends.choice import BackendChoice, BackendSettings, choose_backend
from lewm_serve.engine.engine import Engine
from lewm_serve.engine.jobs import PlanJob, Search
from lewm_serve.engine.latency_model import LatencyModel, RolloutShape
from lewm_serve.engine.queued_request import QueuedRequest
from lewm_serve.engine.scheduler import Scheduler
from lewm_serve.objectives.latent import LATENT
from lewm_serve.solvers import SOLVERS
from lewm_serve.solvers.solver import SearchSpace

QUICK_CONFIG = replace(PRESETS["edge"], encoder_depth=1, predictor_depth=1)
QUICK_CEM = SolverConfig("cem", samples=16, iterations=3, elites=4, horizon=5)
PLANS, CLIENT_SECONDS = 100, 10.0
QUICK_PLANS, QUICK_CLIENT_SECONDS = 3, 0.5
MIN_PLANS_PER_CLIENT = 2
FEW_CLIENTS, MANY_CLIENTS = 8, 32
MAX_PLAN_MS, MIN_PLANS_PER_S, MIN_THROUGHPUT_RATIO = 30.0, 60.0, 5.0
STOP_TIMEOUT_S = 10.0


def measure(options: RunOptions) -> Report:
    """See the module."""
    device = torch.device(options.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        note = "not measured: this machine has no CUDA device"
        return Report(_measurements(None, None, None, note=note))
    config, solver, plans, client_s = (
        (QUICK_CONFIG, QUICK_CEM, QUICK_PLANS, QUICK_CLIENT_SECONDS)
        if options.quick
        else (PRESETS["paper"], PAPER_CEM, PLANS, CLIENT_SECONDS)
    )
    options.show_progress("loading and warming up")
    choice = _choose_backend(config, device)
    planner = EnginePlanner(choice.backend, config, solver)
    try:
        planner.run_clients(1, client_s / 10)
        options.show_progress("one plan after another")
        plan_s = [planner.plan(seed) for seed in range(plans)]
        rates = {}
        for clients in (1, FEW_CLIENTS, MANY_CLIENTS):
            options.show_progress(f"{clients} clients")
            rates[clients] = planner.run_clients(clients, client_s)
    finally:
        planner.stop()
    note = "" if device.type == "cuda" else f"tried on {device}: not a result"
    measurements = _measurements(
        1000 * statistics.median(plan_s),
        rates[MANY_CLIENTS],
        rates[FEW_CLIENTS] / rates[1],
        note=note,
    )
    return Report(
        measurements,
        {
            "config": asdict(config),
            "solver": asdict(solver),
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
            "backend": planner.backend.name,
            "precision": planner.backend.precision,
            "top_30_overlap": choice.overlap,
            "ways_plan_s": {
                f"{option.backend.name} {option.backend.precision} on {option.threads}": (
                    option.plan_s
                )
                for option in choice.timings
            },
            "plan_s": plan_s,
            "plans_per_s": rates,
        },
    )


def _measurements(
    plan_ms: float | None, rate: float | None, throughput_ratio: float | None, *, note: str
) -> tuple[Measurement, ...]:
    measurements = (
        at_most("GPU: one plan, p50", plan_ms, "ms", bound=MAX_PLAN_MS, note=note),
        at_least(f"GPU: {MANY_CLIENTS} clients", rate, "plans/s", bound=MIN_PLANS_PER_S, note=note),
        at_least(
            f"GPU: {FEW_CLIENTS} clients, throughput against one client",
            throughput_ratio,
            "times",
            bound=MIN_THROUGHPUT_RATIO,
            note=note,
        ),
    )
    if plan_ms is not None and note:  # values that were only tried have no target
        return tuple(replace(measurement, target=None) for measurement in measurements)
    return measurements


class EnginePlanner:
    """Plans through the engine, between random latents. Threads may share it."""

    def __init__(self, backend: Backend, config: LeWMConfig, solver: SolverConfig) -> None:
        self.backend = backend
        self._config = config
        self._solver = solver
        self._latency = LatencyModel()
        self._latency.measure(backend, config)
        generator = torch.Generator().manual_seed(0)
        self._latent, self._goal = torch.randn(2, config.latent_dim, generator=generator)
        self._engine = Engine(Scheduler())
        self._engine.start()

    def plan(self, seed: int) -> float:
        """Seconds of one plan, from submission to answer."""
        width = self._config.block_width
        bound = torch.ones(width)
        start = torch.zeros(self._solver.horizon, width)
        space = SearchSpace(-bound, bound, start, action_dim=self._config.action_dim)
        began = time.perf_counter()
        queued = QueuedRequest(
            self._latency,
            time.monotonic(),
            candidates_per_iteration=SOLVERS[self._solver.name].candidates_per_ask(self._solver),
            shape=RolloutShape(self._solver.horizon, solver=self._solver.name),
        )
        job = PlanJob(
            backend=self.backend,
            queued=queued,
            latents=self._latent.unsqueeze(0),
            past_actions=torch.empty(0, width),
            goal=self._goal,
            search=Search(self._solver, space, seed, objective=LATENT),
        )
        self._engine.submit(job).result()
        return time.perf_counter() - began

    def run_clients(self, count: int, seconds: float) -> float:
        """Plans per second of this many clients, from the first answer to the last.

        Each client makes at least two plans.
        """
        ends: list[float] = []
        until = time.perf_counter() + seconds

        def run_client(seed: int) -> None:
            plans = 0
            while plans < MIN_PLANS_PER_CLIENT or time.perf_counter() < until:
                self.plan(seed)
                ends.append(time.perf_counter())
                plans += 1

        threads = [threading.Thread(target=run_client, args=(seed,)) for seed in range(count)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return (len(ends) - 1) / (max(ends) - min(ends))

    def stop(self) -> None:
        """Stop the engine."""
        self._engine.stop(STOP_TIMEOUT_S)


def _choose_backend(config: LeWMConfig, device: torch.device) -> BackendChoice:
    card = random_card("random", config, {})
    return choose_backend(
        random_model(config), card, frames=None, device=device, settings=BackendSettings(threads=1)
    )


if __name__ == "__main__":
    run_as_program(measure, __doc__)
