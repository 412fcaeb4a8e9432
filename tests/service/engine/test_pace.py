"""The estimate of a roll-out's time."""

import time

import pytest
import torch
from torch import Tensor

from models.config import PRESETS
from service.engine.pace import Pace


class SlowBackend:
    """Takes 1 ms and 0.1 ms a candidate for each step."""

    name, device, precision = "slow", "cpu", "float32"

    def encode(self, frames: Tensor) -> Tensor:
        raise NotImplementedError

    def rollout(self, latents: Tensor, past_actions: Tensor, candidates: Tensor) -> Tensor:
        _, samples, horizon, _ = candidates.shape
        time.sleep(horizon * (0.001 + 0.0001 * samples))
        return candidates

    def gradients(self, *_: Tensor) -> tuple[Tensor, Tensor]:
        raise NotImplementedError

    def warm_up(self) -> None: ...


def test_it_measures_both_the_fixed_and_the_growing_part() -> None:
    pace = Pace()
    pace.measure(SlowBackend(), PRESETS["edge"])
    assert pace.estimate(100, 5) == pytest.approx(5 * 0.011, rel=0.3)
    assert pace.estimate(1, 10) == pytest.approx(10 * 0.0011, rel=1)


def test_it_follows_what_it_sees() -> None:
    pace = Pace(fixed_s=0.0, each_s=0.001)
    assert pace.estimate(10, 2) == pytest.approx(0.02)
    for _ in range(30):
        pace.observe(10, 2, 0.06)
    assert pace.estimate(100, 1) == pytest.approx(0.3, rel=0.01)
    assert torch.isfinite(torch.tensor(pace.estimate(0, 1)))
