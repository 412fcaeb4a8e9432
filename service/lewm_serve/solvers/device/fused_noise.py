"""The random numbers of `noise.py` as one Triton kernel, in place of two dozen of PyTorch.

Importing this module needs Triton, which comes with PyTorch for CUDA.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from lewm_serve.solvers.device import noise

PAIRS_PER_PROGRAM = 256
UNIT = 2.0**-noise.MANTISSA_BITS


@triton.jit  # type: ignore[untyped-decorator]
def _shift(values, bits: tl.constexpr):  # type: ignore[no-untyped-def]
    return (values >> bits) & ((1 << (64 - bits)) - 1)


@triton.jit  # type: ignore[untyped-decorator]
def _normal_numbers(  # type: ignore[no-untyped-def]
    keys,
    iterations,
    numbers,
    samples,
    pairs,
    GAMMA: tl.constexpr,  # noqa: N803
    FIRST: tl.constexpr,  # noqa: N803
    SECOND: tl.constexpr,  # noqa: N803
    ITERATION_SHIFT: tl.constexpr,  # noqa: N803
    CANDIDATE_SHIFT: tl.constexpr,  # noqa: N803
    MANTISSA: tl.constexpr,  # noqa: N803
    UNIT: tl.constexpr,  # noqa: N803
    TURN: tl.constexpr,  # noqa: N803
    BLOCK: tl.constexpr,  # noqa: N803
):
    """Some pairs of numbers of one plan."""
    plan = tl.program_id(0).to(tl.int64)
    index = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = index < samples * pairs
    candidate, pair = (index // pairs).to(tl.int64), (index % pairs).to(tl.int64)
    place = (tl.load(iterations + plan) << ITERATION_SHIFT) + (candidate << CANDIDATE_SHIFT) + pair
    bits = tl.load(keys + plan) + (place + 1) * GAMMA
    bits = (bits ^ _shift(bits, 30)) * FIRST
    bits = (bits ^ _shift(bits, 27)) * SECOND
    bits = bits ^ _shift(bits, 31)
    first = (_shift(bits, 64 - MANTISSA) + 1).to(tl.float32) * UNIT
    angle = (bits & ((1 << MANTISSA) - 1)).to(tl.float32) * UNIT * TURN
    radius = tl.sqrt(-2.0 * tl.log(first))
    here = numbers + (plan * samples + candidate) * 2 * pairs + pair
    tl.store(here, radius * tl.cos(angle), mask)
    tl.store(here + pairs, radius * tl.sin(angle), mask)


def normal_numbers(keys: Tensor, iterations: Tensor, *, samples: int, count: int) -> Tensor:
    """See `lewm_serve.solvers.device.noise.normal_numbers`."""
    numbers = torch.empty(len(keys), samples, count, device=keys.device)
    pairs = count // 2
    _normal_numbers[(len(keys), triton.cdiv(samples * pairs, PAIRS_PER_PROGRAM))](
        keys,
        iterations.contiguous(),
        numbers,
        samples,
        pairs,
        GAMMA=noise.signed(noise.GOLDEN_GAMMA),
        FIRST=noise.signed(noise.FIRST_FACTOR),
        SECOND=noise.signed(noise.SECOND_FACTOR),
        ITERATION_SHIFT=noise.ITERATION_SHIFT,
        CANDIDATE_SHIFT=noise.CANDIDATE_SHIFT,
        MANTISSA=noise.MANTISSA_BITS,
        UNIT=UNIT,
        TURN=2 * math.pi,
        BLOCK=PAIRS_PER_PROGRAM,
    )
    return numbers
