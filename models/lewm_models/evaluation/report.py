"""The results of an evaluation, with a confidence interval of the success rate."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from math import sqrt
from typing import Any

import numpy as np

from lewm_models.evaluation.episode import Outcome
from lewm_models.evaluation.protocol import Episodes

Z_95 = 1.959964
"""The 97.5 % quantile of the normal distribution."""


def wilson_interval(successes: int, trials: int, z: float = Z_95) -> tuple[float, float]:
    """Wilson's score interval of a success rate: (low, high) in [0, 1].

    Unlike the normal approximation, it holds for few trials and for rates near 0 or 1. Source:
    Wilson, Probable inference, the law of succession, and statistical inference, 1927.

    Raises:
        ValueError: there are no trials, or more successes than trials.
    """
    if trials < 1 or not 0 <= successes <= trials:
        raise ValueError(f"expected 0 ≤ successes ≤ trials ≥ 1, got {successes} of {trials}")
    rate = successes / trials
    scale = 1 + z * z / trials
    centre = (rate + z * z / (2 * trials)) / scale
    half = z / scale * sqrt(rate * (1 - rate) / trials + z * z / (4 * trials * trials))
    return max(0.0, centre - half), min(1.0, centre + half)


@dataclass(frozen=True)
class EvaluationReport:
    """Success rate, plan latency and steps over the episodes of a protocol.

    ``interval_95`` is Wilson's interval of the success rate. Latencies are those that the planner
    reported, over all ``plans``. Steps are those of successful episodes, None if there are none.
    So is the detour: the length of a way divided by that of the shortest one; it is None too where
    the environment does not know the shortest way.
    """

    environment: str
    protocol: str
    offset: int | None
    budget: int
    plan_steps: int
    episodes: int
    successes: int
    success_rate: float
    interval_95: tuple[float, float]
    plans: int
    plan_latency_p50_ms: float
    plan_latency_p99_ms: float
    steps_mean: float | None
    steps_median: float | None
    detour_median: float | None

    @classmethod
    def from_outcomes(cls, tasks: Episodes, outcomes: Sequence[Outcome]) -> EvaluationReport:
        """The results of one or more episodes."""
        steps = [outcome.steps for outcome in outcomes if outcome.reached]
        latencies = [1000 * seconds for outcome in outcomes for seconds in outcome.plan_seconds]
        p50, p99 = np.percentile(latencies, (50, 99))
        detours = [outcome.detour for outcome in outcomes if outcome.detour is not None]
        return cls(
            environment=tasks.environment.name,
            protocol=tasks.protocol,
            offset=tasks.offset,
            budget=tasks.budget,
            plan_steps=tasks.plan_steps,
            episodes=len(outcomes),
            successes=len(steps),
            success_rate=len(steps) / len(outcomes),
            interval_95=wilson_interval(len(steps), len(outcomes)),
            plans=len(latencies),
            plan_latency_p50_ms=float(p50),
            plan_latency_p99_ms=float(p99),
            steps_mean=float(np.mean(steps)) if steps else None,
            steps_median=float(np.median(steps)) if steps else None,
            detour_median=float(np.median(detours)) if detours else None,
        )

    def to_json(self) -> dict[str, Any]:
        """The fields as JSON values; rates have four decimals, other numbers two."""
        body: dict[str, Any] = {}
        for name, value in asdict(self).items():
            if isinstance(value, tuple):
                body[name] = [round(bound, 4) for bound in value]
            elif isinstance(value, float):
                body[name] = round(value, 4 if name == "success_rate" else 2)
            else:
                body[name] = value
        return body
