"""The network of a probe and the file that holds it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from lewm_models.network_file import load_tensors, network_to_bytes, read_tensors

WIDTH = 128
"""The width of a new network."""

MAX_WIDTH, MAX_STATES = 1 << 14, 1 << 12
"""The largest width and the most states that are read from a file."""

MIN_STD = 1e-6
"""The least deviation that a latent's dimension or a state is divided by."""


@dataclass(frozen=True)
class StateSpace:
    """The S states of a recording.

    Attributes:
        names: (S,), all different.
        periods: (S,): a state repeats after its period, as an angle does; 0: it has none.
    """

    names: tuple[str, ...]
    periods: tuple[float, ...]

    @classmethod
    def of(cls, names: Sequence[str], periods: Mapping[str, float]) -> StateSpace:
        """These states; those in ``periods`` have one.

        Raises:
            ValueError: a state of ``periods`` is unknown, or a period is no positive number.
        """
        for name, period in periods.items():
            if name not in names:
                raise ValueError(f"--period: expected one of {', '.join(names)}, got {name!r}")
            if not (math.isfinite(period) and period > 0):
                raise ValueError(f"--period: {name}: expected a number above 0, got {period:g}")
        return cls(tuple(names), tuple(float(periods.get(name, 0.0)) for name in names))

    def differences(self, states: ArrayLike, others: ArrayLike) -> NDArray[np.float64]:
        """``states`` − ``others``, (…, S); those with a period are the shortest differences."""
        apart = np.asarray(states, np.float64) - np.asarray(others, np.float64)
        for index, period in enumerate(self.periods):
            if period:
                shifted = apart[..., index] + period / 2
                apart[..., index] = shifted % period - period / 2
        return apart


class StateProbe(nn.Module):
    """Standardised states from latents, by a linear map and by an MLP with two hidden layers.

    A state x without a period is standardised as (x − mean) / std. One with the period p gives two
    values, √2 · sin(2πx / p) in the place of the state and √2 · cos(2πx / p) after all states, so
    that x and x + p are the same. So S states, P of them with periods, give F = S + P values.

    `forward` is the MLP. It is differentiable, and latents may have any leading axes.

    Args:
        latent_mean: (D,), with which latents are standardised, as is ``latent_std``.
        latent_std: (D,).
        state_mean: (S,), with which states are standardised, as is ``state_std``.
        state_std: (S,).
        periods: (S,), 0 where a state has none.
        width: of the hidden layers.
    """

    latent_mean: Tensor
    latent_std: Tensor
    state_mean: Tensor
    state_std: Tensor
    periods: Tensor

    def __init__(
        self,
        latent_mean: Tensor,
        latent_std: Tensor,
        *,
        state_mean: Tensor,
        state_std: Tensor,
        periods: Tensor,
        width: int = WIDTH,
    ) -> None:
        super().__init__()
        self.register_buffer("latent_mean", latent_mean.float())
        self.register_buffer("latent_std", latent_std.float().clamp_min(MIN_STD))
        self.register_buffer("state_mean", state_mean.float())
        self.register_buffer("state_std", state_std.float().clamp_min(MIN_STD))
        self.register_buffer("periods", periods.float())
        values = len(periods) + int((periods > 0).sum())
        self.linear = nn.Linear(len(latent_mean), values)
        self.first = nn.Linear(len(latent_mean), width)
        self.hidden = nn.Linear(width, width)
        self.output = nn.Linear(width, values)

    @property
    def latent_dim(self) -> int:
        return len(self.latent_mean)

    def forward(self, latents: Tensor) -> Tensor:
        """Latents (…, D) → standardised states (…, F), by the MLP."""
        first = F.gelu(self.first(self.standardise_latents(latents)))
        values: Tensor = self.output(F.gelu(self.hidden(first)))
        return values

    def by_linear_map(self, latents: Tensor) -> Tensor:
        """Latents (…, D) → standardised states (…, F), by the linear map."""
        values: Tensor = self.linear(self.standardise_latents(latents))
        return values

    def standardise_latents(self, latents: Tensor) -> Tensor:
        """Latents (…, D) with a mean of 0 and a deviation of 1 in each dimension."""
        return (latents - self.latent_mean) / self.latent_std

    def standardise(self, states: Tensor) -> Tensor:
        """States (…, S) in their units → standardised states (…, F)."""
        is_periodic = self.periods > 0
        angles = states * (2 * torch.pi / torch.where(is_periodic, self.periods, 1.0))
        values = torch.where(
            is_periodic, math.sqrt(2) * angles.sin(), (states - self.state_mean) / self.state_std
        )
        return torch.cat([values, math.sqrt(2) * angles[..., is_periodic].cos()], dim=-1)

    def in_units(self, values: Tensor) -> Tensor:
        """Standardised states (…, F) → states (…, S). With a period p, from −p/2 to p/2."""
        count, is_periodic = len(self.periods), self.periods > 0
        states = self.state_mean + values[..., :count] * self.state_std
        sines, cosines = values[..., :count][..., is_periodic], values[..., count:]
        periods = self.periods[is_periodic]
        states[..., is_periodic] = torch.atan2(sines, cosines) * periods / (2 * torch.pi)
        return states

    def to_bytes(self) -> bytes:
        """The content of `probe.safetensors`."""
        return network_to_bytes(self)

    @classmethod
    def from_bytes(cls, content: bytes, latent_dim: int, states: int) -> StateProbe:
        """Read the content of `probe.safetensors`; without gradients, in ``eval()`` mode.

        Raises:
            ValueError: the content is no safetensors file, or holds other tensors than those of a
                probe of this many states from latents (latent_dim,).
        """
        tensors = read_tensors(content)
        width = _size(tensors, "hidden.bias", MAX_WIDTH)
        if (found := _size(tensors, "periods", MAX_STATES)) != states:
            raise ValueError(f"periods: expected {states} states, got {found}")
        network = cls(
            torch.zeros(latent_dim),
            torch.ones(latent_dim),
            state_mean=torch.zeros(states),
            state_std=torch.ones(states),
            periods=tensors["periods"],
            width=width,
        )
        network = load_tensors(network, tensors, deviations=["latent_std", "state_std"])
        if bool((network.periods < 0).any()):
            raise ValueError("periods: expected numbers from 0 on")
        return network


def _size(tensors: Mapping[str, Tensor], name: str, most: int) -> int:
    """The length of a vector.

    Raises:
        ValueError: it is missing, is no vector of floats, or has too many values.
    """
    vector = tensors.get(name)
    if vector is None or vector.ndim != 1 or not vector.is_floating_point():
        raise ValueError(f"{name}: expected a vector of floats")
    if not 1 <= len(vector) <= most:
        raise ValueError(f"{name}: expected 1 to {most} values, got {len(vector)}")
    return len(vector)
