"""Faults that leave a frame's shape alone, do what they are called, and can be repeated."""

import pytest
import torch
from torch import Tensor

from lewm_models.environments import two_room
from lewm_models.evaluation import faults
from lewm_models.evaluation.faults import CAMERA_FAULTS


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.fixture(scope="module")
def frames() -> Tensor:
    return two_room.render(torch.tensor([[60.0, 60.0], [150.0, 190.0]]))


@pytest.mark.parametrize("name", CAMERA_FAULTS)
def test_a_fault_changes_frames_and_is_the_same_again(name: str, frames: Tensor) -> None:
    before = frames.clone()
    faulty = CAMERA_FAULTS[name](frames, generator())
    assert (faulty.shape, faulty.dtype) == (frames.shape, torch.uint8)
    assert not torch.equal(faulty, frames)
    assert torch.equal(frames, before)
    assert torch.equal(faulty, CAMERA_FAULTS[name](frames, generator()))


def test_brightness_stays_within_a_pixel(frames: Tensor) -> None:
    darker = faults.brightness(frames, generator(), by=-40)
    assert torch.equal(darker, (frames.int() - 40).clamp(0, 255).to(torch.uint8))
    brighter = faults.exposure(frames, generator(), times=1.2)
    assert torch.equal(brighter[frames == 255], frames[frames == 255])


def test_noise_has_the_deviation_that_it_is_called_by() -> None:
    grey = torch.full((1, 224, 224, 3), 128, dtype=torch.uint8)
    noisy = faults.noise(grey, generator(), std=20).float()
    assert float(noisy.std()) == pytest.approx(20, rel=0.02)
    assert float(noisy.mean()) == pytest.approx(128, abs=0.5)


def test_a_turned_camera_shows_the_same_elsewhere(frames: Tensor) -> None:
    turned = faults.camera_shift(frames, generator(), by=8)
    assert not torch.equal(turned[0], turned[1])
    found = [
        (down, right)
        for down in range(-8, 9)
        for right in range(-8, 9)
        if torch.equal(
            turned[0, 20:200, 20:200], frames[0, 20 + down : 200 + down, 20 + right : 200 + right]
        )
    ]
    [(down, right)] = found
    assert (down**2 + right**2) ** 0.5 == pytest.approx(8, abs=0.75)


@pytest.mark.parametrize("size", [224, 112])
def test_an_occlusion_has_its_size_in_any_frame(size: int) -> None:
    white = torch.full((1, size, size, 3), 255, dtype=torch.uint8)
    hidden = faults.occlusion(white, generator(), side=40) == 128
    assert int(hidden[..., 0].sum()) == (40 * size // 224) ** 2
