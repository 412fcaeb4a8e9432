"""What every backend does before it serves."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from lewm_models.config import LeWMConfig
from lewm_serve.backends.backend import Backend

SAMPLES = 16

MOST_ROWS = 32
TOKENS = 512
"""The encoder takes so many frames, or tokens, in one pass. Many small frames share the cost of
launching operations; what is more than the processor's cache holds costs more than it saves
(measured: frames of 17 tokens by 32, frames of 257 one by one)."""


def encode_rows(config: LeWMConfig) -> int:
    """Frames in one pass through the encoder."""
    return max(1, min(MOST_ROWS, TOKENS // config.tokens))


def run_rollouts(backend: Backend, config: LeWMConfig) -> None:
    """Roll out from every number of context frames, until the window slides."""
    horizon = config.history + 2
    candidates = torch.zeros(1, SAMPLES, horizon, config.block_width)
    for context in range(1, config.history + 1):
        latents = torch.zeros(1, context, config.latent_dim)
        past = torch.zeros(1, context - 1, config.block_width)
        backend.rollout(latents, past, candidates)
        if context > 1:
            backend.expect(latents, past)


def encodes_alike(encode: Callable[[Tensor], Tensor], config: LeWMConfig) -> bool:
    """Whether a frame's latent is the same, bit for bit, in batches of any size."""
    most = encode_rows(config)
    generator = torch.Generator().manual_seed(0)
    shape = (most, config.image_size, config.image_size, 3)
    frames = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
    latents = encode(frames)
    return all(
        torch.equal(encode(frames[:rows]), latents[:rows]) for rows in (1, 2, 3, 5) if rows < most
    )
