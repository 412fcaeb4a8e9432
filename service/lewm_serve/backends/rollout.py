"""The roll-out with everything computed once that can be: the same numbers for less work.

Three savings, all exact (the reference is `LeWM.rollout`): while the window grows, positions and
mask agree, so keys and values of earlier tokens are reused; tokens of context frames paired with
executed blocks are the same for all candidates; the last block needs only keys and values of every
token but the last. Modulations depend on the action alone: once per block of actions.

This file knows what plans and their candidates share; a kernel knows how tokens pass through a
window, step by step (`stepwise.py`) or in one call.

Axes: P plans, S candidates of a plan, R rows (P · S candidates, or P for what a plan's candidates
share), T steps, D latent_dim, A one action block.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

import torch
from torch import Tensor

from lewm_serve.backends.shards import Shards

W = TypeVar("W")


class Kernel(Protocol[W]):
    """Runs a model's predictor. What a window W is, is its own business."""

    history: int

    def begin(self, latents: Sequence[Tensor], actions: Tensor) -> tuple[Tensor, W]:
        """The latent (R, D) after n latents (R, D), left by actions (n, R, A), and their window."""

    def roll(self, latest: Tensor, windows: Mapping[int, W], actions: Tensor) -> Tensor:
        """Newest latents (R, D) and what leaves them, actions (T, R, A) → latents (T, R, D).

        ``windows`` are of the frames before the newest, by the frame they begin at: from the oldest
        on, as far as the roll-out needs them.
        """

    def select(self, window: W, rows: Tensor) -> W:
        """A window of these rows of another."""


@dataclass
class Shared(Generic[W]):
    """What the candidates of plans share: all that ``latents`` (P, H, D), H ≥ 2, but the newest
    and ``past_actions`` (P, H − 1, A) lead to.

    ``windows`` by the frame they begin at; ``expected`` (P, D) is what follows on the first one.
    """

    latents: Tensor
    past_actions: Tensor
    expected: Tensor
    windows: dict[int, W]

    def of(self, latents: Tensor, past_actions: Tensor) -> bool:
        """Whether this is what these lead to."""
        return torch.equal(self.latents, latents) and torch.equal(self.past_actions, past_actions)


class Rollout(Generic[W]):
    """Rolls candidates out; rows are split among the threads of ``shards``.

    What the candidates share may be remembered until other plans come, so that a plan's iterations
    compute it once. Not where kernels are recorded, which decides by what a tensor holds, nor where
    gradients may be asked for, which nothing that was made without them has.
    """

    def __init__(self, kernel: Kernel[W], shards: Shards, remember: bool = False) -> None:
        self._kernel = kernel
        self._shards = shards
        self._remember = remember
        self._last: Shared[W] | None = None

    def __call__(self, latents: Tensor, past_actions: Tensor, candidates: Tensor) -> Tensor:
        """See `Backend.rollout`: (P, H, D), (P, H − 1, A), (P, S, T, A) → (P, S, T, D)."""
        plans, samples, horizon, width = candidates.shape
        shared = self._windows(latents, past_actions, horizon)
        actions = candidates.reshape(plans * samples, horizon, width).transpose(0, 1)
        newest = latents[:, -1]
        plan = torch.arange(plans, device=latents.device).repeat_interleave(samples)

        def roll(rows: slice) -> Tensor:
            own = plan[rows]
            windows = {first: self._kernel.select(window, own) for first, window in shared.items()}
            return self._kernel.roll(newest[own], windows, actions[:, rows])

        parts = self._shards.map(roll, plans * samples)
        rolled = parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)
        return rolled.transpose(0, 1).reshape(plans, samples, horizon, -1)

    def expect(self, latents: Tensor, past_actions: Tensor) -> Tensor:
        """See `Backend.expect`: (P, H, D), (P, H − 1, A) → (P, D)."""
        return self._shared(latents, past_actions).expected

    def _shared(self, latents: Tensor, past_actions: Tensor) -> Shared[W]:
        if self._last is not None and self._last.of(latents, past_actions):
            return self._last
        expected, window = self._begin(latents, past_actions, 0)
        # Whoever made them may change them.
        shared = Shared(latents.clone(), past_actions.clone(), expected, {0: window})
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
            _, shared.windows[first] = self._begin(latents, past_actions, first)
        return {first: shared.windows[first] for first in range(count)}

    def _begin(self, latents: Tensor, past_actions: Tensor, first: int) -> tuple[Tensor, W]:
        """The window of all frames but the newest, from ``first`` on."""
        frames = latents.unbind(1)[first:-1]
        return self._kernel.begin(frames, past_actions[:, first:].transpose(0, 1))
