"""How fast a plan of the paper's size is, against a plain roll-out and the arithmetic floor.

The plan is CEM, 300 candidates × 30 iterations over a horizon of 5, from one frame, by a model of
the paper's size with random weights, with the solver and the backend that a server chooses here. In
turns, seven times: three of its iterations, one iteration of the same search with the plain
roll-out on one thread and on all, and products of large matrices. What is compared is the median of
the rounds' ratios. The floor is the least arithmetic of a plan at the rate of large products, in
the precision of the roll-out.

Targets: at least 6 times faster than the plain roll-out (the aim is 8), at most 2 times the floor.
Half a minute on two cores.

    python -m benchmarks.plan_speed [--quick]
"""

from __future__ import annotations

import os
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import partial

import torch

from benchmarks.comparison import median_ratio, time_in_turns, with_threads
from benchmarks.flops import (
    PAPER_CEM,
    large_product,
    large_product_flops,
    least_plan_flops,
    plain_plan_flops,
)
from benchmarks.in_process import (
    Rollout,
    SearchLoop,
    describe_model,
    load_like_server,
    plain_rollout,
    random_model_folder,
)
from benchmarks.report import (
    Measurement,
    Report,
    RunOptions,
    at_least,
    at_most,
    run_as_program,
)
from lewm_models import checkpoint

QUICK_CEM = replace(PAPER_CEM, samples=64, iterations=6)
ITERATIONS_PER_ROUND = 3
"""Of the search with the server's backend; the search with the plain roll-out gets one."""

ROUNDS, PLANS = 7, 3
MIN_SPEED_UP, MAX_FLOOR_RATIO = 6.0, 2.0


def measure(options: RunOptions) -> Report:
    """See the module."""
    rounds, plans, preset, solver = (
        (1, 1, "edge", QUICK_CEM) if options.quick else (ROUNDS, PLANS, "paper", PAPER_CEM)
    )
    options.show_progress("loading and warming up")
    with random_model_folder(preset) as folder:
        model = load_like_server(folder)
        plain_model = checkpoint.load(folder).model
    config = model.card.config
    latent, goal = torch.randn(2, config.latent_dim, generator=torch.Generator().manual_seed(0))

    def search(rollout: Rollout | None = None) -> SearchLoop:
        return SearchLoop(model, solver, latents=latent[None], goal=goal, rollout=rollout)

    thread_counts = sorted({1, len(os.sched_getaffinity(0))})
    precisions = dict.fromkeys(("float32", model.backend.precision))
    tasks: dict[str, Callable[[], object]] = {
        "served": partial(search().iterate, ITERATIONS_PER_ROUND)
    }
    for threads in thread_counts:
        plain_search = search(partial(plain_rollout, plain_model))
        tasks[f"plain {threads}"] = with_threads(threads, plain_search.iterate)
        for precision in precisions:
            tasks[f"matmul {precision} {threads}"] = large_product(
                threads, dtype=getattr(torch, precision)
            )
    time_in_turns(tasks, 1, options.show_progress)  # the first run of each is slower
    seconds = time_in_turns(tasks, rounds, options.show_progress)
    whole_plans = time_in_turns(
        {"whole plan": lambda: search().run()}, plans, options.show_progress
    )["whole plan"]

    least_flops, plain_flops = (
        count_flops(
            config, samples=solver.samples, iterations=solver.iterations, horizon=solver.horizon
        )
        for count_flops in (least_plan_flops, plain_plan_flops)
    )
    iterations = [value / ITERATIONS_PER_ROUND for value in seconds["served"]]
    plain_iterations = _fastest([seconds[f"plain {threads}"] for threads in thread_counts])
    floors = {
        precision: [
            value * least_flops / large_product_flops()
            for value in _fastest(
                [seconds[f"matmul {precision} {threads}"] for threads in thread_counts]
            )
        ]
        for precision in precisions
    }
    return Report(
        (
            at_least(
                "plan against a plain roll-out",
                median_ratio(plain_iterations, iterations),
                "times faster",
                MIN_SPEED_UP,
                note="aim 8; the plain roll-out on its fastest number of threads",
            ),
            at_most(
                "plan against the arithmetic floor",
                median_ratio(
                    [solver.iterations * value for value in iterations],
                    floors[model.backend.precision],
                ),
                "times",
                MAX_FLOOR_RATIO,
                note=f"the floor of {model.backend.precision}",
            ),
            Measurement(
                "the plain roll-out against the floor of float32",
                median_ratio(
                    [solver.iterations * value for value in plain_iterations], floors["float32"]
                ),
                "times",
                note="the largest speed-up that an exact roll-out in float32 can have",
            ),
            Measurement("one plan", statistics.median(whole_plans), "s"),
            *(
                Measurement(f"the floor of {precision}", statistics.median(floor), "s")
                for precision, floor in floors.items()
            ),
        ),
        {
            "preset": preset,
            "solver": asdict(solver),
            "served": describe_model(model),
            "plan_tflop": round(least_flops / 1e12, 3),
            "plain_plan_tflop": round(plain_flops / 1e12, 3),
            "matmul_gflop_per_s": {
                name: round(large_product_flops() / statistics.median(taken) / 1e9, 1)
                for name, taken in seconds.items()
                if name.startswith("matmul")
            },
            "plain_plan_s": {
                threads: solver.iterations * statistics.median(seconds[f"plain {threads}"])
                for threads in thread_counts
            },
            "plan_s": whole_plans,
            "rounds_s": seconds,
            "iterations_a_round": {"served": ITERATIONS_PER_ROUND, "plain": 1},
        },
    )


def _fastest(seconds_by_threads: Sequence[list[float]]) -> list[float]:
    """The rounds of the number of threads with the shortest median."""
    return min(seconds_by_threads, key=statistics.median)


if __name__ == "__main__":
    run_as_program(measure, __doc__)
