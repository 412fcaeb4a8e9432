"""The predictor on a GPU: maps with norms folded into them, in as few kernels as PyTorch allows.

A roll-out of one plan is small for a GPU, so that its time is that of hundreds of launches, and a
roll-out of many plans is bounded by the memory that is read and written between products. Both
shrink with the number of kernels. `PredictorWeights` folds every affine map of a norm into the
product after it. What is left between two products of a layer are two operations: `gated_norm` and
`attend`. Where Triton is installed, each is one kernel of `fused.py`; here is what they compute.

Axes as in `lewm_serve.backends.torch.TorchKernel`: R rows, n new tokens, m tokens before them, W
width, h heads, d head width, L layers.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from lewm_models.export.weights import MODULATIONS_PER_LAYER, Affine, PredictorWeights
from lewm_models.lewm import LeWM
from lewm_serve.backends.rollout import StepwiseKernel

logger = logging.getLogger(__name__)

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "relu": F.relu,
    "silu": F.silu,
}

Window = list[Tensor]
"""Keys and values (m, R, 2, h, d) of each layer."""

OPERATIONS_TOLERANCE = 1e-4
"""The largest error of fused operations in float32."""

Branch = tuple[Tensor, Tensor]
"""What is added to the tokens: a gate and the output that it multiplies, both (n, R, W)."""


class Linear:
    """A linear map in a precision on a device; where there is none, it returns its input."""

    def __init__(self, affine: Affine | None, device: torch.device, precision: torch.dtype) -> None:
        self._affine: tuple[Tensor, Tensor] | None = None
        if affine is not None:
            weight, bias = torch.from_numpy(affine.weight), torch.from_numpy(affine.bias)
            weight = weight.T.contiguous()  # PyTorch's order: (outputs, inputs)
            self._affine = weight.to(device, precision), bias.to(device, precision)

    def __call__(self, x: Tensor) -> Tensor:
        return x if self._affine is None else F.linear(x, *self._affine)


class Layer(NamedTuple):
    """The maps of one layer. ``epsilons`` are those of the two norms before each product."""

    query_key_value: Linear
    attention_out: Linear
    mlp_first: Linear
    mlp_second: Linear
    epsilons: tuple[tuple[float, float], tuple[float, float]]


class FoldedKernel(StepwiseKernel[Tensor, Window]):
    """The predictor of a model in ``eval()`` mode; see the module.

    Modulations are a tensor (T, R, L, 6, W). The scales among them include the 1 of 1 + scale.
    """

    def __init__(self, model: LeWM, device: torch.device, precision: torch.dtype) -> None:
        weights = PredictorWeights(model)
        self.history = model.config.history
        self._heads = model.config.predictor_heads
        self._width = model.config.predictor_width
        self._precision = precision

        def linear(affine: Affine | None) -> Linear:
            return Linear(affine, device, precision)

        self._positions = torch.from_numpy(weights.positions).to(device)
        self._input = linear(weights.input_map)
        self._actions = [linear(affine) for affine in weights.action_maps]
        self._modulations = linear(
            side_by_side([part for layer in weights.layers for part in layer.modulations])
        )
        self._layers = [
            Layer(
                query_key_value=linear(side_by_side([layer.query, layer.key, layer.value])),
                attention_out=linear(layer.attention_out),
                mlp_first=linear(layer.mlp_first),
                mlp_second=linear(layer.mlp_second),
                epsilons=(layer.epsilons[:2], layer.epsilons[2:]),
            )
            for layer in weights.layers
        ]
        head = weights.head
        self._final_epsilon = weights.final_epsilon
        self._head_first, self._head_second = linear(head.first), linear(head.second)
        self._head_norm: tuple[Tensor, Tensor, float] | None = None
        if head.norm is not None:
            scale, shift = (
                torch.from_numpy(part).to(device, precision)
                for part in (head.norm.weight, head.norm.bias)
            )
            self._head_norm = scale, shift, head.norm_epsilon
        self._head_activation = ACTIVATIONS[head.activation]
        self._has_projector = head.second is not None
        self._gated_norm, self._attend = operations(device)

    def modulations(self, actions: Tensor) -> Tensor:
        """See `StepwiseKernel`."""
        first, second = self._actions
        condition = second(F.silu(first(actions.to(self._precision))))
        packed = self._modulations(F.silu(condition))
        return packed.view(*packed.shape[:2], len(self._layers), MODULATIONS_PER_LAYER, self._width)

    def extend(
        self, window: Window | None, latents: Sequence[Tensor], modulations: Tensor, *, step: int
    ) -> tuple[Tensor, Window]:
        """See `StepwiseKernel`."""
        count = len(latents)
        position = len(window[0]) if window else 0
        positions = self._positions[position : position + count].unsqueeze(1)
        x = self._input((torch.stack(list(latents)) + positions).to(self._precision))
        branch: Branch | None = None
        longer: Window = []
        for index, layer in enumerate(self._layers):
            shift1, scale1, gate1, shift2, scale2, gate2 = modulations[
                step : step + count, :, index
            ].unbind(2)
            first_epsilons, second_epsilons = layer.epsilons
            x, normed = self._gated_norm(x, branch, shift1, scale1, first_epsilons)
            packed = layer.query_key_value(normed)
            packed = packed.view(*packed.shape[:2], 3, self._heads, -1)
            queries, known = packed[:, :, 0], packed[:, :, 1:]
            if window:
                known = torch.cat([window[index], known])
            longer.append(known)
            if index == len(self._layers) - 1:  # only the output of the last token is needed
                x, queries = x[-1:], queries[-1:]
                gate1, shift2, scale2, gate2 = gate1[-1:], shift2[-1:], scale2[-1:], gate2[-1:]
            branch = gate1, layer.attention_out(self._attend(queries, *known.unbind(2)))
            x, normed = self._gated_norm(x, branch, shift2, scale2, second_epsilons)
            branch = gate2, layer.mlp_second(F.gelu(layer.mlp_first(normed)))
        assert branch is not None
        x = torch.addcmul(x, *branch)[-1]
        return self._head(x).to(latents[0].dtype), longer

    def _head(self, x: Tensor) -> Tensor:
        """The predicted latents (R, D) of the last layer's output (R, W)."""
        hidden = self._head_first(_standardise(x, self._final_epsilon))
        if not self._has_projector:
            return hidden
        if self._head_norm is not None:
            scale, shift, epsilon = self._head_norm
            hidden = F.layer_norm(hidden, hidden.shape[-1:], scale, shift, epsilon)
        return self._head_second(self._head_activation(hidden))

    def tokens(self, window: Window) -> int:
        """See `StepwiseKernel`."""
        return len(window[0])

    def select(self, window: Window, rows: Tensor) -> Window:
        """See `Kernel`."""
        return [known[:, rows] for known in window]


def gated_norm(
    x: Tensor, branch: Branch | None, shift: Tensor, scale: Tensor, epsilons: tuple[float, float]
) -> tuple[Tensor, Tensor]:
    """Tokens with a branch added, and what the next product gets of them; all are (n, R, W).

    The tokens are standardised, scaled and shifted, and standardised again.
    """
    if branch is not None:
        x = torch.addcmul(x, *branch)
    first, second = epsilons
    return x, _standardise(torch.addcmul(shift, _standardise(x, first), scale), second)


def attend(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Causal attention of the last n tokens (n, R, h, d) over all (m + n, R, h, d) → (n, R, h·d).

    Queries include the factor d^-1/2. There are few tokens, so that products and sums are faster
    than batched matrix products.
    """
    new, visible = len(queries), len(keys)
    scores = (queries.unsqueeze(1) * keys).sum(-1, keepdim=True)
    if new > 1:
        index = torch.arange(visible, device=keys.device)
        is_later = index > index[visible - new :].unsqueeze(1)
        scores = scores.masked_fill(is_later[:, :, None, None, None], -torch.inf)
    return (scores.softmax(dim=1) * values).sum(1).flatten(2)


Operations = tuple[Callable[..., tuple[Tensor, Tensor]], Callable[..., Tensor]]
"""`gated_norm` and `attend`."""


def operations(device: torch.device) -> Operations:
    """The operations for a device: fused on a GPU, if Triton works there."""
    if device.type == "cuda":
        try:
            from lewm_serve.backends import fused

            check_operations((fused.gated_norm, fused.attend), device)
        except Exception as error:  # Triton also needs a compiler, for a few lines of C
            logger.warning("roll-outs without fused kernels, which are slower: %r", error)
        else:
            return fused.gated_norm, fused.attend
    return gated_norm, attend


def check_operations(checked: Operations, device: torch.device) -> None:
    """Run operations once, and compare them with those of this module.

    Raises:
        ValueError: they compute something else.
    """
    generator = torch.Generator().manual_seed(0)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(device)

    heads = drawn(3, 5, 3, 2, 24).unbind(2)
    gate, shift, scale = drawn(3, 5, 3, 48).unbind(2)
    tokens = drawn(3, 5, 48), (gate, drawn(3, 5, 48)), shift, scale, (1e-6, 1e-5)
    checked_norm, checked_attend = checked
    results = [(checked_attend(*heads), attend(*heads))]
    results += zip(checked_norm(*tokens), gated_norm(*tokens), strict=True)
    for result, expected in results:
        if not torch.allclose(result, expected, atol=OPERATIONS_TOLERANCE):
            raise ValueError("fused kernels compute something else than PyTorch")


def side_by_side(maps: Sequence[Affine]) -> Affine:
    """One map whose outputs are those of several maps of the same input."""
    return Affine(
        np.concatenate([affine.weight for affine in maps], axis=1),
        np.concatenate([affine.bias for affine in maps]),
    )


def _standardise(x: Tensor, epsilon: float) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], eps=epsilon)
