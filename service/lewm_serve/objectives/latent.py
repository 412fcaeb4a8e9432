"""The objective of the paper: how far from the goal a candidate ends, in latent space."""

from __future__ import annotations

from torch import Tensor

from lewm_models.card import ObjectiveName


class LatentObjective:
    """Squared Euclidean distance of the last predicted latent from the goal, in latent units.

    See `Objective`. Source: LeWM, arXiv 2603.19312.
    """

    name: ObjectiveName = "latent"

    def __call__(self, predicted: Tensor, goals: Tensor) -> Tensor:
        """See `Objective`."""
        return (predicted[..., -1, :] - goals.unsqueeze(-2)).square().sum(dim=-1)


LATENT = LatentObjective()
