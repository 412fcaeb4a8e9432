"""Camera faults keep the frames' shape, do what their names say, and are reproducible."""

import pytest
import torch
from torch import Tensor

from lewm_models.environments import two_room
from lewm_models.evaluation import faults
from lewm_models.evaluation.faults import CAMERA_FAULTS


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.fixture(scope="module")
def frames() -> Tensor:
    return two_room.render(torch.tensor([[60.0, 60.0], [150.0, 190.0]]))


@pytest.mark.parametrize("name", CAMERA_FAULTS)
def test_a_fault_changes_frames_reproducibly_and_not_in_place(name: str, frames: Tensor) -> None:
    original = frames.clone()
    faulty = CAMERA_FAULTS[name](frames, seeded())
    assert (faulty.shape, faulty.dtype) == (frames.shape, torch.uint8)
    assert not torch.equal(faulty, frames)
    assert torch.equal(frames, original)
    assert torch.equal(faulty, CAMERA_FAULTS[name](frames, seeded()))


def test_values_are_clipped_to_a_byte(frames: Tensor) -> None:
    darker = faults.brightness(frames, seeded(), levels=-40)
    assert torch.equal(darker, (frames.int() - 40).clamp(0, 255).to(torch.uint8))
    brighter = faults.exposure(frames, seeded(), factor=1.2)
    assert torch.equal(brighter[frames == 255], frames[frames == 255])


def test_noise_has_the_given_deviation() -> None:
    grey = torch.full((1, 224, 224, 3), 128, dtype=torch.uint8)
    noisy = faults.noise(grey, seeded(), std=20).float()
    assert float(noisy.std()) == pytest.approx(20, rel=0.02)
    assert float(noisy.mean()) == pytest.approx(128, abs=0.5)


def test_a_shifted_camera_shows_the_same_picture_elsewhere(frames: Tensor) -> None:
    shifted = faults.camera_shift(frames, seeded(), pixels=8)
    assert not torch.equal(shifted[0], shifted[1])
    offsets = [
        (down, right)
        for down in range(-8, 9)
        for right in range(-8, 9)
        if torch.equal(
            shifted[0, 20:200, 20:200], frames[0, 20 + down : 200 + down, 20 + right : 200 + right]
        )
    ]
    [(down, right)] = offsets
    assert (down**2 + right**2) ** 0.5 == pytest.approx(8, abs=0.75)


@pytest.mark.parametrize("size", [224, 112])
def test_the_size_of_an_occlusion_is_relative_to_the_frame(size: int) -> None:
    white = torch.full((1, size, size, 3), 255, dtype=torch.uint8)
    is_occluded = faults.occlusion(white, seeded(), side=40) == faults.OCCLUSION_GREY
    assert int(is_occluded[..., 0].sum()) == (40 * size // 224) ** 2
