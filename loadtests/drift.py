"""Whether a figure of a server that runs for long drifts upwards.

The first part of a run is left out: caches fill and connections open. The rest is cut into thirds.
A figure drifts if its median in the last third exceeds that of the first third by more than a
limit, and if the Mann-Whitney test says that chance does not explain it. The limit ignores what is
too small to matter, the test ignores what a noisy figure does by itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from scipy.stats import mannwhitneyu

WARM_UP_SHARE = 0.1
"""The share of a run that is left out at its begin."""

MAX_CHANCE = 0.001
"""A greater probability of such a difference by chance is no drift."""

MIN_PER_THIRD = 8
"""With fewer values in each third, the test can hardly give a probability below `MAX_CHANCE`."""


@dataclass(frozen=True)
class Limit:
    """How far a figure may grow from the first third to the last, by the larger of the two.

    Attributes:
        share: the growth relative to the first third.
        amount: the growth in the figure's unit.
    """

    share: float = 0.0
    amount: float = 0.0


@dataclass(frozen=True)
class Drift:
    """What became of a figure.

    Attributes:
        name, unit: the figure.
        first, last: its medians in the first and in the last third.
        allowed: the most that the last may be.
        chance: the probability that values without a trend differ as much.
    """

    name: str
    unit: str
    first: float
    last: float
    allowed: float
    chance: float

    @property
    def is_drift(self) -> bool:
        """Whether it drifts."""
        return self.last > self.allowed and self.chance < MAX_CHANCE


def judge(name: str, unit: str, values: Sequence[float], limit: Limit) -> Drift:
    """Judge a figure by its values at equal distances in time.

    Raises:
        ValueError: there are too few values.
    """
    steady = values[round(WARM_UP_SHARE * len(values)) :]
    third = len(steady) // 3
    if third < MIN_PER_THIRD:
        raise ValueError(
            f"{name}: expected at least {MIN_PER_THIRD} values in a third of the run, got {third}"
        )
    first, last = steady[:third], steady[-third:]
    start = median(first)
    return Drift(
        name=name,
        unit=unit,
        first=start,
        last=median(last),
        allowed=start + max(limit.share * start, limit.amount),
        chance=float(mannwhitneyu(last, first, alternative="greater").pvalue),
    )
