"""Frames are resized with antialiasing, and each independently of the others."""

import pytest
import torch
from torch import Tensor

from lewm_models.preprocessing import CROPS, Crop, resize, to_model_frames


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


def wide_picture(height: int = 40, width: int = 80) -> Tensor:
    """Red on the left quarter, green on the right one, blue between them."""
    picture = torch.zeros(1, height, width, 3, dtype=torch.uint8)
    picture[:, :, : width // 4, 0] = 200
    picture[:, :, -width // 4 :, 1] = 200
    picture[:, :, width // 4 : -width // 4, 2] = 200
    return picture


def test_center_takes_the_central_square() -> None:
    frame = to_model_frames(wide_picture(), 20, "center")[0]
    assert (frame == torch.tensor([0, 0, 200], dtype=torch.uint8)).all()


def test_pad_shows_the_whole_frame_between_black_bars() -> None:
    frame = to_model_frames(wide_picture(), 20, "pad")[0]
    assert not frame[:5].any()
    assert not frame[-5:].any()
    assert frame[10, 1].tolist() == [200, 0, 0]
    assert frame[10, 10].tolist() == [0, 0, 200]
    assert frame[10, -2].tolist() == [0, 200, 0]
    assert frame[5:-5].any(dim=-1).all()


def test_stretch_shows_the_whole_frame_everywhere() -> None:
    frame = to_model_frames(wide_picture(), 20, "stretch")[0]
    assert frame[:, 1].tolist() == [[200, 0, 0]] * 20
    assert frame[:, -2].tolist() == [[0, 200, 0]] * 20


@pytest.mark.parametrize("crop", CROPS)
def test_square_frames_are_the_same_with_any_crop(crop: Crop) -> None:
    assert torch.equal(to_model_frames(frames(33), 16, crop), resize(frames(33), 16))


@pytest.mark.parametrize("crop", CROPS)
@pytest.mark.parametrize(("height", "width"), [(1 << 22, 1), (1, 1 << 22)])
def test_a_frame_of_one_pixel_s_width_needs_little_memory(
    crop: Crop, height: int, width: int
) -> None:
    """A square around it would have 10¹³ pixels."""
    line = torch.full((1, height, width, 3), 7, dtype=torch.uint8)
    frame = to_model_frames(line, 16, crop)
    assert frame.shape == (1, 16, 16, 3)
    assert frame.max() == 7


def test_frames_that_are_not_square_need_a_crop() -> None:
    with pytest.raises(ValueError, match="crop: expected center, pad, stretch for frames of 80 x"):
        to_model_frames(wide_picture(), 20, None)
