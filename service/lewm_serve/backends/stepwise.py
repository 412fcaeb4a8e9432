"""Kernels that roll out step by step: which tokens a window holds at each step.

Axes: R rows, n new tokens, T steps, D latent_dim, A one action block.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Generic, TypeVar

import torch
from torch import Tensor

W = TypeVar("W")
"""What the kernel keeps of a window of tokens."""

M = TypeVar("M")
"""The modulations (shift, scale and gate of each layer) of a sequence of actions."""


class StepwiseKernel(ABC, Generic[M, W]):
    """A `Kernel` that is told how to extend a window by some tokens."""

    history: int

    @abstractmethod
    def modulations(self, actions: Tensor) -> M:
        """The modulations that follow from actions (T, R, A)."""

    @abstractmethod
    def extend(
        self, window: W | None, latents: Sequence[Tensor], modulations: M, step: int
    ) -> tuple[Tensor, W]:
        """Append the tokens of n consecutive latents (R, D) to a window.

        The first token takes the modulations of ``step``, the next ones those of the steps after.

        Returns:
            The predicted latent (R, D) after the last token, and the longer window.
        """

    @abstractmethod
    def tokens(self, window: W) -> int:
        """The number of tokens in a window."""

    def begin(self, latents: Sequence[Tensor], actions: Tensor) -> tuple[Tensor, W]:
        """See `Kernel`."""
        return self.extend(None, latents, self.modulations(actions), 0)

    def roll(self, latest: Tensor, windows: Mapping[int, W], actions: Tensor) -> Tensor:
        """See `Kernel`."""
        modulations = self.modulations(actions)
        latents, window = [latest], windows.get(0)
        context = 1 + (0 if window is None else self.tokens(window))
        for step in range(len(actions)):
            first_frame = max(0, context + step - self.history)
            first_new = step
            if first_frame > 0:
                # Positions restart at 0 when the window slides: it is computed anew, on top of the
                # shared window that begins at the same frame.
                window = windows.get(first_frame)
                first_new = max(0, first_frame - context + 1)
            latent, window = self.extend(window, latents[first_new:], modulations, first_new)
            latents.append(latent)
        return torch.stack(latents[1:])
