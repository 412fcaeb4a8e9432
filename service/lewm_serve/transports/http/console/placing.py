"""Where latents and named states are drawn: by the model's probe, or by two components."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lewm_models.probe.fit import read_states
from lewm_models.probe.network import StateProbe
from lewm_serve.api.requests import Region

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

    def place_goal(self, states: Mapping[str, float], near: Points) -> list[float | None] | None:
        """Where a goal by states is drawn, as near to a point (2,) as its periods allow.

        Returns:
            Its two coordinates; None for one whose state the goal leaves open. None altogether if
            it leaves both open, or if no probe reads the states.
        """
        if self.probe is None or not any(name in states for name in self.axes):
            return None
        return [
            self._nearest(axis, states[name], near[axis]) if name in states else None
            for axis, name in enumerate(self.axes)
        ]

    def place_region(self, region: Region, near: Points) -> dict[str, Any] | None:
        """The outline of a region: a ``centre`` and two half ``sizes``, of a box or a disc.

        None if the region is one of other states than the two that are drawn.
        """
        named = region.state if region.state is not None else region.centre
        assert named is not None
        if self.probe is None or set(named) != set(self.axes):
            return None
        if region.state is not None:
            ranges = [region.state[name] for name in self.axes]
            centre = [(low + high) / 2 for low, high in ranges]
            sizes = [(high - low) / 2 for low, high in ranges]
        else:
            assert region.centre is not None
            assert region.radius is not None
            centre = [region.centre[name] for name in self.axes]
            sizes = [region.radius] * 2
        return {
            "kind": "disc" if region.state is None else "box",
            "centre": [self._nearest(axis, centre[axis], near[axis]) for axis in range(2)],
            "sizes": sizes,
        }

    def _nearest(self, axis: int, value: float, near: float) -> float:
        """The value that is this one, or differs by whole periods from it, and is the nearest."""
        assert self.probe is not None
        period = float(self.probe.periods[axis])
        return value + period * math.floor((near - value) / period + 0.5) if period else value
