"""SIGReg of the recent stream of served latents, kept current as each one comes."""

from __future__ import annotations

from collections import deque

import torch
from torch import Tensor

from models.objective import quadrature


class LatentStream:
    """The newest ``size`` latents of a model, whoever sent them, and their SIGReg.

    SIGReg needs only the mean of cos(t·aᵀz) and of sin(t·aᵀz) over the window (`models.objective`),
    so each latent's are computed once, added as it comes and subtracted as it goes; in float64,
    where that does not drift.
    """

    def __init__(self, directions: Tensor, size: int) -> None:
        self._directions = directions
        self._size = size
        self._knots, self._gaussian, self._weights = quadrature(torch.device("cpu"))
        self._window: deque[Tensor] = deque()
        self._sum = torch.zeros(2, directions.shape[1], len(self._knots), dtype=torch.float64)

    def add(self, latents: Tensor) -> None:
        """Let latents (N, D) in, and as many of the oldest out as the window cannot hold."""
        angles = (latents[-self._size :] @ self._directions).unsqueeze(-1) * self._knots
        for parts in torch.stack([angles.cos(), angles.sin()], dim=1):
            self._window.append(parts)
            self._sum += parts
            if len(self._window) > self._size:
                self._sum -= self._window.popleft()

    @property
    def sigreg(self) -> float | None:
        """SIGReg of a full window; None before there is one."""
        if len(self._window) < self._size:
            return None
        real, imaginary = self._sum / self._size
        squares = (real - self._gaussian).square() + imaginary.square()
        return float((squares @ self._weights.double()).mean()) * self._size
