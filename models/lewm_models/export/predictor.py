"""The predictor as a graph by itself: a window of latents and actions to the latents that follow.

Plain, for whoever runs a model without this project; what a server runs is in `window.py`.
"""

from __future__ import annotations

from functools import partial

import numpy as np

from lewm_models.export.blocks import Blocks
from lewm_models.export.graph import Written
from lewm_models.export.weights import BlockWeights, PredictorWeights
from lewm_models.lewm import LeWM


def predictor_graph(model: LeWM) -> Written:
    """``latents`` (rows, frames, D) and ``actions`` (rows, frames, A) → ``next`` (rows, frames, D).

    As `LeWM.predict`: oldest first, actions z-scored, the block that leaves each latent. ``rows``
    may be any number, ``frames`` 1 to the model's history.
    """
    return _Predictor(PredictorWeights(model)).build()


class _Predictor(Blocks):
    """Rows of a window lie one after the other."""

    def build(self) -> Written:
        graph, config = self.graph, self.config
        latents = graph.input("latents", ("rows", "frames", config.latent_dim))
        actions = graph.input("actions", ("rows", "frames", config.block_width))
        self._frames = graph.op("Shape", latents, start=1, end=2)
        self._window = graph.op("Shape", latents, start=0, end=2)
        condition = self.condition(graph.reshape(actions, -1, config.block_width))
        x = graph.op("Add", latents, self._first_frames(self.weights.positions, axes=[0]))
        x = self.tokens(graph.reshape(x, -1, config.latent_dim))
        hidden = np.triu(np.full((config.history, config.history), -np.inf, np.float32), 1)
        mask = self._first_frames(hidden, axes=[0, 1])
        for block in self.weights.blocks:
            attention = partial(self._attention, block=block, mask=mask)
            x = self.block(x, block, self.modulations(condition, block), attention)
        shape = graph.op("Concat", self._window, graph.shape(-1), axis=0)
        following = graph.op("Reshape", self.latents(x), shape)
        graph.output(following, "next", ("rows", "frames", config.latent_dim))
        return graph.finish("predictor")

    def _first_frames(self, array: np.ndarray, axes: list[int]) -> str:
        """A table for a whole window, as far as this window goes."""
        graph = self.graph
        starts, ends = graph.shape(*[0] * len(axes)), [self._frames] * len(axes)
        end = graph.op("Concat", *ends, axis=0)
        return graph.op("Slice", graph.constant(array), starts, end, graph.shape(*axes))

    def _attention(self, x: str, block: BlockWeights, mask: str) -> str:
        graph, (heads, head_dim) = self.graph, self.heads
        shape = graph.op("Concat", self._window, graph.shape(heads, head_dim), axis=0)
        q, k, v = (
            graph.op("Transpose", graph.op("Reshape", graph.linear(x, each), shape), perm=order)
            for each, order in (
                (block.query, [0, 2, 1, 3]),
                (block.key, [0, 2, 3, 1]),
                (block.value, [0, 2, 1, 3]),
            )
        )
        scores = graph.op("Add", graph.op("MatMul", q, k), mask)
        y = graph.op("MatMul", graph.op("Softmax", scores, axis=-1), v)
        return graph.reshape(graph.op("Transpose", y, perm=[0, 2, 1, 3]), -1, heads * head_dim)
