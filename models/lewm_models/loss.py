"""The training loss of LeWM: the error of the next latent, and SIGReg (arXiv 2603.19312)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from lewm_models.lewm import LeWM

QUADRATURE_KNOTS = 17
LAST_KNOT = 3.0
"""The integral of the Epps–Pulley statistic is taken from 0 to here."""


def random_directions(
    latent_dim: int, count: int, generator: torch.Generator | None = None
) -> Tensor:
    """Draw unit directions (D, M), uniform on the sphere, on the generator's device."""
    device = generator.device if generator is not None else torch.device("cpu")
    directions = torch.randn(latent_dim, count, generator=generator, device=device)
    lengths: Tensor = torch.linalg.vector_norm(directions, dim=0)
    return directions.div(lengths)


def sigreg_quadrature(device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """The integral of the Epps–Pulley statistic as a weighted sum.

    Returns:
        The knots t, the Gaussian's characteristic function φ(t), and the weights of the sum, each
        (`QUADRATURE_KNOTS`,). The weights are those of the trapezoid rule, doubled, times φ(t).
    """
    knots = torch.linspace(0, LAST_KNOT, QUADRATURE_KNOTS, device=device)
    spacing = LAST_KNOT / (QUADRATURE_KNOTS - 1)
    weights = torch.full_like(knots, 2 * spacing)
    weights[0] = weights[-1] = spacing
    gaussian = torch.exp(-knots.square() / 2)
    return knots, gaussian, weights * gaussian


def sigreg_per_direction(latents: Tensor, directions: Tensor) -> Tensor:
    """The Epps–Pulley statistic T(a) of the latents of each time step, for each direction a.

    For z ~ N(0, I) its expectation is 1.052 for every N; for identical latents at 0 it is 0.402·N.
    The mean over the latents and the factor N follow the code of LeWM, which differs from the
    appendix of the paper. The computation is in float32.

    Args:
        latents: (T, N, D).
        directions: (D, M), of unit length.

    Returns:
        (T, M).
    """
    samples = latents.shape[-2]
    knots, gaussian, weights = sigreg_quadrature(latents.device)
    with torch.autocast(latents.device.type, enabled=False):
        angles = (latents.float() @ directions.float()).unsqueeze(-1) * knots  # (T, N, M, knots)
        real = angles.cos().mean(dim=-3) - gaussian
        imaginary = angles.sin().mean(dim=-3)
        return (real.square() + imaginary.square()) @ weights * samples


def sigreg(latents: Tensor, directions: Tensor) -> Tensor:
    """SIGReg of latents (T, N, D): the mean of T(a) over time steps and directions (D, M)."""
    return sigreg_per_direction(latents, directions).mean()


HeadLoss = Callable[[Tensor, Tensor], Tensor]
"""A loss of latents (B, T + 1, D) and z-scored actions (B, T, A) that only training has."""


@dataclass(frozen=True)
class Losses:
    """Both terms, and the weighted sum of all, as scalars."""

    prediction: Tensor
    sigreg: Tensor
    total: Tensor


def lewm_loss(
    model: LeWM,
    frames: Tensor,
    actions: Tensor,
    *,
    directions: Tensor,
    sigreg_weight: float,
    states: Tensor | None = None,
    head_loss: HeadLoss | None = None,
    head_weight: float = 0.0,
) -> Losses:
    """The mean squared error of the next latent + sigreg_weight · SIGReg of the encoded frames.

    Gradients flow through both terms into all weights: there is no stop-gradient, no moving average
    and no frozen part.

    Args:
        model: in training mode.
        frames: (B, T + 1, H, H, 3) uint8.
        actions: (B, T, A), z-scored: the block between each frame and the next.
        directions: (D, M), the directions of SIGReg.
        sigreg_weight: the weight of the second term.
        states: (B, T + 1, X), as in `LeWM.encode`, for a model with a state input.
        head_loss: a third term, of the encoded frames and the actions; None: there is none.
        head_weight: the weight of the third term.
    """
    batch, steps = frames.shape[:2]
    latents = model.encode(frames.flatten(0, 1), None if states is None else states.flatten(0, 1))
    latents = latents.view(batch, steps, -1)
    predicted = model.predict(latents[:, :-1], actions)
    prediction = (predicted.float() - latents[:, 1:].float()).square().mean()
    regulariser = sigreg(latents.transpose(0, 1), directions)
    total = prediction + sigreg_weight * regulariser
    if head_loss is not None:
        total = total + head_weight * head_loss(latents, actions)
    return Losses(prediction=prediction, sigreg=regulariser, total=total)
