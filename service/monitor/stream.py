"""SIGReg of the recent stream of served latents, kept current as each one comes."""

from __future__ import annotations

from collections import deque
from random import Random

import torch
from torch import Tensor

from models.objective import quadrature

KEPT = 1 / 8
"""The share of served latents that join the window.

A robot that asks at every step sends nearly the same frame again and again, and SIGReg takes that
for a collapse. Chosen by chance, the window's latents lie further apart and reach further back.
"""


class LatentStream:
    """The newest latents of a model, whoever sent them, thinned out by chance, and their SIGReg.

    The window holds ``size`` latents. SIGReg needs only the means of cos(t·aᵀz) and sin(t·aᵀz) over
    it (`models.objective`), so each latent's are computed once, added as it comes and subtracted as
    it goes; in float64, where that does not drift.
    """

    def __init__(self, directions: Tensor, size: int, kept: float = KEPT) -> None:
        self._directions = directions
        self._size = size
        self._kept = kept
        self._chance = Random(0)
        self._knots, self._gaussian, self._weights = quadrature(torch.device("cpu"))
        self._window: deque[Tensor] = deque()
        self._sum = torch.zeros(2, directions.shape[1], len(self._knots), dtype=torch.float64)
        self._sigreg: float | None = None

    def add(self, latents: Tensor) -> None:
        """Let a share of latents (N, D) in, and out of the oldest what the window cannot hold."""
        chosen = [row for row in range(len(latents)) if self._chance.random() < self._kept]
        if not chosen:
            return
        angles = (latents[chosen[-self._size :]] @ self._directions).unsqueeze(-1) * self._knots
        for parts in torch.stack([angles.cos(), angles.sin()], dim=1):
            self._window.append(parts)
            self._sum += parts
            if len(self._window) > self._size:
                self._sum -= self._window.popleft()
        if len(self._window) == self._size:
            self._sigreg = self._score()

    @property
    def sigreg(self) -> float | None:
        """SIGReg of a full window; None before there is one."""
        return self._sigreg

    def _score(self) -> float:
        real, imaginary = self._sum / self._size
        squares = (real - self._gaussian).square() + imaginary.square()
        return float((squares @ self._weights.double()).mean()) * self._size
