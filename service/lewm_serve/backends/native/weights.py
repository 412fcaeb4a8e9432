"""The weights of linear maps in the memory layout that the native code reads."""

from __future__ import annotations

import mmap
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from lewm_models.export.weights import Affine
from lewm_serve.backends.native import library

MATRIX_BLOCK = 32
"""Rows, inputs and outputs are multiplied in blocks of this size; `MATRIX_BLOCK` in product.h."""

HALF_MATRIX_BLOCK = MATRIX_BLOCK // 2
HUGE_PAGE_BYTES = 1 << 21


class PackedMaps:
    """Linear maps in bfloat16, one after the other in the order in which they are used.

    The native code prefetches each map while it multiplies the map before it. ``maps`` point into
    memory that this object owns.
    """

    def __init__(self, affines: Sequence[Affine]) -> None:
        sizes = [padded(inputs) * padded(outputs) for inputs, outputs in map(_shape, affines)]
        self._weights = torch.split(_huge_pages(sum(sizes)), sizes)
        self._biases = [_padded_bias(affine) for affine in affines]
        self.maps = []
        for affine, weight, bias in zip(affines, self._weights, self._biases, strict=True):
            weight.copy_(_panels(affine))
            inputs, outputs = _shape(affine)
            self.maps.append(
                library.LinearMap(
                    weight=weight.data_ptr(),
                    bias=bias.data_ptr(),
                    inputs=padded(inputs),
                    outputs=padded(outputs),
                )
            )


class PackedFloatMap:
    """A small linear map in float32. ``map`` points into memory that this object owns."""

    def __init__(self, affine: Affine) -> None:
        inputs, outputs = _shape(affine)
        self._weight = torch.zeros(inputs, padded(outputs))
        self._weight[:, :outputs] = torch.from_numpy(affine.as_float32().weight)
        self._bias = _padded_bias(affine)
        self.map = library.FloatMap(
            weight=self._weight.data_ptr(),
            bias=self._bias.data_ptr(),
            inputs=inputs,
            outputs=padded(outputs),
        )


def side_by_side(*affines: Affine) -> Affine:
    """Maps of the same input as one map, with their outputs side by side."""
    return Affine(
        np.concatenate([affine.weight for affine in affines], axis=1),
        np.concatenate([affine.bias for affine in affines]),
    )


def identity(width: int) -> Affine:
    """The map that returns its input."""
    return Affine(np.eye(width), np.zeros(width))


def padded(size: int) -> int:
    """A size rounded up to whole blocks."""
    return -(-size // MATRIX_BLOCK) * MATRIX_BLOCK


def _shape(affine: Affine) -> tuple[int, int]:
    """Inputs and outputs."""
    inputs, outputs = affine.weight.shape
    return inputs, outputs


def _panels(affine: Affine) -> Tensor:
    """The weights as product.h reads them: (outputs / 32, inputs / 32, 2, 16, 16, 2), flat."""
    inputs, outputs = _shape(affine)
    weight = torch.zeros(padded(inputs), padded(outputs))
    weight[:inputs, :outputs] = torch.from_numpy(affine.as_float32().weight)
    # Axes of the inputs: block, pair in the block, one of the pair. Axes of the outputs: panel,
    # half of the panel, column in the half.
    panels = padded(outputs) // MATRIX_BLOCK
    parts = weight.view(-1, HALF_MATRIX_BLOCK, 2, panels, 2, HALF_MATRIX_BLOCK)
    return parts.permute(3, 0, 4, 1, 5, 2).reshape(-1)


def _padded_bias(affine: Affine) -> Tensor:
    bias = torch.zeros(padded(len(affine.bias)))
    bias[: len(affine.bias)] = torch.from_numpy(affine.as_float32().bias)
    return bias


def _huge_pages(size: int) -> Tensor:
    """Memory for ``size`` bfloat16 values in huge pages, since every step reads all weights."""
    memory = mmap.mmap(-1, 2 * size + HUGE_PAGE_BYTES)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        memory.madvise(mmap.MADV_HUGEPAGE)
    values = torch.frombuffer(memory, dtype=torch.bfloat16)
    begin = -values.data_ptr() % HUGE_PAGE_BYTES // 2
    return values[begin : begin + size]
