"""Random numbers on the device: against a twin in NumPy, and against the noise of the solvers."""

import importlib.util
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import Tensor

from lewm_serve.solvers.device.noise import (
    CANDIDATE_SHIFT,
    FIRST_FACTOR,
    GOLDEN_GAMMA,
    ITERATION_SHIFT,
    SECOND_FACTOR,
    basis_size,
    check_normal_numbers,
    noise,
    noise_basis,
    normal_numbers,
    random_bits,
    stream_key,
)
from lewm_serve.solvers.solver import SearchSpace, coloured_noise

SPLITMIX64_OF_1234567 = (
    6457827717110365317,
    3203168211198807973,
    9817491932198370423,
    4593380528125082431,
    16408922859458223821,
)
"""Published first outputs of SplitMix64 for the seed 1234567."""


def test_the_hash_is_splitmix64() -> None:
    bits = random_bits(torch.tensor(1234567), torch.arange(5))
    assert bits.numpy().astype(np.uint64).tolist() == list(SPLITMIX64_OF_1234567)
    assert stream_key(1234567) % 2**64 == SPLITMIX64_OF_1234567[0]


def twin(key: int, iteration: int, samples: int, count: int) -> np.ndarray:
    """`normal_numbers` of one plan in NumPy, in float64."""
    pairs = count // 2
    places = np.uint64(iteration << ITERATION_SHIFT) + (
        (np.arange(samples, dtype=np.uint64)[:, None] << np.uint64(CANDIDATE_SHIFT))
        + np.arange(pairs, dtype=np.uint64)
    )
    with np.errstate(over="ignore"):
        mixed: np.ndarray = (places + np.uint64(1)) * np.uint64(GOLDEN_GAMMA)
        mixed = mixed + np.uint64(key % 2**64)
        mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(FIRST_FACTOR)
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(SECOND_FACTOR)
    mixed ^= mixed >> np.uint64(31)
    first = ((mixed >> np.uint64(40)) + np.uint64(1)).astype(np.float64) / 2**24
    second = (mixed & np.uint64(2**24 - 1)).astype(np.float64) / 2**24
    radius = np.sqrt(-2 * np.log(first))
    angle = 2 * np.pi * second
    return np.concatenate([radius * np.cos(angle), radius * np.sin(angle)], axis=-1)


def numbers(seeds: list[int], iterations: list[int], samples: int, count: int) -> Tensor:
    keys = torch.tensor([stream_key(seed) for seed in seeds])
    return normal_numbers(keys, torch.tensor(iterations), samples=samples, count=count)


def test_numbers_are_those_of_the_twin() -> None:
    drawn = numbers([0, 2**64 - 1, 7], [0, 199, 3], samples=50, count=12)
    for index, (seed, iteration) in enumerate([(0, 0), (2**64 - 1, 199), (7, 3)]):
        expected = twin(stream_key(seed), iteration, samples=50, count=12)
        np.testing.assert_allclose(drawn[index].numpy(), expected, atol=2e-5)


def test_numbers_are_normal_and_independent() -> None:
    drawn = numbers([5], [0], samples=4096, count=64)[0].double()
    values = drawn.flatten()
    assert float(values.mean()) == pytest.approx(0, abs=0.01)
    assert float(values.var()) == pytest.approx(1, abs=0.01)
    assert float(values.pow(3).mean()) == pytest.approx(0, abs=0.03)
    assert float(values.pow(4).mean()) == pytest.approx(3, abs=0.06)
    assert float((values.abs() > 3).double().mean()) == pytest.approx(0.0027, abs=0.0004)
    correlations = torch.corrcoef(drawn.T) - torch.eye(64)
    assert float(correlations.abs().max()) < 0.08
    # Neighbouring candidates, iterations and seeds share nothing.
    for other in (drawn.roll(1, 0), *(numbers([s], [i], 4096, 64)[0] for s, i in ((5, 1), (6, 0)))):
        assert float((values * other.flatten()).mean()) == pytest.approx(0, abs=0.01)


def test_a_number_depends_on_its_place_alone() -> None:
    alone = numbers([3], [4], samples=5, count=8)
    crowd = numbers([1, 3, 3], [4, 4, 5], samples=9, count=8)
    assert torch.equal(alone[0], crowd[1, :5])
    assert not torch.equal(crowd[1], crowd[2])
    assert not torch.equal(crowd[0], crowd[1])


def test_other_numbers_are_refused() -> None:
    check_normal_numbers(normal_numbers, torch.device("cpu"))
    with pytest.raises(ValueError, match="other numbers"):
        check_normal_numbers(
            lambda keys, iterations, **sizes: normal_numbers(keys, iterations + 1, **sizes),
            torch.device("cpu"),
        )


INTERPRETED = """
import torch
from lewm_serve.solvers.device import fused_noise, noise

noise.check_normal_numbers(fused_noise.normal_numbers, torch.device("cpu"))
"""


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")
def test_the_fused_kernel_draws_the_same_numbers() -> None:
    """By Triton's interpreter."""
    done = subprocess.run(
        [sys.executable, "-c", INTERPRETED],
        env=os.environ | {"TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


class GivenNumbers:
    """A generator that returns given numbers for the two parts of a spectrum."""

    def __init__(self, *values: np.ndarray) -> None:
        self._values = list(values)

    def standard_normal(self, shape: tuple[int, ...]) -> np.ndarray:
        return self._values.pop(0).reshape(shape)


@pytest.mark.parametrize(("horizon", "block"), [(5, 5), (2, 3), (1, 2)])
@pytest.mark.parametrize("exponent", [0.0, 2.0])
def test_coloured_noise_is_that_of_the_solvers(horizon: int, block: int, exponent: float) -> None:
    dim, samples = 3, 7
    steps, width = horizon * block, block * dim
    size = basis_size(steps)
    values = torch.randn(samples, dim, size, generator=torch.Generator().manual_seed(0))
    real, imaginary = values.double().numpy().reshape(samples, dim, 2, -1).transpose(2, 0, 1, 3)
    bound = torch.ones(width)
    expected = coloured_noise(
        GivenNumbers(real, imaginary),  # type: ignore[arg-type]
        SearchSpace(-bound, bound, torch.zeros(horizon, width), action_dim=dim),
        samples=samples,
        exponent=exponent,
    )
    basis = torch.from_numpy(noise_basis(steps, exponent))
    drawn = noise(values.flatten(1).unsqueeze(0), basis.unsqueeze(0), scaled=True, horizon=horizon)
    torch.testing.assert_close(drawn[0], expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("exponent", "scaled"), [(None, False), (2.0, True)])
def test_white_noise_and_a_single_step_are_the_numbers(
    exponent: float | None, scaled: bool
) -> None:
    steps = 6 if exponent is None else 1
    values = numbers([1], [0], samples=4, count=2 * basis_size(steps))
    basis = torch.from_numpy(noise_basis(steps, exponent)).unsqueeze(0)
    drawn = noise(values, basis, scaled=scaled, horizon=1)
    expected = values.reshape(4, 2, -1)[..., :steps].transpose(1, 2).reshape(1, 4, 1, -1)
    assert torch.equal(drawn, expected)
