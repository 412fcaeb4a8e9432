"""How long a roll-out takes here: measured at warm-up, kept current by what runs."""

from __future__ import annotations

import time

import torch

from models.config import LeWMConfig
from service.backends.backend import Backend

SMALL, LARGE = 8, 128
"""Candidates of the two roll-outs measured."""

HORIZON = 5
REPEATS = 3
NEWEST = 0.2
"""The weight of the newest roll-out in the running correction."""


class Pace:
    """Seconds of a roll-out of S candidates over T steps: T · (fixed + S · each), corrected."""

    def __init__(self, fixed_s: float = 0.0, each_s: float = 0.0) -> None:
        self._fixed_s = fixed_s
        self._each_s = each_s
        self._correction = 1.0

    def measure(self, backend: Backend, config: LeWMConfig) -> None:
        """Time two roll-outs of a backend that has been warmed up."""

        def seconds(samples: int) -> float:
            latents = torch.zeros(1, 1, config.latent_dim)
            past = torch.empty(1, 0, config.block_width)
            candidates = torch.zeros(1, samples, HORIZON, config.block_width)
            durations = []
            for _ in range(REPEATS):
                start = time.monotonic()
                backend.rollout(latents, past, candidates)
                durations.append(time.monotonic() - start)
            return min(durations) / HORIZON

        small, large = seconds(SMALL), seconds(LARGE)
        self._each_s = max(0.0, (large - small) / (LARGE - SMALL))
        self._fixed_s = max(0.0, small - SMALL * self._each_s)
        self._correction = 1.0

    def estimate(self, samples: int, horizon: int) -> float:
        """Seconds that a roll-out is expected to take."""
        return self._correction * self._plain(samples, horizon)

    def observe(self, samples: int, horizon: int, seconds: float) -> None:
        """Take note of what one took."""
        plain = self._plain(samples, horizon)
        if plain > 0:
            self._correction += NEWEST * (seconds / plain - self._correction)

    def _plain(self, samples: int, horizon: int) -> float:
        return horizon * (self._fixed_s + samples * self._each_s)
