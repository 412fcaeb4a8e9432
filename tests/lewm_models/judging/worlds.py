"""A world whose latents move by a linear map of the actions, and models that know it or not."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from lewm_models.lewm import LeWM
from lewm_models.recorded_sample import RecordedSample
from tests.lewm_models.examples import TINY

DIM, WIDTH = TINY.latent_dim, TINY.block_width
SCALE = 0.4
MOVES = (
    SCALE
    * torch.linalg.qr(
        torch.randn(WIDTH, DIM, generator=torch.Generator().manual_seed(7))
    ).Q.contiguous()
)
"""The change (A, D) of a latent by each action. Its columns are orthogonal."""


class World(LeWM):
    """A model that predicts this world exactly; with ``effect`` 0 it does not listen."""

    def __init__(self, effect: float = 1.0) -> None:
        super().__init__(TINY)
        self.effect = effect
        self.eval()

    def predict(self, latents: Tensor, actions: Tensor) -> Tensor:
        predicted: Tensor = latents + self.effect * actions @ MOVES
        return predicted

    def rollout(self, latents: Tensor, past_actions: Tensor, candidates: Tensor) -> Tensor:
        return self.rollout_each(latents[-1].expand(len(candidates), -1), candidates)


def walks(episodes: int = 30, steps: int = 12, seed: int = 0) -> RecordedSample:
    """Walks of random actions. The states are the first two latents, in another unit."""
    generator = torch.Generator().manual_seed(seed)
    blocks = torch.randn(episodes, steps + 1, WIDTH, generator=generator)
    starts = torch.randn(episodes, 1, DIM, generator=generator)
    latents = torch.cat([starts, starts + (blocks[:, :-1] @ MOVES).cumsum(dim=1)], dim=1)
    blocks[:, -1] = 0
    flat = latents.flatten(0, 1)
    numbers = np.repeat(np.arange(episodes), steps + 1)
    before = np.tile(np.arange(steps + 1), episodes)
    return RecordedSample(
        latents=flat,
        blocks=blocks.flatten(0, 1),
        left=steps - before,
        before=before,
        units=numbers,
        episodes=numbers,
        states=(100 + 20 * flat[:, :2]).numpy(),
        thumbnails=torch.rand(len(flat), 192, generator=generator),
    )


def exact_plan(start: Tensor, goal: Tensor, *, blocks: int, seed: int) -> Tensor:
    """The smallest actions (blocks, A) that lead to the goal exactly."""
    needed: Tensor = (goal - start) @ MOVES.T / SCALE**2 / blocks
    return needed.expand(blocks, -1)


def no_plan(start: Tensor, goal: Tensor, *, blocks: int, seed: int) -> Tensor:
    """Random actions (blocks, A), whatever the goal is."""
    return torch.randn(blocks, WIDTH, generator=torch.Generator().manual_seed(seed))
