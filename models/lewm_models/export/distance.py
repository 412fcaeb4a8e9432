"""The learned distance as an ONNX graph."""

from __future__ import annotations

import numpy as np

from lewm_models.distance.network import GoalDistance
from lewm_models.export.graph import GraphBuilder, OnnxGraph
from lewm_models.export.weights import Affine


def distance_graph(distance: GoalDistance) -> OnnxGraph:
    """``latents``, ``goals`` (rows, D) → ``blocks`` (rows, 1), as `GoalDistance`.

    The standardisation is folded into the first layer.
    """
    tensors = {name: value.double().numpy() for name, value in distance.state_dict().items()}
    mean, std = tensors["mean"], tensors["std"]

    def affine(layer: str, scale: np.ndarray, shift: np.ndarray) -> Affine:
        """The layer of (x − shift) / scale, as a map of x."""
        weight = (tensors[f"{layer}.weight"] / scale).T
        bias = tensors.get(f"{layer}.bias", np.zeros(weight.shape[1])) - shift @ weight
        return Affine(weight.astype(np.float32), bias.astype(np.float32))

    graph = GraphBuilder()
    shape = ("rows", distance.latent_dim)
    latents, goals = graph.input("latents", shape), graph.input("goals", shape)
    first = graph.op(
        "Add",
        graph.linear(latents, affine("latent", std, mean)),
        graph.linear(goals, affine("goal", std, mean)),
    )
    ones, zeros = (values(len(tensors["hidden.bias"])) for values in (np.ones, np.zeros))
    hidden = graph.linear(graph.op("Gelu", first), affine("hidden", ones, zeros))
    output = graph.linear(graph.op("Gelu", hidden), affine("output", ones, zeros))
    graph.output(graph.op("Softplus", output), "blocks", ("rows", 1))
    return graph.finish("distance")
