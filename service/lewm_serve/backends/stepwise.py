"""Roll-outs step by step: what a window holds at each of them.

Axes: R rows, n new tokens, T steps, D latent_dim, A one action block.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Generic, TypeVar

import torch
from torch import Tensor

W = TypeVar("W")
M = TypeVar("M")


class StepwiseKernel(ABC, Generic[M, W]):
    """A `Kernel` that knows how to extend a window. What modulations M are is its own business."""

    history: int

    @abstractmethod
    def modulations(self, actions: Tensor) -> M:
        """What blocks of actions (T, R, A) do to each layer."""

    @abstractmethod
    def extend(
        self, window: W | None, latents: Sequence[Tensor], modulations: M, step: int
    ) -> tuple[Tensor, W]:
        """Put latents (R, D) of consecutive steps, each with its block, behind a window.

        The first one's block is that of ``step``. Gives the latent (R, D) after the last one, and
        the longer window.
        """

    @abstractmethod
    def tokens(self, window: W) -> int:
        """How many tokens a window holds."""

    def begin(self, latents: Sequence[Tensor], actions: Tensor) -> tuple[Tensor, W]:
        """See `Kernel`."""
        return self.extend(None, latents, self.modulations(actions), 0)

    def roll(self, latest: Tensor, windows: Mapping[int, W], actions: Tensor) -> Tensor:
        """See `Kernel`."""
        modulations = self.modulations(actions)
        latents, window = [latest], windows.get(0)
        context = 1 + (0 if window is None else self.tokens(window))
        for step in range(len(actions)):
            first = max(0, context + step - self.history)
            begin = step
            if first > 0:
                # Positions restart: the window is computed anew, on top of what is shared.
                window, begin = windows.get(first), max(0, first - context + 1)
            latent, window = self.extend(window, latents[begin:], modulations, begin)
            latents.append(latent)
        return torch.stack(latents[1:])
