"""The weights of linear maps in the memory layout that the native code reads."""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Sequence
from itertools import islice
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from lewm_models.config import ACTIVATIONS
from lewm_models.distance.network import GoalDistance
from lewm_models.export.weights import Affine, LayerWeights, PredictorWeights, fold_modules
from lewm_models.lewm import LeWM, PredictorLayer
from lewm_serve.backends.native import library

MATRIX_BLOCK = 32
"""Rows, inputs and outputs are multiplied in blocks of this size; `MATRIX_BLOCK` in product.h."""

HALF_MATRIX_BLOCK = MATRIX_BLOCK // 2

MAPS_PER_LAYER = 5
"""The linear maps of `library.LayerMaps`, which are its first fields; see `_layer_maps`."""

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


class PackedPredictor:
    """A model's predictor. ``predictor`` points into memory that this object owns.

    ``use_tiles``: multiply by AMX tiles, and not by AVX-512 dot products.
    """

    def __init__(self, model: LeWM, *, use_tiles: bool) -> None:
        config = model.config
        inner = config.predictor_heads * config.predictor_head_dim
        weights = PredictorWeights(model)
        self._positions = torch.from_numpy(weights.positions).contiguous()
        self._action_first = PackedFloatMap(weights.action_maps[0])
        self._input_projection = (
            None if weights.input_map is None else PackedFloatMap(weights.input_map)
        )
        layers = config.predictor_depth
        head_second = [] if weights.head.second is None else [weights.head.second]
        self._packed = PackedMaps(
            [
                weights.action_maps[1],
                *_modulation_maps(model),
                *(linear for layer in weights.layers for linear in _layer_maps(layer, inner)),
                weights.head.first,
                *head_second,
            ]
        )
        self._head_norm = None if weights.head.norm is None else _head_norm(weights.head.norm)
        maps = iter(self._packed.maps)
        action_second = next(maps)
        modulations = tuple(islice(maps, layers))
        layer_maps = [
            library.LayerMaps(*islice(maps, MAPS_PER_LAYER), (ctypes.c_float * 4)(*layer.epsilons))
            for layer in weights.layers
        ]
        projection = library.FloatMap()  # without weights
        if self._input_projection is not None:
            projection = self._input_projection.map
        self.predictor = library.PredictorModel(
            layer_maps=(library.LayerMaps * layers)(*layer_maps),
            modulations=(library.LinearMap * layers)(*modulations),
            positions=self._positions.data_ptr(),
            layers=layers,
            history=config.history,
            latent=config.latent_dim,
            width=config.predictor_width,
            heads=config.predictor_heads,
            head_width=config.predictor_head_dim,
            action_first=self._action_first.map,
            input_projection=projection,
            action_second=action_second,
            head_first=next(maps),
            head_second=next(maps, library.LinearMap()),
            head_norm=None if self._head_norm is None else self._head_norm.data_ptr(),
            head_hidden=len(weights.head.first.bias),
            head_norm_epsilon=weights.head.norm_epsilon,
            head_activation=ACTIVATIONS.index(weights.head.activation),
            epsilon=weights.final_epsilon,
            use_tiles=use_tiles,
        )


class PackedDistance:
    """A learned distance. ``network`` points into memory that this object owns."""

    def __init__(self, distance: GoalDistance, *, use_tiles: bool) -> None:
        latent, goal, hidden = map(fold_modules, (distance.latent, distance.goal, distance.hidden))
        self._mean = distance.mean.float().contiguous()
        self._inverse_std = 1 / distance.std.float()
        self._goal = PackedFloatMap(Affine(goal.weight, latent.bias))
        self._packed = PackedMaps([latent, hidden])
        self._output = torch.zeros(padded(len(hidden.bias)))
        self._output[: len(hidden.bias)] = distance.output.weight[0]
        latent_map, hidden_map = self._packed.maps
        self.network = library.DistanceNetwork(
            mean=self._mean.data_ptr(),
            inverse_std=self._inverse_std.data_ptr(),
            latent_dim=distance.latent_dim,
            goal=self._goal.map,
            latent=latent_map,
            hidden=hidden_map,
            output=self._output.data_ptr(),
            output_bias=float(distance.output.bias),
            use_tiles=use_tiles,
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


def _layer_maps(layer: LayerWeights, inner: int) -> list[Affine]:
    """The maps of a layer in the order in which they are used."""
    key_value = side_by_side(layer.key, layer.value)
    out = identity(inner) if layer.attention_out is None else layer.attention_out
    return [key_value, layer.query, out, layer.mlp_first, layer.mlp_second]


def _modulation_maps(model: LeWM) -> list[Affine]:
    """Each layer's map from the condition to the modulations.

    `PredictorWeights` adds 1 to the scales before it rounds them; the code adds it afterwards.
    """
    layers = (cast(PredictorLayer, layer) for layer in model.predictor.transformer.layers)
    return [fold_modules(cast(nn.Linear, layer.adaLN_modulation[1])) for layer in layers]


def _head_norm(norm: Affine) -> Tensor:
    """Scales and then offsets (2, hidden) of the LayerNorm in ``pred_proj``."""
    return torch.stack([torch.from_numpy(norm.weight), torch.from_numpy(norm.bias)])
