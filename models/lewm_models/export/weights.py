"""The predictor's linear maps with all that folds into them, computed once for all its graphs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import numpy as np
from numpy.typing import NDArray
from torch import nn

from lewm_models.export.affine import Affine, affine, numbers
from lewm_models.lewm import LeWM, PredictorAttention, PredictorBlock

PARTS = 6
"""Shift, scale and gate of a block's attention, then of its MLP."""

SCALES = (1, 4)


@dataclass(frozen=True)
class BlockWeights:
    """A block's maps; each norm's affine part is in the map that follows it.

    ``query`` holds head width^-1/2, the scales of ``modulations`` hold 1 + scale; ``out`` is None
    where there is no output projection. ``epsilons`` are those of norm1, attn.norm, norm2 and the
    MLP's norm.
    """

    query: Affine
    key: Affine
    value: Affine
    out: Affine | None
    first: Affine
    second: Affine
    modulations: tuple[Affine, ...]
    epsilons: tuple[float, float, float, float]


class PredictorWeights:
    """All maps of a model's predictor, action encoder and pred_proj, in float32."""

    def __init__(self, model: LeWM) -> None:
        self.config = model.config
        encoder, predictor = model.action_encoder, model.predictor
        transformer, head = predictor.transformer, model.pred_proj.net
        self.positions: NDArray[np.float32] = numbers(predictor.pos_embedding)[0].astype(np.float32)
        self.input = _maybe(transformer.input_proj)
        self.actions = (
            affine(encoder.patch_embed, encoder.embed[0]).rounded(),
            affine(encoder.embed[2], transformer.cond_proj).rounded(),
        )
        self.blocks = [_block(cast(PredictorBlock, block)) for block in transformer.layers]
        self.epsilon = transformer.norm.eps
        self.head = (
            affine(transformer.norm, transformer.output_proj, head[0], head[1]).rounded(),
            affine(head[3]).rounded(),
        )


def _block(block: PredictorBlock) -> BlockWeights:
    attention, (norm, first, _, _, second, _) = block.attn, block.mlp.net
    query, key, value = _projections(attention)
    packed = affine(block.adaLN_modulation[1])
    width = len(packed.bias) // PARTS
    parts = [packed.part(part * width, (part + 1) * width) for part in range(PARTS)]
    norms = (block.norm1, attention.norm, block.norm2, cast(nn.LayerNorm, norm))
    norm1, attn_norm, norm2, mlp_norm = (each.eps for each in norms)
    return BlockWeights(
        query.rounded(),
        key.rounded(),
        value.rounded(),
        _maybe(attention.to_out),
        affine(norm, first).rounded(),
        affine(second).rounded(),
        tuple(
            (each.shifted(1) if part in SCALES else each).rounded()
            for part, each in enumerate(parts)
        ),
        (norm1, attn_norm, norm2, mlp_norm),
    )


def _projections(attention: PredictorAttention) -> list[Affine]:
    packed = affine(attention.norm, attention.to_qkv)
    inner = len(packed.bias) // 3
    query, key, value = (packed.part(part * inner, (part + 1) * inner) for part in range(3))
    return [query.scaled((inner // attention.heads) ** -0.5), key, value]


def _maybe(module: nn.Module) -> Affine | None:
    """A linear, or the first of a sequence; None for an identity."""
    module = module[0] if isinstance(module, nn.Sequential) else module
    return None if isinstance(module, nn.Identity) else affine(module).rounded()
