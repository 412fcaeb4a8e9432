"""The proposal: a plan in one step, which a search starts from."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class PlanProposal(nn.Module):
    """Actions that lead from a latent towards a goal, by an MLP with two hidden layers.

    It takes standardised latents; see `GoalDistance.propose`.

    Args:
        latent_dim: D.
        low: the lower bounds (A,) of a z-scored action block.
        high: the upper bounds.
        horizon: T, the blocks that it proposes.
        width: of the hidden layers.
    """

    low: Tensor
    high: Tensor

    def __init__(
        self, latent_dim: int, low: Tensor, high: Tensor, *, horizon: int, width: int
    ) -> None:
        super().__init__()
        self.register_buffer("low", low.float())
        self.register_buffer("high", high.float())
        self.latent = nn.Linear(latent_dim, width)
        self.goal = nn.Linear(latent_dim, width, bias=False)
        self.hidden = nn.Linear(width, width)
        self.output = nn.Linear(width, horizon * len(low))

    def forward(self, latents: Tensor, goals: Tensor) -> Tensor:
        """Standardised latents and goals (…, D) → z-scored actions (…, T, A) inside the bounds."""
        first = F.gelu(self.latent(latents) + self.goal(goals))
        shares = torch.tanh(self.output(F.gelu(self.hidden(first))))
        shares = shares.reshape(*shares.shape[:-1], -1, len(self.low))
        actions: Tensor = (self.low + self.high) / 2 + shares * (self.high - self.low) / 2
        return actions
