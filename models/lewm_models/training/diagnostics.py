"""Whether a model learns or collapses, measured on held-out windows without a simulator."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lewm_models.lewm import LeWM, encode_in_parts
from lewm_models.loss import random_directions, sigreg
from lewm_models.training.windows import Batch

CANDIDATES, SEARCHES = 64, 16
"""Random candidates of a search, and searches whose cost ranges are compared."""

DIRECTIONS = 256
"""Directions of SIGReg."""

SEED = 0
"""Of candidates and directions: reports can be compared."""

MIN_LATENT_STD, MIN_EFFECTIVE_RANK, MIN_COST_RANGE = 0.1, 2.0, 1.02
"""Below one of these a model has collapsed: SIGReg pulls the deviation to 1, and a good model's
cost range is 3 to 30."""


@dataclass(frozen=True)
class Diagnostics:
    """What tells a good model from a bad one.

    Attributes:
        prediction_error: the mean squared error of the next latent.
        copy_error: the same if each latent is predicted to stay as it is.
        cost_range: the largest cost of random candidates divided by the smallest one, the median
            of several searches. After a collapse it is 1: all plans look equally good.
        effective_rank: how many dimensions the latents use, 1 to latent_dim (Roy and Vetterli, The
            effective rank, 2007).
        latent_std: the deviation of the latents, the mean over the dimensions.
        sigreg: SIGReg of the latents of each time step.
    """

    prediction_error: float
    copy_error: float
    cost_range: float
    effective_rank: float
    latent_std: float
    sigreg: float

    @property
    def collapse(self) -> str | None:
        """Why the model has collapsed; None if it has not."""
        if self.latent_std < MIN_LATENT_STD:
            return f"all frames have nearly the same latent (deviation {self.latent_std:.2g})"
        if self.effective_rank < MIN_EFFECTIVE_RANK:
            return f"latents differ in one dimension only (rank {self.effective_rank:.2g})"
        if self.cost_range < MIN_COST_RANGE:
            return f"actions hardly change the cost of a plan (cost range {self.cost_range:.3f})"
        return None


@torch.inference_mode()
def diagnose(model: LeWM, batch: Batch) -> Diagnostics:
    """Measure a model in ``eval()`` mode, on any device, whose BatchNorm statistics are final."""
    device = next(model.parameters()).device
    generator = torch.Generator().manual_seed(SEED)
    directions = random_directions(model.config.latent_dim, DIRECTIONS, generator)
    frames = batch.frames.flatten(0, 1)
    states = None if batch.states is None else batch.states.flatten(0, 1)
    latents = encode_in_parts(model, frames, states).to(device)
    latents = latents.view(*batch.frames.shape[:2], -1)
    before, after = latents[:, :-1], latents[:, 1:]
    predicted = model.predict(before, batch.actions.to(device))
    return Diagnostics(
        prediction_error=(predicted - after).square().mean().item(),
        copy_error=(before - after).square().mean().item(),
        cost_range=_cost_range(model, latents),
        effective_rank=effective_rank(latents.flatten(0, 1)),
        latent_std=latents.flatten(0, 1).std(dim=0).mean().item(),
        sigreg=sigreg(latents.transpose(0, 1), directions.to(device)).item(),
    )


def effective_rank(latents: Tensor) -> float:
    """exp(entropy) of the singular values of centred latents (N, D)."""
    centred = (latents - latents.mean(dim=0)).double().cpu()
    values = torch.linalg.eigvalsh(centred.T @ centred).clamp_min(0).sqrt()
    shares = values / values.sum().clamp_min(torch.finfo(values.dtype).tiny)
    return float(torch.special.entr(shares).sum().exp())


def _cost_range(model: LeWM, latents: Tensor) -> float:
    """The median ratio of the largest to the smallest cost, from latents (B, T + 1, D).

    Each search starts at the first latent of a window, and its goal is the last one.
    """
    chosen = torch.linspace(0, len(latents) - 1, min(SEARCHES, len(latents))).long()
    windows = latents[chosen.to(latents.device)]
    ratios = cost_ranges(model, windows[:, 0], windows[:, -1], steps=latents.shape[1] - 1)
    return ratios.median().item()


@torch.inference_mode()
def cost_ranges(model: LeWM, starts: Tensor, goals: Tensor, *, steps: int) -> Tensor:
    """The largest cost of random candidates divided by the smallest one, for each search (n,).

    The costs are squared distances from a goal (n, D) after ``steps`` blocks from a start (n, D).
    The candidates of all searches are the same.
    """
    device = next(model.parameters()).device
    generator = torch.Generator().manual_seed(SEED)
    candidates = torch.randn(CANDIDATES, steps, model.config.block_width, generator=generator)
    candidates = candidates.to(device)
    ratios = []
    for start, goal in zip(starts.to(device), goals.to(device), strict=True):
        past = candidates.new_empty(0, model.config.block_width)
        final = model.rollout(start[None], past, candidates)[:, -1]
        costs = (final - goal).square().sum(dim=-1)
        least = torch.finfo(costs.dtype).tiny
        ratios.append((costs.max() + least) / (costs.min() + least))
    return torch.stack(ratios).cpu()
