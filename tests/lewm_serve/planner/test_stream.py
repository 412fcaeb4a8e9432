"""SIGReg of a window, without computing it anew for each latent."""

import pytest
import torch

from lewm_models.calibration.calibrate import fixed_sigreg_directions
from lewm_models.loss import sigreg
from lewm_serve.planner.health import LatentStream

SIZE, WIDTH = 16, 8


def latents(count: int) -> torch.Tensor:
    return torch.randn(count, WIDTH, generator=torch.Generator().manual_seed(0))


def whole(window: torch.Tensor) -> float:
    return float(sigreg(window[None], fixed_sigreg_directions(WIDTH)))


def test_a_window_that_is_not_full_says_nothing() -> None:
    stream = LatentStream(fixed_sigreg_directions(WIDTH), SIZE, kept=1.0)
    stream.add(latents(SIZE - 1), SIZE - 1)
    assert stream.sigreg is None


def test_it_is_that_of_the_newest_latents() -> None:
    stream = LatentStream(fixed_sigreg_directions(WIDTH), SIZE, kept=1.0)
    served = latents(200)
    for index, latent in enumerate(served):
        stream.add(latent[None], 1)
        if index >= SIZE - 1:
            window = served[index + 1 - SIZE : index + 1]
            assert stream.sigreg == pytest.approx(whole(window), rel=1e-4)


@pytest.mark.parametrize("count", [SIZE, SIZE + 1, 10 * SIZE])
def test_many_latents_may_come_at_once(count: int) -> None:
    stream = LatentStream(fixed_sigreg_directions(WIDTH), SIZE, kept=1.0)
    stream.add(latents(3), 3)
    stream.add(latents(count), count)
    assert stream.sigreg == pytest.approx(whole(latents(count)[-SIZE:]), rel=1e-4)


def test_what_came_before_is_not_fresh() -> None:
    streams = [LatentStream(fixed_sigreg_directions(WIDTH), SIZE, kept=1.0) for _ in range(2)]
    streams[0].add(latents(3 * SIZE), SIZE)
    streams[1].add(latents(3 * SIZE)[-SIZE:], SIZE)
    assert streams[0].sigreg == streams[1].sigreg


def test_a_share_of_the_latents_is_kept() -> None:
    stream = LatentStream(fixed_sigreg_directions(WIDTH), SIZE, kept=0.25)
    served = latents(1000)
    stream.add(served[: 2 * SIZE], 2 * SIZE)
    assert stream.sigreg is None
    stream.add(served[2 * SIZE : 8 * SIZE], 6 * SIZE)
    assert stream.sigreg is not None


def test_a_stream_that_stands_still_stands_out() -> None:
    stream = LatentStream(fixed_sigreg_directions(WIDTH), SIZE, kept=1.0)
    stream.add(latents(SIZE), SIZE)
    varied = stream.sigreg
    stream.add(latents(1).expand(SIZE, -1), SIZE)
    assert varied is not None
    assert stream.sigreg is not None
    assert stream.sigreg > 3 * varied
