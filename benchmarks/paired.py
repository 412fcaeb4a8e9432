"""How far the difference of two success rates on the same episodes can be trusted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod, sqrt

from lewm_models.evaluation.interval import wilson_interval


@dataclass(frozen=True)
class Pairs:
    """How often both, only the first, only the second, or neither succeeded."""

    both: int
    first: int
    second: int
    neither: int

    @classmethod
    def of(cls, first: Sequence[bool], second: Sequence[bool]) -> Pairs:
        """Count the outcomes of the same trials, in the same order."""
        pairs = list(zip(first, second, strict=True))
        kinds = ((True, True), (True, False), (False, True), (False, False))
        return cls(*(pairs.count(kind) for kind in kinds))

    @property
    def trials(self) -> int:
        """All of them."""
        return self.both + self.first + self.second + self.neither

    @property
    def difference(self) -> float:
        """The first's success rate minus the second's."""
        return (self.first - self.second) / self.trials

    def interval(self) -> tuple[float, float]:
        """The 95 % interval of the difference.

        Wilson's intervals of both rates, put together with regard to how the outcomes go together.
        Source: Newcombe, Improved confidence intervals for the difference between binomial
        proportions based on paired data, Statistics in Medicine 17, 1998, method 10.
        """
        n = self.trials
        successes = self.both + self.first, self.both + self.second
        rates = [count / n for count in successes]
        bounds = [wilson_interval(count, n) for count in successes]
        (below1, above1), (below2, above2) = (
            (rate - low, high - rate) for rate, (low, high) in zip(rates, bounds, strict=True)
        )
        phi = self._correlation()
        down = below1**2 - 2 * phi * below1 * above2 + above2**2
        up = above1**2 - 2 * phi * above1 * below2 + below2**2
        return self.difference - sqrt(max(0.0, down)), self.difference + sqrt(max(0.0, up))

    def _correlation(self) -> float:
        """The pairs' correlation, with Newcombe's correction for continuity."""
        successes = self.both + self.first, self.both + self.second
        margins = prod(count * (self.trials - count) for count in successes)
        if margins == 0:
            return 0.0
        product: float = self.both * self.neither - self.first * self.second
        if product > 0:
            product = max(0.0, product - self.trials / 2)
        return product / sqrt(margins)
