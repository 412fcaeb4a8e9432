"""The estimate of what the model takes."""

import pytest
import torch
from torch import Tensor

from lewm_models.config import PRESETS
from lewm_serve.engine.latency_model import HORIZON, ROWS, LatencyModel, Shape
from tests.lewm_serve.engine.fakes import FakeClock

SHAPE = Shape(HORIZON)


class TimedBackend:
    """A frame takes 2 ms, a roll-out 1 ms and 0.1 ms a row for each step, above ``free`` rows."""

    name, precision, encode_precision = "timed", "float32", "float32"

    def __init__(self, clock: FakeClock, device: str = "cpu", free: int = 0) -> None:
        self.clock, self.device, self.free = clock, device, free
        self.rows: list[int] = []

    def encode(self, frames: Tensor) -> Tensor:
        self.clock.pass_by(0.002 * len(frames))
        return frames[:, 0, 0].float()

    def rollout(self, latents: Tensor, past_actions: Tensor, candidates: Tensor) -> Tensor:
        _, samples, horizon, _ = candidates.shape
        self.rows.append(samples)
        self.clock.pass_by(horizon * (0.001 + 0.0001 * max(self.free, samples)))
        return candidates

    def expect(self, *_: Tensor) -> Tensor:
        raise NotImplementedError

    def gradients(self, *_: Tensor) -> tuple[Tensor, Tensor]:
        raise NotImplementedError

    def warm_up(self) -> None: ...


def measured(device: str = "cpu", free: int = 0) -> LatencyModel:
    clock = FakeClock()
    pace = LatencyModel(clock=clock)
    pace.measure(TimedBackend(clock, device, free), PRESETS["edge"])
    return pace


@pytest.mark.parametrize("rows", [1, 8, 20, 100, 128, 300])
def test_it_measures_what_grows_and_what_does_not(rows: int) -> None:
    assert measured().estimate(rows, SHAPE) == pytest.approx(HORIZON * (0.001 + 0.0001 * rows))
    assert measured().estimate(rows, Shape(10)) == pytest.approx(10 * (0.001 + 0.0001 * rows))


def test_beyond_what_was_measured_time_grows_in_proportion() -> None:
    pace = measured()
    assert pace.estimate(2000, SHAPE) == pytest.approx(HORIZON * 0.201, rel=0.05)


def test_it_stops_measuring_where_more_rows_gain_nothing() -> None:
    clock = FakeClock()
    backend = TimedBackend(clock)
    LatencyModel(clock=clock).measure(backend, PRESETS["edge"])
    assert max(backend.rows) == 512
    assert max(backend.rows) in ROWS


def test_the_knee_is_where_throughput_is_within_a_tenth_of_the_best() -> None:
    assert measured("cuda", free=0).knee == 128
    assert measured("cuda", free=2000).knee == 2048


def test_plans_are_not_packed_on_a_cpu() -> None:
    assert measured("cpu", free=2000).knee == 0


def test_it_knows_what_a_frame_takes() -> None:
    pace = measured()
    assert pace.encode(3) == pytest.approx(0.006)
    assert pace.frame_s == pytest.approx(0.002)
    pace.observe_decode(0.001)
    assert pace.frame_s == pytest.approx(0.003)
    for _ in range(50):
        pace.observe_encode(2, 0.008)
    assert pace.frame_s == pytest.approx(0.005, rel=1e-3)


def test_it_follows_what_it_sees_shape_by_shape() -> None:
    pace = LatencyModel([(1, 0.001)])
    assert pace.estimate(10, Shape(2)) == pytest.approx(0.02)
    for _ in range(50):
        pace.observe(10, Shape(2), 0.06)
        pace.observe(10, Shape(4), 0.02)
    assert pace.estimate(100, Shape(2)) == pytest.approx(0.6, rel=0.01)
    assert pace.estimate(10, Shape(4)) == pytest.approx(0.02, rel=0.01)


def test_a_hiccup_is_not_a_trend() -> None:
    pace = LatencyModel([(1, 0.001)])
    for _ in range(5):
        pace.observe(10, SHAPE, 0.05)
    pace.observe(10, SHAPE, 5.0)
    assert pace.estimate(10, SHAPE) < 0.065


def test_the_short_count_less_than_the_long() -> None:
    """A plan's closing mean, slow for its one row, says little of its other iterations."""
    pace = LatencyModel([(1, 0.001)])
    for _ in range(50):
        pace.observe(100, SHAPE, 0.5)
        pace.observe(1, SHAPE, 0.01)
    assert pace.estimate(100, SHAPE) == pytest.approx(0.5, rel=0.03)


def test_slowness_is_forgotten_where_nothing_runs() -> None:
    """Or an expectation by which no plan fits would keep all plans out for ever."""
    clock = FakeClock()
    pace = LatencyModel([(1, 0.001)], clock=clock)
    pace.observe(10, SHAPE, 5.0)
    assert pace.estimate(10, SHAPE) == pytest.approx(5.0)
    clock.pass_by(100)
    assert pace.estimate(10, SHAPE) == pytest.approx(0.05, rel=0.01)
    pace.observe(10, SHAPE, 0.05)
    assert pace.estimate(10, SHAPE) == pytest.approx(0.05, rel=0.01)


def test_an_unmeasured_pace_expects_nothing() -> None:
    pace = LatencyModel()
    pace.observe(10, SHAPE, 1.0)
    assert pace.estimate(10, SHAPE) == 0
    assert torch.isfinite(torch.tensor(pace.estimate(0, SHAPE)))
