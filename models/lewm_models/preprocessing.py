"""Camera frames to the frames that a model sees, the same in training and in serving."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

Crop = Literal["center", "pad", "stretch"]
"""How frames that are not square become square: their central square; black bars that complete
them to a square; or both sides scaled to the same length."""

CROPS: tuple[Crop, ...] = get_args(Crop)


def to_model_frames(frames: Tensor, size: int, crop: Crop | None) -> Tensor:
    """Frames (N, H, W, 3) uint8 → (N, size, size, 3) uint8, square by ``crop`` and resized.

    ``crop`` is not used for square frames. On a CPU, the result for a frame does not depend on the
    other frames of the batch.

    Raises:
        ValueError: the frames are not square, and ``crop`` is None.
    """
    height, width = frames.shape[1:3]
    if height == width:
        return resize(frames, size)
    if crop == "center":
        side = min(height, width)
        top, left = (height - side) // 2, (width - side) // 2
        return resize(frames[:, top : top + side, left : left + side].contiguous(), size)
    if crop == "stretch":
        return _interpolate(frames, size, size)
    if crop == "pad":
        # The bars are added to the resized frame: a square around a long one could be huge.
        longer = max(height, width)
        inner_height, inner_width = (
            max(1, round(size * side / longer)) for side in (height, width)
        )
        top, left = (size - inner_height) // 2, (size - inner_width) // 2
        padded = frames.new_zeros(len(frames), size, size, 3)
        padded[:, top : top + inner_height, left : left + inner_width] = _interpolate(
            frames, inner_height, inner_width
        )
        return padded
    raise ValueError(f"crop: expected {', '.join(CROPS)} for frames of {width} x {height}")


def resize(frames: Tensor, size: int) -> Tensor:
    """Square frames (N, H, H, 3) uint8 → (N, size, size, 3) uint8, bilinear with antialiasing.

    Frames of that size are returned unchanged. On a CPU, the result for a frame does not depend on
    the other frames of the batch.
    """
    return frames if frames.shape[1] == size else _interpolate(frames, size, size)


def _interpolate(frames: Tensor, height: int, width: int) -> Tensor:
    """Frames (N, H, W, 3) uint8 → (N, height, width, 3) uint8, bilinear with antialiasing."""
    planes = frames.permute(0, 3, 1, 2)
    target = (height, width)
    if frames.device.type == "cpu":
        planes = F.interpolate(planes, size=target, mode="bilinear", antialias=True)
    else:
        # Only the CPU has a uint8 kernel.
        scaled = F.interpolate(planes.float(), size=target, mode="bilinear", antialias=True)
        planes = scaled.round().clamp(0, 255).to(torch.uint8)
    return planes.permute(0, 2, 3, 1).contiguous()
