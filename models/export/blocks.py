"""What every graph of the predictor is made of. Values are rows × width, a row for each token."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import cast

from torch import nn

from models.export.affine import Affine, affine
from models.export.graph import Graph
from models.lewm import LeWM, PredictorAttention, PredictorBlock

PARTS = 6
"""Shift, scale and gate of a block's attention, then of its MLP."""

SCALES = (1, 4)


class Blocks:
    """Writes parts of a model's predictor into a graph."""

    def __init__(self, model: LeWM) -> None:
        self.model = model
        self.graph = Graph()
        self.config = model.config
        self.width = model.config.predictor_width
        self.heads = (model.config.predictor_heads, model.config.predictor_head_dim)
        self.transformer = model.predictor.transformer
        self.blocks = [cast(PredictorBlock, block) for block in self.transformer.layers]

    def condition(self, actions: str) -> str:
        """Blocks of actions (rows, A) → what the modulations are made from."""
        graph, encoder = self.graph, self.model.action_encoder
        x = graph.silu(graph.linear(actions, affine(encoder.patch_embed, encoder.embed[0])))
        return graph.silu(graph.linear(x, affine(encoder.embed[2], self.transformer.cond_proj)))

    def modulations(self, condition: str, block: PredictorBlock) -> list[str]:
        """Shift, 1 + scale and gate of a block, twice."""
        packed = affine(block.adaLN_modulation[1])
        parts = [packed.part(part * self.width, (part + 1) * self.width) for part in range(PARTS)]
        return [
            self.graph.linear(condition, each.shifted(1) if part in SCALES else each)
            for part, each in enumerate(parts)
        ]

    def tokens(self, x: str) -> str:
        """Latents with their positions (rows, D) → (rows, width)."""
        project = self.transformer.input_proj
        return x if isinstance(project, nn.Identity) else self.graph.linear(x, affine(project))

    def block(
        self,
        x: str,
        block: PredictorBlock,
        modulations: Sequence[str],
        attention: Callable[[str], str],
        kept: Callable[[str], str] = str,
    ) -> str:
        """Tokens through a block; ``attention`` gives an answer for each token that is ``kept``."""
        graph = self.graph
        shift1, scale1, gate1, shift2, scale2, gate2 = modulations
        y = attention(self._modulated(x, block.norm1, shift1, scale1, block.attn.norm))
        x = graph.op("Add", kept(x), graph.op("Mul", y, gate1))
        norm, first, _, _, second, _ = block.mlp.net
        y = self._modulated(x, block.norm2, shift2, scale2, cast(nn.LayerNorm, norm))
        y = graph.op("Gelu", graph.linear(y, affine(norm, first)))
        return graph.op("Add", x, graph.op("Mul", graph.linear(y, affine(second)), gate2))

    def attended(self, y: str, attention: PredictorAttention) -> str:
        """Answers of all heads (rows, heads · head width) → (rows, width)."""
        out = attention.to_out
        return self.graph.linear(y, affine(out[0])) if isinstance(out, nn.Sequential) else y

    def latents(self, x: str) -> str:
        """What leaves the last block (rows, width) → predicted latents (rows, D)."""
        graph, norm = self.graph, self.transformer.norm
        first, batch_norm, _, second = self.model.pred_proj.net
        folded = affine(norm, self.transformer.output_proj, first, batch_norm)
        x = graph.linear(graph.standardised(x, self.width, norm.eps), folded)
        return graph.linear(graph.op("Gelu", x), affine(second))

    def _modulated(
        self, x: str, norm: nn.LayerNorm, shift: str, scale: str, following: nn.LayerNorm
    ) -> str:
        graph = self.graph
        y = graph.op("Mul", graph.standardised(x, self.width, norm.eps), scale)
        return graph.standardised(graph.op("Add", y, shift), self.width, following.eps)


def projections(attention: PredictorAttention) -> list[Affine]:
    """Query, scaled by head width^-1/2, key and value of a layer, each with the norm before."""
    packed = affine(attention.norm, attention.to_qkv)
    inner = len(packed.bias) // 3
    query, key, value = (packed.part(part * inner, (part + 1) * inner) for part in range(3))
    return [query.scaled((inner // attention.heads) ** -0.5), key, value]
