"""Plans on a GPU: one alone, and many at once, by the engine and the backend without a web stack.

    python -m benchmarks.gpu_plan                      # on a GPU
    python -m benchmarks.gpu_plan --device cpu --quick # goes the same way, with a small model

Clients are threads that submit a plan, wait for it and submit the next, as the transports do for
robots; paper size, CEM 300 × 30 × 5, goals and frames as latents.
"""

from __future__ import annotations

import argparse
import json
import statistics
import threading
import time
from dataclasses import asdict, replace

import torch

from benchmarks.report import Figure, Report, at_least, at_most
from benchmarks.run import Run
from lewm_models.card import SolverDefaults
from lewm_models.config import PRESETS, LeWMConfig
from lewm_models.random_weights import random_card, random_model
from lewm_serve.backends.backend import Backend
from lewm_serve.backends.choice import Choice, Wanted, choose_backend
from lewm_serve.engine.admission import QueuedRequest
from lewm_serve.engine.engine import Engine
from lewm_serve.engine.jobs import PlanJob
from lewm_serve.engine.latency_model import LatencyModel, Shape
from lewm_serve.engine.scheduler import Scheduler
from lewm_serve.solvers import make_solver
from lewm_serve.solvers.solver import Problem

SOLVER = SolverDefaults("cem", samples=300, iterations=30, elites=30, horizon=5)
QUICK_CONFIG = replace(PRESETS["edge"], encoder_depth=1, predictor_depth=1)
QUICK_SOLVER = SolverDefaults("cem", samples=16, iterations=3, elites=4, horizon=5)
PLANS, SECONDS = 100, 10.0
QUICK_PLANS, QUICK_SECONDS = 3, 0.5
FEW, MANY = 8, 32
PLAN_MS, PLANS_PER_S, GAIN = 30.0, 60.0, 5.0
NAMES = (
    "GPU: one plan, p50",
    f"GPU: {MANY} clients",
    f"GPU: {FEW} clients, throughput against one client",
)


def measure(run: Run) -> Report:
    """See the module; without the device, figures that say so."""
    device = torch.device(run.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        note = "not taken: this machine has no CUDA device"
        return Report(_figures(None, None, None, note))
    config, solver, plans, seconds = (
        (QUICK_CONFIG, QUICK_SOLVER, QUICK_PLANS, QUICK_SECONDS)
        if run.quick
        else (PRESETS["paper"], SOLVER, PLANS, SECONDS)
    )
    run.say("loading and warming up")
    choice = _load(config, device)
    planner = InEngine(choice.backend, config, solver)
    try:
        planner.clients(1, seconds / 10)
        run.say("one plan after another")
        alone = [planner.plan(seed) for seed in range(plans)]
        rates = {}
        for clients in (1, FEW, MANY):
            run.say(f"{clients} clients")
            rates[clients] = planner.clients(clients, seconds)
    finally:
        planner.stop()
    note = "" if device.type == "cuda" else f"tried out on {device}: no figure"
    one = 1000 * statistics.median(alone)
    return Report(
        _figures(one, rates[MANY], rates[FEW] / rates[1], note),
        {
            "config": asdict(config),
            "solver": asdict(solver),
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
            "backend": planner.backend.name,
            "precision": planner.backend.precision,
            "top_30_overlap": choice.overlap,
            "ways_plan_s": {
                f"{way.backend.name} {way.backend.precision} on {way.threads}": way.plan_s
                for way in choice.ways
            },
            "plan_s": alone,
            "plans_per_s": rates,
        },
    )


def _figures(
    one_ms: float | None, many: float | None, gain: float | None, note: str
) -> tuple[Figure, ...]:
    one, rate, throughput = NAMES
    if one_ms is not None and note:  # tried out, and held to nothing
        return (
            Figure(one, one_ms, "ms", note=note),
            Figure(rate, many, "plans/s", note=note),
            Figure(throughput, gain, "times", note=note),
        )
    return (
        at_most(one, one_ms, "ms", PLAN_MS, note),
        at_least(rate, many, "plans/s", PLANS_PER_S, note),
        at_least(throughput, gain, "times", GAIN, note),
    )


class InEngine:
    """Plans through the engine, between random latents."""

    def __init__(self, backend: Backend, config: LeWMConfig, solver: SolverDefaults) -> None:
        self.backend = backend
        self._config = config
        self._solver = solver
        self._pace = LatencyModel()
        self._pace.measure(backend, config)
        generator = torch.Generator().manual_seed(0)
        self._latent, self._goal = torch.randn(2, config.latent_dim, generator=generator)
        self._engine = Engine(Scheduler())
        self._engine.start()

    def plan(self, seed: int) -> float:
        """Seconds of one plan, from submission to answer."""
        start = torch.zeros(self._solver.horizon, self._config.block_width)
        bound = torch.ones(self._config.block_width)
        problem = Problem(-bound, bound, start, self._config.action_dim)
        solver = make_solver(self._solver, problem, seed)
        began = time.perf_counter()
        ticket = QueuedRequest(
            self._pace,
            time.monotonic(),
            rows=solver.workload(),
            shape=Shape(self._solver.horizon, solver=self._solver.name),
        )
        past = torch.empty(0, self._config.block_width)
        latents = self._latent.unsqueeze(0)
        job = PlanJob(self.backend, ticket, solver, latents, past, self._goal)
        self._engine.submit(job).result()
        return time.perf_counter() - began

    def clients(self, count: int, seconds: float) -> float:
        """Plans a second with so many clients, two plans each at least, from answer to answer."""
        ends: list[float] = []
        until = time.perf_counter() + seconds

        def client(seed: int) -> None:
            plans = 0
            while plans < 2 or time.perf_counter() < until:
                self.plan(seed)
                ends.append(time.perf_counter())
                plans += 1

        threads = [threading.Thread(target=client, args=(seed,)) for seed in range(count)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return (len(ends) - 1) / (max(ends) - min(ends))

    def stop(self) -> None:
        """End the engine's thread."""
        self._engine.stop(10)


def _load(config: LeWMConfig, device: torch.device) -> Choice:
    card = random_card("random", config, {})
    return choose_backend(random_model(config), card, None, device, Wanted(threads=1))


def main() -> None:
    """Measure here and print the report as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--quick", action="store_true")
    arguments = parser.parse_args()
    report = measure(Run(arguments.quick, print, device=arguments.device))
    figures = [figure.to_json() for figure in report.figures]
    print(json.dumps({"figures": figures, "details": report.details}, indent=2))


if __name__ == "__main__":
    main()
