"""What goes wrong with cameras, done to good frames: the same frames, generator and fault, the same
result.

A fault takes frames (N, H, H, 3) uint8 and a generator and gives as many; sizes are in pixels of
224. Severities are what a name says: the deviation of the noise, grey levels, pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

Fault = Callable[[Tensor, torch.Generator], Tensor]

REFERENCE_SIZE = 224


def noise(frames: Tensor, generator: torch.Generator, *, std: float) -> Tensor:
    """Gaussian noise of a deviation in grey levels, on each value by itself."""
    return _pixels(frames.float() + std * torch.randn(frames.shape, generator=generator))


def pure_noise(frames: Tensor, generator: torch.Generator) -> Tensor:
    """Nothing but noise: every value uniform."""
    return torch.randint(0, 256, frames.shape, generator=generator, dtype=torch.uint8)


def uniform(frames: Tensor, generator: torch.Generator, *, grey: int) -> Tensor:
    """One grey everywhere: 0 is a dead camera, 255 a blinded one."""
    return torch.full_like(frames, grey)


def brightness(frames: Tensor, generator: torch.Generator, *, by: int) -> Tensor:
    """So many grey levels brighter, or darker."""
    return _pixels(frames.float() + by)


def exposure(frames: Tensor, generator: torch.Generator, *, times: float) -> Tensor:
    """All values times a factor."""
    return _pixels(frames.float() * times)


def tint(
    frames: Tensor, generator: torch.Generator, *, gains: tuple[float, float, float]
) -> Tensor:
    """Another white balance: red, green and blue times a factor each."""
    return _pixels(frames.float() * torch.tensor(gains))


def swapped_channels(frames: Tensor, generator: torch.Generator) -> Tensor:
    """Blue, green, red: the mistake that every camera driver makes once."""
    return frames.flip(-1)


def camera_shift(frames: Tensor, generator: torch.Generator, *, by: int) -> Tensor:
    """The camera turned aside, each time another way; the edge is repeated."""
    count, size = len(frames), frames.shape[1]
    angle = 2 * torch.pi * torch.rand(count, generator=generator)
    offsets = (_scaled(by, size) * torch.stack([angle.sin(), angle.cos()])).round().long()
    places = torch.arange(size)
    rows, columns = ((places + offset[:, None]).clamp(0, size - 1) for offset in offsets)
    each = torch.arange(count)[:, None, None]
    return frames[each, rows[:, :, None], columns[:, None, :]]


def defocus(frames: Tensor, generator: torch.Generator, *, by: int) -> Tensor:
    """Every pixel the mean of a square around it, so many pixels to each side."""
    reach = max(1, round(_scaled(by, frames.shape[1])))
    planes = F.pad(frames.permute(0, 3, 1, 2).float(), (reach,) * 4, mode="replicate")
    return _pixels(F.avg_pool2d(planes, 2 * reach + 1, 1).permute(0, 2, 3, 1))


def occlusion(frames: Tensor, generator: torch.Generator, *, side: int) -> Tensor:
    """A grey square of that side somewhere in front of the lens."""
    size = frames.shape[1]
    extent = round(_scaled(side, size))
    corners = (torch.rand(len(frames), 2, generator=generator) * (size - extent)).long()
    occluded = frames.clone()
    for frame, (y, x) in zip(occluded, corners.tolist(), strict=True):
        frame[y : y + extent, x : x + extent] = 128
    return occluded


def upside_down(frames: Tensor, generator: torch.Generator) -> Tensor:
    """The camera mounted the wrong way round; in Two-Room also another room, its door elsewhere."""
    return frames.flip(1)


CAMERA_FAULTS: Mapping[str, Fault] = {
    **{f"noise, deviation {std}": partial(noise, std=std) for std in (10, 20, 40, 80, 160)},
    "pure noise": pure_noise,
    "black": partial(uniform, grey=0),
    "white": partial(uniform, grey=255),
    **{f"brightness {by:+d}": partial(brightness, by=by) for by in (-40, -20, -10, 10, 20, 40)},
    **{f"exposure times {times}": partial(exposure, times=times) for times in (0.8, 0.95, 1.2)},
    "blue tint": partial(tint, gains=(0.9, 0.95, 1.0)),
    "red and blue swapped": swapped_channels,
    **{f"camera turned by {by} px": partial(camera_shift, by=by) for by in (1, 2, 4, 8)},
    **{f"out of focus by {by} px": partial(defocus, by=by) for by in (2, 4)},
    **{f"occlusion of {side} px": partial(occlusion, side=side) for side in (20, 40, 80)},
    "upside down": upside_down,
}


def _pixels(values: Tensor) -> Tensor:
    return values.round().clamp(0, 255).to(torch.uint8)


def _scaled(length: int, size: int) -> float:
    return length * size / REFERENCE_SIZE
