"""What a candidate costs.

An objective is a function of predicted latents (…, S, T, D) and goals (…, D). It returns one cost
for each of the S candidates (…, S); lower is better. It treats candidates and plans independently
of each other, and PyTorch can differentiate it with respect to the predicted latents.

Axes: S candidates, T steps, D latent_dim; leading axes, such as plans, are the same in both inputs.
"""

from collections.abc import Callable

from torch import Tensor

Objective = Callable[[Tensor, Tensor], Tensor]
"""Predicted latents (…, S, T, D), goals (…, D) → costs (…, S)."""
