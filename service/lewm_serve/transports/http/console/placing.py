"""Where latents are drawn: at the states that the model's probe reads, or by two components."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lewm_models.probe.fit import read_states
from lewm_models.probe.network import StateProbe

Points = NDArray[np.float64]


@dataclass(frozen=True)
class Plane:
    """How latents become points.

    Attributes:
        axes: the names of the two axes.
        probe: reads the points; None: two principal components do.
        centre: (D,), which the components have as their origin.
        components: (D, 2).
    """

    axes: tuple[str, str]
    probe: StateProbe | None
    centre: Tensor
    components: Tensor

    @classmethod
    def of(cls, latents: Tensor, probe: StateProbe | None, states: tuple[str, ...]) -> Plane:
        """The plane for latents (N, D): the probe's first two states, if it has two."""
        centre = latents.mean(dim=0)
        if probe is not None and len(states) >= 2:
            return cls((states[0], states[1]), probe, centre, torch.empty(0, 2))
        difference = (latents - centre).double()
        _, vectors = torch.linalg.eigh(difference.T @ difference)
        components = vectors[:, -2:].flip(1).float()
        # The sign of a component means nothing. A fixed one keeps pictures from jumping.
        largest = components.abs().argmax(dim=0)
        components = components * components[largest, torch.arange(2)].sign()
        return cls(("component 1", "component 2"), None, centre, components)

    def points(self, latents: Tensor) -> Points:
        """Latents (…, D) → points (…, 2)."""
        flat = latents.reshape(-1, latents.shape[-1])
        if self.probe is not None:
            points = read_states(self.probe, flat)[:, :2]
        else:
            points = ((flat - self.centre) @ self.components).double().numpy()
        return np.nan_to_num(points).reshape(*latents.shape[:-1], 2)
