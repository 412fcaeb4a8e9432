"""SIGReg of the recent stream of served latents, kept current as each one comes."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from random import Random

import torch
from torch import Tensor

from lewm_models.objective import quadrature

KEPT = 1 / 8
"""The share of served latents that join the window.

A robot that asks at every step sends nearly the same frame again and again, and SIGReg takes that
for a collapse. Chosen by chance, the window's latents lie further apart and reach further back.
"""


class LatentStream:
    """The newest latents of a model, whoever sent them, thinned out by chance, and their SIGReg.

    The window holds ``size`` latents. SIGReg weighs the squares by which the means of cos(t·aᵀz)
    and sin(t·aᵀz) over it differ from a Gaussian's (`lewm_models.objective`). With the weights'
    roots in the terms, it is the squared length of one vector: the sum of what each latent brings, less what
    a Gaussian's window would. Each latent's part is computed once, added as it comes and subtracted
    as it goes; in float64, where that does not drift.
    """

    def __init__(self, directions: Tensor, size: int, kept: float = KEPT) -> None:
        self._directions = directions
        self._size = size
        self._kept = kept
        self._chance = Random(0)
        self._knots, gaussian, weights = quadrature(torch.device("cpu"))
        self._roots = (weights / (size * directions.shape[1])).sqrt()
        self._window: deque[Tensor] = deque()
        real = (-size * gaussian.double() * self._roots).expand(directions.shape[1], -1)
        self._sum = torch.stack([real, torch.zeros_like(real)]).flatten()
        self._sigreg: float | None = None

    def add(self, latents: Tensor, fresh: int) -> None:
        """Let in a share of the last ``fresh`` latents of (N, D), and out what is too many then."""
        chosen = [row for row in range(-fresh, 0) if self._chance.random() < self._kept]
        if chosen:
            self._join(latents[row] for row in chosen[-self._size :])

    def _join(self, latents: Iterable[Tensor]) -> None:
        for latent in latents:
            part = self._part(latent)
            self._window.append(part)
            self._sum += part
            if len(self._window) > self._size:
                self._sum -= self._window.popleft()
        if len(self._window) == self._size:
            self._sigreg = self._sum.dot(self._sum).item()

    def _part(self, latent: Tensor) -> Tensor:
        """What a latent (D,) brings to the sum: (2 · directions · knots,)."""
        angles = (latent @ self._directions).outer(self._knots)
        return torch.stack([angles.cos(), angles.sin()]).mul_(self._roots).flatten()

    @property
    def sigreg(self) -> float | None:
        """SIGReg of a full window; None before there is one."""
        return self._sigreg
