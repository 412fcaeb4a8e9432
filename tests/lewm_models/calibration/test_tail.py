"""A limit says how rare what lies beyond it is, further out than the data reach."""

import math

import pytest
import torch

from lewm_models.calibration.tail import LEVELS, limit, quantiles


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def exponential(count: int, source: torch.Generator) -> torch.Tensor:
    return -torch.rand(count, generator=source).log()


@pytest.mark.parametrize("rate", [1e-3, 1e-4])
def test_an_exponential_tail_is_drawn_on(rate: float) -> None:
    scores = exponential(100_000, generator())
    assert limit(scores, rate) == pytest.approx(-math.log(rate), rel=0.1)


def test_a_limit_is_seldom_too_low() -> None:
    source = generator()
    limits = [limit(exponential(1000, source), 1e-4) for _ in range(300)]
    too_low = sum(one < -math.log(1e-4) for one in limits)
    assert too_low <= 0.1 * len(limits)


def test_neighbours_that_agree_count_once() -> None:
    scores = exponential(2000, generator())
    repeated = scores.repeat_interleave(10)
    assert limit(repeated, 1e-4) == pytest.approx(limit(scores, 1e-4), rel=0.02)
    shuffled = repeated[torch.randperm(len(repeated), generator=generator())]
    assert limit(shuffled, 1e-4) < limit(repeated, 1e-4)


@pytest.mark.parametrize("rate", [1e-3, 1e-4])
def test_a_lighter_tail_is_exceeded_less_often_than_stated(rate: float) -> None:
    source = generator()
    threshold = limit(torch.randn(10_000, generator=source).abs(), rate)
    assert float(math.erfc(threshold / math.sqrt(2))) <= rate
    assert threshold < 6


def test_equal_scores_have_the_limit_where_they_are() -> None:
    assert limit(torch.full((100,), 3.0), 1e-4) == 3.0


def test_quantiles_are_values_that_there_were() -> None:
    written = quantiles(torch.arange(1001.0).flip(0))
    assert written == tuple(1000 * level for level in LEVELS)
