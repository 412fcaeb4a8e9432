"""How long a model's work takes on this machine: measured at the start, corrected in service."""

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
from lewm_serve.engine.shared_numbers import Row, SharedNumber

MEASURED_ROWS = (8, 32, 128, 512, 2048, 8192)
"""Row counts of the measured roll-outs, as far as more rows increase the throughput."""

MEASURED_HORIZON = 5

THROUGHPUT_GAIN = 1.1
"""More rows count as better only if they have more than this many times the throughput."""

MIN_RUNS, MAX_RUNS, ENOUGH_RUNS_S = 2, 5, 0.5
"""One measurement has MIN_RUNS to MAX_RUNS runs. After MIN_RUNS, it ends when all its runs together
took this long."""

NEWEST_WEIGHT = 0.2
"""The weight of the newest observation in a running average. Each observation reduces the weights
of the earlier ones by this share."""

CORRECTION_DECAY_S = 10.0
"""Without new observations, a correction above 1 decays to 1 with this time constant.

Without this decay, a correction that is too large could cause the refusal of every plan. Then no
roll-out would be observed that could reduce it."""

MAX_OBSERVED_RATIO = 2.0
"""An observation counts as at most this many times the expectation, and as at least the expectation
divided by this."""

MAX_STEPS = 1 << 40
"""`LatencyModel.steps_within` on a machine whose roll-outs take no time by the clock."""

MIN_CORRECTION = 1e-6
"""Corrections are not smaller than this. Otherwise work that took no time by the clock would be
expected to take none ever after."""

GRADIENT_COST, GRADIENT_COST_OF_TORCH = 30.0, 3.0
"""A roll-out with its gradients takes about this many times as long as one without. Backends that
are made for roll-outs compute gradients in PyTorch."""

DECODE_PIXEL_S = 4e-9
"""Seconds to decode a pixel of a JPEG image once, on an ordinary processor. Each format has a
running correction of this value."""

PROBE_INTERVAL_S = 1.0
"""Work that is refused because of its expected seconds is measured anew this often; see
`LatencyModel.needs_probe`."""


class RolloutShape(NamedTuple):
    """What a roll-out's duration depends on besides its rows.

    ``context`` counts the latents before the candidates: frames, and those of committed actions.
    """

    horizon: int
    context: int = 1
    solver: str = ""
    gradients: bool = False
    objective: str = ""


NO_ROLLOUT = RolloutShape(horizon=1)
"""The shape of requests that have no roll-out."""


class Measurements(NamedTuple):
    """What `LatencyModel.measure` found.

    Attributes:
        curve: rows, and seconds per step of the horizon, of roll-outs, with ascending rows.
        frame_s: seconds to encode a frame.
        max_batched_rows, gradient_cost: see `LatencyModel`.
    """

    curve: Sequence[tuple[int, float]] = ((1, 0.0),)
    frame_s: float = 0.0
    max_batched_rows: int = 0
    gradient_cost: float = GRADIENT_COST_OF_TORCH


class LatencyModel:
    """Expected seconds of the work of one model on its backend.

    Rows are candidates. Expectations of roll-outs come from a curve of (rows, seconds per step of
    the horizon) with ascending rows. Between its points time is linear in rows; beyond the last
    one it is proportional to them. Each `RolloutShape` has its own running correction, because the
    horizon alone does not determine the time.

    The engine writes the durations of roll-outs and encodes. The event loop and the decoding
    threads write those of decoding, without a lock: a lost update does no harm. The thread that
    admits takes probes. Others only read. The engine may run in another process, with a
    `LatencyModel` of its own, whose corrections are on the same rows.

    Args:
        curve, encode_s, max_batched_rows: what was measured.
        clock: gives the time in seconds.
        new_row: makes the rows of corrections.

    Attributes:
        max_batched_rows: rows up to which batching several plans into one roll-out increases the
            throughput; 0 if plans are never batched.
        gradient_cost: how many times as long a roll-out takes with its gradients.
    """

    def __init__(
        self,
        curve: Sequence[tuple[int, float]] = ((1, 0.0),),
        encode_s: float = 0.0,
        max_batched_rows: int = 0,
        clock: Callable[[], float] = time.monotonic,
        new_row: Callable[[], Row] = Row,
    ) -> None:
        self._clock = clock
        self._new_row = new_row
        self._curve = list(curve)
        self._frame_s = encode_s
        self._encode_correction = self._new_correction()
        self._decode_corrections: dict[str, RunningCorrection] = {}
        self._corrections: dict[RolloutShape, RunningCorrection] = {}
        self._latest_correction = self._new_correction()
        self._probed_at = -math.inf
        self.max_batched_rows = max_batched_rows
        self.gradient_cost = GRADIENT_COST_OF_TORCH

    @property
    def measurements(self) -> Measurements:
        """What was measured."""
        return Measurements(
            tuple(self._curve), self._frame_s, self.max_batched_rows, self.gradient_cost
        )

    @property
    def rows(self) -> tuple[Row, Row]:
        """The rows of its corrections of all encodes and of the latest roll-outs."""
        return self._encode_correction.row, self._latest_correction.row

    def adopt(self, measurements: Measurements, rows: tuple[Row, Row] | None = None) -> None:
        """Use what another process has measured, and its ``rows`` if there are some."""
        curve, self._frame_s, self.max_batched_rows, self.gradient_cost = measurements
        self._curve = list(curve)
        if rows is not None:
            self._encode_correction, self._latest_correction = (
                RunningCorrection(self._clock, row) for row in rows
            )

    def share_correction(self, shape: RolloutShape) -> Row:
        """The row of the correction of roll-outs of this shape."""
        return self._correction_of(shape).row

    def see_correction(self, shape: RolloutShape, row: Row) -> None:
        """Use another process's correction of roll-outs of this shape."""
        self._corrections[shape] = RunningCorrection(self._clock, row)

    def _correction_of(self, shape: RolloutShape) -> RunningCorrection:
        """The correction of roll-outs of this shape; a new one if there is none."""
        correction = self._corrections.get(shape)
        if correction is None:
            correction = self._corrections[shape] = self._new_correction()
        return correction

    def _new_correction(self) -> RunningCorrection:
        return RunningCorrection(self._clock, self._new_row())

    def encode_s(self, frames: int) -> float:
        """Expected seconds to encode this many frames."""
        return frames * self._frame_s * self._encode_correction.factor

    def decode_s(self, image_format: str, pixels: int) -> float:
        """Expected seconds to decode images of a format with this many pixels together."""
        correction = self._decode_corrections.get(image_format)
        return pixels * DECODE_PIXEL_S * (1.0 if correction is None else correction.factor)

    def rollout_s(self, rows: int, shape: RolloutShape) -> float:
        """Expected seconds of a roll-out."""
        return self.correction(shape) * self.measured_rollout_s(rows, shape)

    def measured_rollout_s(self, rows: int, shape: RolloutShape) -> float:
        """Seconds of a roll-out as measured at the start, without the correction."""
        return self.cost(shape) * shape.horizon * self._step_s(rows)

    def cost(self, shape: RolloutShape) -> float:
        """How many roll-outs without gradients a roll-out of this shape is worth."""
        return self.gradient_cost if shape.gradients else 1.0

    def steps_within(self, seconds: float) -> int:
        """How many candidates × steps of the horizon this machine rolls out in this time."""
        rows, step_s = self._curve[-1]
        return int(rows * seconds / step_s) if step_s > 0 else MAX_STEPS

    def correction(self, shape: RolloutShape) -> float:
        """How many times longer than at the start roll-outs of this shape take now."""
        correction = self._corrections.get(shape)
        if correction is None or not correction.is_observed:
            correction = self._latest_correction
        return correction.factor

    def observe_rollout(self, rows: int, shape: RolloutShape, seconds: float) -> None:
        """Learn from the duration of a roll-out."""
        measured_s = self.measured_rollout_s(rows, shape)
        if measured_s > 0:
            correction = self._correction_of(shape)
            correction.observe(measured_s, seconds)
            self._latest_correction.copy(correction)

    def observe_encode(self, frames: int, seconds: float) -> None:
        """Learn from the duration of a batch of encoded frames."""
        if self._frame_s > 0:
            self._encode_correction.observe(frames * self._frame_s, seconds)

    def observe_decode(self, image_format: str, pixels: int, seconds: float) -> None:
        """Learn from the duration of decoding images; see `decode_s`."""
        if pixels > 0:
            correction = self._decode_corrections.get(image_format)
            if correction is None:
                correction = self._decode_corrections[image_format] = RunningCorrection(self._clock)
            correction.observe(pixels * DECODE_PIXEL_S, seconds)

    def needs_probe(self, shape: RolloutShape) -> bool:
        """Whether work of this shape, which was refused, should be measured anew now.

        Work that is refused is not observed. So an expectation that is too long, for example
        because it was measured while other processes kept the machine busy, would never be
        corrected. True at most once per `PROBE_INTERVAL_S`, and only if no work of this shape was
        observed for as long.
        """
        now = self._clock()
        correction = self._corrections.get(shape)
        observed_at = -math.inf if correction is None else correction.observed_at
        if now - max(self._probed_at, observed_at) < PROBE_INTERVAL_S:
            return False
        self._probed_at = now
        return True

    def measure(self, backend: Backend, config: LeWMConfig) -> None:
        """Time a warmed-up backend and find up to how many rows batching plans is faster.

        This is the least number of rows whose throughput is within a tenth of the best. On a CPU
        plans are not batched: a batched roll-out rounds differently, and on a CPU the same seed
        must give the same plan, bit for bit, whatever else runs.
        """
        frame = torch.zeros(1, config.image_size, config.image_size, 3, dtype=torch.uint8)
        self._frame_s = self._fastest_run_s(lambda: backend.encode(frame))
        self._curve = list(self._measured_curve(backend, config))
        self._encode_correction = self._new_correction()
        self._corrections, self._latest_correction = {}, self._new_correction()
        self.gradient_cost = GRADIENT_COST_OF_TORCH if backend.name == "torch" else GRADIENT_COST
        if backend.device == "cpu":
            self.max_batched_rows = 0
        else:
            best = max(_throughput(point) for point in self._curve)
            self.max_batched_rows = next(
                point[0] for point in self._curve if THROUGHPUT_GAIN * _throughput(point) >= best
            )

    def _measured_curve(self, backend: Backend, config: LeWMConfig) -> Iterator[tuple[int, float]]:
        latents = torch.zeros(1, 1, config.latent_dim)
        past_actions = torch.empty(1, 0, config.block_width)
        best = 0.0
        for rows in MEASURED_ROWS:
            candidates = torch.zeros(1, rows, MEASURED_HORIZON, config.block_width)
            rollout = partial(backend.rollout, latents, past_actions, candidates)
            point = rows, self._fastest_run_s(rollout) / MEASURED_HORIZON
            yield point
            if _throughput(point) < THROUGHPUT_GAIN * best:
                return
            best = _throughput(point)

    def _fastest_run_s(self, work: Callable[[], object]) -> float:
        """The shortest of a few runs; long runs are repeated less often."""
        durations: list[float] = []
        while len(durations) < MIN_RUNS or (
            len(durations) < MAX_RUNS and sum(durations) < ENOUGH_RUNS_S
        ):
            start = self._clock()
            work()
            durations.append(self._clock() - start)
        return min(durations)

    def _step_s(self, rows: int) -> float:
        """Seconds per step of the horizon, from the curve."""
        last_rows, last_s = self._curve[-1]
        if rows >= last_rows or len(self._curve) == 1:
            return last_s * rows / last_rows
        # Below the first point, the line through the first two points is extended.
        index = max(1, bisect_left(self._curve, (rows,)))
        (low_rows, low_s), (high_rows, high_s) = self._curve[index - 1 : index + 1]
        slope = (high_s - low_s) / (high_rows - low_rows)
        return max(0.0, low_s + slope * (rows - low_rows))


class RunningCorrection:
    """The ratio of observed to expected seconds, averaged with weights that grow with duration.

    Attributes:
        row: its shared numbers.
        observed_at: the time of the newest observation.
    """

    _expected_s = SharedNumber(0, float)
    _observed_s = SharedNumber(1, float)
    observed_at = SharedNumber(2, float)

    def __init__(self, clock: Callable[[], float], row: Row | None = None) -> None:
        self._clock = clock
        self.row = Row() if row is None else row

    @property
    def is_observed(self) -> bool:
        """Whether there was an observation."""
        return self._expected_s > 0

    def copy(self, other: RunningCorrection) -> None:
        """Take over what another one has observed."""
        self._expected_s, self._observed_s = other._expected_s, other._observed_s
        self.observed_at = other.observed_at

    @property
    def factor(self) -> float:
        """The correction now."""
        ratio = self._observed_s / self._expected_s if self._expected_s else 1.0
        if ratio <= 1:
            return max(MIN_CORRECTION, ratio)
        age_s = self._clock() - self.observed_at
        return 1 + (ratio - 1) * math.exp(-age_s / CORRECTION_DECAY_S)

    def observe(self, expected_s: float, observed_s: float) -> None:
        """Learn from work that was expected to take ``expected_s`` and took ``observed_s``."""
        factor = self.factor
        if self._expected_s:
            observed_s = _bounded(observed_s, expected_s * factor)
        self._observed_s = (1 - NEWEST_WEIGHT) * self._expected_s * factor + observed_s
        self._expected_s = (1 - NEWEST_WEIGHT) * self._expected_s + expected_s
        self.observed_at = self._clock()


def _throughput(point: tuple[int, float]) -> float:
    rows, seconds = point
    return rows / max(seconds, 1e-9)


def _bounded(observed_s: float, expected_s: float) -> float:
    """An observation within `MAX_OBSERVED_RATIO` of its expectation."""
    observed_s = max(observed_s, expected_s / MAX_OBSERVED_RATIO)
    return min(observed_s, expected_s * MAX_OBSERVED_RATIO)
