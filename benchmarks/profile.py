"""Where the time of a plan goes: by part of an iteration, and by kind of operation in the roll-out.

A few iterations of the paper-size plan, and of the embedded model's default one, by the solver and
the backend of the server, without the engine. Parts are timed by the clock; operations by torch's
profiler in a run of their own, which is slower, so their shares are what counts.
"""

from __future__ import annotations

import re
import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from benchmarks.onnx_profile import profile_sessions
from benchmarks.plan_speed import SOLVER
from benchmarks.report import Figure, Report
from benchmarks.run import Run
from benchmarks.search import Predict, Search, served_rollout
from benchmarks.served import describe_served, load_served, random_folder
from lewm_models.card import SolverDefaults
from lewm_serve.registry.registry import LoadedModel

ITERATIONS = 5
REPEATS = 5
KINDS = (
    ("between nodes", r"between"),
    ("fused element-wise", r"cpp_fused|triton"),
    ("matrix products", r"mm$|linear|gemm|matmul|conv|products"),
    ("layer norms", r"norm"),
    ("activations", r"gelu|silu|erf|sigmoid"),
    ("attention", r"attention"),
    ("softmax", r"softmax"),
    (
        "copies",
        r"copy|cat$|clone|repeat|index|gather|transpose|concat|slice|split|reshape|unsqueeze",
    ),
    ("element-wise", r"mul|add|sum|sub|div|pow"),
)
OTHER = "other"


def measure(run: Run) -> Report:
    """See the module."""
    run.say("embedded model")
    embedded = load_served()
    plans = {"embedded": dissect(embedded, embedded.card.solver, run)}
    if not run.quick:
        run.say("paper size: loading and warming up")
        with random_folder("paper") as folder:
            paper = load_served(folder)
        plans["paper size"] = dissect(paper, SOLVER, run)
    return Report(
        tuple(
            Figure(f"{plan}, share of {part}", 100 * share, "%")
            for plan, found in plans.items()
            for part, share in (found["parts"] | found["operations"]).items()
        ),
        plans,
    )


def dissect(model: LoadedModel, solver: SolverDefaults, run: Run) -> dict[str, Any]:
    """Shares of the parts of an iteration, and of the kinds of operations in its roll-out."""
    iterations = min(ITERATIONS, solver.iterations)
    run.say(f"{model.name}: parts of an iteration")
    parts = _parts(model, solver, iterations)
    run.say(f"{model.name}: operations of the roll-out")
    operations = _operations(model, solver, iterations)
    return {
        "served": describe_served(model),
        "iteration_ms": 1000 * sum(parts.values()) / iterations,
        "parts": _shares(parts),
        "operations": _shares(operations),
    }


def kind(operation: str) -> str:
    """The kind of an operation, from torch's or ONNX's name of it."""
    lower = operation.lower()
    return next((name for name, pattern in KINDS if re.search(pattern, lower)), OTHER)


def _search(
    model: LoadedModel, solver: SolverDefaults, predict: Predict | None = None
) -> tuple[Search, Tensor]:
    generator = torch.Generator().manual_seed(0)
    latent, goal = torch.randn(2, model.card.config.latent_dim, generator=generator)
    return Search(model, solver, latent, goal, predict=predict), latent.unsqueeze(0)


def _parts(model: LoadedModel, solver: SolverDefaults, iterations: int) -> dict[str, float]:
    """Seconds in the solver and in the roll-out."""
    seconds = dict.fromkeys(("roll-out", "solver"), 0.0)
    rollout = served_rollout(model.backend)

    def timed(latents: Tensor, candidates: Tensor) -> Tensor:
        start = time.perf_counter()
        predicted = rollout(latents, candidates)
        seconds["roll-out"] += time.perf_counter() - start
        return predicted

    def run() -> float:
        search, _ = _search(model, solver, timed)
        start = time.perf_counter()
        for _ in range(iterations):
            search.iterate()
        return time.perf_counter() - start

    run()  # caches are cold, which does not count
    seconds["roll-out"] = 0.0
    whole = sum(run() for _ in range(REPEATS))
    seconds["solver"] = whole - seconds["roll-out"]
    return {part: value / REPEATS for part, value in seconds.items()}


def _operations(model: LoadedModel, solver: SolverDefaults, iterations: int) -> dict[str, float]:
    """Time in each kind, largest first; what counts are the shares."""
    search, latents = _search(model, solver)
    candidates = search.solver.ask()
    by_name = {"onnx": _onnx_operations, "native": _native_operations}.get(
        model.backend.name, _torch_operations
    )
    kinds: dict[str, float] = defaultdict(float)
    for operation, microseconds in by_name(model, latents, candidates, iterations).items():
        kinds[kind(operation)] += microseconds
    return dict(sorted(kinds.items(), key=lambda item: -item[1]))


def _torch_operations(
    model: LoadedModel, latents: Tensor, candidates: Tensor, iterations: int
) -> dict[str, float]:
    rollout = served_rollout(model.backend)
    rollout(latents, candidates)
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        for _ in range(iterations):
            rollout(latents, candidates)
    return {event.key: event.self_cpu_time_total for event in profiler.key_averages()}


def _onnx_operations(
    model: LoadedModel, latents: Tensor, candidates: Tensor, iterations: int
) -> dict[str, float]:
    """By backends of its own, on one thread; what takes time besides nodes is "between nodes"."""
    original: Any = model.backend

    def make() -> Callable[[], None]:
        rollout = served_rollout(type(original)(original.model, torch.device(original.device)))

        def run() -> None:
            for _ in range(iterations):
                rollout(latents, candidates)

        return run

    plain = make()
    plain()
    start = time.perf_counter()
    plain()
    microseconds = 1e6 * (time.perf_counter() - start)  # writing a profile takes time too
    nodes = profile_sessions(make)
    return nodes | {"between nodes": max(0.0, microseconds - nodes.total())}


def _native_operations(
    model: LoadedModel, latents: Tensor, candidates: Tensor, iterations: int
) -> dict[str, float]:
    """By the code's own clock, on one thread; what is not its own is "between nodes"."""
    from lewm_serve.backends.native.library import read_ticks

    backend: Any = model.backend
    threads, backend.threads = backend.threads, 1
    rollout = served_rollout(backend)
    rollout(latents, candidates)
    begin, before = read_ticks()
    for _ in range(iterations):
        rollout(latents, candidates)
    end, after = read_ticks()
    backend.threads = threads
    spent = {name: float(after[name] - before[name]) for name in after}
    return spent | {"between nodes": end - begin - sum(spent.values())}


def _shares(seconds: dict[str, float]) -> dict[str, float]:
    whole = sum(seconds.values())
    return {name: value / whole for name, value in seconds.items()}
