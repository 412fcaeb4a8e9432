"""Linear maps with norms and scales folded into them, and all those of a model's predictor."""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce
from typing import cast

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from lewm_models.lewm import LeWM, PredictorAttention, PredictorLayer, Projector

Matrix = NDArray[np.floating]

MODULATIONS_PER_LAYER = 6
"""Shift, scale and gate of a layer's attention, then those of its MLP."""

SCALE_MODULATIONS = (1, 4)
"""Which modulations of a layer are scales."""


@dataclass(frozen=True)
class Affine:
    """The map x · weight + bias.

    Maps are folded in float64 and rounded once, by `as_float32`.

    Args:
        weight: (inputs, outputs), or (width,) for the diagonal of a map that scales each value.
        bias: (outputs,).
    """

    weight: Matrix
    bias: Matrix

    def then(self, following: Affine) -> Affine:
        """One map that does what this one and the following one do together."""
        weight, bias = following.weight, following.bias
        if weight.ndim == 1:
            return Affine(self.weight * weight, self.bias * weight + bias)
        is_diagonal = self.weight.ndim == 1
        product = self.weight[:, None] * weight if is_diagonal else self.weight @ weight
        return Affine(product, self.bias @ weight + bias)

    def slice_outputs(self, begin: int, end: int) -> Affine:
        """The map to the outputs from ``begin`` up to ``end``."""
        return Affine(self.weight[..., begin:end], self.bias[begin:end])

    def scaled(self, factor: float) -> Affine:
        """The map with all outputs multiplied by a factor."""
        return Affine(self.weight * factor, self.bias * factor)

    def shifted(self, offset: float) -> Affine:
        """The map with an offset added to all outputs."""
        return Affine(self.weight, self.bias + offset)

    def dense(self) -> Affine:
        """The same map with a matrix, even if it scales each value."""
        return Affine(np.diag(self.weight), self.bias) if self.weight.ndim == 1 else self

    def as_float32(self) -> Affine:
        """The map in float32, in row-major order, as a graph holds it."""
        return Affine(self.weight.astype(np.float32, order="C"), self.bias.astype(np.float32))


def fold_modules(*modules: nn.Module) -> Affine:
    """One map that does what these modules do one after another, in float64.

    Linear layers, convolutions of kernel size 1, BatchNorms in ``eval()`` mode and identities are
    folded completely. Of a LayerNorm only the affine part is folded: the caller has to standardise
    the input.

    Raises:
        TypeError: a module of another type.
    """
    maps = [_affine(module) for module in modules if not isinstance(module, nn.Identity)]
    return reduce(Affine.then, maps)


def _affine(module: nn.Module) -> Affine:
    match module:
        case nn.Linear() | nn.Conv1d():
            weight = as_float64(module.weight).reshape(*module.weight.shape[:2]).T
            bias = np.zeros(weight.shape[1]) if module.bias is None else as_float64(module.bias)
            return Affine(weight, bias)
        case nn.LayerNorm():
            return Affine(as_float64(module.weight), as_float64(module.bias))
        case nn.BatchNorm1d():
            assert module.running_mean is not None
            assert module.running_var is not None
            deviation = np.sqrt(as_float64(module.running_var) + module.eps)
            scale = as_float64(module.weight) / deviation
            bias = as_float64(module.bias) - as_float64(module.running_mean) * scale
            return Affine(scale, bias)
    raise TypeError(f"no affine map: {type(module).__name__}")


def as_float64(tensor: Tensor) -> Matrix:
    """A parameter as a numpy array."""
    array: Matrix = tensor.detach().cpu().double().numpy()
    return array


@dataclass(frozen=True)
class LayerWeights:
    """The maps of one predictor layer, in float32.

    The affine part of each norm is folded into the maps that follow it. ``query`` includes the
    factor head_dim^-1/2, and the scales among ``modulations`` include the 1 of 1 + scale.

    Args:
        query: (width, heads · head_dim), as are ``key`` and ``value``.
        key: see ``query``.
        value: see ``query``.
        attention_out: None in a model without an output projection.
        mlp_first: (width, mlp).
        mlp_second: (mlp, width).
        modulations: `MODULATIONS_PER_LAYER` maps (width, width) of the condition.
        epsilons: those of norm1, attn.norm, norm2 and the norm of the MLP.
    """

    query: Affine
    key: Affine
    value: Affine
    attention_out: Affine | None
    mlp_first: Affine
    mlp_second: Affine
    modulations: tuple[Affine, ...]
    epsilons: tuple[float, float, float, float]


@dataclass(frozen=True)
class HeadWeights:
    """The maps of a projector, with those before it folded into the first, in float32.

    Args:
        first: (inputs, hidden), or (inputs, D) if there is no projector.
        norm: the affine part of a LayerNorm that follows ``first``; None if none follows. A
            BatchNorm is part of ``first``.
        norm_epsilon: the epsilon of this LayerNorm.
        activation: the name of the activation after it.
        second: (hidden, D); None if there is no projector.
    """

    first: Affine
    norm: Affine | None = None
    norm_epsilon: float = 0.0
    activation: str = "gelu"
    second: Affine | None = None


def head_weights(
    *before: nn.Module, projector: Projector | nn.Identity, activation: str
) -> HeadWeights:
    """The maps of the modules ``before`` a projector and of the projector itself."""
    if isinstance(projector, nn.Identity):
        return HeadWeights(first=fold_modules(*before).dense().as_float32())
    first, norm, _, second = projector.net
    after_first = () if isinstance(norm, nn.LayerNorm) else (norm,)
    return HeadWeights(
        first=fold_modules(*before, first, *after_first).as_float32(),
        norm=fold_modules(norm).as_float32() if isinstance(norm, nn.LayerNorm) else None,
        norm_epsilon=norm.eps if isinstance(norm, nn.LayerNorm) else 0.0,
        activation=activation,
        second=fold_modules(second).as_float32(),
    )


def state_maps(model: LeWM) -> tuple[Affine, Affine]:
    """The two maps of a model's state encoder, in float32; see `LeWM.with_states`."""
    first, _, second = model.state_encoder.net
    return fold_modules(first).as_float32(), fold_modules(second).as_float32()


class PredictorWeights:
    """All maps of a model's action encoder, predictor and pred_proj, in float32.

    Attributes:
        positions: (history, D).
        input_map: from a latent to the predictor's width; None if both widths are equal.
        action_maps: two, with a SiLU after the first, from a block of actions to the condition.
        layers: those of the predictor.
        final_epsilon: the epsilon of the norm after the last layer.
        head: from the standardised output of the last layer to a latent.
    """

    def __init__(self, model: LeWM) -> None:
        self.config = model.config
        predictor, transformer = model.predictor, model.predictor.transformer
        action_encoder = model.action_encoder
        positions = as_float64(predictor.pos_embedding)[0]
        self.positions: NDArray[np.float32] = positions.astype(np.float32)
        self.input_map = _optional_map(transformer.input_proj)
        self.action_maps = (
            fold_modules(action_encoder.patch_embed, action_encoder.embed[0]).as_float32(),
            fold_modules(action_encoder.embed[2], transformer.cond_proj).as_float32(),
        )
        self.layers = [_layer_weights(cast(PredictorLayer, layer)) for layer in transformer.layers]
        self.final_epsilon = transformer.norm.eps
        self.head = head_weights(
            transformer.norm,
            transformer.output_proj,
            projector=model.pred_proj,
            activation=model.config.pred_proj_activation,
        )


def _layer_weights(layer: PredictorLayer) -> LayerWeights:
    attention, (mlp_norm, mlp_first, _, _, mlp_second, _) = layer.attn, layer.mlp.net
    query, key, value = _query_key_value(attention)
    return LayerWeights(
        query=query.as_float32(),
        key=key.as_float32(),
        value=value.as_float32(),
        attention_out=_optional_map(attention.to_out),
        mlp_first=fold_modules(mlp_norm, mlp_first).as_float32(),
        mlp_second=fold_modules(mlp_second).as_float32(),
        modulations=_modulations(layer),
        epsilons=(
            layer.norm1.eps,
            attention.norm.eps,
            layer.norm2.eps,
            cast(nn.LayerNorm, mlp_norm).eps,
        ),
    )


def _query_key_value(attention: PredictorAttention) -> list[Affine]:
    packed = fold_modules(attention.norm, attention.to_qkv)
    inner = len(packed.bias) // 3
    query, key, value = (
        packed.slice_outputs(part * inner, (part + 1) * inner) for part in range(3)
    )
    return [query.scaled((inner // attention.heads) ** -0.5), key, value]


def _modulations(layer: PredictorLayer) -> tuple[Affine, ...]:
    packed = fold_modules(layer.adaLN_modulation[1])
    width = len(packed.bias) // MODULATIONS_PER_LAYER
    maps = []
    for index in range(MODULATIONS_PER_LAYER):
        modulation = packed.slice_outputs(index * width, (index + 1) * width)
        maps.append(modulation.shifted(1) if index in SCALE_MODULATIONS else modulation)
    return tuple(modulation.as_float32() for modulation in maps)


def _optional_map(module: nn.Module) -> Affine | None:
    """The map of a linear layer or of the first module of a sequence; None for an identity."""
    module = module[0] if isinstance(module, nn.Sequential) else module
    return None if isinstance(module, nn.Identity) else fold_modules(module).as_float32()
