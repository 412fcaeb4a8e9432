"""Intervals of paired differences against published ones."""

import pytest

from benchmarks.paired import Pairs


@pytest.mark.parametrize(
    ("pairs", "expected"),
    [
        # Data of Cavo et al. and Bentur et al., in Fagerland, Lydersen and Laake, Statistical
        # Analysis of Contingency Tables, chapter 8: Newcombe's square-and-add interval.
        (Pairs(59, 6, 16, 80), (-0.1186, -0.0046)),
        (Pairs(1, 1, 7, 12), (-0.5069, -0.0256)),
    ],
)
def test_published_intervals(pairs: Pairs, expected: tuple[float, float]) -> None:
    assert pairs.interval() == pytest.approx(expected, abs=5e-5)


def test_equal_outcomes_leave_some_doubt() -> None:
    low, high = Pairs(500, 0, 0, 0).interval()
    assert low == pytest.approx(-high)
    assert -0.01 < low < 0


def test_exchanging_the_two_turns_the_interval_round() -> None:
    low, high = Pairs(430, 30, 12, 28).interval()
    other_low, other_high = Pairs(430, 12, 30, 28).interval()
    assert (low, high) == pytest.approx((-other_high, -other_low))
    assert low < 18 / 500 < high


def test_pairs_are_counted() -> None:
    first = [True, True, False, False, True]
    second = [True, False, True, False, True]
    pairs = Pairs.of(first, second)
    assert pairs == Pairs(both=2, first=1, second=1, neither=1)
    assert (pairs.trials, pairs.difference) == (5, 0)
    with pytest.raises(ValueError, match="zip"):
        Pairs.of([True], [])
