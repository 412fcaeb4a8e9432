"""The probe of states as an ONNX graph."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from lewm_models.export.graph import GraphBuilder, OnnxGraph
from lewm_models.export.weights import Affine
from lewm_models.probe.network import StateProbe


def units(probe: StateProbe) -> tuple[Tensor, Tensor]:
    """Scale and shift (F,) that make states in their units of standardised ones.

    Of a state with a period they make the sine of its angle, and at the end the cosine.
    """
    is_periodic = probe.periods > 0
    sines = torch.full((int(is_periodic.sum()),), math.sqrt(0.5))
    scale = torch.cat([probe.state_std.where(~is_periodic, math.sqrt(0.5)), sines])
    shift = torch.cat([probe.state_mean.where(~is_periodic, 0.0), torch.zeros_like(sines)])
    return scale, shift


def probe_graph(probe: StateProbe) -> OnnxGraph:
    """``latents`` (rows, D) → ``states`` (rows, F), by the MLP of a `StateProbe`, see `units`.

    The standardisation of latents and states is folded into the layers.
    """
    tensors = {name: value.double().numpy() for name, value in probe.state_dict().items()}
    graph = GraphBuilder()
    value = graph.input("latents", ("rows", probe.latent_dim))
    for layer in ("first", "hidden", "output"):
        weight, bias = tensors[f"{layer}.weight"].T, tensors[f"{layer}.bias"]
        if layer == "first":
            weight = weight / tensors["latent_std"][:, None]
            bias = bias - tensors["latent_mean"] @ weight
        else:
            value = graph.op("Gelu", value)
        if layer == "output":
            scale, shift = (part.double().numpy() for part in units(probe))
            weight, bias = weight * scale, bias * scale + shift
        affine = Affine(weight.astype(np.float32), bias.astype(np.float32))
        value = graph.linear(value, affine)
    graph.output(value, "states", ("rows", len(tensors["output.bias"])))
    return graph.finish("probe")
