"""The objective of the paper: how far from the goal a candidate ends, in latent space."""

from __future__ import annotations

from torch import Tensor


def latent_distance(predicted: Tensor, goals: Tensor) -> Tensor:
    """Squared Euclidean distance of the last predicted latent from the goal.

    An `Objective`: predicted latents (…, S, T, D), goals (…, D) → costs (…, S), in squared latent
    units. Source: LeWM, arXiv 2603.19312.
    """
    return (predicted[..., -1, :] - goals.unsqueeze(-2)).square().sum(dim=-1)
