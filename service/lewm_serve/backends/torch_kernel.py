"""The predictor in PyTorch, on any device.

Axes: R rows, n new tokens, m tokens before them, W width, h heads, d head width, L layers, token
by token so that what belongs to one step is contiguous.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lewm_models.lewm import LeWM, PredictorBlock
from lewm_serve.backends.stepwise import StepwiseKernel

Window = list[tuple[Tensor, Tensor]]
"""Keys and values (m, R, h, d) of each layer."""


class TorchKernel(StepwiseKernel[Tensor, Window]):
    """For a model in ``eval()`` mode. Modulations are a tensor (T, R, L, 6, W)."""

    def __init__(self, model: LeWM) -> None:
        self.model = model
        self.history = model.config.history
        transformer = model.predictor.transformer
        self._blocks = [cast(PredictorBlock, block) for block in transformer.layers]
        linears = [cast(nn.Linear, block.adaLN_modulation[1]) for block in self._blocks]
        self._weight = torch.cat([linear.weight for linear in linears])
        self._bias = torch.cat([linear.bias for linear in linears])

    def modulations(self, actions: Tensor) -> Tensor:
        """See `StepwiseKernel`."""
        actions = actions.to(self._weight.dtype)
        condition = self.model.predictor.transformer.cond_proj(self.model.action_encoder(actions))
        packed = F.linear(F.silu(condition), self._weight, self._bias)
        width = self.model.config.predictor_width
        return packed.reshape(*packed.shape[:2], len(self._blocks), 6, width)

    def extend(
        self, window: Window | None, latents: Sequence[Tensor], modulations: Tensor, step: int
    ) -> tuple[Tensor, Window]:
        """See `StepwiseKernel`."""
        predictor, count = self.model.predictor, len(latents)
        position = len(window[0][0]) if window else 0
        positions = predictor.pos_embedding[0, position : position + count].unsqueeze(1)
        tokens = (torch.stack(list(latents)) + positions).to(positions.dtype)
        x = predictor.transformer.input_proj(tokens)
        longer: Window = []
        for layer, block in enumerate(self._blocks):
            shift1, scale1, gate1, shift2, scale2, gate2 = modulations[
                step : step + count, :, layer
            ].unbind(2)
            attention = block.attn
            normed = attention.norm(block.norm1(x) * (1 + scale1) + shift1)
            q, keys, values = (
                part.unflatten(-1, (attention.heads, -1))
                for part in attention.to_qkv(normed).chunk(3, dim=-1)
            )
            if window:
                keys, values = (
                    torch.cat(pair) for pair in zip(window[layer], (keys, values), strict=True)
                )
            longer.append((keys, values))
            if block is self._blocks[-1]:
                x, q, gate1 = x[-1:], q[-1:], gate1[-1:]
                shift2, scale2, gate2 = shift2[-1:], scale2[-1:], gate2[-1:]
            x = x + gate1 * attention.to_out(_attend(q, keys, values))
            x = x + gate2 * block.mlp(block.norm2(x) * (1 + scale2) + shift2)
        hidden = predictor.transformer.output_proj(predictor.transformer.norm(x[-1]))
        return self.model.pred_proj(hidden).to(latents[0].dtype), longer

    def tokens(self, window: Window) -> int:
        """See `StepwiseKernel`."""
        return len(window[0][0])

    def select(self, window: Window, rows: Tensor) -> Window:
        """See `Kernel`."""
        return [(keys[:, rows], values[:, rows]) for keys, values in window]


def _attend(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Causal attention of the last n tokens (n, R, h, d) over all (m + n, R, h, d) → (n, R, h·d).

    Written out: for a handful of tokens, products and sums beat batched matrix products.
    """
    scale, before = queries.shape[-1] ** -0.5, len(keys) - len(queries)
    outputs = []
    for index, query in enumerate(queries):
        seen = before + index + 1
        scores = (query * keys[:seen]).sum(-1, keepdim=True) * scale
        outputs.append((scores.softmax(dim=0) * values[:seen]).sum(0))
    return torch.stack(outputs).flatten(2)
