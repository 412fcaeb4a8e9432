"""One token a frame against 196: LeWM beside a predictor of DINO-WM's shapes, on the same plan.

DINO-WM (arXiv 2411.04983) predicts the 196 patch tokens of DINOv2 ViT-S/14, 384 wide plus 10 each
for proprioception and action, with 6 blocks of plain attention over 3 frames. Its weights are
random and its encoder is left out, because only the shapes decide how long a roll-out takes. A plan
takes it minutes to hours on a CPU. So a few candidates are timed, in turns with LeWM's iterations,
and scaled to the plan's; a roll-out that large gains nothing from a larger batch.

No target; the paper publishes 200 times the tokens and 48 times the time. Two minutes.

    python -m benchmarks.dino_wm [--quick]
"""

from __future__ import annotations

import os
import statistics
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.comparison import median_ratio, time_in_turns, with_threads
from benchmarks.flops import PAPER_CEM
from benchmarks.in_process import (
    SearchLoop,
    describe_model,
    load_like_server,
    plain_rollout,
    random_model_folder,
)
from benchmarks.report import Measurement, Report, RunOptions, run_as_program
from lewm_models import checkpoint

ROUNDS = 3
TIMED_CANDIDATES = 2
PUBLISHED_TOKEN_RATIO, PUBLISHED_TIME_RATIO = 200, 48


@dataclass(frozen=True)
class Shapes:
    """The predictor's published widths, depth and counts."""

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
        """Tokens (S, n, W) → (S, n, W). ``mask`` (n, n) is True where a token may attend."""
        q, k, v = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for part in self.to_qkv(self.norm(x)).chunk(3, dim=-1)
        )
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        x = x + self.to_out(attended.transpose(1, 2).flatten(2))
        return x + self.mlp(x)  # type: ignore[no-any-return]


class PatchPredictor(nn.Module):
    """Predicts the patch tokens of the next frame from those of up to three frames.

    Axes: S candidates, T steps, P patches of a frame, W token width, A one action block, n = up to
    3 · P tokens.
    """

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
            with_action = torch.cat([latest[..., : -self.shapes.action_width], action], dim=-1)
            window = [*window, with_action][-self.shapes.frames :]
            latest = self(torch.cat(window, dim=1))[:, -self.shapes.patches :]
        return latest

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens of up to three frames (S, n, W) → the predicted tokens of the frame after each."""
        count = tokens.shape[1]
        x = tokens + self.positions[:count]
        mask = self.get_buffer("mask")[:count, :count]
        for block in self.blocks:
            x = block(x, mask)
        return self.norm(x)  # type: ignore[no-any-return]


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
