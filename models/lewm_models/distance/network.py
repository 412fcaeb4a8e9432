"""The networks of a learned distance and its proposal, and the file that holds them."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lewm_models.network_file import load_tensors, network_to_bytes, read_tensors

WIDTH = 256
"""The width of a new network."""

MAX_WIDTH = 1 << 14
"""The largest width that is read from a file."""

MIN_STD = 1e-6
"""The least deviation that a latent's dimension is divided by."""


class GoalDistance(nn.Module):
    """The distance d(z, g) ≥ 0 from a latent to a goal, in action blocks still to go.

    An MLP with two hidden layers over both latents, standardised and concatenated. The matrix of
    its first layer is kept in two parts, so that the part that sees the goal is computed once for
    all candidates of a plan. d(z, g) is not symmetric.

    With it comes a proposal of actions that lead to the goal, if one was trained.

    Args:
        mean: (D,) of usual latents, with which latents are standardised.
        std: (D,), their deviations.
        width: of the hidden layers.

    Attributes:
        proposal: the proposal; None without one.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Tensor, std: Tensor, width: int = WIDTH) -> None:
        super().__init__()
        latent_dim = len(mean)
        self.register_buffer("mean", mean.float())
        self.register_buffer("std", std.float().clamp_min(MIN_STD))
        self.latent = nn.Linear(latent_dim, width)
        self.goal = nn.Linear(latent_dim, width, bias=False)
        self.hidden = nn.Linear(width, width)
        self.output = nn.Linear(width, 1)
        self.proposal: PlanProposal | None = None

    @property
    def latent_dim(self) -> int:
        return len(self.mean)

    def forward(self, latents: Tensor, goals: Tensor) -> Tensor:
        """Latents (…, D) and goals (…, D), whose leading axes broadcast → blocks (…)."""
        return self.of_standardised(self.standardise(latents), self.standardise(goals))

    def standardise(self, latents: Tensor) -> Tensor:
        """Latents (…, D) with a mean of 0 and a deviation of 1 in each dimension."""
        return (latents - self.mean) / self.std

    def of_standardised(self, latents: Tensor, goals: Tensor) -> Tensor:
        """The distances (…) of standardised latents (…, D) from standardised goals (…, D)."""
        first = F.gelu(self.latent(latents) + self.goal(goals))
        blocks: Tensor = F.softplus(self.output(F.gelu(self.hidden(first)))).squeeze(-1)
        return blocks

    def propose(self, latents: Tensor, goals: Tensor) -> Tensor | None:
        """Z-scored actions (…, T, A) from latents to goals (…, D), if there is a proposal."""
        if self.proposal is None:
            return None
        actions: Tensor = self.proposal(self.standardise(latents), self.standardise(goals))
        return actions

    def to_bytes(self) -> bytes:
        """The content of `distance.safetensors`."""
        return network_to_bytes(self)

    @classmethod
    def from_bytes(cls, content: bytes, latent_dim: int) -> GoalDistance:
        """Read the content of `distance.safetensors`; without gradients, in ``eval()`` mode.

        Raises:
            ValueError: the content is no safetensors file, or holds other tensors than those of a
                distance between latents (latent_dim,).
        """
        tensors = read_tensors(content)
        width = _size(tensors, "hidden.bias")
        network = cls(torch.zeros(latent_dim), torch.ones(latent_dim), width)
        network.proposal = _empty_proposal(tensors, latent_dim)
        network = load_tensors(network, tensors, deviations=["std"])
        if "proposal.low" in tensors and not bool(
            (tensors["proposal.low"] < tensors["proposal.high"]).all()
        ):
            raise ValueError("proposal.low: expected numbers below proposal.high")
        return network


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


def _empty_proposal(tensors: Mapping[str, Tensor], latent_dim: int) -> PlanProposal | None:
    """A proposal of the size of the tensors; None if they have none."""
    if not any(name.startswith("proposal.") for name in tensors):
        return None
    block_width = _size(tensors, "proposal.low")
    return PlanProposal(
        latent_dim,
        torch.zeros(block_width),
        torch.ones(block_width),
        horizon=max(1, _size(tensors, "proposal.output.bias") // block_width),
        width=_size(tensors, "proposal.hidden.bias"),
    )


def _size(tensors: Mapping[str, Tensor], name: str) -> int:
    """The length of a vector, 1 if it is missing."""
    vector = tensors.get(name)
    size = 1 if vector is None or vector.ndim != 1 else len(vector)
    if not 1 <= size <= MAX_WIDTH:
        raise ValueError(f"{name}: expected 1 to {MAX_WIDTH} values, got {size}")
    return size
