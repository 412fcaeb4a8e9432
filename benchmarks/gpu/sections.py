"""Sections about the model: correctness against the CPU, encoding, and DINO-WM's shapes."""

from __future__ import annotations

import statistics
from dataclasses import replace

import torch

from benchmarks.flops import PAPER_CEM
from benchmarks.gpu.bench import Bench, Found
from benchmarks.gpu.plans import EnginePlanner, Subject, relative_error
from benchmarks.patch_predictor import (
    PUBLISHED_TIME_RATIO,
    PUBLISHED_TOKEN_RATIO,
    PatchPredictor,
    Shapes,
)
from benchmarks.report import Measurement, at_most
from lewm_models.card import SolverConfig
from lewm_serve.backends.torch import TorchBackend

MAX_FLOAT32_ERROR, MAX_COST_ERROR = 1e-3, 1e-2
"""Relative, of roll-outs and of the cost of the plan that a search finds. Products in float32 round
differently on a GPU, and a search amplifies that."""

CHECKED_SAMPLES, CHECKED_SEARCH = 64, SolverConfig("cem", 64, 6, 8, 5)
SMALL_SEARCH = SolverConfig("cem", 12, 3, 4, 5)
CROWD = 6
ENCODE_FRAMES = (1, 8, 32, 128)
DINO_WM_CANDIDATES = 30
SMALL_SHAPES = Shapes(patches=4, width=14, action_width=2, depth=1, heads=2, head_dim=4, mlp=8)

FLOAT32_ERROR, COST_ERROR = (
    "GPU: roll-outs in float32 against the CPU, error",
    "GPU: searches in float32 against the CPU, error of the cost",
)
CORRECTNESS_TARGETS = (
    at_most(FLOAT32_ERROR, None, "of the norm", bound=MAX_FLOAT32_ERROR),
    at_most(COST_ERROR, None, "of the cost", bound=MAX_COST_ERROR),
)


def correctness(bench: Bench) -> Found:
    """Roll-outs and searches against the same code on the CPU; plans alone and in a crowd."""
    config = bench.subject.card.config
    subject = _with_search(bench.subject, SMALL_SEARCH if bench.small else CHECKED_SEARCH)
    cpu = TorchBackend(subject.model, torch.device("cpu"), searches_on_device=True)
    gpu = TorchBackend(subject.model, bench.device, searches_on_device=True)
    generator = torch.Generator().manual_seed(0)
    samples = 4 if bench.small else CHECKED_SAMPLES
    errors, low_errors = [], []
    for context in (1, config.history):
        shapes = (
            (2, context, config.latent_dim),
            (2, context - 1, config.block_width),
            (2, samples, 5, config.block_width),
        )
        latents, past, candidates = (torch.randn(shape, generator=generator) for shape in shapes)
        expected = cpu.rollout(latents, past, candidates)
        errors.append(relative_error(gpu.rollout(latents, past, candidates), expected))
        chosen = bench.choice.backend.rollout(latents, past, candidates)
        low_errors.append(relative_error(chosen, expected))
    bench.show_progress("searches on the CPU and on the GPU")
    plans = []
    for backend in (cpu, gpu):
        planner = EnginePlanner(subject, backend)
        try:
            plans.append([planner.plan(seed).outcome for seed in range(CROWD)])
            crowd = planner.together(range(CROWD))
        finally:
            planner.stop()
    cost_errors, action_errors, crowd_errors = [], [], []
    for on_cpu, on_gpu, in_crowd in zip(*plans, crowd, strict=True):
        assert on_cpu is not None
        assert on_gpu is not None
        assert on_cpu.cost is not None
        assert on_gpu.cost is not None
        cost_errors.append(abs(on_gpu.cost - on_cpu.cost) / max(on_cpu.cost, 1e-9))
        assert on_cpu.actions is not None
        assert on_gpu.actions is not None
        assert in_crowd.actions is not None
        action_errors.append(float((on_gpu.actions - on_cpu.actions).abs().max()))
        crowd_errors.append(float((in_crowd.actions - on_gpu.actions).abs().max()))
    overlap = bench.choice.overlap
    return Found(
        [
            at_most(FLOAT32_ERROR, max(errors), "of the norm", bound=MAX_FLOAT32_ERROR),
            at_most(COST_ERROR, max(cost_errors), "of the cost", bound=MAX_COST_ERROR),
            Measurement(
                "GPU: a plan alone and in a crowd, float32: largest difference of an action",
                max(crowd_errors),
                "deviations",
            ),
            Measurement(
                f"GPU: roll-outs in {bench.choice.backend.precision}, error",
                max(low_errors),
                "of the norm",
                note="" if overlap is None else f"ranks {overlap:.0%} of the best alike",
            ),
        ],
        {
            "errors": errors,
            "chosen_errors": low_errors,
            "cost_errors": cost_errors,
            "action_errors": action_errors,
            "crowd_errors": crowd_errors,
            "overlap": overlap,
            "precision": bench.choice.backend.precision,
        },
    )


def _with_search(subject: Subject, solver: SolverConfig) -> Subject:
    return replace(subject, card=replace(subject.card, solver=solver))


def encode(bench: Bench) -> Found:
    """Frames per second by the size of a batch."""
    backend, size = bench.choice.backend, bench.subject.card.config.image_size
    rates: dict[int, float] = {}
    for index, count in enumerate(ENCODE_FRAMES):
        frames = torch.randint(0, 256, (count, size, size, 3), dtype=torch.uint8)
        until = bench.share_until(1 / (len(ENCODE_FRAMES) - index))
        seconds = bench.seconds_of(lambda frames=frames: backend.encode(frames), until)  # type: ignore[misc]
        rates[count] = count / statistics.median(seconds)
    best = max(rates, key=lambda count: rates[count])
    return Found(
        [
            Measurement(f"GPU: one frame of {size} px", 1000 / rates[1], "ms"),
            Measurement(
                f"GPU: frames of {size} px", rates[best], "frames/s", note=f"batches of {best}"
            ),
        ],
        {"frames_per_s": rates},
    )


@torch.inference_mode()
def dino_wm(bench: Bench) -> Found:
    """A plan with DINO-WM's shapes, in the precision of LeWM's, scaled from a few candidates."""
    shapes = SMALL_SHAPES if bench.small else Shapes()
    solver = bench.subject.card.solver
    candidate_count = 2 if bench.small else DINO_WM_CANDIDATES
    dtype = getattr(torch, bench.choice.backend.precision)
    torch.manual_seed(0)
    predictor = PatchPredictor(shapes, bench.subject.card.config.block_width).eval()
    predictor = predictor.to(bench.device, dtype)
    frame = torch.randn(shapes.patches, shapes.width).to(bench.device, dtype)
    width = bench.subject.card.config.block_width
    candidates = torch.randn(candidate_count, solver.horizon, width).to(bench.device, dtype)
    until = bench.share_until(0.7)
    seconds = bench.seconds_of(lambda: predictor.rollout(frame, candidates), until)
    bench.show_progress("LeWM's plans in the same minute")
    plans = [bench.planner.plan(seed).seconds for seed in range(1 if bench.small else 20)]
    scale = solver.samples * solver.iterations / candidate_count
    plan_s = scale * statistics.median(seconds)
    total = PAPER_CEM.samples * PAPER_CEM.iterations
    return Found(
        [
            Measurement(
                "GPU: DINO-WM's shapes against ours: time a plan",
                plan_s / statistics.median(plans),
                "times",
                note=f"published {PUBLISHED_TIME_RATIO}, with {PUBLISHED_TOKEN_RATIO} times the "
                f"tokens; {candidate_count} candidates timed, scaled to {total}",
            ),
            Measurement("GPU: a plan with DINO-WM's shapes", plan_s, "s"),
        ],
        {"rollout_s": seconds, "plan_s": plans, "candidates": candidate_count},
    )
