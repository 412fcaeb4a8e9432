"""Frames are resized as the field does it, and each on its own."""

import pytest
import torch
from torch import Tensor

from lewm_models.preprocessing import resize


def frames(size: int, count: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, size, size, 3), dtype=torch.uint8, generator=generator)


def test_frames_of_the_size_pass_unchanged() -> None:
    given = frames(16)
    assert resize(given, 16) is given


@pytest.mark.parametrize("size", [8, 23, 64])
def test_resized_frames_are_bytes_of_the_size(size: int) -> None:
    resized = resize(frames(32), size)
    assert resized.shape == (3, size, size, 3)
    assert resized.dtype == torch.uint8
    assert resized.is_contiguous()


def test_a_frame_does_not_depend_on_its_neighbours() -> None:
    given = frames(33)
    together = resize(given, 16)
    for index in range(3):
        assert torch.equal(resize(given[index : index + 1], 16)[0], together[index])


def test_channels_keep_their_order() -> None:
    red = torch.zeros(1, 40, 40, 3, dtype=torch.uint8)
    red[..., 0] = 200
    assert resize(red, 16)[0, 8, 8].tolist() == [200, 0, 0]


def test_every_pixel_counts_when_shrinking() -> None:
    """Without antialiasing, single pixels between the samples would vanish."""
    dots = torch.zeros(1, 64, 64, 3, dtype=torch.uint8)
    dots[:, ::4, ::4] = 255
    mean = resize(dots, 16).float().mean()
    assert float(mean) == pytest.approx(255 / 16, rel=0.1)
