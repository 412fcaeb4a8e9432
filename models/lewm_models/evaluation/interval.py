"""How far a success rate can be trusted."""

from __future__ import annotations

from math import sqrt

Z_95 = 1.959964
"""The normal distribution's 97.5 % quantile."""


def wilson_interval(successes: int, trials: int, z: float = Z_95) -> tuple[float, float]:
    """Wilson's score interval of a success rate, (low, high) in [0, 1].

    Unlike the normal approximation it stays meaningful for few trials and for rates near 0 or 1.
    Source: Wilson, Probable inference, the law of succession, and statistical inference, 1927.

    Raises:
        ValueError: no trials, or more successes than trials.
    """
    if trials < 1 or not 0 <= successes <= trials:
        raise ValueError(f"expected 0 ≤ successes ≤ trials ≥ 1, got {successes} of {trials}")
    rate = successes / trials
    scale = 1 + z * z / trials
    centre = (rate + z * z / (2 * trials)) / scale
    half = z / scale * sqrt(rate * (1 - rate) / trials + z * z / (4 * trials * trials))
    return max(0.0, centre - half), min(1.0, centre + half)
