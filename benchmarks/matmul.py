"""How fast this machine multiplies large matrices: the ceiling that any model works under."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch

from benchmarks.turns import on_threads

SIZE = 2048


def matmul(
    threads: int, size: int = SIZE, dtype: torch.dtype = torch.float32
) -> Callable[[], None]:
    """A product of two square matrices on so many threads; torch's own number is put back."""
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.randn(size, size, generator=generator).to(dtype) for _ in range(2))
    out = torch.empty(size, size, dtype=dtype)

    return on_threads(threads, partial(torch.mm, left, right, out=out))


def matmul_flops(size: int = SIZE) -> int:
    """The arithmetic of one product."""
    return 2 * size**3
