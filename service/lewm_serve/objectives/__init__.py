"""What a candidate costs.

An objective gives each of the S candidates of a plan one cost; lower is better. It treats
candidates and plans independently of each other, and PyTorch can differentiate it with respect to
the predicted latents. The bits of a cost must not depend on how many threads there are, or on what
else is served.

Axes: S candidates, T steps, D latent_dim; leading axes, such as plans, are the same in both inputs.
"""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from lewm_models.card import ObjectiveName

DEFAULT_OBJECTIVE: ObjectiveName = "latent"
"""The objective of a card that names none."""

STATE_OBJECTIVE = "state"
"""The objective of goals that are given by states. A card cannot name it."""

ROWS_PER_CALL = 32
"""Candidates that are rolled out or scored in several parts are divided at multiples of this."""


class Objective(Protocol):
    """A function from predicted latents and goals to costs."""

    @property
    def name(self) -> str:
        """Its name, by which its time is measured."""

    def __call__(self, predicted: Tensor, goals: Tensor) -> Tensor:
        """Predicted latents (…, S, T, D) and goals (…, D), on one device → costs (…, S)."""
