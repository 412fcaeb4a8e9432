"""Frames are resized with antialiasing, and each independently of the others."""

import pytest
import torch
from torch import Tensor

from lewm_models.preprocessing import resize


def frames(size: int, count: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, size, size, 3), dtype=torch.uint8, generator=generator)


def test_frames_of_the_right_size_are_returned_unchanged() -> None:
    original = frames(16)
    assert resize(original, 16) is original


@pytest.mark.parametrize("size", [8, 23, 64])
def test_resized_frames_are_uint8_of_the_size(size: int) -> None:
    resized = resize(frames(32), size)
    assert resized.shape == (3, size, size, 3)
    assert resized.dtype == torch.uint8
    assert resized.is_contiguous()


def test_a_frame_does_not_depend_on_its_batch() -> None:
    original = frames(33)
    together = resize(original, 16)
    for index in range(3):
        alone = resize(original[index : index + 1], 16)[0]
        assert torch.equal(alone, together[index])


def test_channels_keep_their_order() -> None:
    red = torch.zeros(1, 40, 40, 3, dtype=torch.uint8)
    red[..., 0] = 200
    assert resize(red, 16)[0, 8, 8].tolist() == [200, 0, 0]


def test_shrinking_is_antialiased() -> None:
    """Without antialiasing, single pixels between the sampled ones would be lost."""
    dots = torch.zeros(1, 64, 64, 3, dtype=torch.uint8)
    dots[:, ::4, ::4] = 255
    mean = resize(dots, 16).float().mean()
    assert float(mean) == pytest.approx(255 / 16, rel=0.1)
