"""Where an alarm begins: the score that ordinary data exceed at a stated rate."""

from __future__ import annotations

import math

from torch import Tensor

TAIL = 0.02
"""The share of the scores from which the tail is drawn on."""

LEVELS = (0.0, 0.001, 0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 0.999, 1.0)
"""Where a distribution is written down, its smallest and largest value included."""


def limit(scores: Tensor, rate: float) -> float:
    """The score that one like these (N,) exceeds with probability ``rate``, below `TAIL`.

    A rate of one in ten thousand cannot be read off ten thousand scores. The excesses over a high
    quantile are nearly exponential, with their mean, for any light tail (Pickands, Statistical
    inference using extreme order statistics, 1975), so the tail is drawn on from there; and where
    it is lighter still, as that of what is bounded, the limit errs on the quiet side.
    """
    count = max(1, math.ceil(TAIL * len(scores)))
    highest = scores.float().topk(min(count + 1, len(scores))).values
    threshold = highest[-1]
    excess = (highest - threshold).sum() / count
    return float(threshold + excess * math.log(TAIL / rate))


def quantiles(scores: Tensor) -> tuple[float, ...]:
    """The scores (N,) at `LEVELS`."""
    ordered = scores.float().sort().values
    places = [round(level * (len(ordered) - 1)) for level in LEVELS]
    return tuple(ordered[places].tolist())
