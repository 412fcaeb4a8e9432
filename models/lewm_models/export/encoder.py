"""Frames to latents as an ONNX graph.

Only the CLS token leaves the last layer, so of that layer only its query is asked. One query over
many tokens needs no keys and values: q·(W_k y) = (W_kᵀ q)·y and Σ a W_v y = W_v Σ a y, both exact.
The bias of the keys adds the same to all scores, which softmax ignores; the shares a sum to 1, so
that the bias of the values comes through whole.
"""

from __future__ import annotations

from typing import cast

import numpy as np
from onnx import TensorProto
from torch import nn

from lewm_models.export.affine import Affine, affine, numbers
from lewm_models.export.graph import Graph, Written
from lewm_models.lewm import EncoderLayer, LeWM


def encoder_graph(model: LeWM) -> Written:
    """``frames`` (frames, size, size, 3) uint8 → ``latents`` (frames, D)."""
    return _Encoder(model).build()


class _Encoder:
    """Tokens are rows × width, those of a frame one after the other."""

    def __init__(self, model: LeWM) -> None:
        self.model = model
        self.config = model.config
        self.graph = Graph()
        self.width = model.config.encoder_width
        self.heads = model.config.encoder_heads
        self.head_dim = self.width // self.heads

    def build(self) -> Written:
        graph, encoder = self.graph, self.model.encoder
        *layers, last = (cast(EncoderLayer, layer) for layer in encoder.layers)
        x = self._tokens()
        for layer in layers:
            y = self._standardised(x, layer.layernorm_before)
            x = graph.op("Add", x, self._attention(y, layer))
            x = self._mlp(x, layer)
        y = self._standardised(x, last.layernorm_before)
        x = graph.op("Add", self._cls(x), self._attention_of_cls(y, last))
        x = self._standardised(self._mlp(x, last), encoder.layernorm)
        first, batch_norm, _, second = self.model.projector.net
        x = self._linear(x, affine(encoder.layernorm, first, batch_norm))
        x = self._linear(graph.op("Gelu", x), affine(second))
        graph.output(x, "latents", ("frames", self.config.latent_dim))
        return graph.finish("encoder")

    def _tokens(self) -> str:
        """CLS and patches; these are cut out of the frame by moving whole rows of pixels."""
        graph, patch = self.graph, self.config.patch_size
        size, side = self.config.image_size, self.config.image_size // patch
        frames = graph.input("frames", ("frames", size, size, 3), TensorProto.UINT8)
        x = graph.reshape(frames, -1, side, patch, side, patch * 3)
        x = graph.reshape(graph.op("Transpose", x, perm=[0, 1, 3, 2, 4]), -1, patch * patch * 3)
        x = self._linear(graph.op("Cast", x, to=TensorProto.FLOAT), self._patch_embedding())
        embeddings = self.model.encoder.embeddings
        positions = numbers(embeddings.position_embeddings)[0]
        x = graph.reshape(x, -1, side * side, self.width)
        x = graph.op("Add", x, graph.constant(positions[1:].astype(np.float32)))
        cls = numbers(embeddings.cls_token) + positions[:1]
        frame = graph.op("Shape", frames, start=0, end=1)
        each = graph.op("Concat", frame, graph.shape(1, 1), axis=0)
        cls = graph.op("Expand", graph.constant(cls.astype(np.float32)), each)
        return graph.reshape(graph.op("Concat", cls, x, axis=1), -1, self.width)

    def _patch_embedding(self) -> Affine:
        """From raw pixels of a patch, row by row; their normalisation is folded in."""
        projection = self.model.encoder.embeddings.patch_embeddings.projection
        weight = numbers(projection.weight).transpose(2, 3, 1, 0)
        mean, std = np.array(self.config.pixel_mean), np.array(self.config.pixel_std)
        pixels = Affine(
            np.tile(1 / (255 * std), len(weight) ** 2), np.tile(-mean / std, len(weight) ** 2)
        )
        assert projection.bias is not None
        return pixels.then(Affine(weight.reshape(-1, self.width), numbers(projection.bias)))

    def _attention(self, x: str, layer: EncoderLayer) -> str:
        graph, norm, attention = self.graph, layer.layernorm_before, layer.attention
        query = affine(norm, attention.q_proj).scaled(self.head_dim**-0.5)
        q = self._split(self._linear(x, query), 0, 2, 1, 3)
        k = self._split(self._linear(x, affine(norm, attention.k_proj)), 0, 2, 3, 1)
        v = self._split(self._linear(x, affine(norm, attention.v_proj)), 0, 2, 1, 3)
        y = graph.op("MatMul", graph.op("Softmax", graph.op("MatMul", q, k), axis=-1), v)
        y = graph.reshape(graph.op("Transpose", y, perm=[0, 2, 1, 3]), -1, self.width)
        return self._linear(y, affine(attention.o_proj))

    def _attention_of_cls(self, x: str, layer: EncoderLayer) -> str:
        """The CLS token's attention over all tokens → (frames, width)."""
        graph, norm, attention = self.graph, layer.layernorm_before, layer.attention
        query = affine(norm, attention.q_proj).scaled(self.head_dim**-0.5)
        key, value = affine(norm, attention.k_proj), affine(norm, attention.v_proj)
        out = affine(attention.o_proj)
        heads = [
            slice(head * self.head_dim, (head + 1) * self.head_dim) for head in range(self.heads)
        ]
        asking = Affine(
            np.hstack([query.weight[:, head] @ key.weight[:, head].T for head in heads]),
            np.hstack([query.bias[head] @ key.weight[:, head].T for head in heads]),
        )
        answering = Affine(
            np.vstack([value.weight[:, head] @ out.weight[head] for head in heads]),
            value.bias @ out.weight + out.bias,
        )
        tokens = graph.reshape(x, -1, self.config.tokens, self.width)
        q = graph.reshape(self._linear(self._cls(x), asking), -1, self.heads, self.width)
        scores = graph.op("MatMul", q, graph.op("Transpose", tokens, perm=[0, 2, 1]))
        y = graph.op("MatMul", graph.op("Softmax", scores, axis=-1), tokens)
        return self._linear(graph.reshape(y, -1, self.heads * self.width), answering)

    def _mlp(self, x: str, layer: EncoderLayer) -> str:
        graph = self.graph
        y = self._standardised(x, layer.layernorm_after)
        y = graph.op("Gelu", self._linear(y, affine(layer.layernorm_after, layer.mlp.fc1)))
        return graph.op("Add", x, self._linear(y, affine(layer.mlp.fc2)))

    def _cls(self, x: str) -> str:
        """Rows of all tokens → of the first token of each frame."""
        tokens = self.graph.reshape(x, -1, self.config.tokens, self.width)
        return self.graph.op("Gather", tokens, self.graph.constant(np.array(0)), axis=1)

    def _split(self, x: str, *order: int) -> str:
        """(frames · tokens, width) → (frames, tokens, heads, head width) in another order."""
        x = self.graph.reshape(x, -1, self.config.tokens, self.heads, self.head_dim)
        return self.graph.op("Transpose", x, perm=list(order))

    def _linear(self, x: str, affine: Affine) -> str:
        return self.graph.linear(x, affine.rounded())

    def _standardised(self, x: str, norm: nn.LayerNorm) -> str:
        return self.graph.standardised(x, self.width, norm.eps)
