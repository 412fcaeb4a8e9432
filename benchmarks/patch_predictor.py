"""A predictor of DINO-WM's published shapes, with random weights and without its encoder.

DINO-WM (arXiv 2411.04983) predicts the 196 patch tokens of DINOv2 ViT-S/14, 384 wide plus 10 each
for proprioception and action, with 6 blocks of plain attention over 3 frames. Only the shapes
decide how long a roll-out takes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

PUBLISHED_TOKEN_RATIO, PUBLISHED_TIME_RATIO = 200, 48
"""How many times LeWM's tokens and time DINO-WM takes for a plan, as the LeWM paper publishes."""


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
