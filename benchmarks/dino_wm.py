"""One token a frame against 196: LeWM beside a predictor of DINO-WM's shapes, on the same plan.

A plan takes the predictor of `benchmarks.patch_predictor` minutes to hours on a CPU. So a few
candidates are timed, in turns with LeWM's iterations, and scaled to the plan's; a roll-out that
large gains nothing from a larger batch.

No target; the paper publishes 200 times the tokens and 48 times the time. Two minutes.

    python -m benchmarks.dino_wm [--quick]
"""

from __future__ import annotations

import os
import statistics
from functools import partial

import torch

from benchmarks.comparison import median_ratio, time_in_turns, with_threads
from benchmarks.flops import PAPER_CEM
from benchmarks.in_process import (
    SearchLoop,
    describe_model,
    load_like_server,
    plain_rollout,
    random_model_folder,
)
from benchmarks.patch_predictor import (
    PUBLISHED_TIME_RATIO,
    PUBLISHED_TOKEN_RATIO,
    PatchPredictor,
    Shapes,
)
from benchmarks.report import Measurement, Report, RunOptions, run_as_program
from lewm_models import checkpoint

ROUNDS = 3
TIMED_CANDIDATES = 2


def measure(options: RunOptions) -> Report:
    """See the module."""
    rounds, candidate_count = (1, 1) if options.quick else (ROUNDS, TIMED_CANDIDATES)
    options.show_progress("loading and warming up")
    with random_model_folder("paper") as folder:
        model = load_like_server(folder)
        plain_model = checkpoint.load(folder).model
    config = model.card.config
    generator = torch.Generator().manual_seed(0)
    latent, goal = torch.randn(2, config.latent_dim, generator=generator)
    shapes = Shapes()
    dino_wm = PatchPredictor(shapes, config.block_width).eval()
    frame = torch.randn(shapes.patches, shapes.width, generator=generator)
    candidates = torch.randn(
        candidate_count, PAPER_CEM.horizon, config.block_width, generator=generator
    )
    cores = len(os.sched_getaffinity(0))
    search = SearchLoop(model, PAPER_CEM, latents=latent[None], goal=goal)
    plain_search = SearchLoop(
        model,
        PAPER_CEM,
        latents=latent[None],
        goal=goal,
        rollout=partial(plain_rollout, plain_model),
    )
    seconds = time_in_turns(
        {
            "LeWM as served": search.iterate,
            "LeWM plain": with_threads(cores, plain_search.iterate),
            "DINO-WM": with_threads(cores, lambda: dino_wm.rollout(frame, candidates)),
        },
        rounds,
        options.show_progress,
    )
    scale = PAPER_CEM.samples / candidate_count
    dino_wm_iterations = [value * scale for value in seconds["DINO-WM"]]
    plan_candidates = PAPER_CEM.samples * PAPER_CEM.iterations
    scaled = f"{candidate_count} candidates timed, scaled to {plan_candidates}"
    return Report(
        (
            Measurement(
                "DINO-WM's shapes against ours: tokens a frame",
                float(shapes.patches),
                "times",
                note=f"published {PUBLISHED_TOKEN_RATIO}",
            ),
            Measurement(
                "DINO-WM's shapes against ours: time a plan",
                median_ratio(dino_wm_iterations, seconds["LeWM as served"]),
                "times",
                note=f"published {PUBLISHED_TIME_RATIO}, on a GPU; {scaled}",
            ),
            Measurement(
                "time a plan, both with a plain roll-out",
                median_ratio(dino_wm_iterations, seconds["LeWM plain"]),
                "times",
            ),
            Measurement(
                "a plan with DINO-WM's shapes",
                PAPER_CEM.iterations * statistics.median(dino_wm_iterations),
                "s",
                note=scaled,
            ),
        ),
        {"served": describe_model(model), "rounds_s": seconds, "candidates": candidate_count},
    )


if __name__ == "__main__":
    run_as_program(measure, __doc__)
