"""One token a frame against 196: LeWM beside a predictor of DINO-WM's shapes, on the same plan.

DINO-WM (arXiv 2411.04983) predicts the 196 patch tokens of DINOv2 ViT-S/14, 384 wide plus 10 each
for proprioception and action, with 6 blocks of plain attention over 3 frames. Weights are random
and its encoder is left out: only shapes matter to how long a roll-out takes. A plan takes it
minutes to hours on a CPU, so a few candidates are timed, in turns with LeWM's iterations, and
scaled to the plan's; a roll-out that large gains nothing from a larger batch.
"""

from __future__ import annotations

import os
import statistics
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.plain_rollout import plain_rollout
from benchmarks.plan_speed import SOLVER
from benchmarks.report import Figure, Report
from benchmarks.run import Run
from benchmarks.search import Search
from benchmarks.served import describe_served, load_served, random_folder
from benchmarks.turns import median_ratio, on_threads, take_turns
from lewm_models import checkpoint

ROUNDS = 3
CANDIDATES = 2
PUBLISHED_TOKENS, PUBLISHED_TIME = 200, 48


@dataclass(frozen=True)
class Shapes:
    """The predictor's widths, depth and counts, as published."""

    patches: int = 196
    width: int = 384 + 10 + 10
    action_width: int = 10
    depth: int = 6
    heads: int = 16
    head_dim: int = 64
    mlp: int = 2048
    frames: int = 3


class Block(nn.Module):
    """A plain pre-norm transformer block."""

    def __init__(self, shapes: Shapes) -> None:
        super().__init__()
        inner = shapes.heads * shapes.head_dim
        self.heads = shapes.heads
        self.norm = nn.LayerNorm(shapes.width)
        self.to_qkv = nn.Linear(shapes.width, 3 * inner, bias=False)
        self.to_out = nn.Linear(inner, shapes.width)
        self.mlp = nn.Sequential(
            nn.LayerNorm(shapes.width),
            nn.Linear(shapes.width, shapes.mlp),
            nn.GELU(),
            nn.Linear(shapes.mlp, shapes.width),
        )

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Tokens (S, n, W), mask (n, n), True where a token may look → (S, n, W)."""
        q, k, v = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for part in self.to_qkv(self.norm(x)).chunk(3, dim=-1)
        )
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        x = x + self.to_out(attended.transpose(1, 2).flatten(2))
        return x + self.mlp(x)  # type: ignore[no-any-return]


class PatchPredictor(nn.Module):
    """Predicts the next frame's patch tokens from those of up to three frames."""

    def __init__(self, shapes: Shapes, block_width: int) -> None:
        super().__init__()
        self.shapes = shapes
        tokens = shapes.frames * shapes.patches
        self.positions = nn.Parameter(torch.randn(tokens, shapes.width))
        self.action = nn.Linear(block_width, shapes.action_width)
        self.blocks = nn.ModuleList(Block(shapes) for _ in range(shapes.depth))
        self.norm = nn.LayerNorm(shapes.width)
        frame = torch.arange(tokens) // shapes.patches
        self.register_buffer("mask", frame[:, None] >= frame[None, :])

    @torch.inference_mode()
    def rollout(self, frame: Tensor, candidates: Tensor) -> Tensor:
        """Tokens of one frame (P, W), candidates (S, T, A) → tokens of the last frame (S, P, W)."""
        embedded = self.action(candidates)
        window: list[Tensor] = []
        latest = frame.expand(len(candidates), -1, -1)
        for step in range(candidates.shape[1]):
            action = embedded[:, step, None].expand(-1, self.shapes.patches, -1)
            acted = torch.cat([latest[..., : -self.shapes.action_width], action], dim=-1)
            window = [*window, acted][-self.shapes.frames :]
            latest = self(torch.cat(window, dim=1))[:, -self.shapes.patches :]
        return latest

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens of up to three frames (S, n·P, W) → those predicted after each of them."""
        count = tokens.shape[1]
        x = tokens + self.positions[:count]
        mask = self.get_buffer("mask")[:count, :count]
        for block in self.blocks:
            x = block(x, mask)
        return self.norm(x)  # type: ignore[no-any-return]


def measure(run: Run) -> Report:
    """See the module."""
    rounds, candidates = (1, 1) if run.quick else (ROUNDS, CANDIDATES)
    run.say("loading and warming up")
    with random_folder("paper") as folder:
        model = load_served(folder)
        reference = checkpoint.load(folder).model
    config = model.card.config
    generator = torch.Generator().manual_seed(0)
    latent, goal = torch.randn(2, config.latent_dim, generator=generator)
    shapes = Shapes()
    patches = PatchPredictor(shapes, config.block_width).eval()
    frame = torch.randn(shapes.patches, shapes.width, generator=generator)
    few = torch.randn(candidates, SOLVER.horizon, config.block_width, generator=generator)
    cores = len(os.sched_getaffinity(0))
    search = Search(model, SOLVER, latent, goal)
    plain = Search(model, SOLVER, latent, goal, predict=partial(plain_rollout, reference))
    seconds = take_turns(
        {
            "LeWM as served": search.iterate,
            "LeWM plain": on_threads(cores, plain.iterate),
            "DINO-WM": on_threads(cores, lambda: patches.rollout(frame, few)),
        },
        rounds,
        run.say,
    )
    scale = SOLVER.samples / candidates
    iteration = [value * scale for value in seconds["DINO-WM"]]
    plan_s = SOLVER.iterations * statistics.median(iteration)
    scaled = f"{candidates} candidates timed, scaled to {SOLVER.samples * SOLVER.iterations}"
    return Report(
        (
            Figure(
                "DINO-WM's shapes against ours: tokens a frame",
                float(shapes.patches),
                "times",
                note=f"published {PUBLISHED_TOKENS}",
            ),
            Figure(
                "DINO-WM's shapes against ours: time a plan",
                median_ratio(iteration, seconds["LeWM as served"]),
                "times",
                note=f"published {PUBLISHED_TIME}, on a GPU; {scaled}",
            ),
            Figure(
                "the same, both rolled out plainly",
                median_ratio(iteration, seconds["LeWM plain"]),
                "times",
            ),
            Figure("a plan with DINO-WM's shapes", plan_s, "s", note=scaled),
        ),
        {"served": describe_served(model), "rounds_s": seconds, "candidates": candidates},
    )
