"""The predictor as a server runs it: some new tokens, after tokens whose keys and values are known.

Rows are candidates. n new tokens make n · rows rows, one token after the other, so that what
belongs to one step lies together. Keys and values are of one layer and one token each, rows ×
heads × head width.
"""

from __future__ import annotations

from functools import partial

from lewm_models.config import LeWMConfig
from lewm_models.export.blocks import Blocks
from lewm_models.export.graph import Written
from lewm_models.export.weights import PARTS, BlockWeights, PredictorWeights

FIRST_OF_LAST_TOKEN = 2
"""From this part on, the gate of the attention, the last layer works on the last token alone."""


def modulation_graph(weights: PredictorWeights) -> Written:
    """``actions`` (rows, A) → ``modulation.{layer}.{part}`` (rows, width), with 1 + scale."""
    blocks = Blocks(weights)
    graph = blocks.graph
    condition = blocks.condition(graph.input("actions", ("rows", weights.config.block_width)))
    for layer, block in enumerate(weights.blocks):
        for part, value in enumerate(blocks.modulations(condition, block)):
            graph.output(value, modulation(layer, part), ("rows", blocks.width))
    return graph.finish("modulations")


def extension_graph(weights: PredictorWeights, before: int, new: int) -> Written:
    """A window of ``before`` tokens, extended by ``new`` ones.

    Inputs: ``latent.{token}`` (rows, D) of the new tokens; ``modulation.{layer}.{part}`` of their
    steps, (new · rows, width), but those `of_last_token` (rows, width) of the last step alone;
    ``key.{layer}.{token}`` and ``value.{layer}.{token}`` of the tokens before. Outputs: ``latent``
    (rows, D) after the last token; where the window has room for more, keys and values of the new
    ones.
    """
    return _Extension(weights, before, new).build()


def of_last_token(config: LeWMConfig) -> list[str]:
    """The modulations that an extension takes of its last step alone."""
    last = config.predictor_depth - 1
    return [modulation(last, part) for part in range(FIRST_OF_LAST_TOKEN, PARTS)]


def modulation(layer: int, part: int) -> str:
    """The name of a layer's shift, scale or gate."""
    return f"modulation.{layer}.{part}"


class _Extension(Blocks):
    def __init__(self, weights: PredictorWeights, before: int, new: int) -> None:
        super().__init__(weights)
        self.before = before
        self.new = new

    def build(self) -> Written:
        x = self._tokens()
        short = of_last_token(self.config)
        for layer, block in enumerate(self.weights.blocks):
            names = [modulation(layer, part) for part in range(PARTS)]
            modulations = [
                self.graph.input(name, ("rows" if name in short else "tokens", self.width))
                for name in names
            ]
            last = layer == len(self.weights.blocks) - 1
            attention = partial(self._attention, layer=layer, block=block, last=last)
            x = self.block(x, block, modulations, attention, self._last if last else str)
        self.graph.output(self.latents(x), "latent", ("rows", self.config.latent_dim))
        return self.graph.finish(f"window of {self.before} and {self.new}")

    def _tokens(self) -> str:
        graph = self.graph
        added = []
        for token in range(self.before, self.before + self.new):
            latent = graph.input(f"latent.{token}", ("rows", self.config.latent_dim))
            added.append(graph.op("Add", latent, graph.constant(self.weights.positions[token])))
        return self.tokens(graph.joined(added))

    def _last(self, x: str) -> str:
        return self.graph.parts(x, self.new)[-1]

    def _attention(self, x: str, layer: int, block: BlockWeights, last: bool) -> str:
        """Causal attention of the new tokens, or of the last one alone, over all."""
        graph = self.graph
        keys = self._window(layer, "key", graph.linear(x, block.key))
        values = self._window(layer, "value", graph.linear(x, block.value))
        asking = range(self.new - 1 if last else 0, self.new)
        # The first token of a window sees itself alone: its value is the answer to any query.
        asked = [token for token in asking if self.before + token > 0]
        answers = [values[0]] if len(asked) < len(asking) else []
        if asked:
            if len(asked) < self.new:
                x = graph.joined(graph.parts(x, self.new)[asked[0] :])
            queries = self._split(graph.linear(x, block.query), len(asked))
            answers += [
                self._attend(one, keys[: self.before + token + 1], values)
                for token, one in zip(asked, queries, strict=True)
            ]
        heads, head_dim = self.heads
        return graph.reshape(graph.joined(answers), -1, heads * head_dim)

    def _window(self, layer: int, kind: str, new: str) -> list[str]:
        """Keys or values of all tokens; those of new ones are given out if more may follow."""
        graph, shape = self.graph, ("rows", *self.heads)
        window = [graph.input(f"{kind}.{layer}.{token}", shape) for token in range(self.before)]
        for token, part in enumerate(self._split(new, self.new), self.before):
            if self.before + self.new < self.config.history:
                graph.output(part, f"{kind}.{layer}.{token}", shape)
            window.append(part)
        return window

    def _split(self, x: str, tokens: int) -> list[str]:
        """(tokens · rows, heads · head width) → for each token (rows, heads, head width)."""
        return [self.graph.reshape(part, -1, *self.heads) for part in self.graph.parts(x, tokens)]

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
