"""The predictor as a server runs it: some new tokens, after tokens whose keys and values are known.

Rows are candidates. Values are rows × width; n new tokens make n · rows rows, one token after the
other, so that what belongs to one step lies together. Keys and values are of one layer and one
token each, rows × heads × head width.
"""

from __future__ import annotations

from typing import cast

import numpy as np
import onnx
from torch import nn

from models.config import LeWMConfig
from models.export.affine import Affine, affine, numbers
from models.export.graph import Graph
from models.lewm import LeWM, PredictorAttention, PredictorBlock

PARTS = 6
"""Shift, scale and gate of a block's attention, then of its MLP."""

SCALES = (1, 4)

FIRST_OF_LAST_TOKEN = 2
"""From here on, the last layer works on the last token alone."""


def modulation_graph(model: LeWM) -> onnx.ModelProto:
    """``actions`` (rows, A) → ``modulation.{layer}.{part}`` (rows, width), with 1 + scale."""
    graph, encoder = Graph(), model.action_encoder
    transformer, width = model.predictor.transformer, model.config.predictor_width
    x = graph.input("actions", ("rows", model.config.block_width))
    x = graph.silu(graph.linear(x, affine(encoder.patch_embed, encoder.embed[0])))
    x = graph.silu(graph.linear(x, affine(encoder.embed[2], transformer.cond_proj)))
    for layer, block in enumerate(transformer.layers):
        packed = affine(cast(PredictorBlock, block).adaLN_modulation[1])
        for part in range(PARTS):
            each = packed.part(part * width, (part + 1) * width)
            y = graph.linear(x, each.shifted(1) if part in SCALES else each)
            graph.output(y, modulation(layer, part), ("rows", width))
    return graph.model("modulations")


def extension_graph(model: LeWM, before: int, new: int) -> onnx.ModelProto:
    """A window of ``before`` tokens, extended by ``new`` ones.

    Inputs: ``latent.{token}`` (rows, D) of the new tokens; ``modulation.{layer}.{part}`` of their
    steps, (new · rows, width), but (rows, width) of the last step in the last layer from its gate
    (part 2) on; ``key.{layer}.{token}`` and ``value.{layer}.{token}`` of the tokens before.
    Outputs: ``latent`` (rows, D) after the last token; where the window has room for more, keys
    and values of the new ones.
    """
    return _Extension(model, before, new).build()


def of_last_token(config: LeWMConfig) -> list[str]:
    """The modulations that an extension takes of its last step alone."""
    last = config.predictor_depth - 1
    return [modulation(last, part) for part in range(FIRST_OF_LAST_TOKEN, PARTS)]


def modulation(layer: int, part: int) -> str:
    """The name of a layer's shift, scale or gate."""
    return f"modulation.{layer}.{part}"


class _Extension:
    def __init__(self, model: LeWM, before: int, new: int) -> None:
        self.model = model
        self.before = before
        self.new = new
        self.graph = Graph()
        config = model.config
        self.width = config.predictor_width
        self.heads = ("rows", config.predictor_heads, config.predictor_head_dim)
        self.inner = config.predictor_heads * config.predictor_head_dim

    def build(self) -> onnx.ModelProto:
        graph, transformer = self.graph, self.model.predictor.transformer
        x = self._tokens()
        for layer, block in enumerate(transformer.layers):
            last = layer == len(transformer.layers) - 1
            x = self._block(x, layer, cast(PredictorBlock, block), last)
        x = self._standardised(x, transformer.norm)
        first, batch_norm, _, second = self.model.pred_proj.net
        x = graph.linear(x, affine(transformer.norm, transformer.output_proj, first, batch_norm))
        x = graph.linear(graph.op("Gelu", x), affine(second))
        graph.output(x, "latent", ("rows", self.model.config.latent_dim))
        return graph.model(f"window of {self.before} and {self.new}")

    def _tokens(self) -> str:
        graph, predictor = self.graph, self.model.predictor
        positions = numbers(predictor.pos_embedding)[0].astype(np.float32)
        tokens = [
            graph.op(
                "Add",
                graph.input(f"latent.{token}", ("rows", self.model.config.latent_dim)),
                graph.constant(positions[token]),
            )
            for token in range(self.before, self.before + self.new)
        ]
        x, project = graph.joined(tokens), predictor.transformer.input_proj
        return x if isinstance(project, nn.Identity) else graph.linear(x, affine(project))

    def _block(self, x: str, layer: int, block: PredictorBlock, last: bool) -> str:
        """All tokens through a block; of the last block, the last token alone comes out."""
        graph = self.graph
        shift1, scale1, gate1, shift2, scale2, gate2 = (
            graph.input(
                modulation(layer, part),
                ("rows" if last and part >= FIRST_OF_LAST_TOKEN else "tokens", self.width),
            )
            for part in range(PARTS)
        )
        attention, (_, first, _, _, second, _) = block.attn, block.mlp.net
        norm = cast(nn.LayerNorm, block.mlp.net[0])
        y = self._modulated(x, block.norm1, shift1, scale1, attention.norm)
        y = self._attention(y, layer, attention, last)
        if last:
            x = graph.parts(x, self.new)[-1]
        x = graph.op("Add", x, graph.op("Mul", y, gate1))
        y = self._modulated(x, block.norm2, shift2, scale2, norm)
        y = graph.op("Gelu", graph.linear(y, affine(norm, first)))
        return graph.op("Add", x, graph.op("Mul", graph.linear(y, affine(second)), gate2))

    def _attention(self, x: str, layer: int, attention: PredictorAttention, last: bool) -> str:
        """Causal attention of the new tokens, or of the last one alone, over all."""
        graph = self.graph
        query, key, value = _projections(attention)
        keys = self._window(layer, "key", graph.linear(x, key))
        values = self._window(layer, "value", graph.linear(x, value))
        asking = range(self.new - 1 if last else 0, self.new)
        # The first token of a window sees itself alone: its value is the answer to any query.
        asked = [token for token in asking if self.before + token > 0]
        outputs = [values[0]] if len(asked) < len(asking) else []
        if asked:
            if len(asked) < self.new:
                x = graph.joined(graph.parts(x, self.new)[asked[0] :])
            queries = self._split(graph.linear(x, query), len(asked))
            outputs += [
                self._attend(one, keys[: self.before + token + 1], values)
                for token, one in zip(asked, queries, strict=True)
            ]
        y = graph.reshape(graph.joined(outputs), -1, self.inner)
        out = attention.to_out
        return graph.linear(y, affine(out[0])) if isinstance(out, nn.Sequential) else y

    def _window(self, layer: int, kind: str, new: str) -> list[str]:
        """Keys or values of all tokens; those of new ones are given out if more may follow."""
        graph, window = self.graph, []
        for token in range(self.before):
            window.append(graph.input(f"{kind}.{layer}.{token}", self.heads))
        for token, part in enumerate(self._split(new, self.new), self.before):
            if self.before + self.new < self.model.config.history:
                graph.output(part, f"{kind}.{layer}.{token}", self.heads)
            window.append(part)
        return window

    def _split(self, x: str, tokens: int) -> list[str]:
        """(tokens · rows, inner) → for each token (rows, heads, head width)."""
        shape = (-1, *self.heads[1:])
        return [self.graph.reshape(part, *shape) for part in self.graph.parts(x, tokens)]

    def _attend(self, query: str, keys: list[str], values: list[str]) -> str:
        """One token's attention. Written out: batched products of so few tokens are slow."""
        graph = self.graph
        scores = [
            graph.op("ReduceSum", graph.op("Mul", query, key), graph.shape(-1), keepdims=1)
            for key in keys
        ]
        highest = graph.op("Max", *scores)
        shares = [graph.op("Exp", graph.op("Sub", score, highest)) for score in scores]
        parts = [graph.op("Mul", *pair) for pair in zip(shares, values, strict=False)]
        return graph.op("Div", graph.op("Sum", *parts), graph.op("Sum", *shares))

    def _modulated(
        self, x: str, norm: nn.LayerNorm, shift: str, scale: str, following: nn.LayerNorm
    ) -> str:
        y = self.graph.op("Mul", self._standardised(x, norm), scale)
        return self._standardised(self.graph.op("Add", y, shift), following)

    def _standardised(self, x: str, norm: nn.LayerNorm) -> str:
        return self.graph.standardised(x, self.width, norm.eps)


def _projections(attention: PredictorAttention) -> list[Affine]:
    """Query, scaled by head width^-1/2, key and value of a layer, each with the norm before."""
    packed = affine(attention.norm, attention.to_qkv)
    inner = len(packed.bias) // 3
    query, key, value = (packed.part(part * inner, (part + 1) * inner) for part in range(3))
    return [query.scaled((inner // attention.heads) ** -0.5), key, value]
