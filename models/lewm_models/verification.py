"""The checks of ``lewm models verify``: whether a model folder can be served."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from lewm_models.card import ModelCard
from lewm_models.checkpoint import Checkpoint, CheckpointError, load
from lewm_models.config import StateInput
from lewm_models.distance.network import GoalDistance
from lewm_models.lewm import LeWM

MIN_RELATIVE_CHANGE = 1e-4
"""A smaller change of a latent, relative to its norm, may be rounding."""

MIN_DIMENSION_EFFECT = 0.02
"""An action dimension with less than this share of the largest effect has practically none."""

ROLLOUT_CANDIDATES = 8


@dataclass(frozen=True)
class Finding:
    """The name of a check that passed, what it measured, and what may be wrong all the same."""

    check: str
    detail: str
    warnings: tuple[str, ...] = ()


@torch.inference_mode()
def verify(folder: Path) -> Iterator[Finding]:
    """Yield a finding after each check that passes; the last one holds the version.

    Raises:
        CheckpointError: a check failed; the message says which and why.
    """
    checkpoint = load(folder)
    model, config = checkpoint.model, checkpoint.card.config
    yield Finding(
        "card",
        f"{checkpoint.card.name}, frames of {config.image_size} px, latents of "
        f"{config.latent_dim}, blocks of {config.action_block} × {config.action_dim}",
    )
    weights = sum(parameter.numel() for parameter in model.parameters())
    yield Finding("tensors", f"{len(model.state_dict())}, {weights:,} weights, all finite")

    latents = _encode_test_frames(model)
    change = _relative_change(latents)
    yield Finding("encode", f"frames change the latent by {change:.2g} of its norm")

    if config.state_input is not None:
        yield Finding("states", _check_state_input(model, config.state_input))

    predicted = _roll_out_random_actions(checkpoint, latents)
    yield Finding("roll-out", f"{predicted.shape[1]} steps from 1 and {config.history} frames")

    change = _relative_change(predicted[:, 0])
    if change < MIN_RELATIVE_CHANGE:
        raise CheckpointError(
            f"actions: change the predicted latent by {change:.2g} of its norm, expected at least "
            f"{MIN_RELATIVE_CHANGE:g}; the gates (adaLN_modulation) of an untrained model are zero"
        )
    yield _compare_dimensions(
        checkpoint, latents, f"change the predicted latent by {change:.2g} of its norm"
    )
    if checkpoint.distance is not None:
        yield Finding("distance", _check_distance(checkpoint.distance, predicted, latents))
    if checkpoint.probe is not None:
        yield Finding("probe", _check_probe(checkpoint, latents))
    yield Finding("version", checkpoint.version)


def _encode_test_frames(model: LeWM) -> Tensor:
    """The latents (history + 1, D) of a black frame, a white one and noise."""
    size = model.config.image_size
    generator = torch.Generator().manual_seed(0)
    shape = (1 + model.config.history, size, size, 3)
    frames = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
    frames[0], frames[1] = 0, 255
    latents = model.encode(frames)
    if not bool(latents.isfinite().all()):
        raise CheckpointError("encode: gives latents that are not finite")
    if _relative_change(latents) < MIN_RELATIVE_CHANGE:
        raise CheckpointError("encode: gives a black, a white and a noisy frame the same latent")
    return latents


def _check_state_input(model: LeWM, given: StateInput) -> str:
    """How much each state changes the latent of a black frame, in words."""
    size, count = model.config.image_size, len(given)
    mean, std = torch.tensor(given.mean), torch.tensor(given.std)
    states = torch.cat([mean.expand(1, -1), mean + torch.diag(std)])  # each by one deviation
    frames = torch.zeros(1 + count, size, size, 3, dtype=torch.uint8)
    latents = model.encode(frames, states)
    if not bool(latents.isfinite().all()):
        raise CheckpointError("states: give latents that are not finite")
    changes = [_relative_change(latents[[0, index]]) for index in range(1, 1 + count)]
    if max(changes) < MIN_RELATIVE_CHANGE:
        raise CheckpointError("states: do not change the latent")
    return "change the latent, of its norm: " + ", ".join(
        f"{name} {change:.2g}" for name, change in zip(given.names, changes, strict=True)
    )


def _roll_out_random_actions(checkpoint: Checkpoint, latents: Tensor) -> Tensor:
    """Roll out from one context frame and from a full history; return the first (S, T, D)."""
    model, config = checkpoint.model, checkpoint.card.config
    generator = torch.Generator().manual_seed(1)
    steps = checkpoint.card.solver.horizon
    candidates = torch.randn(ROLLOUT_CANDIDATES, steps, config.block_width, generator=generator)
    past = torch.randn(config.history - 1, config.block_width, generator=generator)
    from_one = model.rollout(latents[:1], past[:0], candidates)
    from_history = model.rollout(latents[: config.history], past, candidates)
    for context, predicted in ((1, from_one), (config.history, from_history)):
        if not bool(predicted.isfinite().all()):
            raise CheckpointError(
                f"roll-out: gives latents that are not finite within {steps} steps from "
                f"{context} frames"
            )
    return from_one


def _compare_dimensions(checkpoint: Checkpoint, test_latents: Tensor, detail: str) -> Finding:
    """How much each action dimension changes the prediction, relative to the strongest one.

    A dimension is set to its mean plus and minus one deviation in all actions of a block, and all
    others to their means. The frames are those of the model folder, if it has some.
    """
    model, config = checkpoint.model, checkpoint.card.config
    latents = test_latents if checkpoint.frames is None else model.encode(checkpoint.frames)
    blocks = torch.zeros(2, config.action_dim, config.action_block, config.action_dim)
    for dimension in range(config.action_dim):
        blocks[0, dimension, :, dimension] = 1
        blocks[1, dimension, :, dimension] = -1
    candidates = blocks.view(2 * config.action_dim, 1, config.block_width)
    effects = torch.zeros(config.action_dim)
    for latent in latents:
        predicted = model.rollout(
            latent[None], candidates.new_empty(0, config.block_width), candidates
        )
        above, below = predicted[:, -1].view(2, config.action_dim, -1)
        effects += (above - below).norm(dim=-1)
    shares = effects / effects.max().clamp_min(1e-30)
    labels = action_labels(checkpoint.card)
    return Finding(
        "actions",
        f"{detail}; effect of each dimension, of the largest: "
        + ", ".join(f"{label} {share:.0%}" for label, share in zip(labels, shares, strict=True)),
        tuple(
            f"action {label} has only {share:.1%} of the largest effect on the prediction, so "
            "plans choose it nearly at random; see docs/your-robot.md"
            for label, share in zip(labels, shares.tolist(), strict=True)
            if share < MIN_DIMENSION_EFFECT
        ),
    )


def action_labels(card: ModelCard) -> list[str]:
    """The names of the action dimensions as the recording has them, else their numbers."""
    recording = card.provenance.get("recording")
    labels = recording.get("action_labels") if isinstance(recording, dict) else None
    if isinstance(labels, list) and len(labels) == card.config.action_dim:
        return [str(label) for label in labels]
    return [str(number) for number in range(card.config.action_dim)]


def _check_distance(distance: GoalDistance, predicted: Tensor, latents: Tensor) -> str:
    """How far predicted latents (S, T, D) are from test frames' latents (N, D), in words."""
    blocks = distance(predicted[:, -1, None], latents)
    if not bool(blocks.isfinite().all()):
        raise CheckpointError("distance: gives distances that are not finite")
    if not bool(blocks.std() > 0):
        raise CheckpointError("distance: gives all latents the same distance")
    return f"{blocks.min():.3g} to {blocks.max():.3g} blocks from predicted latents to test frames"


def _check_probe(checkpoint: Checkpoint, latents: Tensor) -> str:
    """Which states the probe reads from test frames' latents (N, D), in words."""
    probe, described = checkpoint.probe, checkpoint.card.probe
    assert probe is not None
    assert described is not None
    states = probe.in_units(probe(latents))
    if not bool(states.isfinite().all()):
        raise CheckpointError("probe: gives states that are not finite")
    if not bool((states.std(dim=0) > 0).any()):
        raise CheckpointError("probe: gives all latents the same states")
    return "held-out R² " + ", ".join(
        f"{name} {r2:.3g}" for name, r2 in zip(described.states, described.r2, strict=True)
    )


def _relative_change(latents: Tensor) -> float:
    """The mean distance of latents (N, D) from the first one, divided by their mean norm."""
    distance = (latents[1:] - latents[:1]).norm(dim=-1).mean()
    return float(distance / latents.norm(dim=-1).mean().clamp_min(1e-30))
