"""The resize of camera frames to the model's image size, the same in training and in serving."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def resize(frames: Tensor, size: int) -> Tensor:
    """Square frames (N, H, H, 3) uint8 → (N, size, size, 3) uint8, bilinear with antialiasing.

    Frames of that size are returned unchanged. On a CPU, the result for a frame does not depend on
    the other frames of the batch.
    """
    if frames.shape[1] == size:
        return frames
    planes = frames.permute(0, 3, 1, 2)
    if frames.device.type == "cpu":
        planes = F.interpolate(planes, size=(size, size), mode="bilinear", antialias=True)
    else:
        # Only the CPU has a uint8 kernel.
        scaled = F.interpolate(planes.float(), size=(size, size), mode="bilinear", antialias=True)
        planes = scaled.round().clamp(0, 255).to(torch.uint8)
    return planes.permute(0, 2, 3, 1).contiguous()
