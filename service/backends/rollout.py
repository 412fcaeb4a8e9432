"""The roll-out with everything computed once that can be: the same numbers for less work.

Three savings, all exact (the reference is `LeWM.rollout`): while the window grows, positions and
mask agree, so keys and values of earlier tokens are reused; tokens of context frames paired with
executed blocks are the same for all candidates; the last block needs only keys and values of every
token but the last. Modulations depend on the action alone: once per block of actions.

Axes: P plans, R rows (P · S candidates, or P for what a plan's candidates share), n new tokens,
m tokens before them, W width, h heads, d head width, L layers.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.lewm import LeWM, PredictorBlock

KeysValues = tuple[Tensor, Tensor]
"""Keys and values (R, m, h, d) of one layer."""

Window = list[KeysValues | None]
"""The tokens of the current window so far: keys and values of each layer."""


class Rollout:
    """Rolls candidates out through the predictor of a LeWM in ``eval()`` mode."""

    def __init__(self, model: LeWM) -> None:
        self.model = model
        self.history = model.config.history
        transformer = model.predictor.transformer
        self.blocks = [cast(PredictorBlock, block) for block in transformer.layers]
        linears = [cast(nn.Linear, block.adaLN_modulation[1]) for block in self.blocks]
        self.modulation_weight = torch.cat([linear.weight for linear in linears])
        self.modulation_bias = torch.cat([linear.bias for linear in linears])

    def __call__(self, latents: Tensor, past_actions: Tensor, candidates: Tensor) -> Tensor:
        """See `Backend.rollout`: (P, H, D), (P, H − 1, A), (P, S, T, A) → (P, S, T, D)."""
        plans, samples, horizon, _ = candidates.shape
        context = latents.shape[1]
        shared_latents = list(latents.unbind(1))
        own_latents = [latents[:, -1].repeat_interleave(samples, dim=0)]
        shared = self._modulations(past_actions)
        own = self._modulations(candidates.flatten(0, 1))
        window = self._empty()
        for step in range(horizon):
            first = max(0, context + step - self.history)
            grows = first == 0 and step > 0
            if not grows:
                # Positions restart: the window is computed anew, first what candidates share.
                window = self._empty()
                fixed = range(first, context - 1)
                if fixed:
                    tokens = self._tokens([shared_latents[index] for index in fixed], 0)
                    self._extend(window, tokens, shared[:, fixed.start : fixed.stop])
            begin = step if grows else max(0, first - (context - 1))
            position = context - 1 + begin - first
            tokens = self._tokens(own_latents[begin : step + 1], position)
            hidden = self._extend(window, tokens, own[:, begin : step + 1])
            own_latents.append(self.model.pred_proj(self._output(hidden)))
        return torch.stack(own_latents[1:], dim=1).reshape(plans, samples, horizon, -1)

    def _empty(self) -> Window:
        return [None] * len(self.blocks)

    def _tokens(self, latents: list[Tensor], position: int) -> Tensor:
        """Latents (R, D) of n steps as tokens (R, n, W), the first one at a position."""
        predictor = self.model.predictor
        positions = predictor.pos_embedding[:, position : position + len(latents)]
        return cast(Tensor, predictor.transformer.input_proj(torch.stack(latents, 1) + positions))

    def _modulations(self, actions: Tensor) -> Tensor:
        """Blocks of actions (R, T, A) → shifts, scales and gates (R, T, L, 6, W)."""
        condition = self.model.predictor.transformer.cond_proj(self.model.action_encoder(actions))
        packed = F.linear(F.silu(condition), self.modulation_weight, self.modulation_bias)
        width = self.model.config.predictor_width
        return packed.reshape(*packed.shape[:2], len(self.blocks), 6, width)

    def _output(self, hidden: Tensor) -> Tensor:
        transformer = self.model.predictor.transformer
        return cast(Tensor, transformer.output_proj(transformer.norm(hidden)))

    def _extend(self, window: Window, tokens: Tensor, modulations: Tensor) -> Tensor:
        """Pass new tokens (R, n, W) through all layers; the last one's hidden state (R, W)."""
        x = tokens
        last = len(self.blocks) - 1
        for index, block in enumerate(self.blocks):
            shift1, scale1, gate1, shift2, scale2, gate2 = modulations[:, :, index].unbind(2)
            attention = block.attn
            normed = attention.norm(block.norm1(x) * (1 + scale1) + shift1)
            q, k, v = (
                part.reshape(*part.shape[:2], attention.heads, -1)
                for part in attention.to_qkv(normed).chunk(3, dim=-1)
            )
            keys, values = window[index] = _append(window[index], k, v)
            if index == last:
                x, q, gate1 = x[:, -1:], q[:, -1:], gate1[:, -1:]
                shift2, scale2, gate2 = shift2[:, -1:], scale2[:, -1:], gate2[:, -1:]
            x = x + gate1 * attention.to_out(_attend(q, keys, values))
            x = x + gate2 * block.mlp(block.norm2(x) * (1 + scale2) + shift2)
        return x[:, -1]


def _append(before: KeysValues | None, keys: Tensor, values: Tensor) -> KeysValues:
    """Keys and values of all tokens; what a plan's rows share is repeated for each."""
    if before is None:
        return keys, values
    repeats = len(keys) // len(before[0])
    return (
        torch.cat([before[0].repeat_interleave(repeats, dim=0), keys], dim=1),
        torch.cat([before[1].repeat_interleave(repeats, dim=0), values], dim=1),
    )


def _attend(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Causal attention of the last n tokens (R, n, h, d) over all (R, m + n, h, d) → (R, n, h·d).

    Written out: for a handful of tokens, products and sums beat batched matrix products.
    """
    count, total = queries.shape[1], keys.shape[1]
    scale = queries.shape[-1] ** -0.5
    outputs = []
    for index in range(count):
        seen = total - count + index + 1
        scores = (queries[:, index : index + 1] * keys[:, :seen]).sum(-1) * scale
        weights = scores.softmax(dim=1).unsqueeze(-1)
        outputs.append((weights * values[:, :seen]).sum(1))
    return torch.stack(outputs, dim=1).flatten(2)
