"""The judge of drift, with series whose nature is known."""

import numpy as np
import pytest
from numpy.typing import NDArray

from loadtests.drift import Limit, judge

SAMPLES = 150
SEEDS = range(200)
MEMORY = Limit(share=0.02, amount=8.0)
P99 = Limit(share=0.5, amount=5.0)

Series = NDArray[np.floating]


def noise(seed: int, mean: float, deviation: float, count: int = SAMPLES) -> Series:
    return np.random.default_rng(seed).normal(mean, deviation, count)


def heavy_tailed(seed: int, count: int = SAMPLES) -> Series:
    """Windows' p99 on a machine with other work: one in twenty is ten times as long."""
    generator = np.random.default_rng(seed)
    return generator.lognormal(3, 0.4, count) * np.where(generator.random(count) < 0.05, 10, 1)


def drifts(values: Series, limit: Limit) -> bool:
    return judge("figure", "unit", list(values), limit).is_drift


def test_noise_is_no_drift() -> None:
    assert not any(drifts(noise(seed, 500, 5), MEMORY) for seed in SEEDS)
    assert not any(drifts(heavy_tailed(seed), P99) for seed in SEEDS)
    assert not any(drifts(heavy_tailed(seed, 30), P99) for seed in SEEDS)


def test_a_leak_is_drift() -> None:
    """By two thirds of its whole growth the last third lies above the first."""
    leak = np.linspace(0, 1, SAMPLES)
    assert all(drifts(noise(seed, 500, 5) + 30 * leak, MEMORY) for seed in SEEDS)
    assert all(drifts(heavy_tailed(seed) * (1 + 4 * leak), P99) for seed in SEEDS)


def test_one_lost_descriptor_in_a_thousand_requests_is_drift() -> None:
    open_files = 30.0 + np.arange(SAMPLES) // 10
    assert drifts(open_files, Limit(amount=4))


def test_growth_within_the_limit_is_no_drift() -> None:
    assert not drifts(np.linspace(500, 511, SAMPLES), MEMORY)


def test_what_is_freed_again_is_no_drift() -> None:
    sawtooth = 500 + np.arange(SAMPLES) % 10 * 10.0
    assert not drifts(sawtooth, MEMORY)


def test_a_cache_that_fills_at_the_start_is_no_drift() -> None:
    filling = 500 + 200 * np.minimum(1, np.arange(SAMPLES) / (0.08 * SAMPLES))
    assert not drifts(filling, MEMORY)


def test_a_step_is_drift() -> None:
    """Memory that is taken once, after the warm-up, and never given back."""
    step = np.where(np.arange(SAMPLES) < SAMPLES // 2, 500.0, 520.0)
    assert drifts(step, MEMORY)


def test_a_fall_is_no_drift() -> None:
    assert not drifts(np.linspace(700, 500, SAMPLES), MEMORY)


def test_the_limit_is_the_larger_of_share_and_amount() -> None:
    series = [100.0] * SAMPLES
    assert judge("memory", "MiB", series, MEMORY).allowed == 108
    assert judge("memory", "MiB", [1000.0] * SAMPLES, MEMORY).allowed == 1020


def test_too_few_values_are_refused() -> None:
    with pytest.raises(ValueError, match="threads: expected at least 8 values"):
        judge("threads", "", [1.0] * 20, Limit())
