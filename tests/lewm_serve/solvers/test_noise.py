"""Noise that is correlated in time."""

import numpy as np
import pytest
import torch
from torch import Tensor

from lewm_serve.solvers.solver import SearchSpace, coloured_noise


def noise(samples: int, blocks: int, exponent: float, action_dim: int = 3) -> Tensor:
    """Noise (S, steps, action_dim) for blocks of five steps."""
    bound = torch.ones(5 * action_dim)
    space = SearchSpace(-bound, bound, torch.zeros(blocks, 5 * action_dim), action_dim)
    drawn = coloured_noise(np.random.default_rng(0), space, samples=samples, exponent=exponent)
    assert drawn.shape == (samples, blocks, 5 * action_dim)
    return drawn.reshape(samples, 5 * blocks, action_dim)


def test_coloured_noise_drifts_and_white_noise_does_not() -> None:
    white, coloured = (noise(2000, 5, exponent) for exponent in (0.0, 2.0))
    # The mean of 25 white values deviates by 0.2.
    assert float(white.mean(dim=1).std()) == pytest.approx(0.2, abs=0.01)
    assert float(coloured.mean(dim=1).std()) > 0.4
    assert float((white[:, 1:] * white[:, :-1]).mean()) == pytest.approx(0, abs=0.05)
    assert float((coloured[:, 1:] * coloured[:, :-1]).mean()) > 0.7


@pytest.mark.parametrize("exponent", [0.0, 2.0, 10.0])
def test_every_sequence_has_the_same_strength(exponent: float) -> None:
    drawn = noise(200, 5, exponent)
    assert drawn.square().mean(dim=1) == pytest.approx(torch.ones(200, 3), abs=1e-5)


def test_a_single_step_is_white() -> None:
    bound = torch.ones(3)
    space = SearchSpace(-bound, bound, torch.zeros(1, 3), action_dim=3)
    drawn = coloured_noise(np.random.default_rng(0), space, samples=2000, exponent=2.0)
    assert drawn.shape == (2000, 1, 3)
    assert float(drawn.std()) == pytest.approx(1, abs=0.05)
