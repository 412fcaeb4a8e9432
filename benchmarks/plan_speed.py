"""How fast one plan of the paper's size is, against a plain roll-out and against the arithmetic.

The plan is CEM, 300 candidates, 30 iterations, horizon 5, from one frame, by the solver and the
backend of the server, with what `auto` chooses here. A few iterations of it, of the same search by
`plain_rollout` on one and on all threads, and large matrix products are timed in turns; what is
compared is the median of the rounds. The floor is the least arithmetic of a plan at the rate of
large products of the precision that the plan is rolled out in.
"""

from __future__ import annotations

import os
import statistics
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial

import torch
from torch import Tensor

from benchmarks.flops import least_plan_flops, plain_plan_flops
from benchmarks.matmul import matmul, matmul_flops
from benchmarks.plain_rollout import plain_rollout
from benchmarks.report import Figure, Report, at_least, at_most
from benchmarks.run import Run
from benchmarks.search import Search, repeated
from benchmarks.served import describe_served, load_served, random_folder
from benchmarks.turns import median_ratio, on_threads, take_turns
from lewm_models import checkpoint
from lewm_models.card import SolverDefaults

SOLVER = SolverDefaults("cem", samples=300, iterations=30, elites=30, horizon=5)
QUICK_SOLVER = replace(SOLVER, samples=64, iterations=6)
ITERATIONS = 3
"""Of the served search in one round; the plain one gets one."""

ROUNDS = 7
PLANS = 3
SPEED_UP, FROM_FLOOR = 6.0, 2.0


def measure(run: Run) -> Report:
    """See the module; what is held to a target is a ratio within the run."""
    rounds, plans, preset, solver = (
        (1, 1, "edge", QUICK_SOLVER) if run.quick else (ROUNDS, PLANS, "paper", SOLVER)
    )
    run.say("loading and warming up")
    with random_folder(preset) as folder:
        model = load_served(folder)
        reference = checkpoint.load(folder).model
    config = model.card.config
    latent, goal = torch.randn(2, config.latent_dim, generator=torch.Generator().manual_seed(0))
    cores = len(os.sched_getaffinity(0))

    def search(predict: Callable[[Tensor, Tensor], Tensor] | None = None) -> Search:
        return Search(model, solver, latent, goal, predict=predict)

    plain = partial(plain_rollout, reference)
    tasks: dict[str, Callable[[], object]] = {"served": repeated(search(), ITERATIONS)}
    counts = sorted({1, cores})
    precisions = dict.fromkeys(("float32", model.backend.precision))
    for threads in counts:
        tasks[f"plain {threads}"] = on_threads(threads, search(plain).iterate)
        for precision in precisions:
            name = f"matmul {precision} {threads}"
            tasks[name] = matmul(threads, dtype=getattr(torch, precision))
    take_turns(tasks, 1, run.say)  # the first of each is slower, and does not count
    seconds = take_turns(tasks, rounds, run.say)
    whole = take_turns({"whole plan": lambda: search().run()}, plans, run.say)["whole plan"]

    shape = (solver.samples, solver.iterations, solver.horizon)
    least, plain_flops = least_plan_flops(config, *shape), plain_plan_flops(config, *shape)
    served = [value / ITERATIONS for value in seconds["served"]]
    best_plain = min((seconds[f"plain {count}"] for count in counts), key=statistics.median)
    floors = {precision: _floor(seconds, precision, counts, least) for precision in precisions}
    floor = floors[model.backend.precision]
    scaled = [solver.iterations * value for value in served]
    return Report(
        (
            at_least(
                "plan against a plain roll-out",
                median_ratio(best_plain, served),
                "times faster",
                SPEED_UP,
                "aim 8; the plain one on the number of threads that suits it best",
            ),
            at_most(
                "plan against the arithmetic floor",
                median_ratio(scaled, floor),
                "times",
                FROM_FLOOR,
                f"the floor of {model.backend.precision}",
            ),
            Figure(
                "the plain roll-out against the floor of float32",
                median_ratio(
                    [solver.iterations * value for value in best_plain], floors["float32"]
                ),
                "times",
                note="no exact roll-out in float32 can be faster than the plain one by more",
            ),
            Figure("one plan", statistics.median(whole), "s"),
            *(
                Figure(f"the floor of {precision}", statistics.median(floors[precision]), "s")
                for precision in precisions
            ),
        ),
        {
            "preset": preset,
            "solver": asdict(solver),
            "served": describe_served(model),
            "plan_tflop": round(least / 1e12, 3),
            "plain_plan_tflop": round(plain_flops / 1e12, 3),
            "matmul_gflop_per_s": {
                name: round(matmul_flops() / statistics.median(taken) / 1e9, 1)
                for name, taken in seconds.items()
                if name.startswith("matmul")
            },
            "plain_plan_s": {
                count: solver.iterations * statistics.median(seconds[f"plain {count}"])
                for count in counts
            },
            "plan_s": whole,
            "rounds_s": seconds,
            "iterations_a_round": {"served": ITERATIONS, "plain": 1},
        },
    )


def _floor(
    seconds: dict[str, list[float]], precision: str, counts: list[int], flops: int
) -> list[float]:
    """Seconds of so much arithmetic at the rate of large products, on the best thread count."""
    taken = (seconds[f"matmul {precision} {count}"] for count in counts)
    return [value * flops / matmul_flops() for value in min(taken, key=statistics.median)]
