"""Whether a lower precision still tells good candidates from bad ones.

A solver looks at the order of costs alone, and of that at its elites: what counts is how many of
the best candidates are the same.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from lewm_models.card import ModelCard
from lewm_serve.backends.backend import Backend

BEST = 30
SAMPLES = 300
"""Those of the paper's CEM."""

REQUIRED = 0.9
"""The least share of the best candidates that two precisions must have in common."""

PAIRS = 4
"""Starts and goals that are looked at."""


def overlap(backend: Backend, reference: Backend, card: ModelCard, frames: Tensor | None) -> float:
    """The share of the reference's 30 best of 300 candidates that are the backend's too.

    Mean over starts and goals among ``frames`` (N, size, size, 3) uint8, N of at least 2, or
    among synthetic ones. Both encode for themselves.
    """
    frames = synthetic_frames(card.config.image_size) if frames is None else frames[: PAIRS + 1]
    generator = torch.Generator().manual_seed(0)
    shape = (1, SAMPLES, card.solver.horizon, card.config.block_width)
    latents = [(each, each.encode(frames)) for each in (backend, reference)]
    shares = []
    for start in range(len(frames) - 1):
        candidates = torch.randn(shape, generator=generator)
        best, expected = (
            _best(each, own[start], own[start + 1], candidates) for each, own in latents
        )
        shares.append(len(best & expected) / BEST)
    return sum(shares) / len(shares)


def _best(backend: Backend, start: Tensor, goal: Tensor, candidates: Tensor) -> set[int]:
    past = candidates[:, 0, :0]
    predicted = backend.rollout(start.expand(1, 1, -1), past, candidates)[0, :, -1]
    costs = (predicted - goal).square().sum(-1)
    return set(costs.topk(BEST, largest=False).indices.tolist())


def synthetic_frames(size: int) -> Tensor:
    """Frames (N, size, size, 3) uint8 of large blots of colour, each another scene."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(PAIRS + 1, 3, 4, 4, generator=generator)
    smooth = F.interpolate(coarse, (size, size), mode="bicubic").clamp(0, 1)
    return (255 * smooth).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous()
