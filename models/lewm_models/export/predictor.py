"""The predictor as ONNX graphs: one for export, and the two kinds that a server runs.

`predictor_graph` is the complete predictor for use without this project. A server computes a
roll-out step by step: `modulation_graph` computes what depends on the actions alone, once for all
steps, and `extension_graph` adds tokens to a window whose keys and values are already known.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np

from lewm_models.config import LeWMConfig
from lewm_models.export.graph import GraphBuilder, OnnxGraph
from lewm_models.export.weights import MODULATIONS_PER_LAYER, LayerWeights, PredictorWeights
from lewm_models.lewm import LeWM

ATTENTION_GATE = 2
"""The index of the attention's gate among the modulations. It and all modulations after it act on
the attention's outputs, which the last layer computes for the last token only."""


def predictor_graph(model: LeWM) -> OnnxGraph:
    """``latents`` (rows, frames, D) and ``actions`` (rows, frames, A) → ``next`` (rows, frames, D).

    The arguments and the result are those of `LeWM.predict`. ``rows`` may be any number, and
    ``frames`` may be 1 to the model's history.
    """
    return _FullWindow(PredictorWeights(model)).build()


def modulation_graph(weights: PredictorWeights) -> OnnxGraph:
    """``actions`` (rows, A) → ``modulation.{layer}.{index}`` (rows, width), see `LayerWeights`."""
    parts = _PredictorParts(weights)
    graph = parts.graph
    condition = parts.condition(graph.input("actions", ("rows", weights.config.block_width)))
    for index, layer in enumerate(weights.layers):
        for which, value in enumerate(parts.modulations(condition, layer)):
            graph.output(value, modulation_name(index, which), ("rows", parts.width))
    return graph.finish("modulations")


def extension_graph(weights: PredictorWeights, known_tokens: int, new_tokens: int) -> OnnxGraph:
    """Extend windows of ``known_tokens`` by ``new_tokens``; each row is one candidate's window.

    Inputs:
        - ``latent.{token}`` (rows, D) for each new token;
        - ``modulation.{layer}.{index}`` (new_tokens · rows, width) of the new tokens' actions, one
          token after another; those of `last_token_modulations` are (rows, width), of the last
          token only;
        - ``key.{layer}.{token}`` and ``value.{layer}.{token}`` (rows, heads, head_dim) for each
          known token.

    Outputs: ``latent`` (rows, D), the prediction after the last token; also the keys and values of
    the new tokens, if the window is not full yet.
    """
    return _Extension(weights, known_tokens, new_tokens).build()


def last_token_modulations(config: LeWMConfig) -> list[str]:
    """The modulations that `extension_graph` takes of the last token only."""
    last_layer = config.predictor_depth - 1
    return [
        modulation_name(last_layer, index) for index in range(ATTENTION_GATE, MODULATIONS_PER_LAYER)
    ]


def modulation_name(layer: int, index: int) -> str:
    """The name of one of a layer's `MODULATIONS_PER_LAYER` modulations."""
    return f"modulation.{layer}.{index}"


class _PredictorParts:
    """Writes what all graphs have in common. Values are (rows, width) with one row per token."""

    def __init__(self, weights: PredictorWeights) -> None:
        self.weights = weights
        self.graph = GraphBuilder()
        self.config = weights.config
        self.width = weights.config.predictor_width
        self.heads = weights.config.predictor_heads
        self.head_dim = weights.config.predictor_head_dim

    def condition(self, actions: str) -> str:
        """Action blocks (rows, A) → the condition (rows, width) that modulations depend on."""
        graph, (first, second) = self.graph, self.weights.action_maps
        return graph.silu(graph.linear(graph.silu(graph.linear(actions, first)), second))

    def modulations(self, condition: str, layer: LayerWeights) -> list[str]:
        """The modulations of a layer, each (rows, width)."""
        return [self.graph.linear(condition, modulation) for modulation in layer.modulations]

    def tokens(self, latents: str) -> str:
        """Latents with their positions added (rows, D) → tokens (rows, width)."""
        return self.graph.optional_linear(latents, self.weights.input_map)

    def apply_layer(
        self,
        x: str,
        layer: LayerWeights,
        *,
        modulations: Sequence[str],
        attention: Callable[[str], str],
        keep_rows: Callable[[str], str] = str,
    ) -> str:
        """One transformer layer.

        ``attention`` returns all heads (rows, heads · head_dim) of the rows that ``keep_rows``
        keeps; the layer returns these rows.
        """
        graph = self.graph
        shift1, scale1, gate1, shift2, scale2, gate2 = modulations
        norm1, attention_norm, norm2, mlp_norm = layer.epsilons
        y = self._modulate(graph.standardise(x, self.width, norm1), shift1, scale1)
        y = attention(graph.standardise(y, self.width, attention_norm))
        x = keep_rows(x)
        y = graph.optional_linear(y, layer.attention_out)
        x = graph.op("Add", x, graph.op("Mul", y, gate1))
        y = self._modulate(graph.standardise(x, self.width, norm2), shift2, scale2)
        y = graph.linear(graph.standardise(y, self.width, mlp_norm), layer.mlp_first)
        y = graph.linear(graph.op("Gelu", y), layer.mlp_second)
        return graph.op("Add", x, graph.op("Mul", y, gate2))

    def predicted_latents(self, x: str) -> str:
        """The output of the last layer (rows, width) → predicted latents (rows, D)."""
        x = self.graph.standardise(x, self.width, self.weights.final_epsilon)
        return self.graph.head(x, self.weights.head)

    def _modulate(self, x: str, shift: str, scale: str) -> str:
        return self.graph.op("Add", self.graph.op("Mul", x, scale), shift)


class _FullWindow(_PredictorParts):
    """All tokens of all windows at once; the tokens of one window follow each other."""

    def build(self) -> OnnxGraph:
        graph, config = self.graph, self.config
        latents = graph.input("latents", ("rows", "frames", config.latent_dim))
        actions = graph.input("actions", ("rows", "frames", config.block_width))
        self._frames = graph.op("Shape", latents, start=1, end=2)
        self._rows_and_frames = graph.op("Shape", latents, start=0, end=2)
        condition = self.condition(graph.reshape(actions, -1, config.block_width))
        x = graph.op("Add", latents, self._first_frames(self.weights.positions, axes=[0]))
        x = self.tokens(graph.reshape(x, -1, config.latent_dim))
        future = np.triu(np.full((config.history, config.history), -np.inf, np.float32), 1)
        mask = self._first_frames(future, axes=[0, 1])
        for layer in self.weights.layers:
            attention = partial(self._attention, layer=layer, mask=mask)
            modulations = self.modulations(condition, layer)
            x = self.apply_layer(x, layer, modulations=modulations, attention=attention)
        shape = graph.op("Concat", self._rows_and_frames, graph.integers(-1), axis=0)
        predicted = graph.op("Reshape", self.predicted_latents(x), shape)
        graph.output(predicted, "next", ("rows", "frames", config.latent_dim))
        return graph.finish("predictor")

    def _first_frames(self, table: np.ndarray, axes: list[int]) -> str:
        """Cut a table for a full history down to the frames of the input, along these axes."""
        graph = self.graph
        starts, frames = graph.integers(*[0] * len(axes)), [self._frames] * len(axes)
        ends = graph.op("Concat", *frames, axis=0)
        return graph.op("Slice", graph.constant(table), starts, ends, graph.integers(*axes))

    def _attention(self, x: str, layer: LayerWeights, mask: str) -> str:
        graph, heads, head_dim = self.graph, self.heads, self.head_dim
        shape = graph.op("Concat", self._rows_and_frames, graph.integers(heads, head_dim), axis=0)
        query, key, value = (
            graph.op("Transpose", graph.op("Reshape", graph.linear(x, affine), shape), perm=order)
            for affine, order in (
                (layer.query, [0, 2, 1, 3]),
                (layer.key, [0, 2, 3, 1]),
                (layer.value, [0, 2, 1, 3]),
            )
        )
        scores = graph.op("Add", graph.op("MatMul", query, key), mask)
        y = graph.op("MatMul", graph.op("Softmax", scores, axis=-1), value)
        return graph.reshape(graph.op("Transpose", y, perm=[0, 2, 1, 3]), -1, heads * head_dim)


class _Extension(_PredictorParts):
    """New tokens after known ones. The rows of one token follow each other."""

    def __init__(self, weights: PredictorWeights, known_tokens: int, new_tokens: int) -> None:
        super().__init__(weights)
        self.known_tokens = known_tokens
        self.new_tokens = new_tokens

    def build(self) -> OnnxGraph:
        x = self._new_tokens()
        of_last_token = last_token_modulations(self.config)
        for index, layer in enumerate(self.weights.layers):
            names = [modulation_name(index, which) for which in range(MODULATIONS_PER_LAYER)]
            modulations = [
                self.graph.input(name, ("rows" if name in of_last_token else "tokens", self.width))
                for name in names
            ]
            is_last = index == len(self.weights.layers) - 1
            attention = partial(self._attention, index=index, layer=layer, last_only=is_last)
            keep_rows = self._rows_of_last_token if is_last else str
            x = self.apply_layer(
                x, layer, modulations=modulations, attention=attention, keep_rows=keep_rows
            )
        latent = self.predicted_latents(x)
        self.graph.output(latent, "latent", ("rows", self.config.latent_dim))
        return self.graph.finish(f"window of {self.known_tokens} and {self.new_tokens}")

    def _new_tokens(self) -> str:
        graph = self.graph
        latents = []
        for token in range(self.known_tokens, self.known_tokens + self.new_tokens):
            latent = graph.input(f"latent.{token}", ("rows", self.config.latent_dim))
            latents.append(graph.op("Add", latent, graph.constant(self.weights.positions[token])))
        return self.tokens(graph.join_rows(latents))

    def _rows_of_last_token(self, x: str) -> str:
        return self.graph.split_rows(x, self.new_tokens)[-1]

    def _attention(self, x: str, *, index: int, layer: LayerWeights, last_only: bool) -> str:
        """Causal attention over all tokens, of the new tokens or of the last one only."""
        graph = self.graph
        keys = self._all_tokens(index, "key", graph.linear(x, layer.key))
        values = self._all_tokens(index, "value", graph.linear(x, layer.value))
        tokens = range(self.new_tokens - 1 if last_only else 0, self.new_tokens)
        # The first token of a window attends to itself only: the result is its value.
        with_query = [token for token in tokens if self.known_tokens + token > 0]
        results = [values[0]] if len(with_query) < len(tokens) else []
        if with_query:
            if len(with_query) < self.new_tokens:
                x = graph.join_rows(graph.split_rows(x, self.new_tokens)[with_query[0] :])
            queries = self._split_tokens(graph.linear(x, layer.query), len(with_query))
            results += [
                self._attend(query, keys[: self.known_tokens + token + 1], values)
                for token, query in zip(with_query, queries, strict=True)
            ]
        return graph.reshape(graph.join_rows(results), -1, self.heads * self.head_dim)

    def _all_tokens(self, layer: int, kind: str, new: str) -> list[str]:
        """Keys or values of all tokens; those of new tokens become outputs if more may follow."""
        graph, shape = self.graph, ("rows", self.heads, self.head_dim)
        values = [
            graph.input(f"{kind}.{layer}.{token}", shape) for token in range(self.known_tokens)
        ]
        is_full = self.known_tokens + self.new_tokens >= self.config.history
        for token, value in enumerate(self._split_tokens(new, self.new_tokens), self.known_tokens):
            if not is_full:
                graph.output(value, f"{kind}.{layer}.{token}", shape)
            values.append(value)
        return values

    def _split_tokens(self, x: str, tokens: int) -> list[str]:
        """(tokens · rows, heads · head_dim) → (rows, heads, head_dim) for each token."""
        return [
            self.graph.reshape(part, -1, self.heads, self.head_dim)
            for part in self.graph.split_rows(x, tokens)
        ]

    def _attend(self, query: str, keys: list[str], values: list[str]) -> str:
        """One token's attention, element by element: batched products of 3 tokens are slower.

        ``values`` may hold later tokens too; those are ignored.
        """
        graph = self.graph
        scores = [
            graph.op("ReduceSum", graph.op("Mul", query, key), graph.integers(-1), keepdims=1)
            for key in keys
        ]
        highest = graph.op("Max", *scores)
        weights = [graph.op("Exp", graph.op("Sub", score, highest)) for score in scores]
        weighted = [
            graph.op("Mul", weight, value) for weight, value in zip(weights, values, strict=False)
        ]
        return graph.op("Div", graph.op("Sum", *weighted), graph.op("Sum", *weights))
