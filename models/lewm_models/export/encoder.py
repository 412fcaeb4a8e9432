"""The encoder as an ONNX graph: frames to latents.

Only the CLS token of the last layer is used, so that layer has one query per frame. For one query
the keys and values of the tokens y need not be computed: q·(W_k y) = (W_kᵀ q)·y, and with attention
weights a, Σ a W_v y = W_v Σ a y. Both are exact. The bias of the keys adds the same number to all
scores, and softmax ignores it. The weights a sum to 1, so the bias of the values is added as it is.
"""

from __future__ import annotations

from typing import cast

import numpy as np
from onnx import TensorProto
from torch import nn

from lewm_models.export.graph import GraphBuilder, OnnxGraph
from lewm_models.export.weights import (
    Affine,
    as_float64,
    fold_modules,
    head_weights,
    state_maps,
)
from lewm_models.lewm import EncoderLayer, LeWM


def encoder_graph(model: LeWM) -> OnnxGraph:
    """``frames`` (frames, H, H, 3) uint8 → ``latents`` (frames, D), as `LeWM.encode`.

    A model with a state input has ``states`` (frames, X) float32 too, NaN where they are hidden.
    """
    return _EncoderGraph(model).build()


class _EncoderGraph:
    """Values are (rows, width), a row per token; the tokens of one frame follow each other."""

    def __init__(self, model: LeWM) -> None:
        self.model = model
        self.config = model.config
        self.graph = GraphBuilder()
        self.width = model.config.encoder_width
        self.heads = model.config.encoder_heads
        self.head_dim = self.width // self.heads

    def build(self) -> OnnxGraph:
        graph, encoder = self.graph, self.model.encoder
        *layers, last = (cast(EncoderLayer, layer) for layer in encoder.layers)
        x = self._tokens()
        for layer in layers:
            y = self._standardise(x, layer.layernorm_before)
            x = graph.op("Add", x, self._attention(y, layer))
            x = self._mlp(x, layer)
        y = self._standardise(x, last.layernorm_before)
        x = graph.op("Add", self._cls_rows(x), self._cls_attention(y, last))
        x = self._standardise(self._mlp(x, last), encoder.layernorm)
        projector, before = self.model.projector, [encoder.layernorm]
        if self.config.state_input is not None:
            x = graph.op("Add", self._scaled(x, encoder.layernorm), self._states())
            before = []
        if before or not isinstance(projector, nn.Identity):
            activation = self.config.projector_activation
            x = graph.head(x, head_weights(*before, projector=projector, activation=activation))
        graph.output(x, "latents", ("frames", self.config.latent_dim))
        return graph.finish("encoder")

    def _states(self) -> str:
        """What the state encoder adds to the CLS tokens (frames, width)."""
        graph, given = self.graph, self.config.state_input
        assert given is not None
        states = graph.input("states", ("frames", len(given)))
        mean, std = (
            graph.constant(np.array(values, np.float32)) for values in (given.mean, given.std)
        )
        zscored = graph.op("Div", graph.op("Sub", states, mean), std)
        # A value that is not finite makes NaN when it is subtracted from itself, and others make 0.
        finite = graph.op("ReduceSum", graph.op("Sub", zscored, zscored), graph.integers(1))
        hidden = graph.op("IsNaN", finite)
        nothing = graph.constant(np.zeros(1, np.float32))
        values = graph.op("Where", hidden, nothing, zscored)
        shown = graph.op("Cast", graph.op("Not", hidden), to=TensorProto.FLOAT)
        first, second = state_maps(self.model)
        x = graph.linear(graph.op("Concat", values, shown, axis=1), first)
        return graph.linear(graph.activation("gelu", x), second)

    def _scaled(self, x: str, norm: nn.LayerNorm) -> str:
        """The affine part of a LayerNorm."""
        graph, affine = self.graph, fold_modules(norm).as_float32()
        scaled = graph.op("Mul", x, graph.constant(affine.weight))
        return graph.op("Add", scaled, graph.constant(affine.bias))

    def _tokens(self) -> str:
        """The CLS token and the patches of each frame, with their positions added."""
        graph, patch = self.graph, self.config.patch_size
        size, side = self.config.image_size, self.config.image_size // patch
        frames = graph.input("frames", ("frames", size, size, 3), TensorProto.UINT8)
        # Patches are cut out as rows of pixels with their channels, which is one transposition.
        seen = side * patch
        if seen < size:
            ends = graph.integers(seen, seen)
            pixels = graph.op("Slice", frames, graph.integers(0, 0), ends, graph.integers(1, 2))
        else:
            pixels = frames
        x = graph.reshape(pixels, -1, side, patch, side, patch * 3)
        x = graph.reshape(graph.op("Transpose", x, perm=[0, 1, 3, 2, 4]), -1, patch * patch * 3)
        x = self._linear(graph.op("Cast", x, to=TensorProto.FLOAT), self._patch_embedding())
        embeddings = self.model.encoder.embeddings
        positions = as_float64(embeddings.position_embeddings)[0]
        x = graph.reshape(x, -1, side * side, self.width)
        x = graph.op("Add", x, graph.constant(positions[1:].astype(np.float32)))
        cls_token = as_float64(embeddings.cls_token) + positions[:1]
        frame_count = graph.op("Shape", frames, start=0, end=1)
        cls_shape = graph.op("Concat", frame_count, graph.integers(1, 1), axis=0)
        cls = graph.op("Expand", graph.constant(cls_token.astype(np.float32)), cls_shape)
        return graph.reshape(graph.op("Concat", cls, x, axis=1), -1, self.width)

    def _patch_embedding(self) -> Affine:
        """The map from the pixels of a patch, row by row; it includes their normalisation."""
        projection = self.model.encoder.embeddings.patch_embeddings.projection
        weight = as_float64(projection.weight).transpose(2, 3, 1, 0)
        mean, std = np.array(self.config.pixel_mean), np.array(self.config.pixel_std)
        normalisation = Affine(
            np.tile(1 / (255 * std), len(weight) ** 2), np.tile(-mean / std, len(weight) ** 2)
        )
        assert projection.bias is not None
        embedding = Affine(weight.reshape(-1, self.width), as_float64(projection.bias))
        return normalisation.then(embedding)

    def _attention(self, x: str, layer: EncoderLayer) -> str:
        graph, norm, attention = self.graph, layer.layernorm_before, layer.attention
        query = fold_modules(norm, attention.q_proj).scaled(self.head_dim**-0.5)
        key, value = fold_modules(norm, attention.k_proj), fold_modules(norm, attention.v_proj)
        q = self._split_heads(self._linear(x, query), [0, 2, 1, 3])
        k = self._split_heads(self._linear(x, key), [0, 2, 3, 1])
        v = self._split_heads(self._linear(x, value), [0, 2, 1, 3])
        y = graph.op("MatMul", graph.op("Softmax", graph.op("MatMul", q, k), axis=-1), v)
        y = graph.reshape(graph.op("Transpose", y, perm=[0, 2, 1, 3]), -1, self.width)
        return self._linear(y, fold_modules(attention.o_proj))

    def _cls_attention(self, x: str, layer: EncoderLayer) -> str:
        """The CLS token's attention over all tokens → (frames, width); see the module."""
        graph, norm, attention = self.graph, layer.layernorm_before, layer.attention
        query = fold_modules(norm, attention.q_proj).scaled(self.head_dim**-0.5)
        key, value = fold_modules(norm, attention.k_proj), fold_modules(norm, attention.v_proj)
        out = fold_modules(attention.o_proj)
        heads = [
            slice(head * self.head_dim, (head + 1) * self.head_dim) for head in range(self.heads)
        ]
        query_key = Affine(
            np.hstack([query.weight[:, head] @ key.weight[:, head].T for head in heads]),
            np.hstack([query.bias[head] @ key.weight[:, head].T for head in heads]),
        )
        value_out = Affine(
            np.vstack([value.weight[:, head] @ out.weight[head] for head in heads]),
            value.bias @ out.weight + out.bias,
        )
        tokens = graph.reshape(x, -1, self.config.tokens, self.width)
        q = self._linear(self._cls_rows(x), query_key)
        q = graph.reshape(q, -1, self.heads, self.width)
        scores = graph.op("MatMul", q, graph.op("Transpose", tokens, perm=[0, 2, 1]))
        y = graph.op("MatMul", graph.op("Softmax", scores, axis=-1), tokens)
        return self._linear(graph.reshape(y, -1, self.heads * self.width), value_out)

    def _mlp(self, x: str, layer: EncoderLayer) -> str:
        graph, norm, mlp = self.graph, layer.layernorm_after, layer.mlp
        y = self._linear(self._standardise(x, norm), fold_modules(norm, mlp.fc1))
        y = graph.activation(self.config.encoder_activation, y)
        return graph.op("Add", x, self._linear(y, fold_modules(mlp.fc2)))

    def _cls_rows(self, x: str) -> str:
        """Rows of all tokens → the row of each frame's CLS token."""
        tokens = self.graph.reshape(x, -1, self.config.tokens, self.width)
        return self.graph.op("Gather", tokens, self.graph.constant(np.array(0)), axis=1)

    def _split_heads(self, x: str, order: list[int]) -> str:
        """(frames · tokens, width) → (frames, tokens, heads, head_dim), axes in this order."""
        x = self.graph.reshape(x, -1, self.config.tokens, self.heads, self.head_dim)
        return self.graph.op("Transpose", x, perm=order)

    def _linear(self, x: str, affine: Affine) -> str:
        return self.graph.linear(x, affine.as_float32())

    def _standardise(self, x: str, norm: nn.LayerNorm) -> str:
        return self.graph.standardise(x, self.width, norm.eps)
