"""Where an alarm begins: the score that ordinary data exceed at a stated rate."""

from __future__ import annotations

import math

from torch import Tensor

TAIL = 0.02
"""The share of the scores from which the tail is drawn on."""

CONFIDENCE = 1.645
"""Standard errors by which the tail is drawn longer than it seems: the limit is too low in one
calibration of twenty."""

LEVELS = (0.0, 0.001, 0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 0.999, 1.0)
"""Where a distribution is written down, its smallest and largest value included."""


def limit(scores: Tensor, rate: float) -> float:
    """The score that one like these (N,) exceeds with probability ``rate``, below `TAIL`, at most.

    A rate of one in ten thousand cannot be read off ten thousand scores. The excesses over a high
    quantile are nearly exponential for any light tail (Pickands, Statistical inference using
    extreme order statistics, 1975), so the tail is drawn on from there with their mean, and with
    the upper end of what that mean may be. Successive scores above the quantile count as one, as
    they do not differ by chance alone: ``scores`` are in the order in which they came.
    """
    count = max(1, math.ceil(TAIL * len(scores)))
    threshold = scores.float().topk(min(count + 1, len(scores))).values[-1]
    above = scores.float() > threshold
    runs = int(above[:1].sum() + (above[1:] & ~above[:-1]).sum())
    if runs == 0:
        return float(threshold)
    excess = float((scores.float()[above] - threshold).mean())
    excess *= 1 + CONFIDENCE / math.sqrt(runs)
    return float(threshold) + excess * math.log(TAIL / rate)


def quantiles(scores: Tensor) -> tuple[float, ...]:
    """The scores (N,) at `LEVELS`."""
    ordered = scores.float().sort().values
    places = [round(level * (len(ordered) - 1)) for level in LEVELS]
    return tuple(ordered[places].tolist())
