"""Whether a model folder can be served: what `lewm models verify` checks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from lewm_models.checkpoint import Checkpoint, CheckpointError, load
from lewm_models.lewm import LeWM

NOTICEABLE = 1e-4
"""A change of a latent, relative to its own size, that is more than rounding."""

CANDIDATES = 8


@dataclass(frozen=True)
class Finding:
    """A check that passed, and what it saw."""

    check: str
    detail: str


@torch.inference_mode()
def verify(folder: Path) -> Iterator[Finding]:
    """Yield each check as it passes; the last is the version.

    Raises:
        CheckpointError: a check failed; the message says which and why.
    """
    loaded = load(folder)
    model, config = loaded.model, loaded.card.config
    yield Finding(
        "card",
        f"{loaded.card.name}, frames of {config.image_size} px, latents of "
        f"{config.latent_dim}, blocks of {config.action_block} × {config.action_dim}",
    )
    state = model.state_dict()
    values = sum(parameter.numel() for parameter in model.parameters())
    yield Finding("tensors", f"{len(state)}, {values:,} weights, all finite")

    latents = _encode(model)
    yield Finding("encode", f"frames change the latent by {_change(latents):.2g} of its norm")
    predicted = _rollouts(loaded, latents)
    yield Finding("roll-out", f"{predicted.shape[1]} steps from 1 and {config.history} frames")
    change = _change(predicted[:, 0])
    if change < NOTICEABLE:
        raise CheckpointError(
            "actions: change the predicted latent by "
            f"{change:.2g} of its norm, expected at least {NOTICEABLE:g}; an untrained model's "
            "gates (adaLN_modulation) are zero"
        )
    yield Finding("actions", f"change the predicted latent by {change:.2g} of its norm")
    yield Finding("version", loaded.version)


def _encode(model: LeWM) -> Tensor:
    """Latents of ``history`` or more different frames: black, white, noise."""
    size = model.config.image_size
    generator = torch.Generator().manual_seed(0)
    shape = (1 + model.config.history, size, size, 3)
    frames = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
    frames[0], frames[1] = 0, 255
    latents = model.encode(frames)
    if not bool(latents.isfinite().all()):
        raise CheckpointError("encode: gives latents that are not finite")
    if _change(latents) < NOTICEABLE:
        raise CheckpointError("encode: gives a black, a white and a noisy frame the same latent")
    return latents


def _rollouts(loaded: Checkpoint, latents: Tensor) -> Tensor:
    """Predictions (S, T, D) from one frame; those from a full history are checked on the way."""
    model, config = loaded.model, loaded.card.config
    generator = torch.Generator().manual_seed(1)
    steps = loaded.card.solver.horizon
    candidates = torch.randn(CANDIDATES, steps, config.block_width, generator=generator)
    past = torch.randn(config.history - 1, config.block_width, generator=generator)
    single = model.rollout(latents[:1], past[:0], candidates)
    full = model.rollout(latents[: config.history], past, candidates)
    for context, predicted in ((1, single), (config.history, full)):
        if not bool(predicted.isfinite().all()):
            raise CheckpointError(
                f"roll-out: gives latents that are not finite within {steps} steps from "
                f"{context} frames"
            )
    return single


def _change(latents: Tensor) -> float:
    """How far latents (N, D) lie from the first one, on average, relative to their norm."""
    apart = (latents[1:] - latents[:1]).norm(dim=-1).mean()
    return float(apart / latents.norm(dim=-1).mean().clamp_min(1e-30))
