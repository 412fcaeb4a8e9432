"""Reports, and Wilson's interval against published values."""

import json

import numpy as np
import pytest

from lewm_models.environments.two_room_environment import TWO_ROOM
from lewm_models.evaluation.episode import Outcome
from lewm_models.evaluation.protocol import sample_episodes
from lewm_models.evaluation.report import EvaluationReport, wilson_interval

TASKS = sample_episodes(TWO_ROOM, "paper", 3, 0, offset=30)


@pytest.mark.parametrize(
    ("successes", "trials", "expected"),
    [
        # Newcombe, Two-sided confidence intervals for the single proportion, 1998, table I.
        (81, 263, (0.2553, 0.3662)),
        (15, 148, (0.0624, 0.1605)),
        (0, 20, (0.0, 0.1611)),
        (1, 29, (0.0061, 0.1718)),
        (29, 29, (0.8830, 1.0)),
    ],
)
def test_intervals_are_the_published_ones(
    successes: int, trials: int, expected: tuple[float, float]
) -> None:
    assert wilson_interval(successes, trials) == pytest.approx(expected, abs=5e-5)


@pytest.mark.parametrize(("successes", "trials"), [(0, 0), (-1, 5), (6, 5)])
def test_impossible_counts_are_refused(successes: int, trials: int) -> None:
    with pytest.raises(ValueError, match=f"{successes} of {trials}"):
        wilson_interval(successes, trials)


def outcome(
    steps: int, reached: bool, plan_seconds: tuple[float, ...], detour: float | None = None
) -> Outcome:
    states = np.zeros((steps + 1, 2), np.float32)
    return Outcome(
        index=0,
        reached=reached,
        states=states,
        actions=states[1:],
        plan_seconds=plan_seconds,
        detour=detour,
    )


def test_steps_are_those_of_successful_episodes() -> None:
    outcomes = [
        outcome(10, True, (0.1,), detour=1.2),
        outcome(21, True, (0.2,), detour=1.4),
        outcome(50, False, (0.3, 0.4)),
    ]
    report = EvaluationReport.from_outcomes(TASKS, outcomes)
    assert report.to_json() == {
        "environment": "two-room",
        "protocol": "offset-30-budget-60",
        "offset": 30,
        "budget": 60,
        "plan_steps": 25,
        "episodes": 3,
        "successes": 2,
        "success_rate": 0.6667,
        "interval_95": [0.2077, 0.9385],
        "plans": 4,
        "plan_latency_p50_ms": 250.0,
        "plan_latency_p99_ms": 397.0,
        "steps_mean": 15.5,
        "steps_median": 15.5,
        "detour_median": 1.3,
    }
    assert json.loads(json.dumps(report.to_json())) == report.to_json()


def test_without_success_there_are_no_steps() -> None:
    report = EvaluationReport.from_outcomes(TASKS, [outcome(50, False, (0.1,))])
    assert (report.successes, report.steps_mean, report.steps_median) == (0, None, None)
    assert report.detour_median is None
