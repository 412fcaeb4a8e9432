"""Regions of states that a plan keeps out of: boxes and discs, also between imagined states.

Axes: n the states that a region names, S all states of the probe.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

MIN_MOVE = 1e-12
"""The least movement that a division takes; less counts as no movement."""

BULGE_SHARE = 0.3
"""The margins grow by this share of the length of each step, because a robot moves along a curve
from one imagined state to the next."""


@dataclass(frozen=True)
class Region:
    """A box or a disc. Numbers are in the units of the states.

    Attributes:
        indexes: which states it names (n,).
        centre: (n,).
        sizes: half the widths of a box (n,), or the radius of a disc (1,).
        is_disc: whether it is a disc.
        weight: how much each step inside costs.
        margins: how far the search stays away from it: the growth of ``sizes``.
    """

    indexes: tuple[int, ...]
    centre: tuple[float, ...]
    sizes: tuple[float, ...]
    is_disc: bool
    weight: float
    margins: tuple[float, ...]

    def depths(
        self, starts: Tensor, ends: Tensor, *, periods: Tensor, spreads: Tensor | None = None
    ) -> Tensor:
        """How deep straight ways (…,) lead into the region: above 0 inside, 1 at its centre.

        A way through a disc has the depth of its deepest point, and one through a box the depth
        of the middle of what is inside.

        Args:
            starts: states (…, S).
            ends: states (…, S).
            periods: (S,); differences of states with a period are the shortest ones.
            spreads: the deviations of the states (S,), which make their changes comparable: the
                region includes its margins; None: it does not.
        """
        indexes = list(self.indexes)
        periods = periods[indexes]
        start = _shortest(starts[..., indexes] - starts.new_tensor(self.centre), periods)
        move = _shortest(ends[..., indexes] - starts[..., indexes], periods)
        sizes = starts.new_tensor(self.sizes)
        if spreads is not None:
            sizes = sizes + self._margins(move.detach(), spreads[indexes])
        with torch.no_grad():
            share = _nearest(start, move) if self.is_disc else _middle_inside(start, move, sizes)
        deepest = start + share.unsqueeze(-1) * move
        if self.is_disc:
            depths: Tensor = 1 - torch.linalg.vector_norm(deepest, dim=-1) / sizes[..., 0]
        else:
            depths = 1 - (deepest.abs() / sizes).amax(dim=-1)
        return depths

    def _margins(self, move: Tensor, spreads: Tensor) -> Tensor:
        """How much the sizes grow for steps (…, n): (…, n), for a disc (…, 1)."""
        margins = move.new_tensor(self.margins)
        scales = torch.ones_like(spreads) if self.is_disc else spreads
        lengths: Tensor = torch.linalg.vector_norm(move / scales, dim=-1, keepdim=True)
        return margins + BULGE_SHARE * lengths * (1.0 if self.is_disc else spreads)


def _shortest(differences: Tensor, periods: Tensor) -> Tensor:
    """Differences (…, n) of states, the shortest ones where states have periods (n,)."""
    if not bool((periods > 0).any()):
        return differences
    turns = (differences / torch.where(periods > 0, periods, 1.0)).round()
    return differences - turns * periods


def _nearest(start: Tensor, move: Tensor) -> Tensor:
    """Where ways ``start`` + share · ``move`` (…, n) are nearest to 0: shares (…,) of 0 to 1."""
    length = move.square().sum(dim=-1).clamp_min(MIN_MOVE)
    return (-(start * move).sum(dim=-1) / length).clamp(0, 1)


def _middle_inside(start: Tensor, move: Tensor, sizes: Tensor) -> Tensor:
    """The middle of what of the ways (…, n) is within ±``sizes``: shares (…,) of 0 to 1.

    Source: Liang and Barsky, A New Concept and Method for Line Clipping, 1984.
    """
    move = torch.where(move.abs() < MIN_MOVE, MIN_MOVE, move)
    sides = torch.stack([(-sizes - start) / move, (sizes - start) / move])
    enters = sides.amin(dim=0).amax(dim=-1).clamp(0, 1)
    leaves = sides.amax(dim=0).amin(dim=-1).clamp(0, 1)
    return (enters + leaves) / 2
