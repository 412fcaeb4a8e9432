"""How long the model's work is expected to take."""

import pytest
import torch
from torch import Tensor

from lewm_models.config import PRESETS
from lewm_serve.engine.latency_model import (
    DECODE_PIXEL_S,
    MEASURED_HORIZON,
    MEASURED_ROWS,
    LatencyModel,
    RolloutShape,
)
from lewm_serve.objectives import Objective
from tests.lewm_serve.engine.fakes import FakeClock

SHAPE = RolloutShape(MEASURED_HORIZON)


class TimedBackend:
    """A frame takes 2 ms. Each step of a roll-out takes 1 ms, and 0.1 ms for each row.

    Up to ``free_rows`` rows take equally long.
    """

    name, precision, encode_precision = "timed", "float32", "float32"
    rows_are_independent = True
    device_rollouts = None

    def __init__(self, clock: FakeClock, device: str = "cpu", free_rows: int = 0) -> None:
        self.clock = clock
        self.device = device
        self.free_rows = free_rows
        self.measured_rows: list[int] = []

    def encode(self, frames: Tensor, states: Tensor | None = None) -> Tensor:
        self.clock.advance(0.002 * len(frames))
        return frames[:, 0, 0].float()

    def rollout(self, latents: Tensor, past_actions: Tensor, candidates: Tensor) -> Tensor:
        _, samples, horizon, _ = candidates.shape
        self.measured_rows.append(samples)
        self.clock.advance(horizon * (0.001 + 0.0001 * max(self.free_rows, samples)))
        return candidates

    def predict_newest(self, *_: Tensor) -> Tensor:
        raise NotImplementedError

    def gradients(self, *_: Tensor, goals: Tensor, objective: Objective) -> tuple[Tensor, Tensor]:
        raise NotImplementedError

    def warm_up(self) -> None: ...


def measured(device: str = "cpu", free_rows: int = 0) -> LatencyModel:
    clock = FakeClock()
    latency = LatencyModel(clock=clock)
    latency.measure(TimedBackend(clock, device, free_rows), PRESETS["edge"])
    return latency


@pytest.mark.parametrize("rows", [1, 8, 20, 100, 128, 300])
def test_rollouts_are_measured_and_interpolated(rows: int) -> None:
    latency, step_s = measured(), 0.001 + 0.0001 * rows
    assert latency.rollout_s(rows, SHAPE) == pytest.approx(MEASURED_HORIZON * step_s)
    assert latency.rollout_s(rows, RolloutShape(10)) == pytest.approx(10 * step_s)


def test_beyond_the_measured_rows_time_is_proportional_to_rows() -> None:
    expected = MEASURED_HORIZON * 0.201
    assert measured().rollout_s(2000, SHAPE) == pytest.approx(expected, rel=0.05)


def test_measuring_stops_where_more_rows_gain_nothing() -> None:
    clock = FakeClock()
    backend = TimedBackend(clock)
    LatencyModel(clock=clock).measure(backend, PRESETS["edge"])
    assert max(backend.measured_rows) == 512
    assert max(backend.measured_rows) in MEASURED_ROWS


def test_rows_are_batched_up_to_a_tenth_below_the_best_throughput() -> None:
    assert measured("cuda", free_rows=0).max_batched_rows == 128
    assert measured("cuda", free_rows=2000).max_batched_rows == 2048


def test_plans_are_not_batched_on_a_cpu() -> None:
    assert measured("cpu", free_rows=2000).max_batched_rows == 0


def test_frames_are_measured_and_observed() -> None:
    latency = measured()
    assert latency.encode_s(3) == pytest.approx(0.006)
    for _ in range(50):
        latency.observe_encode(2, 0.008)
    assert latency.encode_s(1) == pytest.approx(0.004, rel=1e-3)


def test_decoding_is_expected_by_pixels_and_format() -> None:
    """Large images of one format say nothing of small ones, nor of another format."""
    clock = FakeClock()
    latency = LatencyModel(clock=clock)
    small, large = 64 * 64, 2048 * 2048
    for _ in range(50):
        latency.observe_decode("jpeg", large, 0.04)
    assert latency.decode_s("jpeg", large) == pytest.approx(0.04, rel=1e-3)
    assert latency.decode_s("jpeg", small) == pytest.approx(0.04 / 1024, rel=1e-3)
    assert latency.decode_s("png", small) == small * DECODE_PIXEL_S
    clock.advance(100)
    assert latency.decode_s("jpeg", large) == pytest.approx(large * DECODE_PIXEL_S, rel=1e-3)


def test_each_shape_has_its_own_correction() -> None:
    latency = LatencyModel([(1, 0.001)])
    assert latency.rollout_s(10, RolloutShape(2)) == pytest.approx(0.02)
    for _ in range(50):
        latency.observe_rollout(10, RolloutShape(2), 0.06)
        latency.observe_rollout(10, RolloutShape(4), 0.02)
    assert latency.rollout_s(100, RolloutShape(2)) == pytest.approx(0.6, rel=0.01)
    assert latency.rollout_s(10, RolloutShape(4)) == pytest.approx(0.02, rel=0.01)


def test_one_outlier_changes_little() -> None:
    latency = LatencyModel([(1, 0.001)])
    for _ in range(5):
        latency.observe_rollout(10, SHAPE, 0.05)
    latency.observe_rollout(10, SHAPE, 5.0)
    assert latency.rollout_s(10, SHAPE) < 0.065


def test_short_rollouts_count_less_than_long_ones() -> None:
    """The final mean of a plan, slow for its one row, says little about the other iterations."""
    latency = LatencyModel([(1, 0.001)])
    for _ in range(50):
        latency.observe_rollout(100, SHAPE, 0.5)
        latency.observe_rollout(1, SHAPE, 0.01)
    assert latency.rollout_s(100, SHAPE) == pytest.approx(0.5, rel=0.03)


def test_slowness_is_forgotten_while_nothing_runs() -> None:
    """Otherwise an expectation that refuses every plan would never be corrected."""
    clock = FakeClock()
    latency = LatencyModel([(1, 0.001)], clock=clock)
    latency.observe_rollout(10, SHAPE, 5.0)
    assert latency.rollout_s(10, SHAPE) == pytest.approx(5.0)
    clock.advance(100)
    assert latency.rollout_s(10, SHAPE) == pytest.approx(0.05, rel=0.01)
    latency.observe_rollout(10, SHAPE, 0.05)
    assert latency.rollout_s(10, SHAPE) == pytest.approx(0.05, rel=0.01)


def test_without_a_measurement_everything_takes_no_time() -> None:
    latency = LatencyModel()
    latency.observe_rollout(10, SHAPE, 1.0)
    assert latency.rollout_s(10, SHAPE) == 0
    assert torch.isfinite(torch.tensor(latency.rollout_s(0, SHAPE)))
