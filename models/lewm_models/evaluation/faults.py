"""Camera faults that are applied to good frames; the same generator state gives the same result.

A fault takes frames (N, H, H, 3) uint8 and a generator, and returns frames of the same shape. Sizes
are in pixels of a 224 px frame, and are scaled to other frames. The numbers in the names of
`CAMERA_FAULTS` are standard deviations or differences in grey levels, factors, or pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

Fault = Callable[[Tensor, torch.Generator], Tensor]

REFERENCE_SIZE = 224
"""The frame size, in px, that the sizes of faults refer to."""

OCCLUSION_GREY = 128


def noise(frames: Tensor, generator: torch.Generator, *, std: float) -> Tensor:
    """Gaussian noise with this standard deviation, in grey levels, on each value."""
    return _to_uint8(frames.float() + std * torch.randn(frames.shape, generator=generator))


def pure_noise(frames: Tensor, generator: torch.Generator) -> Tensor:
    """Uniform noise instead of the frame."""
    return torch.randint(0, 256, frames.shape, generator=generator, dtype=torch.uint8)


def uniform(frames: Tensor, generator: torch.Generator, *, grey: int) -> Tensor:
    """One grey level everywhere: 0 as from a dead camera, 255 as from a blinded one."""
    return torch.full_like(frames, grey)


def brightness(frames: Tensor, generator: torch.Generator, *, levels: int) -> Tensor:
    """All values changed by this number of grey levels."""
    return _to_uint8(frames.float() + levels)


def exposure(frames: Tensor, generator: torch.Generator, *, factor: float) -> Tensor:
    """All values multiplied by a factor."""
    return _to_uint8(frames.float() * factor)


def tint(
    frames: Tensor, generator: torch.Generator, *, gains: tuple[float, float, float]
) -> Tensor:
    """Another white balance: red, green and blue multiplied by one factor each."""
    return _to_uint8(frames.float() * torch.tensor(gains))


def swapped_channels(frames: Tensor, generator: torch.Generator) -> Tensor:
    """Blue, green, red: a common error of camera drivers."""
    return frames.flip(-1)


def camera_shift(frames: Tensor, generator: torch.Generator, *, pixels: int) -> Tensor:
    """The picture moved in a random direction per frame; the edge is repeated."""
    count, size = len(frames), frames.shape[1]
    angle = 2 * torch.pi * torch.rand(count, generator=generator)
    offsets = (_scaled(pixels, size) * torch.stack([angle.sin(), angle.cos()])).round().long()
    coordinates = torch.arange(size)
    rows, columns = ((coordinates + offset[:, None]).clamp(0, size - 1) for offset in offsets)
    indices = torch.arange(count)[:, None, None]
    return frames[indices, rows[:, :, None], columns[:, None, :]]


def defocus(frames: Tensor, generator: torch.Generator, *, pixels: int) -> Tensor:
    """Every pixel replaced by the mean of the square that reaches this far to each side."""
    reach = max(1, round(_scaled(pixels, frames.shape[1])))
    planes = F.pad(frames.permute(0, 3, 1, 2).float(), (reach,) * 4, mode="replicate")
    return _to_uint8(F.avg_pool2d(planes, 2 * reach + 1, 1).permute(0, 2, 3, 1))


def occlusion(frames: Tensor, generator: torch.Generator, *, side: int) -> Tensor:
    """A grey square with this side at a random place in each frame."""
    size = frames.shape[1]
    extent = round(_scaled(side, size))
    corners = (torch.rand(len(frames), 2, generator=generator) * (size - extent)).long()
    occluded = frames.clone()
    for frame, (y, x) in zip(occluded, corners.tolist(), strict=True):
        frame[y : y + extent, x : x + extent] = OCCLUSION_GREY
    return occluded


def upside_down(frames: Tensor, generator: torch.Generator) -> Tensor:
    """The picture flipped vertically. In Two-Room this also moves the door."""
    return frames.flip(1)


CAMERA_FAULTS: Mapping[str, Fault] = {
    **{f"noise, deviation {std}": partial(noise, std=std) for std in (10, 20, 40, 80, 160)},
    "pure noise": pure_noise,
    "black": partial(uniform, grey=0),
    "white": partial(uniform, grey=255),
    **{
        f"brightness {levels:+d}": partial(brightness, levels=levels)
        for levels in (-40, -20, -10, 10, 20, 40)
    },
    **{f"exposure times {factor}": partial(exposure, factor=factor) for factor in (0.8, 0.95, 1.2)},
    "blue tint": partial(tint, gains=(0.9, 0.95, 1.0)),
    "red and blue swapped": swapped_channels,
    **{
        f"camera turned by {pixels} px": partial(camera_shift, pixels=pixels)
        for pixels in (1, 2, 4, 8)
    },
    **{f"out of focus by {pixels} px": partial(defocus, pixels=pixels) for pixels in (2, 4)},
    **{f"occlusion of {side} px": partial(occlusion, side=side) for side in (20, 40, 80)},
    "upside down": upside_down,
}
"""All faults by the names that reports use."""


def _to_uint8(values: Tensor) -> Tensor:
    return values.round().clamp(0, 255).to(torch.uint8)


def _scaled(length: int, size: int) -> float:
    """A length in pixels of a 224 px frame, in pixels of a frame of this size."""
    return length * size / REFERENCE_SIZE
