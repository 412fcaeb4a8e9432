"""The roll-out with everything computed once that can be: the same numbers for less work.

Three savings, all exact (the reference is `LeWM.rollout`): while the window grows, positions and
mask agree, so keys and values of earlier tokens are reused; tokens of context frames paired with
executed blocks are the same for all candidates; the last block needs only keys and values of every
token but the last. Modulations depend on the action alone: once per block of actions.

This file knows what a window holds at each step; a kernel knows how tokens pass through it.

Axes: P plans, S candidates of a plan, R rows (P · S candidates, or P for what a plan's candidates
share), T steps, D latent_dim, A one action block.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

import torch
from torch import Tensor

from service.backends.shards import Shards

W = TypeVar("W")
M = TypeVar("M")


class Kernel(Protocol[M, W]):
    """Runs a model's predictor. What windows W and modulations M are is its own business."""

    history: int

    def modulations(self, actions: Tensor) -> M:
        """What blocks of actions (T, R, A) do to each layer."""

    def extend(
        self, window: W | None, latents: Sequence[Tensor], modulations: M, step: int
    ) -> tuple[Tensor, W]:
        """Put latents (R, D) of consecutive steps, each with its block, behind a window.

        The first one's block is that of ``step``. Gives the latent (R, D) after the last one, and
        the longer window.
        """

    def select(self, window: W, rows: Tensor) -> W:
        """A window of these rows of another."""


@dataclass
class Shared(Generic[M, W]):
    """What the candidates of plans share: all that ``latents`` (P, H, D), H ≥ 2, but the newest
    and ``past_actions`` (P, H − 1, A) lead to.

    ``windows`` by the frame they begin at; ``expected`` (P, D) is what follows on the first one.
    """

    latents: Tensor
    past_actions: Tensor
    modulations: M
    expected: Tensor
    windows: dict[int, W]

    def of(self, latents: Tensor, past_actions: Tensor) -> bool:
        """Whether this is what these lead to."""
        return torch.equal(self.latents, latents) and torch.equal(self.past_actions, past_actions)


class Rollout(Generic[M, W]):
    """Rolls candidates out; rows are split among the threads of ``shards``.

    What the candidates share may be remembered until other plans come, so that a plan's iterations
    compute it once. Not where kernels are recorded, which decides by what a tensor holds, nor where
    gradients may be asked for, which nothing that was made without them has.
    """

    def __init__(self, kernel: Kernel[M, W], shards: Shards, remember: bool = False) -> None:
        self._kernel = kernel
        self._shards = shards
        self._remember = remember
        self._last: Shared[M, W] | None = None

    def __call__(self, latents: Tensor, past_actions: Tensor, candidates: Tensor) -> Tensor:
        """See `Backend.rollout`: (P, H, D), (P, H − 1, A), (P, S, T, A) → (P, S, T, D)."""
        plans, samples, horizon, width = candidates.shape
        context = latents.shape[1]
        shared = self._windows(latents, past_actions, horizon)
        actions = candidates.reshape(plans * samples, horizon, width).transpose(0, 1)
        plan = torch.arange(plans, device=latents.device).repeat_interleave(samples)

        def roll(rows: slice) -> Tensor:
            windows = {
                first: self._kernel.select(window, plan[rows]) for first, window in shared.items()
            }
            return self._roll(latents[plan[rows], -1], windows, actions[:, rows], context)

        parts = self._shards.map(roll, plans * samples)
        return torch.cat(parts, dim=1).transpose(0, 1).reshape(plans, samples, horizon, -1)

    def expect(self, latents: Tensor, past_actions: Tensor) -> Tensor:
        """See `Backend.expect`: (P, H, D), (P, H − 1, A) → (P, D)."""
        return self._shared(latents, past_actions).expected

    def _shared(self, latents: Tensor, past_actions: Tensor) -> Shared[M, W]:
        if self._last is not None and self._last.of(latents, past_actions):
            return self._last
        modulations = self._kernel.modulations(past_actions.transpose(0, 1))
        frames = latents.unbind(1)[:-1]
        expected, window = self._kernel.extend(None, frames, modulations, 0)
        shared = Shared(latents, past_actions, modulations, expected, {0: window})
        if self._remember:
            self._last = shared
        return shared

    def _windows(self, latents: Tensor, past_actions: Tensor, horizon: int) -> dict[int, W]:
        """Windows of what the candidates of a plan share, by the frame they begin at."""
        context = latents.shape[1]
        if context == 1:
            return {}
        shared = self._shared(latents, past_actions)
        count = min(context - 1, 1 + max(0, context + horizon - 1 - self._kernel.history))
        for first in range(len(shared.windows), count):
            frames = latents.unbind(1)[first:-1]
            _, shared.windows[first] = self._kernel.extend(None, frames, shared.modulations, first)
        return {first: shared.windows[first] for first in range(count)}

    def _roll(self, latest: Tensor, shared: dict[int, W], actions: Tensor, context: int) -> Tensor:
        """Newest frames (R, D) and candidates (T, R, A) → predicted latents (T, R, D)."""
        modulations = self._kernel.modulations(actions)
        latents, window = [latest], shared.get(0)
        for step in range(len(actions)):
            first = max(0, context + step - self._kernel.history)
            begin = step
            if first > 0:
                # Positions restart: the window is computed anew, on top of what is shared.
                window, begin = shared.get(first), max(0, first - context + 1)
            latent, window = self._kernel.extend(window, latents[begin:], modulations, begin)
            latents.append(latent)
        return torch.stack(latents[1:])
