"""The figures of an evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from lewm_models.evaluation.episode import Outcome
from lewm_models.evaluation.interval import wilson_interval


@dataclass(frozen=True)
class EvaluationReport:
    """Success, plan latency and steps over a protocol's episodes.

    ``interval_95`` is Wilson's of the success rate; latencies are what the planner reported, over
    all ``plans``; steps are those of the episodes that succeeded, None where none did.
    """

    protocol: str
    episodes: int
    successes: int
    success_rate: float
    interval_95: tuple[float, float]
    plans: int
    plan_latency_p50_ms: float
    plan_latency_p99_ms: float
    steps_mean: float | None
    steps_median: float | None

    @classmethod
    def of(cls, protocol: str, outcomes: Sequence[Outcome]) -> EvaluationReport:
        """The figures of these episodes, of which there is at least one."""
        steps = [outcome.steps for outcome in outcomes if outcome.reached]
        latencies = [1000 * seconds for outcome in outcomes for seconds in outcome.plan_s]
        p50, p99 = np.percentile(latencies, (50, 99))
        return cls(
            protocol=protocol,
            episodes=len(outcomes),
            successes=len(steps),
            success_rate=len(steps) / len(outcomes),
            interval_95=wilson_interval(len(steps), len(outcomes)),
            plans=len(latencies),
            plan_latency_p50_ms=float(p50),
            plan_latency_p99_ms=float(p99),
            steps_mean=float(np.mean(steps)) if steps else None,
            steps_median=float(np.median(steps)) if steps else None,
        )

    def to_json(self) -> dict[str, Any]:
        """The figures under their names, rates to four decimals and the rest to two."""
        figures: dict[str, Any] = {}
        for name, value in asdict(self).items():
            if isinstance(value, tuple):
                figures[name] = [round(bound, 4) for bound in value]
            elif isinstance(value, float):
                figures[name] = round(value, 4 if name == "success_rate" else 2)
            else:
                figures[name] = value
        return figures
