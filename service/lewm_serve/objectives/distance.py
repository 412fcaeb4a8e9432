"""The learned distance: how far from the goal a candidate is on its way, in action blocks."""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from lewm_models.card import ObjectiveName
from lewm_models.distance.network import GoalDistance
from lewm_serve.objectives import ROWS_PER_CALL


class DistanceObjective:
    """The learned distance from the goal, in action blocks, the mean over the predicted latents.

    With the distance of the last latent alone, all ways to a goal would cost the same, detours too.

    See `Objective`. On a CPU at most `ROWS_PER_CALL` candidates are scored in one call, on one
    thread, because a matrix product may round differently for another number of rows or threads.
    Gradients are computed on the threads of the backend.

    Args:
        network: the distance; a copy is moved to the device.
        device: where the backend computes.

    Attributes:
        network: the copy.
    """

    name: ObjectiveName = "distance"

    def __init__(self, network: GoalDistance, device: torch.device) -> None:
        self.network = copy.deepcopy(network).eval().requires_grad_(False).to(device)
        self._device = device

    def __call__(self, predicted: Tensor, goals: Tensor) -> Tensor:
        """See `Objective`."""
        return self.blocks(predicted, goals).mean(dim=-1)

    def blocks(self, latents: Tensor, goals: Tensor) -> Tensor:
        """The distances (…, S, T) of latents (…, S, T, D) from goals (…, D)."""
        network = self.network
        use_one_thread(self._device, latents)
        goals = network.standardise(goals.to(self._device))[..., None, None, :]
        standardised = network.standardise(latents.to(self._device))
        if self._device.type != "cpu":
            return network.of_standardised(standardised, goals).to(latents.device)
        parts = torch.split(standardised, ROWS_PER_CALL, dim=-3)
        return torch.cat([network.of_standardised(part, goals) for part in parts], dim=-2)

    def propose(self, latent: Tensor, goal: Tensor) -> Tensor | None:
        """Z-scored actions (T, A) from a latent (D,) to a goal (D,); None if there are none."""
        use_one_thread(self._device, latent)
        proposed = self.network.propose(latent.to(self._device), goal.to(self._device))
        return None if proposed is None else proposed.cpu()


def use_one_thread(device: torch.device, latents: Tensor) -> None:
    """Make PyTorch use one thread on a CPU, unless there are gradients to compute.

    A product may round differently on more threads. Backends set their own number again.
    """
    if device.type == "cpu" and not latents.requires_grad and torch.get_num_threads() != 1:
        torch.set_num_threads(1)
