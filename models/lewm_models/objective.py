"""LeWM's training objective: two terms, next-latent prediction and SIGReg, and no other."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lewm_models.lewm import LeWM

KNOTS = 17
LAST_KNOT = 3.0


def random_directions(
    latent_dim: int, count: int, generator: torch.Generator | None = None
) -> Tensor:
    """Unit directions (D, M), uniform on the sphere, on the generator's device."""
    device = generator.device if generator is not None else torch.device("cpu")
    directions = torch.randn(latent_dim, count, generator=generator, device=device)
    lengths: Tensor = torch.linalg.vector_norm(directions, dim=0)
    return directions.div(lengths)


def quadrature(device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """The knots t (K,) of the statistic's integral, the Gaussian's φ(t) there, and the weights.

    The trapezoid rule's weights, doubled and times φ(t).
    """
    knots = torch.linspace(0, LAST_KNOT, KNOTS, device=device)
    spacing = LAST_KNOT / (KNOTS - 1)
    weights = torch.full_like(knots, 2 * spacing)
    weights[0] = weights[-1] = spacing
    gaussian = torch.exp(-knots.square() / 2)
    return knots, gaussian, weights * gaussian


def sigreg_per_direction(latents: Tensor, directions: Tensor) -> Tensor:
    """The Epps–Pulley statistic T(a) of the latents of each time step along each direction.

    ``latents`` (T, N, D), ``directions`` (D, M) of unit length → (T, M). For z ~ N(0, I) its
    expectation is 1.052 whatever N is; at collapse it is 0.402·N. The mean over N and the factor N
    are those of LeWM's code, which differ from the appendix of its paper. Computed in float32.
    """
    samples = latents.shape[-2]
    knots, gaussian, weights = quadrature(latents.device)
    with torch.autocast(latents.device.type, enabled=False):
        angles = (latents.float() @ directions.float()).unsqueeze(-1) * knots  # (T, N, M, knots)
        real = angles.cos().mean(dim=-3) - gaussian
        imaginary = angles.sin().mean(dim=-3)
        return (real.square() + imaginary.square()) @ weights * samples


def sigreg(latents: Tensor, directions: Tensor) -> Tensor:
    """SIGReg, a scalar: the mean of T(a) over directions (D, M) and time steps of (T, N, D)."""
    return sigreg_per_direction(latents, directions).mean()


@dataclass(frozen=True)
class Losses:
    """Both terms and their sum; scalars."""

    prediction: Tensor
    sigreg: Tensor
    total: Tensor


def lewm_loss(
    model: LeWM, frames: Tensor, actions: Tensor, directions: Tensor, weight: float
) -> Losses:
    """Mean squared error of the next latent + weight · SIGReg of the encoder's latents.

    ``frames`` (B, T + 1, H, W, 3) uint8, ``actions`` (B, T, A) z-scored, the block between each
    frame and the next. No stop-gradient, no moving average, nothing frozen (arXiv 2603.19312).
    """
    batch, steps = frames.shape[:2]
    latents = model.encode(frames.flatten(0, 1)).view(batch, steps, -1)
    predicted = model.predict(latents[:, :-1], actions)
    prediction = (predicted.float() - latents[:, 1:].float()).square().mean()
    regulariser = sigreg(latents.transpose(0, 1), directions)
    return Losses(prediction, regulariser, prediction + weight * regulariser)
