"""Ridge regression, with a penalty that is chosen on rows that were left out."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

PENALTIES = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)
"""The penalties that are tried, for standardised inputs and relative to the number of rows."""

MIN_STD = 1e-6


@dataclass(frozen=True)
class LinearMap:
    """x ↦ x · weight + bias.

    Attributes:
        weight: (F, O) float32.
        bias: (O,) float32.
    """

    weight: Tensor
    bias: Tensor

    def __call__(self, inputs: Tensor) -> Tensor:
        """Inputs (…, F) → outputs (…, O)."""
        return inputs.float() @ self.weight + self.bias


def fit_ridge(inputs: Tensor, targets: Tensor, groups: NDArray[np.int64]) -> LinearMap:
    """The linear map from inputs (N, F) to targets (N, O) with the least penalised squared error.

    The penalty is the one of `PENALTIES` with the least error on a fifth of the groups, after a fit
    to the others. With fewer than five groups it is the largest.

    Args:
        inputs: (N, F), N ≥ 2.
        targets: (N, O).
        groups: (N,), the group of each row, such as its episode.
    """
    inputs, targets = inputs.double(), targets.double()
    penalty = PENALTIES[-1]
    numbers = np.unique(groups)
    if len(numbers) >= 5:
        is_left_out = torch.from_numpy(np.isin(groups, numbers[2::5]))
        maps = _maps(inputs[~is_left_out], targets[~is_left_out], PENALTIES)
        errors = [
            float((linear(inputs[is_left_out]) - targets[is_left_out]).square().mean())
            for linear in maps
        ]
        penalty = PENALTIES[int(np.argmin(errors))]
    return _maps(inputs, targets, (penalty,))[0]


def _maps(inputs: Tensor, targets: Tensor, penalties: tuple[float, ...]) -> list[LinearMap]:
    """The map of each penalty. Inputs and targets are float64."""
    mean, std = inputs.mean(dim=0), inputs.std(dim=0, correction=0).clamp_min(MIN_STD)
    standardised, target_mean = (inputs - mean) / std, targets.mean(dim=0)
    values, vectors = torch.linalg.eigh(standardised.T @ standardised / len(inputs))
    projected = vectors.T @ (standardised.T @ (targets - target_mean) / len(inputs))
    maps = []
    for penalty in penalties:
        scaled = projected / (values.clamp_min(0) + penalty)[:, None]
        weight = (vectors @ scaled) / std[:, None]
        maps.append(LinearMap(weight.float(), (target_mean - mean @ weight).float()))
    return maps
