"""Frames as the model sees them: one resize, shared by training and serving."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def resize(frames: Tensor, size: int) -> Tensor:
    """Square frames (N, H, H, 3) uint8 → (N, size, size, 3) uint8, bilinear and antialiased.

    Frames that have the size already pass unchanged. On a CPU, torch's own uint8 kernel is used,
    whose result for a frame does not depend on its neighbours in the batch.
    """
    if frames.shape[1] == size:
        return frames
    planes = frames.permute(0, 3, 1, 2)
    if frames.device.type != "cpu":
        scaled = F.interpolate(planes.float(), size=(size, size), mode="bilinear", antialias=True)
        planes = scaled.round().clamp(0, 255).to(torch.uint8)
    else:
        planes = F.interpolate(planes, size=(size, size), mode="bilinear", antialias=True)
    return planes.permute(0, 2, 3, 1).contiguous()
