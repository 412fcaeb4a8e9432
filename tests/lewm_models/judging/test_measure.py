"""Intervals of measures."""

import numpy as np
import pytest

from lewm_models.judging.measure import Estimate, Measure, estimate, mean_of, share_of


def test_an_interval_of_independent_units_is_that_of_the_mean() -> None:
    values = np.random.default_rng(0).normal(3, 2, 400)
    found = mean_of(values, np.arange(400))
    assert found.value == pytest.approx(values.mean())
    assert found.interval_95 is not None
    low, high = found.interval_95
    assert high - low == pytest.approx(2 * 1.96 * 2 / 20, rel=0.3)


def test_copies_of_a_unit_do_not_make_an_interval_narrower() -> None:
    values = np.random.default_rng(0).normal(3, 2, 20)
    once = mean_of(values, np.arange(20))
    often = mean_of(np.repeat(values, 50), np.repeat(np.arange(20), 50))
    assert often.value == pytest.approx(once.value)
    assert often.interval_95 == pytest.approx(once.interval_95)


def test_one_unit_has_no_interval() -> None:
    assert mean_of(np.array([1.0, 2.0]), np.zeros(2, np.int64)) == Estimate(1.5)


def test_a_share_of_none_has_an_interval() -> None:
    found = share_of(np.zeros(1000, bool), np.arange(1000) // 10)
    assert found.value == 0
    assert found.interval_95 is not None
    assert found.interval_95[0] == 0
    assert 0.003 < found.interval_95[1] < 0.005


def test_a_share_of_dependent_samples_has_a_wide_interval() -> None:
    is_so = np.repeat([True, False] * 5, 100)
    found = share_of(is_so, np.repeat(np.arange(10), 100))
    assert found.interval_95 is not None
    assert found.interval_95[0] < 0.3
    assert found.interval_95[1] > 0.7


def test_the_same_samples_give_the_same_interval() -> None:
    values = np.random.default_rng(0).normal(size=50)
    units = np.arange(50) // 5
    of_median = [estimate(lambda rows: float(np.median(values[rows])), units) for _ in range(2)]
    assert of_median[0] == of_median[1]


def test_json_has_the_interval_and_the_baselines() -> None:
    measure = Measure(
        "error",
        Estimate(1 / 3, (0.1234567, 1.0)),
        unit="px",
        better="lower",
        samples=5,
        baselines={"mean": Estimate(2.0)},
    )
    assert measure.to_json() == {
        "value": 0.33333,
        "interval_95": [0.12346, 1.0],
        "unit": "px",
        "better": "lower",
        "samples": 5,
        "baselines": {"mean": {"value": 2.0, "interval_95": None}},
    }
