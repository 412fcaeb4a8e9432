"""Comparing things that are measured in turns: timings, ratios and 95 % intervals of pairs."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod, sqrt

import numpy as np
import torch

from lewm_models.evaluation.report import wilson_interval

BOOTSTRAP_RESAMPLES = 10_000


def time_in_turns(
    tasks: Mapping[str, Callable[[], object]],
    rounds: int,
    show_progress: Callable[[str], None] = lambda _text: None,
) -> dict[str, list[float]]:
    """Seconds of each task, one per round.

    A disturbance of the machine falls on all tasks of a round.
    """
    seconds: dict[str, list[float]] = {name: [] for name in tasks}
    for number in range(rounds):
        for name, task in tasks.items():
            show_progress(f"round {number + 1} of {rounds}: {name}")
            start = time.perf_counter()
            task()
            seconds[name].append(time.perf_counter() - start)
    return seconds


def with_threads(threads: int, task: Callable[[], object]) -> Callable[[], None]:
    """The task on this many of PyTorch's threads. The number is restored afterwards."""

    def run() -> None:
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            task()
        finally:
            torch.set_num_threads(before)

    return run


def median_ratio(numerators: Sequence[float], denominators: Sequence[float]) -> float:
    """The median over the rounds of one value divided by the other."""
    return statistics.median(a / b for a, b in zip(numerators, denominators, strict=True))


def median_ratio_interval(
    numerators: Sequence[float], denominators: Sequence[float], seed: int = 0
) -> tuple[float, float]:
    """The 95 % interval of `median_ratio`, by the bootstrap over pairs.

    Pairs are drawn with replacement; the interval holds the middle 95 % of the medians. Source:
    Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13.

    Raises:
        ValueError: the numbers of values differ, or there are none.
    """
    ratios = np.array([a / b for a, b in zip(numerators, denominators, strict=True)])
    if not len(ratios):
        raise ValueError("expected at least one pair")
    generator = np.random.default_rng(seed)
    drawn = generator.integers(len(ratios), size=(BOOTSTRAP_RESAMPLES, len(ratios)))
    low, high = np.percentile(np.median(ratios[drawn], axis=1), (2.5, 97.5))
    return float(low), float(high)


@dataclass(frozen=True)
class PairedOutcomes:
    """How often both, only the first, only the second, or neither succeeded in the same trial."""

    both: int
    first: int
    second: int
    neither: int

    @classmethod
    def count(cls, first: Sequence[bool], second: Sequence[bool]) -> PairedOutcomes:
        """Count the outcomes of the same trials, in the same order."""
        pairs = list(zip(first, second, strict=True))
        return cls(
            both=pairs.count((True, True)),
            first=pairs.count((True, False)),
            second=pairs.count((False, True)),
            neither=pairs.count((False, False)),
        )

    @property
    def trials(self) -> int:
        """The number of trials."""
        return self.both + self.first + self.second + self.neither

    @property
    def difference(self) -> float:
        """The first's success rate minus the second's."""
        return (self.first - self.second) / self.trials

    def interval(self) -> tuple[float, float]:
        """The 95 % interval of the difference.

        It combines Wilson's intervals of both rates with the correlation of the outcomes. Source:
        Newcombe, Improved confidence intervals for the difference between binomial proportions
        based on paired data, Statistics in Medicine 17, 1998, method 10.
        """
        trials = self.trials
        successes = self.both + self.first, self.both + self.second
        rates = [count / trials for count in successes]
        bounds = [wilson_interval(count, trials) for count in successes]
        (below1, above1), (below2, above2) = (
            (rate - low, high - rate) for rate, (low, high) in zip(rates, bounds, strict=True)
        )
        phi = self._correlation()
        down = below1**2 - 2 * phi * below1 * above2 + above2**2
        up = above1**2 - 2 * phi * above1 * below2 + below2**2
        return self.difference - sqrt(max(0.0, down)), self.difference + sqrt(max(0.0, up))

    def _correlation(self) -> float:
        """The correlation of the pairs, with Newcombe's continuity correction."""
        successes = self.both + self.first, self.both + self.second
        variance = prod(count * (self.trials - count) for count in successes)
        if variance == 0:
            return 0.0
        covariance: float = self.both * self.neither - self.first * self.second
        if covariance > 0:
            covariance = max(0.0, covariance - self.trials / 2)
        return covariance / sqrt(variance)
