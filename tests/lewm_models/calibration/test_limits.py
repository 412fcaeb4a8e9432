"""A limit is exceeded at the given rate, also if that is too rare to be counted in the scores."""

import math

import pytest
import torch

from lewm_models.calibration.limits import QUANTILE_LEVELS, anomaly_limit, quantiles


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def exponential_scores(count: int, generator: torch.Generator) -> torch.Tensor:
    return -torch.rand(count, generator=generator).log()


@pytest.mark.parametrize("rate", [1e-3, 1e-4])
def test_an_exponential_tail_is_extrapolated(rate: float) -> None:
    scores = exponential_scores(100_000, seeded())
    assert anomaly_limit(scores, rate) == pytest.approx(-math.log(rate), rel=0.1)


def test_a_limit_is_rarely_too_low() -> None:
    generator = seeded()
    limits = [anomaly_limit(exponential_scores(1000, generator), 1e-4) for _ in range(300)]
    too_low = sum(limit < -math.log(1e-4) for limit in limits)
    assert too_low <= 0.1 * len(limits)


def test_successive_scores_above_the_threshold_count_once() -> None:
    scores = exponential_scores(2000, seeded())
    repeated = scores.repeat_interleave(10)
    assert anomaly_limit(repeated, 1e-4) == pytest.approx(anomaly_limit(scores, 1e-4), rel=0.02)
    shuffled = repeated[torch.randperm(len(repeated), generator=seeded())]
    assert anomaly_limit(shuffled, 1e-4) < anomaly_limit(repeated, 1e-4)


@pytest.mark.parametrize("rate", [1e-3, 1e-4])
def test_a_lighter_tail_exceeds_its_limit_less_often(rate: float) -> None:
    limit = anomaly_limit(torch.randn(10_000, generator=seeded()).abs(), rate)
    assert float(math.erfc(limit / math.sqrt(2))) <= rate
    assert limit < 6


def test_the_limit_of_equal_scores_is_their_value() -> None:
    assert anomaly_limit(torch.full((100,), 3.0), 1e-4) == 3.0


def test_quantiles_are_scores_of_the_data() -> None:
    expected = tuple(1000 * level for level in QUANTILE_LEVELS)
    assert quantiles(torch.arange(1001.0).flip(0)) == expected
