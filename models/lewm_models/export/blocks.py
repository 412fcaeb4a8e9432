"""What every graph of the predictor is made of. Values are rows × width, a row for each token."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from lewm_models.export.graph import Graph
from lewm_models.export.weights import BlockWeights, PredictorWeights


class Blocks:
    """Writes parts of a predictor into a graph."""

    def __init__(self, weights: PredictorWeights) -> None:
        self.weights = weights
        self.graph = Graph()
        self.config = weights.config
        self.width = weights.config.predictor_width
        self.heads = (weights.config.predictor_heads, weights.config.predictor_head_dim)

    def condition(self, actions: str) -> str:
        """Blocks of actions (rows, A) → what the modulations are made from."""
        graph, (first, second) = self.graph, self.weights.actions
        return graph.silu(graph.linear(graph.silu(graph.linear(actions, first)), second))

    def modulations(self, condition: str, block: BlockWeights) -> list[str]:
        """Shift, 1 + scale and gate of a block, twice."""
        return [self.graph.linear(condition, each) for each in block.modulations]

    def tokens(self, x: str) -> str:
        """Latents with their positions (rows, D) → (rows, width)."""
        return self.graph.maybe_linear(x, self.weights.input)

    def block(
        self,
        x: str,
        block: BlockWeights,
        modulations: Sequence[str],
        attention: Callable[[str], str],
        kept: Callable[[str], str] = str,
    ) -> str:
        """Tokens through a block; ``attention`` gives an answer for each token that is ``kept``.

        An answer holds all heads (rows, heads · head width).
        """
        graph = self.graph
        shift1, scale1, gate1, shift2, scale2, gate2 = modulations
        norm1, attention_norm, norm2, mlp_norm = block.epsilons
        y = attention(self._modulated(x, norm1, shift1, scale1, attention_norm))
        x = graph.op("Add", kept(x), graph.op("Mul", graph.maybe_linear(y, block.out), gate1))
        y = self._modulated(x, norm2, shift2, scale2, mlp_norm)
        y = graph.linear(graph.op("Gelu", graph.linear(y, block.first)), block.second)
        return graph.op("Add", x, graph.op("Mul", y, gate2))

    def latents(self, x: str) -> str:
        """What leaves the last block (rows, width) → predicted latents (rows, D)."""
        graph, (first, second) = self.graph, self.weights.head
        x = graph.linear(graph.standardised(x, self.width, self.weights.epsilon), first)
        return graph.linear(graph.op("Gelu", x), second)

    def _modulated(self, x: str, epsilon: float, shift: str, scale: str, following: float) -> str:
        graph = self.graph
        y = graph.op("Mul", graph.standardised(x, self.width, epsilon), scale)
        return graph.standardised(graph.op("Add", y, shift), self.width, following)
