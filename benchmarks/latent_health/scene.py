"""A frame of another environment: a T to be pushed onto its mark, as Push-T shows it."""

from __future__ import annotations

from math import cos, pi, sin

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

SIZE = 224
BAR, STEM, THICK = 28, 42, 14
T_SHAPE = (
    (-BAR, 0),
    (BAR, 0),
    (BAR, THICK),
    (THICK / 2, THICK),
    (THICK / 2, THICK + STEM),
    (-THICK / 2, THICK + STEM),
    (-THICK / 2, THICK),
    (-BAR, THICK),
)


def push_t_frames(count: int, generator: torch.Generator) -> Tensor:
    """Frames (N, 224, 224, 3) uint8, the T and the pusher anywhere; drawn here after the public
    environment's looks, which is not installed."""
    frames = []
    for draws in torch.rand(count, 5, generator=generator).tolist():
        image = Image.new("RGB", (SIZE, SIZE), (255, 255, 255))
        draw = ImageDraw.Draw(image)
        draw.polygon(_placed(112, 100, pi / 4), fill=(144, 238, 144))
        draw.polygon(
            _placed(50 + 124 * draws[0], 50 + 124 * draws[1], 2 * pi * draws[2]),
            fill=(119, 136, 153),
        )
        draw.circle((20 + 184 * draws[3], 20 + 184 * draws[4]), 7, fill=(65, 105, 225))
        frames.append(np.array(image))
    return torch.from_numpy(np.stack(frames))


def _placed(x: float, y: float, angle: float) -> list[tuple[float, float]]:
    c, s = cos(angle), sin(angle)
    return [(x + c * u - s * v, y + s * u + c * v) for u, v in T_SHAPE]
