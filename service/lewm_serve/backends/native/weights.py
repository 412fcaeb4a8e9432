"""Linear maps as the code reads them: bfloat16, in the order in which they are multiplied."""

from __future__ import annotations

import mmap
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from lewm_models.export.weights import Affine
from lewm_serve.backends.native import library

BLOCK = 32
"""Rows, inputs and outputs that are multiplied together."""

HALF = BLOCK // 2
HUGE_PAGE = 1 << 21


class PackedMaps:
    """Maps one behind the other, in the order in which they are used: each is sent for while the
    one before it is multiplied. ``maps`` point into memory that lasts as long as this does.
    """

    def __init__(self, maps: Sequence[Affine]) -> None:
        sizes = [whole(each.weight.shape[0]) * whole(each.weight.shape[1]) for each in maps]
        self._weights = torch.split(_memory(sum(sizes)), sizes)
        self._biases = [_bias(each) for each in maps]
        self.maps = []
        for each, weight, bias in zip(maps, self._weights, self._biases, strict=True):
            weight.copy_(_panels_of_weights(each))
            shape = (whole(size) for size in each.weight.shape)
            self.maps.append(library.LinearMap(weight.data_ptr(), bias.data_ptr(), *shape))


class ExactMap:
    """A small map in float32. ``map`` points into memory that lasts as long as this does."""

    def __init__(self, linear: Affine) -> None:
        inputs, outputs = linear.weight.shape
        self._weight = torch.zeros(inputs, whole(outputs))
        self._weight[:, :outputs] = torch.from_numpy(linear.as_float32().weight)
        self._bias = _bias(linear)
        pointers = self._weight.data_ptr(), self._bias.data_ptr()
        self.map = library.ExactMap(*pointers, inputs, whole(outputs))


def beside(*maps: Affine) -> Affine:
    """Maps of the same input as one, their outputs side by side."""
    return Affine(
        np.concatenate([each.weight for each in maps], axis=1),
        np.concatenate([each.bias for each in maps]),
    )


def identity(width: int) -> Affine:
    """A map that changes nothing."""
    return Affine(np.eye(width), np.zeros(width))


def whole(size: int) -> int:
    """Up to the next whole block."""
    return -(-size // BLOCK) * BLOCK


def _panels_of_weights(linear: Affine) -> Tensor:
    inputs, outputs = linear.weight.shape
    weight = torch.zeros(whole(inputs), whole(outputs))
    weight[:inputs, :outputs] = torch.from_numpy(linear.as_float32().weight)
    # Inputs by blocks, pairs and one of two; outputs by panels, halves and one of sixteen.
    parts = weight.view(-1, HALF, 2, whole(outputs) // BLOCK, 2, HALF)
    return parts.permute(3, 0, 4, 1, 5, 2).reshape(-1)


def _bias(linear: Affine) -> Tensor:
    bias = torch.zeros(whole(len(linear.bias)))
    bias[: len(linear.bias)] = torch.from_numpy(linear.as_float32().bias)
    return bias


def _memory(size: int) -> Tensor:
    """So many bfloat16 values in few pages: all are read for every step of a roll-out."""
    memory = mmap.mmap(-1, 2 * size + HUGE_PAGE)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        memory.madvise(mmap.MADV_HUGEPAGE)
    values = torch.frombuffer(memory, dtype=torch.bfloat16)
    begin = -values.data_ptr() % HUGE_PAGE // 2
    return values[begin : begin + size]
