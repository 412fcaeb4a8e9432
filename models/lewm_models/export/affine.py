"""Linear maps with a bias, and what folds into them exactly."""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

Matrix = NDArray[np.floating]


@dataclass(frozen=True)
class Affine:
    """x · weight + bias, in float64 until it is `rounded`, so that what is folded is rounded once.

    ``weight`` is (in, out), or the diagonal (width,) of a map of each value by itself.
    """

    weight: Matrix
    bias: Matrix

    def then(self, after: Affine) -> Affine:
        """This map and then another, as one."""
        weight, bias = after.weight, after.bias
        if weight.ndim == 1:
            return Affine(self.weight * weight, self.bias * weight + bias)
        diagonal = self.weight.ndim == 1
        product = self.weight[:, None] * weight if diagonal else self.weight @ weight
        return Affine(product, self.bias @ weight + bias)

    def part(self, begin: int, end: int) -> Affine:
        """Some of the outputs."""
        return Affine(self.weight[..., begin:end], self.bias[begin:end])

    def scaled(self, factor: float) -> Affine:
        """All outputs times a number."""
        return Affine(self.weight * factor, self.bias * factor)

    def shifted(self, by: float) -> Affine:
        """All outputs plus a number."""
        return Affine(self.weight, self.bias + by)

    def rounded(self) -> Affine:
        """In float32: what a graph holds."""
        return Affine(self.weight.astype(np.float32, order="C"), self.bias.astype(np.float32))


def affine(*modules: nn.Module) -> Affine:
    """Modules that follow each other, as one map.

    They may be linears, convolutions of kernel 1, BatchNorms in ``eval()``, identities, and the
    affine parts of LayerNorms, whose standardisation has then to come before.
    """
    there = (module for module in modules if not isinstance(module, nn.Identity))
    return reduce(Affine.then, map(_affine, there))


def _affine(module: nn.Module) -> Affine:
    match module:
        case nn.Linear() | nn.Conv1d():
            weight = numbers(module.weight).reshape(*module.weight.shape[:2]).T
            bias = np.zeros(weight.shape[1]) if module.bias is None else numbers(module.bias)
            return Affine(weight, bias)
        case nn.LayerNorm():
            return Affine(numbers(module.weight), numbers(module.bias))
        case nn.BatchNorm1d():
            assert module.running_mean is not None
            assert module.running_var is not None
            deviation = np.sqrt(numbers(module.running_var) + module.eps)
            scale = numbers(module.weight) / deviation
            bias = numbers(module.bias) - numbers(module.running_mean) * scale
            return Affine(scale, bias)
    raise TypeError(f"no affine map: {type(module).__name__}")


def numbers(tensor: Tensor) -> Matrix:
    """A parameter as float64."""
    array: Matrix = tensor.detach().cpu().double().numpy()
    return array
