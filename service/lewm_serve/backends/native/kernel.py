"""The predictor in bfloat16 by code of our own: see `predictor.cpp`."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from lewm_models.config import LeWMConfig
from lewm_models.export.weights import Affine, BlockWeights, PredictorWeights, fold_modules
from lewm_models.lewm import LeWM, PredictorBlock
from lewm_serve.backends.native import library
from lewm_serve.backends.native.weights import BLOCK, HALF, ExactMap, PackedMaps, beside, identity

MOST_WIDTH, MOST_HISTORY = 4096, 16
"""What `predictor.cpp` has room for."""

MAPS = 5
"""Of a block."""

Window = list[Tensor]
"""Of each token, keys and values (L, panels, R, 32)."""


def fits(config: LeWMConfig) -> bool:
    """Whether the code can run a model of these widths."""
    inner = config.predictor_heads * config.predictor_head_dim
    return (
        config.predictor_width % HALF == 0
        and config.predictor_head_dim % HALF == 0
        and inner % BLOCK == 0
        and config.predictor_width <= MOST_WIDTH
        and config.history <= MOST_HISTORY
    )


class NativeKernel:
    """See `Kernel`; for a model in ``eval()`` mode.

    ``tiles`` may be False where the processor has tile registers: dot products are used instead.
    """

    def __init__(self, model: LeWM, code: ctypes.CDLL, tiles: bool = True) -> None:
        config, weights = model.config, PredictorWeights(model)
        layers, inner = config.predictor_depth, config.predictor_heads * config.predictor_head_dim
        self.history = config.history
        self._code = code
        self._layers, self._inner, self._latent_dim = layers, inner, config.latent_dim
        self._positions = torch.from_numpy(weights.positions).contiguous()
        self._smooth = ExactMap(weights.action_maps[0])
        self._input = None if weights.input_map is None else ExactMap(weights.input_map)
        blocks = [_maps_of(block, inner) for block in weights.blocks]
        modulations = _modulations(model)
        self._packed = PackedMaps(
            [
                weights.action_maps[1],
                *modulations,
                *(each for maps in blocks for each in maps),
                *weights.output_maps,
            ]
        )
        condition, *maps = self._packed.maps
        own = [maps[begin : begin + MAPS] for begin in range(layers, len(maps) - 2, MAPS)]
        self._model = library.Model(
            (library.BlockMaps * layers)(
                *(
                    library.BlockMaps(*each, (ctypes.c_float * 4)(*block.epsilons))
                    for each, block in zip(own, weights.blocks, strict=True)
                )
            ),
            (library.LinearMap * layers)(*maps[:layers]),
            self._positions.data_ptr(),
            *(layers, config.history, config.latent_dim, config.predictor_width),
            *(config.predictor_heads, config.predictor_head_dim),
            self._smooth.map,
            library.ExactMap() if self._input is None else self._input.map,
            condition,
            *maps[-2:],
            weights.final_epsilon,
            tiles and bool(code.tiles_available()),
        )

    def begin(self, latents: Sequence[Tensor], actions: Tensor) -> tuple[Tensor, Window]:
        """See `Kernel`."""
        count, rows = len(latents), len(latents[0])
        shape = self._layers, 2 * self._inner // BLOCK, count * rows, BLOCK
        own, predicted = torch.empty(shape, dtype=torch.bfloat16), self._predicted(rows)
        given, actions = torch.stack(list(latents)), actions.contiguous()
        self._code.begin(
            self._model,
            *(given.data_ptr(), actions.data_ptr(), count, rows),
            *(own.data_ptr(), predicted.data_ptr()),
        )
        return predicted[:, : self._latent_dim], list(torch.split(own, rows, dim=2))

    def roll(self, latest: Tensor, windows: Mapping[int, Window], actions: Tensor) -> Tensor:
        """See `Kernel`."""
        steps, rows, _ = actions.shape
        predicted = self._predicted(steps, rows)
        shared = [token for first in sorted(windows) for token in windows[first]]
        context = 1 + len(windows.get(0, ()))
        latest, actions = latest.contiguous(), _rows_together(actions)
        self._code.roll(
            self._model,
            *((library.Token * len(shared))(*map(_token, shared)), context),
            *(latest.data_ptr(), actions.data_ptr(), steps, rows),
            *(actions.stride(0), actions.stride(1), predicted.data_ptr()),
        )
        return predicted[..., : self._latent_dim]

    def select(self, window: Window, rows: Tensor) -> Window:
        """See `Kernel`."""
        return [token[:, :, rows] for token in window]

    def _predicted(self, *shape: int) -> Tensor:
        """Room for predicted latents, which are written in whole blocks."""
        return torch.empty(*shape, self._model.head_second.outputs)


def _maps_of(block: BlockWeights, inner: int) -> list[Affine]:
    """In the order in which they are used."""
    key_value = beside(block.key, block.value)
    out = identity(inner) if block.attention_out is None else block.attention_out
    return [key_value, block.query, out, block.mlp_first, block.mlp_second]


def _modulations(model: LeWM) -> list[Affine]:
    """Each layer's map from the condition; 1 is added to scales after they were rounded."""
    blocks = (cast(PredictorBlock, block) for block in model.predictor.transformer.layers)
    return [fold_modules(cast(nn.Linear, block.adaLN_modulation[1])) for block in blocks]


def _rows_together(actions: Tensor) -> Tensor:
    """Steps and rows may lie anywhere, the values of one block must not."""
    return actions if actions.stride(2) == 1 else actions.contiguous()


def _token(keys_values: Tensor) -> library.Token:
    layer_stride, panel_stride, *inside = keys_values.stride()
    assert inside == [BLOCK, 1]
    return library.Token(keys_values.data_ptr(), panel_stride // BLOCK, layer_stride)
