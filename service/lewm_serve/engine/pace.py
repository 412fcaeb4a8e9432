"""How long the model takes here: measured at warm-up, kept current by what runs."""

from __future__ import annotations

import math
import time
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import NamedTuple

import torch

from lewm_models.config import LeWMConfig
from lewm_serve.backends.backend import Backend

ROWS = (8, 32, 128, 512, 2048, 8192)
"""Row counts of the roll-outs measured, as far as more rows still gain."""

GAIN = 1.1
"""Fewer rows are as good as more when these have less than so many times the throughput."""

HORIZON = 5
LEAST, MOST, ENOUGH_S = 2, 5, 0.5
"""Runs of one measurement, fewer of long ones."""

NEWEST = 0.2
"""How much of what was seen before the newest observation makes one forget."""

RECOVERY_S = 10.0
"""Without new observations, slowness is forgotten at this time constant.

An expectation that has every plan refused would otherwise never be corrected."""

OUTLIER = 2.0
"""One observation counts as at most so far from what was expected: a hiccup is not a trend."""


class Shape(NamedTuple):
    """What decides, besides its rows, how long a roll-out takes."""

    horizon: int
    context: int = 1
    solver: str = ""


ONE_STEP = Shape(1)


class Pace:
    """Seconds of what one model does on its backend.

    ``curve`` holds (rows, seconds a step of the horizon) of roll-outs, rows ascending; between them
    time grows evenly, and beyond the last one in proportion. The running correction is kept for
    each shape, as roll-outs of different shapes differ by more than their horizon.

    ``knee`` is the number of rows up to which packing several plans into one roll-out gains; 0
    where plans are never packed.
    """

    def __init__(
        self,
        curve: Sequence[tuple[int, float]] = ((1, 0.0),),
        encode_s: float = 0.0,
        knee: int = 0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._clock = clock
        self._curve = list(curve)
        self._encode_s = encode_s
        self._decode_s = 0.0
        self._corrections: dict[Shape, Correction] = {}
        self._latest = Correction(clock)
        self.knee = knee

    @property
    def frame_s(self) -> float:
        """Seconds to decode and encode one frame."""
        return self._decode_s + self._encode_s

    def encode(self, frames: int) -> float:
        """Seconds that encoding so many frames is expected to take."""
        return frames * self._encode_s

    def estimate(self, rows: int, shape: Shape) -> float:
        """Seconds that a roll-out is expected to take."""
        return self.correction(shape) * self.plain(rows, shape.horizon)

    def correction(self, shape: Shape) -> float:
        """How many times longer than measured at warm-up roll-outs of a shape take now."""
        return self._corrections.get(shape, self._latest).factor

    def plain(self, rows: int, horizon: int) -> float:
        """Seconds of a roll-out by what was measured at warm-up, without the correction."""
        return horizon * self._step_s(rows)

    def observe(self, rows: int, shape: Shape, seconds: float) -> None:
        """Take note of what a roll-out took."""
        plain = self.plain(rows, shape.horizon)
        if plain > 0:
            self._latest = self._corrections.setdefault(shape, Correction(self._clock))
            self._latest.observe(plain, seconds)

    def observe_encode(self, frames: int, seconds: float) -> None:
        """Take note of what a batch of frames took to encode."""
        self._encode_s = _follow(self._encode_s, seconds / frames)

    def observe_decode(self, seconds: float) -> None:
        """Take note of what one frame took to decode."""
        self._decode_s = _follow(self._decode_s, seconds)

    def measure(self, backend: Backend, config: LeWMConfig) -> None:
        """Time a backend that has been warmed up, and find the knee.

        The knee is the fewest rows whose throughput is within a tenth of the best. On a CPU plans
        are not packed: a packed roll-out rounds otherwise than a plan's own, and there the same
        seed must give the same plan, bit for bit, whoever else is served.
        """
        frame = torch.zeros(1, config.image_size, config.image_size, 3, dtype=torch.uint8)
        self._encode_s = self._seconds(lambda: backend.encode(frame))
        self._curve = list(self._measured_curve(backend, config))
        self._corrections, self._latest = {}, Correction(self._clock)
        best = max(_throughput(point) for point in self._curve)
        knee = next(point[0] for point in self._curve if GAIN * _throughput(point) >= best)
        self.knee = 0 if backend.device == "cpu" else knee

    def _measured_curve(self, backend: Backend, config: LeWMConfig) -> Iterator[tuple[int, float]]:
        latents = torch.zeros(1, 1, config.latent_dim)
        past = torch.empty(1, 0, config.block_width)
        best = 0.0
        for rows in ROWS:
            candidates = torch.zeros(1, rows, HORIZON, config.block_width)
            seconds = self._seconds(partial(backend.rollout, latents, past, candidates))
            point = rows, seconds / HORIZON
            yield point
            if _throughput(point) < GAIN * best:
                return
            best = _throughput(point)

    def _seconds(self, work: Callable[[], object]) -> float:
        """The least of a few runs; of long ones, fewer."""
        durations: list[float] = []
        while len(durations) < LEAST or (len(durations) < MOST and sum(durations) < ENOUGH_S):
            start = self._clock()
            work()
            durations.append(self._clock() - start)
        return min(durations)

    def _step_s(self, rows: int) -> float:
        last_rows, last_s = self._curve[-1]
        if rows >= last_rows or len(self._curve) == 1:
            return last_s * rows / last_rows
        index = max(1, bisect_left(self._curve, (rows,)))
        (low, low_s), (high, high_s) = self._curve[index - 1 : index + 1]
        slope = (high_s - low_s) / (high - low)
        return max(0.0, low_s + slope * (rows - low))


class Correction:
    """How many times longer things take than was measured, by their time: short ones count less."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._expected = 0.0
        self._seen = 0.0
        self._at = 0.0

    @property
    def factor(self) -> float:
        """The correction now."""
        ratio = self._seen / self._expected if self._expected else 1.0
        if ratio <= 1:
            return ratio
        return 1 + (ratio - 1) * math.exp((self._at - self._clock()) / RECOVERY_S)

    def observe(self, expected: float, seen: float) -> None:
        """Something expected to take so many seconds took others."""
        factor = self.factor
        if self._expected:
            bounds = expected * factor / OUTLIER, expected * factor * OUTLIER
            seen = min(max(seen, bounds[0]), bounds[1])
        self._seen = (1 - NEWEST) * self._expected * factor + seen
        self._expected = (1 - NEWEST) * self._expected + expected
        self._at = self._clock()


def _throughput(point: tuple[int, float]) -> float:
    rows, seconds = point
    return rows / max(seconds, 1e-9)


def _follow(expected: float, seen: float) -> float:
    """The expectation, moved towards what was seen."""
    if expected == 0:
        return seen
    return expected + NEWEST * (min(max(seen, expected / OUTLIER), expected * OUTLIER) - expected)
