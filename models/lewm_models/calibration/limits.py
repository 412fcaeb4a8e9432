"""Anomaly limits: the score that ordinary data exceed with a given probability."""

from __future__ import annotations

import math

from torch import Tensor

TAIL_SHARE = 0.02
"""The share of the scores that the tail of their distribution is fitted to."""

TAIL_STANDARD_ERRORS = 1.645
"""How many standard errors the fitted mean excess is increased by: a limit is too low in about one
calibration of 20."""

QUANTILE_LEVELS = (0.0, 0.001, 0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 0.999, 1.0)
"""The levels at which a card holds the distribution of a score; 0 and 1 are its extremes."""


def anomaly_limit(scores: Tensor, rate: float) -> float:
    """The score that ordinary data exceed with a probability of at most ``rate``.

    A rate of 1 in 10,000 cannot be read directly from ten thousand scores, so the limit is
    extrapolated. Above a high threshold, the excesses of a light-tailed distribution are nearly
    exponential (Pickands, Statistical inference using extreme order statistics, 1975). The
    threshold u is the quantile at 1 - `TAIL_SHARE`; with the mean excess m above u, increased by
    `TAIL_STANDARD_ERRORS`, the limit is u + m · ln(`TAIL_SHARE` / rate).

    Successive scores above the threshold depend on each other, so each run of them counts as one in
    the standard error.

    Args:
        scores: (N,), in the order in which they were measured.
        rate: below `TAIL_SHARE`.
    """
    scores = scores.float()
    count = max(1, math.ceil(TAIL_SHARE * len(scores)))
    threshold = scores.topk(min(count + 1, len(scores))).values[-1]
    above = scores > threshold
    runs = int(above[:1].sum() + (above[1:] & ~above[:-1]).sum())
    if runs == 0:
        return float(threshold)
    mean_excess = float((scores[above] - threshold).mean())
    mean_excess *= 1 + TAIL_STANDARD_ERRORS / math.sqrt(runs)
    return float(threshold) + mean_excess * math.log(TAIL_SHARE / rate)


def quantiles(scores: Tensor) -> tuple[float, ...]:
    """The scores (N,) at `QUANTILE_LEVELS`; each is one of the scores, not interpolated."""
    ordered = scores.float().sort().values
    indices = [round(level * (len(ordered) - 1)) for level in QUANTILE_LEVELS]
    return tuple(ordered[indices].tolist())
