"""Measures of a model, with intervals and baselines."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from lewm_models.evaluation.report import wilson_interval

RESAMPLES, SEED = 200, 0
"""How often the units are drawn anew, and the seed of that."""

Rows = NDArray[np.int64]
Statistic = Callable[[Rows], float]
"""A measure of some samples, given by their indices; an index may be there several times."""

Better = Literal["lower", "higher", "neither"]


@dataclass(frozen=True)
class Estimate:
    """A value and its 95 % interval; None if there is only one unit to estimate it from."""

    value: float
    interval_95: tuple[float, float] | None = None

    def to_json(self) -> dict[str, Any]:
        interval = self.interval_95
        return {
            "value": _rounded(self.value),
            "interval_95": None if interval is None else [_rounded(bound) for bound in interval],
        }


@dataclass(frozen=True)
class Measure:
    """One measure of a model.

    Attributes:
        name: as programs know it, such as ``prediction_error_1``.
        estimate: its value.
        unit: what the value is, in words.
        better: which values are good; "neither" where neither low nor high ones are.
        samples: how many windows, pairs or frames it was measured on.
        baselines: the same measure of what knows less than the model, by name.
    """

    name: str
    estimate: Estimate
    unit: str
    better: Better
    samples: int
    baselines: Mapping[str, Estimate] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return {
            **self.estimate.to_json(),
            "unit": self.unit,
            "better": self.better,
            "samples": self.samples,
            "baselines": {name: found.to_json() for name, found in self.baselines.items()},
        }


def estimate(statistic: Statistic, units: NDArray[np.int64]) -> Estimate:
    """A statistic of n samples and its interval, by the bootstrap over units.

    Samples of one unit depend on each other, so whole units are drawn (Davison and Hinkley,
    Bootstrap Methods and their Application, 1997).

    Args:
        statistic: see `Statistic`.
        units: (n,), the unit of each sample, n ≥ 1.
    """
    value = statistic(np.arange(len(units)))
    order = np.argsort(units, kind="stable")
    members = np.split(order, np.flatnonzero(np.diff(units[order])) + 1)
    if len(members) < 2:
        return Estimate(value)
    generator = np.random.default_rng(SEED)
    values = []
    for _ in range(RESAMPLES):
        drawn = generator.integers(len(members), size=len(members))
        values.append(statistic(np.concatenate([members[unit] for unit in drawn])))
    low, high = np.quantile(values, (0.025, 0.975)).tolist()
    return Estimate(value, (min(low, value), max(high, value)))


def mean_of(values: NDArray[np.floating], units: NDArray[np.int64]) -> Estimate:
    """The mean of values (n,) and its interval."""
    return estimate(lambda rows: float(values[rows].mean(dtype=np.float64)), units)


def share_of(is_so: NDArray[np.bool_], units: NDArray[np.int64]) -> Estimate:
    """The share of n samples, and its interval: the wider one of the bootstrap and Wilson's.

    The bootstrap of no or all samples has no width.
    """
    found = mean_of(is_so.astype(np.float64), units)
    low, high = wilson_interval(int(is_so.sum()), len(is_so))
    if found.interval_95 is not None:
        low, high = min(low, found.interval_95[0]), max(high, found.interval_95[1])
    return Estimate(found.value, (low, high))


def _rounded(value: float) -> float:
    return float(f"{value:.5g}")
