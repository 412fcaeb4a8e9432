"""Writing animations with Pillow."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from PIL import Image

FRAME_MS, LAST_FRAME_MS = 140, 4000
MAX_FRAMES = 75
PALETTE_COLORS = 255
PALETTE_FRAMES = 5


def moments(last: int) -> list[int]:
    """The steps to draw, 0 to ``last``, at most `MAX_FRAMES` and evenly spaced."""
    stride = -(-(last + 1) // MAX_FRAMES)
    return [*range(0, last, stride), last]


def save_animation(frames: Sequence[Image.Image], path: Path) -> None:
    """Write a GIF that repeats, and shows its last frame for longer.

    One palette for all frames, without dithering: still parts do not flicker, the file is small.
    """
    width, height = frames[0].size
    chosen = [frames[len(frames) * part // PALETTE_FRAMES] for part in range(PALETTE_FRAMES)]
    montage = Image.new("RGB", (width, height * (PALETTE_FRAMES + 1)))
    for row, frame in enumerate([*chosen, frames[-1]]):
        montage.paste(frame, (0, row * height))
    palette = montage.quantize(PALETTE_COLORS)
    first, *rest = (frame.quantize(palette=palette, dither=Image.Dither.NONE) for frame in frames)
    durations = [FRAME_MS] * len(rest) + [LAST_FRAME_MS]
    first.save(path, save_all=True, append_images=rest, duration=durations, loop=0, optimize=False)
