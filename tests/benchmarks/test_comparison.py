"""Timings in turns, and intervals of paired differences and ratios."""

import statistics
from functools import partial

import numpy as np
import pytest
import torch

from benchmarks.comparison import (
    PairedOutcomes,
    median_ratio,
    median_ratio_interval,
    time_in_turns,
    with_threads,
)


def test_tasks_take_turns() -> None:
    done: list[str] = []
    seconds = time_in_turns({name: partial(done.append, name) for name in "ab"}, rounds=3)
    assert done == ["a", "b"] * 3
    assert [len(times) for times in seconds.values()] == [3, 3]
    assert min(min(times) for times in seconds.values()) >= 0


def test_a_task_runs_on_its_threads_and_restores_the_number() -> None:
    before = torch.get_num_threads()
    seen: list[int] = []
    with_threads(before + 1, lambda: seen.append(torch.get_num_threads()))()
    assert seen == [before + 1]
    assert torch.get_num_threads() == before


def test_a_disturbed_round_does_not_move_the_ratio() -> None:
    assert median_ratio([4, 4, 400], [2, 2, 2]) == 2
    assert statistics.mean([2, 2, 200]) > 2


def test_the_interval_of_equal_ratios_is_the_ratio() -> None:
    assert median_ratio_interval([2.0, 4.0, 6.0], [1.0, 2.0, 3.0]) == (2, 2)


def test_the_interval_of_a_ratio_holds_it_in_95_of_100_experiments() -> None:
    generator = np.random.default_rng(0)
    ratio, pairs, experiments = 1.05, 30, 200
    held = 0
    for seed in range(experiments):
        round_speed = generator.lognormal(0, 0.5, pairs)  # both values of a pair share it
        old = round_speed * generator.lognormal(0, 0.05, pairs)
        new = ratio * round_speed * generator.lognormal(0, 0.05, pairs)
        low, high = median_ratio_interval(new.tolist(), old.tolist(), seed)
        assert low <= median_ratio(new.tolist(), old.tolist()) <= high
        assert high - low < 0.15
        held += low <= ratio <= high
    # A right interval holds it in 190 of 200, with a standard deviation of 3.
    assert 180 <= held <= 198


def test_the_interval_of_a_ratio_needs_pairs() -> None:
    with pytest.raises(ValueError, match="at least one pair"):
        median_ratio_interval([], [])
    with pytest.raises(ValueError, match="zip"):
        median_ratio_interval([1.0], [])


@pytest.mark.parametrize(
    ("outcomes", "expected"),
    [
        # Data of Cavo et al. and Bentur et al., in Fagerland, Lydersen and Laake, Statistical
        # Analysis of Contingency Tables, chapter 8: Newcombe's square-and-add interval.
        (PairedOutcomes(both=59, first=6, second=16, neither=80), (-0.1186, -0.0046)),
        (PairedOutcomes(both=1, first=1, second=7, neither=12), (-0.5069, -0.0256)),
    ],
)
def test_published_intervals(outcomes: PairedOutcomes, expected: tuple[float, float]) -> None:
    assert outcomes.interval() == pytest.approx(expected, abs=5e-5)


def test_equal_outcomes_leave_an_interval() -> None:
    low, high = PairedOutcomes(both=500, first=0, second=0, neither=0).interval()
    assert low == pytest.approx(-high)
    assert -0.01 < low < 0


def test_exchanged_sides_give_the_negative_interval() -> None:
    low, high = PairedOutcomes(both=430, first=30, second=12, neither=28).interval()
    exchanged = PairedOutcomes(both=430, first=12, second=30, neither=28).interval()
    assert (low, high) == pytest.approx((-exchanged[1], -exchanged[0]))
    assert low < 18 / 500 < high


def test_outcomes_are_counted() -> None:
    first = [True, True, False, False, True]
    second = [True, False, True, False, True]
    outcomes = PairedOutcomes.count(first, second)
    assert outcomes == PairedOutcomes(both=2, first=1, second=1, neither=1)
    assert (outcomes.trials, outcomes.difference) == (5, 0)
    with pytest.raises(ValueError, match="zip"):
        PairedOutcomes.count([True], [])
