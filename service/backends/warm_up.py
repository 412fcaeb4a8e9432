"""What every backend does before it serves."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from models.config import LeWMConfig

SAMPLES = 16
ROWS = (32, 1, 2, 3, 5, 11)


def run_rollouts(rollout: Callable[[Tensor, Tensor, Tensor], Tensor], config: LeWMConfig) -> None:
    """Roll out from every number of context frames, until the window slides."""
    horizon = config.history + 2
    candidates = torch.zeros(1, SAMPLES, horizon, config.block_width)
    for context in range(1, config.history + 1):
        latents = torch.zeros(1, context, config.latent_dim)
        rollout(latents, torch.zeros(1, context - 1, config.block_width), candidates)


def encodes_alike(encode: Callable[[Tensor], Tensor], config: LeWMConfig) -> bool:
    """Whether a frame's latent is the same, bit for bit, in batches of any size."""
    generator = torch.Generator().manual_seed(0)
    shape = (max(ROWS), config.image_size, config.image_size, 3)
    frames = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
    latents = [encode(frames[:rows]) for rows in ROWS]
    return all(torch.equal(fewer, latents[0][: len(fewer)]) for fewer in latents)
