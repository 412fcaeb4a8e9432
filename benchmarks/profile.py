"""Where the time of a plan goes: by part of an iteration, and by kind of operation.

A few iterations of the paper-size plan and of the embedded model's default plan run in this
process, with the solver and the backend of a server but without the engine. The parts of an
iteration are timed by the clock. The operations of the roll-out are timed by a profiler in a run of
their own: torch's, ONNX Runtime's, or the clock in the native code. Profilers slow a run down, so
only the shares of the operations count.

No target. Half a minute.

    python -m benchmarks.profile [--quick]
"""

from __future__ import annotations

import gc
import importlib
import json
import re
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from benchmarks.flops import PAPER_CEM
from benchmarks.in_process import (
    Rollout,
    SearchLoop,
    backend_rollout,
    describe_model,
    load_like_server,
    random_model_folder,
)
from benchmarks.report import Measurement, Report, RunOptions, run_as_program
from lewm_models.card import SolverConfig
from lewm_serve.registry.registry import LoadedModel

MAX_ITERATIONS = 5
REPEATS = 5

OPERATION_KINDS = (
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
"""The kinds of operations, and what their names match. The first match counts."""

OTHER_KIND = "other"
BETWEEN_NODES = "between nodes"

RunRollout = Callable[[], None]


def measure(options: RunOptions) -> Report:
    """See the module."""
    options.show_progress("embedded model")
    embedded = load_like_server()
    profiles = {"embedded": profile_plan(embedded, embedded.card.solver, options)}
    if not options.quick:
        options.show_progress("paper size: loading and warming up")
        with random_model_folder("paper") as folder:
            paper = load_like_server(folder)
        profiles["paper size"] = profile_plan(paper, PAPER_CEM, options)
    return Report(
        tuple(
            Measurement(f"{plan}, share of {part}", 100 * share, "%")
            for plan, shares in profiles.items()
            for part, share in (shares["parts"] | shares["operations"]).items()
        ),
        profiles,
    )


def profile_plan(model: LoadedModel, solver: SolverConfig, options: RunOptions) -> dict[str, Any]:
    """The shares of the parts of an iteration, and of the operations of its roll-out."""
    iterations = min(MAX_ITERATIONS, solver.iterations)
    options.show_progress(f"{model.name}: parts of an iteration")
    parts = _time_parts(model, solver, iterations)
    options.show_progress(f"{model.name}: operations of the roll-out")
    operations = _time_operations(model, solver, iterations)
    return {
        "served": describe_model(model),
        "iteration_ms": 1000 * sum(parts.values()) / iterations,
        "parts": _shares(parts),
        "operations": _shares(operations),
    }


def operation_kind(operation: str) -> str:
    """The kind of an operation, from its name in torch, ONNX or the native code."""
    lower = operation.lower()
    matching = (kind for kind, pattern in OPERATION_KINDS if re.search(pattern, lower))
    return next(matching, OTHER_KIND)


def _random_latents(model: LoadedModel) -> tuple[Tensor, Tensor]:
    """The context latents (1, D) and the goal (D,)."""
    generator = torch.Generator().manual_seed(0)
    latent, goal = torch.randn(2, model.card.config.latent_dim, generator=generator)
    return latent.unsqueeze(0), goal


def _time_parts(model: LoadedModel, solver: SolverConfig, iterations: int) -> dict[str, float]:
    """Seconds in the roll-out and in the solver."""
    latents, goal = _random_latents(model)
    rollout, rollout_s = backend_rollout(model.backend), 0.0

    def timed_rollout(latents: Tensor, past_actions: Tensor, candidates: Tensor) -> Tensor:
        nonlocal rollout_s
        start = time.perf_counter()
        predicted = rollout(latents, past_actions, candidates)
        rollout_s += time.perf_counter() - start
        return predicted

    def time_search() -> float:
        search = SearchLoop(model, solver, latents=latents, goal=goal, rollout=timed_rollout)
        start = time.perf_counter()
        search.iterate(iterations)
        return time.perf_counter() - start

    time_search()  # fills caches
    rollout_s = 0.0
    total_s = sum(time_search() for _ in range(REPEATS))
    return {"roll-out": rollout_s / REPEATS, "solver": (total_s - rollout_s) / REPEATS}


def _time_operations(model: LoadedModel, solver: SolverConfig, iterations: int) -> dict[str, float]:
    """Time in each kind of operation, largest first. Only the shares count."""
    latents, goal = _random_latents(model)
    candidates = SearchLoop(model, solver, latents=latents, goal=goal).solver.ask()

    def repeat(rollout: Rollout) -> RunRollout:
        def run() -> None:
            for _ in range(iterations):
                rollout(latents, candidates[0, :0], candidates)

        return run

    profilers = {"onnx": _profile_onnx, "native": _profile_native}
    profiler = profilers.get(model.backend.name, _profile_torch)
    kinds: dict[str, float] = defaultdict(float)
    for operation, duration in profiler(model.backend, repeat).items():
        kinds[operation_kind(operation)] += duration
    return dict(sorted(kinds.items(), key=lambda item: -item[1]))


def _profile_torch(backend: Any, repeat: Callable[[Rollout], RunRollout]) -> dict[str, float]:
    """Microseconds in each operation, by torch's profiler."""
    run = repeat(backend_rollout(backend))
    run()
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        run()
    return {event.key: event.self_cpu_time_total for event in profiler.key_averages()}


def _profile_onnx(backend: Any, repeat: Callable[[Rollout], RunRollout]) -> dict[str, float]:
    """Microseconds in each node, on one thread. The rest of a roll-out is "between nodes".

    The nodes are those of new backends, because profiling is an option of new sessions.
    """

    def make() -> RunRollout:
        return repeat(backend_rollout(type(backend)(backend.model, torch.device(backend.device))))

    run = make()
    run()
    start = time.perf_counter()
    run()
    # Without the profiler, because it takes time to write a profile.
    microseconds = 1e6 * (time.perf_counter() - start)
    nodes = profile_onnx_nodes(make)
    return nodes | {BETWEEN_NODES: max(0.0, microseconds - nodes.total())}


def _profile_native(backend: Any, repeat: Callable[[Rollout], RunRollout]) -> dict[str, float]:
    """Clock ticks in each kind of native work, on one thread. The rest is "between nodes"."""
    from lewm_serve.backends.native.library import read_ticks

    threads, backend.threads = backend.threads, 1
    run = repeat(backend_rollout(backend))
    run()
    begin, before = read_ticks(backend.code)
    run()
    end, after = read_ticks(backend.code)
    backend.threads = threads
    ticks = {kind: float(after[kind] - before[kind]) for kind in after}
    return ticks | {BETWEEN_NODES: end - begin - sum(ticks.values())}


def profile_onnx_nodes(make: Callable[[], Callable[[], object]]) -> Counter[str]:
    """Microseconds in each type of ONNX node, by ONNX Runtime's profiler.

    ``make`` makes sessions and returns what runs them. Profiling is an option of a new session, and
    the profile is written when the session ends.
    """
    with tempfile.TemporaryDirectory() as name:
        with _profiled_sessions(Path(name)):
            run = make()
            run()
            del run
            gc.collect()
        files = sorted(Path(name).glob("*.json"))
        return sum((_read_onnx_profile(file) for file in files), Counter())


@contextmanager
def _profiled_sessions(folder: Path) -> Iterator[None]:
    """Sessions that are made during the block write profiles into the folder."""
    onnxruntime = importlib.import_module("lewm_models.export.runtime").onnxruntime
    original = onnxruntime.SessionOptions
    count = 0

    def profiled_options() -> object:
        nonlocal count
        count += 1
        options = original()
        options.enable_profiling = True
        options.profile_file_prefix = str(folder / f"session-{count}")
        return options

    with patch.object(onnxruntime, "SessionOptions", profiled_options):
        yield


def _read_onnx_profile(file: Path) -> Counter[str]:
    """Microseconds by type of node."""
    durations: Counter[str] = Counter()
    for event in json.loads(file.read_text()):
        if event.get("cat") == "Node" and event["name"].endswith("kernel_time"):
            durations[event["args"]["op_name"]] += event["dur"]
    return durations


def _shares(values: dict[str, float]) -> dict[str, float]:
    total = sum(values.values())
    return {name: value / total for name, value in values.items()}


if __name__ == "__main__":
    run_as_program(measure, __doc__)
