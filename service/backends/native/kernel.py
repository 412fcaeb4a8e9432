"""The predictor in bfloat16 by code of our own: see `predictor.cpp`."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.config import LeWMConfig
from models.export.affine import Affine, affine
from models.export.weights import BlockWeights, PredictorWeights
from models.lewm import LeWM, PredictorBlock
from service.backends.native import library
from service.backends.native.weights import BLOCK, HALF, PackedMaps, beside, identity, whole

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
    """See `Kernel`; for a model in ``eval()`` mode. Modulations are (L, panels, T · R, 32).

    ``tiles`` may be False where the processor has tile registers: dot products are used instead.
    """

    def __init__(self, model: LeWM, code: ctypes.CDLL, tiles: bool = True) -> None:
        config, weights = model.config, PredictorWeights(model)
        self.history = config.history
        self._code = code
        self._tiles = tiles and bool(code.tiles_available())
        self._layers, self._width = config.predictor_depth, config.predictor_width
        self._inner = config.predictor_heads * config.predictor_head_dim
        self._latent_dim = config.latent_dim
        self._positions = torch.from_numpy(weights.positions)
        self._input = None if weights.input is None else _in_float32(weights.input)
        self._smooth = _in_float32(weights.actions[0])
        blocks = [_maps_of(block, self._inner) for block in weights.blocks]
        self._packed = PackedMaps(
            [
                weights.actions[1],
                *_modulations(model),
                *(each for maps in blocks for each in maps),
                *weights.head,
            ]
        )
        condition, *maps = self._packed.maps
        modulations, maps, head = maps[: self._layers], maps[self._layers : -2], maps[-2:]
        self._condition = condition
        self._modulations = (library.LinearMap * self._layers)(*modulations)
        of_block = [maps[begin : begin + MAPS] for begin in range(0, len(maps), MAPS)]
        self._model = library.Model(
            (library.BlockMaps * self._layers)(
                *(
                    library.BlockMaps(*own, (ctypes.c_float * 4)(*block.epsilons))
                    for own, block in zip(of_block, weights.blocks, strict=True)
                )
            ),
            self._layers,
            self._width,
            config.predictor_heads,
            config.predictor_head_dim,
            *head,
            weights.epsilon,
            self._tiles,
        )

    def modulations(self, actions: Tensor) -> Tensor:
        """See `Kernel`."""
        count = actions.shape[0] * actions.shape[1]
        # Actions themselves are not rounded: this product is float32.
        smoothed = F.silu(F.linear(actions.reshape(count, -1), *self._smooth))
        inputs = _panels(smoothed, whole(count), torch.bfloat16)
        out = torch.empty(
            self._layers, 6 * self._width // BLOCK, count, BLOCK, dtype=torch.bfloat16
        )
        self._code.modulate(
            self._condition,
            self._modulations,
            self._layers,
            self._tiles,
            inputs.data_ptr(),
            whole(count),
            count,
            out.data_ptr(),
        )
        return out

    def extend(
        self, window: Window | None, latents: Sequence[Tensor], modulations: Tensor, step: int
    ) -> tuple[Tensor, Window]:
        """See `Kernel`."""
        before, count, rows = window or [], len(latents), len(latents[0])
        positions = self._positions[len(before) : len(before) + count].unsqueeze(1)
        tokens = (torch.stack(list(latents)) + positions).flatten(0, 1)
        if self._input is not None:
            tokens = F.linear(tokens, *self._input)
        x = _panels(tokens, count * rows, torch.float32)
        # Nothing follows in a full window: what it held need not be kept.
        grows = len(before) + count < self.history
        shape = self._layers if grows else 0, 2 * self._inner // BLOCK, count * rows, BLOCK
        own = torch.empty(shape, dtype=torch.bfloat16)
        out = torch.empty(rows, self._model.head_second.outputs)
        self._code.extend(
            self._model,
            (library.Token * len(before))(*map(_token, before)),
            len(before),
            x.data_ptr(),
            rows,
            count,
            modulations.data_ptr(),
            modulations.shape[2],
            step * rows,
            own.data_ptr() if grows else None,
            out.data_ptr(),
        )
        return out[:, : self._latent_dim], [*before, *torch.split(own, rows, dim=2)]

    def select(self, window: Window, rows: Tensor) -> Window:
        """See `Kernel`."""
        return [token[:, :, rows] for token in window]


def _maps_of(block: BlockWeights, inner: int) -> list[Affine]:
    """In the order in which they are used."""
    key_value = beside(block.key, block.value)
    out = identity(inner) if block.out is None else block.out
    return [key_value, block.query, out, block.first, block.second]


def _modulations(model: LeWM) -> list[Affine]:
    """Each layer's map from the condition; 1 is added to scales after they were rounded."""
    blocks = (cast(PredictorBlock, block) for block in model.predictor.transformer.layers)
    return [affine(cast(nn.Linear, block.adaLN_modulation[1])) for block in blocks]


def _in_float32(linear: Affine) -> tuple[Tensor, Tensor]:
    """Weight and bias for `torch.nn.functional.linear`."""
    rounded = linear.rounded()
    return torch.from_numpy(rounded.weight).T.contiguous(), torch.from_numpy(rounded.bias)


def _panels(rows: Tensor, count: int, dtype: torch.dtype) -> Tensor:
    """Rows (R, width) as the code reads them: (panels, count, 32), padded with zeros."""
    padding = (0, -rows.shape[1] % BLOCK, 0, count - len(rows))
    return F.pad(rows.to(dtype), padding).view(count, -1, BLOCK).transpose(0, 1).contiguous()


def _token(keys_values: Tensor) -> library.Token:
    layer_stride, panel_stride, _, _ = keys_values.stride()
    return library.Token(keys_values.data_ptr(), panel_stride // BLOCK, layer_stride)
