"""How good a distance is, measured on recorded pieces that it was not trained on."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lewm_models.distance.latents import PieceLatents
from lewm_models.distance.network import GoalDistance

PAIRS = 20_000
"""The pairs of a start and a later frame that a distance is measured on."""

SEED = 0
"""Of the pairs: reports can be compared."""


@dataclass(frozen=True)
class DistanceQuality:
    """How a distance compares with the blocks that a recording took from a frame to a later one.

    A recording need not take the shortest way, and the distance aims at the shortest. So it should
    be below the recorded blocks, and rank pairs as they do.

    Attributes:
        frames: the held-out frames.
        rank_correlation: Spearman's, between distances and recorded blocks.
        mean_error: the mean absolute difference of the two, in blocks.
        next_frame: the mean distance of a frame from the next one, relative to the recorded time
            between them; up to 1 is right.
        same_frame: the mean distance of a frame from itself, in blocks; 0 is right.
    """

    frames: int
    rank_correlation: float
    mean_error: float
    next_frame: float
    same_frame: float


@torch.inference_mode()
def measure_quality(network: GoalDistance, held_out: PieceLatents) -> DistanceQuality:
    """Measure a distance on at least one held-out step."""
    latents = network.standardise(held_out.latents.to(network.mean.device))
    rows, left = held_out.rows_left
    generator = np.random.default_rng(SEED)
    chosen = generator.integers(len(rows), size=PAIRS)
    starts = rows[chosen]
    goals = starts + generator.integers(1, left[chosen], endpoint=True)
    recorded = (held_out.times[goals] - held_out.times[starts]).astype(np.float64)
    distances = _distances(network, latents[starts], latents[goals])
    of_next = _distances(network, latents[rows], latents[rows + 1])
    return DistanceQuality(
        frames=len(latents),
        rank_correlation=rank_correlation(distances, recorded),
        mean_error=float(np.abs(distances - recorded).mean()),
        next_frame=float(of_next.mean() / (held_out.times[rows + 1] - held_out.times[rows]).mean()),
        same_frame=float(_distances(network, latents, latents).mean()),
    )


def rank_correlation(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    """Spearman's correlation of values (N,) and (N,); 0 if all values of one are equal."""
    ranks = [_ranks(values) for values in (a, b)]
    centred = [values - values.mean() for values in ranks]
    norm = float(np.sqrt(np.square(centred[0]).sum() * np.square(centred[1]).sum()))
    return float((centred[0] * centred[1]).sum() / norm) if norm > 0 else 0.0


def _ranks(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """The rank of each value; equal values share the mean of their ranks."""
    _, group, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    mean_ranks: NDArray[np.float64] = last - (counts - 1) / 2
    return mean_ranks[group]


def _distances(network: GoalDistance, latents: Tensor, goals: Tensor) -> NDArray[np.float64]:
    parts = zip(torch.split(latents, 4096), torch.split(goals, 4096), strict=True)
    values = torch.cat([network.of_standardised(*pair) for pair in parts])
    return values.double().cpu().numpy()
