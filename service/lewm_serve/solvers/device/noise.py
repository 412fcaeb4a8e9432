"""Random numbers that depend on a plan's seed and on their place in the plan alone.

A number is a hash of its place: no state is kept, and no order of drawing exists. So a plan draws
the same numbers alone and beside others, with any padding, on any device.

Axes: P plans, S candidates, T horizon in action blocks, A one action block, B normal numbers behind
each sequence of one action dimension, L time steps (those of all T blocks).
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from lewm_serve.solvers.solver import Array, noise_amplitudes

logger = logging.getLogger(__name__)

GOLDEN_GAMMA = 0x9E3779B97F4A7C15
FIRST_FACTOR, SECOND_FACTOR = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
"""The constants of SplitMix64."""

ITERATION_SHIFT, CANDIDATE_SHIFT = 40, 20
"""Where iteration and candidate are in the 64 bits of a place. Below them is the number's index."""

NUMBERS_TOLERANCE = 1e-4
"""The largest difference between the normal numbers of two devices: that of their functions."""

MASK_64 = (1 << 64) - 1
MANTISSA_BITS = 24
"""Random bits of a uniform number: those that float32 can hold."""


def stream_key(seed: int) -> int:
    """The key of a seed's stream, as a signed integer of 64 bits."""
    mixed = (seed + GOLDEN_GAMMA) & MASK_64
    mixed = ((mixed ^ (mixed >> 30)) * FIRST_FACTOR) & MASK_64
    mixed = ((mixed ^ (mixed >> 27)) * SECOND_FACTOR) & MASK_64
    return signed(mixed ^ (mixed >> 31))


def normal_numbers(keys: Tensor, iterations: Tensor, *, samples: int, count: int) -> Tensor:
    """Normal numbers (P, samples, count) of streams ``keys`` (P,) for ``iterations`` (P,).

    ``count`` is even. Both are int64. Two numbers come from one hash, by Box and Muller's method.
    """
    device = keys.device
    candidate = torch.arange(samples, device=device).unsqueeze(1) << CANDIDATE_SHIFT
    places = candidate + torch.arange(count // 2, device=device)
    places = places + (iterations << ITERATION_SHIFT)[:, None, None]
    bits = random_bits(keys[:, None, None], places)
    unit = 2.0**-MANTISSA_BITS
    # The first is above 0, because its logarithm is taken.
    first = ((_shift(bits, 64 - MANTISSA_BITS)) + 1).float() * unit
    second = (bits & ((1 << MANTISSA_BITS) - 1)).float() * unit
    radius, angle = (-2 * first.log()).sqrt(), 2 * math.pi * second
    return torch.cat([radius * angle.cos(), radius * angle.sin()], dim=-1)


def normal_numbers_on(device: torch.device) -> Callable[..., Tensor]:
    """`normal_numbers` for a device: one kernel on a GPU, if Triton works there."""
    if device.type == "cuda":
        try:
            from lewm_serve.solvers.device import fused_noise

            check_normal_numbers(fused_noise.normal_numbers, device)
        except Exception as error:  # Triton also needs a compiler, for a few lines of C
            logger.warning("random numbers without a fused kernel, which is slower: %r", error)
        else:
            return fused_noise.normal_numbers
    return normal_numbers


def check_normal_numbers(checked: Callable[..., Tensor], device: torch.device) -> None:
    """Draw numbers once, and compare them with those of this module.

    Raises:
        ValueError: they are others.
    """
    keys = torch.tensor([stream_key(seed) for seed in (0, 7)], device=device)
    iterations = torch.tensor([0, 199], device=device)
    drawn, expected = (
        draw(keys, iterations, samples=33, count=12) for draw in (checked, normal_numbers)
    )
    if not torch.allclose(drawn, expected, atol=NUMBERS_TOLERANCE):
        raise ValueError("the fused kernel draws other numbers than PyTorch")


def random_bits(keys: Tensor, places: Tensor) -> Tensor:
    """64 random bits for each place in the streams ``keys``; all are int64, and broadcast.

    This is SplitMix64 (Steele, Lea and Flood, Fast Splittable Pseudorandom Number Generators, 2014)
    whose state is ``keys`` and whose step is the place. Products of int64 keep the low 64 bits.
    """
    mixed = keys + (places + 1) * signed(GOLDEN_GAMMA)
    mixed = (mixed ^ _shift(mixed, 30)) * signed(FIRST_FACTOR)
    mixed = (mixed ^ _shift(mixed, 27)) * signed(SECOND_FACTOR)
    return mixed ^ _shift(mixed, 31)


def _shift(values: Tensor, bits: int) -> Tensor:
    """int64 values shifted to the right, with zeros from the left."""
    return (values >> bits) & ((1 << (64 - bits)) - 1)


def signed(value: int) -> int:
    """The signed integer that has the 64 bits of this unsigned one."""
    return value - (1 << 64) if value >= 1 << 63 else value


def basis_size(steps: int) -> int:
    """B: how many normal numbers are behind a sequence of this many time steps; it is even."""
    return 2 * (steps // 2 + 1)


@lru_cache(maxsize=64)
def noise_basis(steps: int, exponent: float | None) -> Array:
    """The matrix (B, L) that turns normal numbers into noise along the time steps.

    Its power falls as 1 / frequency^exponent, as that of `coloured_noise`; before each sequence is
    scaled to a root mean square of 1, see `noise`. An exponent of None leaves the numbers as they
    are.
    """
    size = basis_size(steps)
    if exponent is None or steps == 1:
        return np.eye(size, steps, dtype=np.float32)
    amplitudes = noise_amplitudes(steps, exponent).copy()
    real, imaginary = np.diag(amplitudes).astype(complex), 1j * np.diag(amplitudes)
    # The constant part is real. It gets the power that other parts share between two values.
    real[0, 0] *= math.sqrt(2)
    imaginary[0, 0] = 0
    basis: Array = np.fft.irfft(np.concatenate([real, imaginary]), n=steps).astype(np.float32)
    return basis


def noise(numbers: Tensor, bases: Tensor, *, scaled: bool, horizon: int) -> Tensor:
    """Noise (P, S, T, A) from normal numbers (P, S, action_dim · B) and ``bases`` (P, B, L).

    ``scaled``: each sequence of each action dimension gets a root mean square of 1.
    """
    plans, samples, _ = numbers.shape
    size, steps = bases.shape[1:]
    by_dimension = numbers.reshape(plans, -1, size) @ bases
    if scaled and steps > 1:
        by_dimension = by_dimension / by_dimension.square().mean(dim=-1, keepdim=True).sqrt()
    by_step = by_dimension.reshape(plans, samples, -1, steps).transpose(2, 3)
    return by_step.reshape(plans, samples, horizon, -1)
