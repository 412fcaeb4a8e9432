"""How fast a plan of the paper's size is, against a plain roll-out and the arithmetic floor.

The plan is CEM, 300 candidates × 30 iterations over a horizon of 5, from one frame. The model has
the paper's size and random weights. Solver and backend are those that a server chooses here.

The benchmark repeats seven rounds. Each round times, one after the other: three iterations of the
search; one iteration of the same search with the plain roll-out, on one thread and on all; and
products of large matrices. The benchmark computes the ratio of two times in each round, and reports
the median over the rounds. The floor is the least arithmetic of a plan, at the speed of large
products in the precision of the roll-out.

Targets: at least 6 times faster than the plain roll-out (the goal is 8), at most 2 times the floor.
It takes half a minute on two cores.

    python -m benchmarks.plan_speed [--quick]
"""

from __future__ import annotations

import os
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
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
from lewm_models.card import SolverConfig
from lewm_models.lewm import LeWM
from lewm_serve.registry.registry import LoadedModel

QUICK_CEM = replace(PAPER_CEM, samples=64, iterations=6)
ITERATIONS_PER_ROUND = 3
"""Iterations of the search with the server's backend. The plain roll-out runs one iteration."""

ROUNDS, WHOLE_PLANS = 7, 3
MIN_SPEED_UP, MAX_FLOOR_RATIO = 6.0, 2.0


@dataclass(frozen=True)
class Setup:
    """What is timed: the search, on which numbers of threads, and products in which precisions."""

    preset: str
    model: LoadedModel
    plain_model: LeWM
    solver: SolverConfig
    thread_counts: tuple[int, ...]
    precisions: tuple[str, ...]

    def search(self, rollout: Rollout | None = None) -> SearchLoop:
        """A search from one random latent to another. None: with the server's backend."""
        generator = torch.Generator().manual_seed(0)
        latent, goal = torch.randn(2, self.model.card.config.latent_dim, generator=generator)
        return SearchLoop(self.model, self.solver, latents=latent[None], goal=goal, rollout=rollout)


def measure(options: RunOptions) -> Report:
    """Time the plan, the plain roll-out and large products in turns."""
    rounds, plans = (1, 1) if options.quick else (ROUNDS, WHOLE_PLANS)
    options.show_progress("loading and warming up")
    setup = _load(quick=options.quick)
    tasks = _tasks(setup)
    time_in_turns(tasks, 1, options.show_progress)  # the first run of each is slower
    seconds = time_in_turns(tasks, rounds, options.show_progress)
    whole_plans = time_in_turns(
        {"whole plan": lambda: setup.search().run()}, plans, options.show_progress
    )["whole plan"]
    return _report(setup, seconds, whole_plans)


def _load(*, quick: bool) -> Setup:
    preset, solver = ("edge", QUICK_CEM) if quick else ("paper", PAPER_CEM)
    with random_model_folder(preset) as folder:
        model = load_like_server(folder)
        plain_model = checkpoint.load(folder).model
    return Setup(
        preset=preset,
        model=model,
        plain_model=plain_model,
        solver=solver,
        thread_counts=tuple(sorted({1, len(os.sched_getaffinity(0))})),
        precisions=tuple(dict.fromkeys(("float32", model.backend.precision))),
    )


def _tasks(setup: Setup) -> dict[str, Callable[[], object]]:
    """What each round times, by name."""
    tasks: dict[str, Callable[[], object]] = {
        "served": partial(setup.search().iterate, ITERATIONS_PER_ROUND)
    }
    for threads in setup.thread_counts:
        plain_search = setup.search(partial(plain_rollout, setup.plain_model))
        tasks[f"plain {threads}"] = with_threads(threads, plain_search.iterate)
        for precision in setup.precisions:
            tasks[f"matmul {precision} {threads}"] = large_product(
                threads, dtype=getattr(torch, precision)
            )
    return tasks


def _floors(
    setup: Setup, seconds: Mapping[str, list[float]], least_flops: float
) -> dict[str, list[float]]:
    """For each precision, the seconds of a plan's least arithmetic in each round."""
    return {
        precision: [
            value * least_flops / large_product_flops()
            for value in _fastest(
                [seconds[f"matmul {precision} {threads}"] for threads in setup.thread_counts]
            )
        ]
        for precision in setup.precisions
    }


def _report(setup: Setup, seconds: Mapping[str, list[float]], whole_plans: list[float]) -> Report:
    solver, precision_of_plan = setup.solver, setup.model.backend.precision
    least_flops, plain_flops = (
        count_flops(
            setup.model.card.config,
            samples=solver.samples,
            iterations=solver.iterations,
            horizon=solver.horizon,
        )
        for count_flops in (least_plan_flops, plain_plan_flops)
    )
    floors = _floors(setup, seconds, least_flops)
    iterations = [value / ITERATIONS_PER_ROUND for value in seconds["served"]]
    plain_iterations = _fastest([seconds[f"plain {threads}"] for threads in setup.thread_counts])
    plan_s = [solver.iterations * value for value in iterations]
    plain_plan_s = [solver.iterations * value for value in plain_iterations]
    return Report(
        (
            at_least(
                "plan against a plain roll-out",
                median_ratio(plain_iterations, iterations),
                "times faster",
                bound=MIN_SPEED_UP,
                note="goal 8; the plain roll-out on its fastest number of threads",
            ),
            at_most(
                "plan against the arithmetic floor",
                median_ratio(plan_s, floors[precision_of_plan]),
                "times",
                bound=MAX_FLOOR_RATIO,
                note=f"the floor of {precision_of_plan}",
            ),
            Measurement(
                "the plain roll-out against the floor of float32",
                median_ratio(plain_plan_s, floors["float32"]),
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
            "preset": setup.preset,
            "solver": asdict(solver),
            "served": describe_model(setup.model),
            "plan_tflop": round(least_flops / 1e12, 3),
            "plain_plan_tflop": round(plain_flops / 1e12, 3),
            "matmul_gflop_per_s": {
                name: round(large_product_flops() / statistics.median(taken) / 1e9, 1)
                for name, taken in seconds.items()
                if name.startswith("matmul")
            },
            "plain_plan_s": {
                threads: solver.iterations * statistics.median(seconds[f"plain {threads}"])
                for threads in setup.thread_counts
            },
            "plan_s": whole_plans,
            "rounds_s": dict(seconds),
            "iterations_a_round": {"served": ITERATIONS_PER_ROUND, "plain": 1},
        },
    )


def _fastest(seconds_by_threads: Sequence[list[float]]) -> list[float]:
    """The rounds of the number of threads with the shortest median."""
    return min(seconds_by_threads, key=statistics.median)


if __name__ == "__main__":
    run_as_program(measure, __doc__)
