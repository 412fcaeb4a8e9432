"""Frames that show a number, so that a test sees which frame it got, even from a lossy video."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

HEIGHT, WIDTH = 64, 96
BITS = 12
BLOCK = 16
"""A frame has BITS blocks in rows of six, of BLOCK × BLOCK pixels. A one is bright, a zero dark."""

DARK, BRIGHT = (40, 60, 80), (220, 180, 200)


def paint(number: int) -> NDArray[np.uint8]:
    """A frame (H, W, 3) that shows a number."""
    frame = np.full((HEIGHT, WIDTH, 3), 128, dtype=np.uint8)
    for bit in range(BITS):
        frame[_block(bit)] = BRIGHT if number >> bit & 1 else DARK
    return frame


def number_of(frame: NDArray[np.uint8]) -> int:
    """The number that a frame shows. The colours must be those that were painted."""
    number = 0
    for bit in range(BITS):
        colour = frame[_block(bit)].reshape(-1, 3).mean(axis=0)
        is_one = colour[0] > 128
        np.testing.assert_allclose(colour, BRIGHT if is_one else DARK, atol=16)
        number |= int(is_one) << bit
    return number


def numbers_of(frames: NDArray[np.uint8]) -> list[int]:
    assert frames.dtype == np.uint8
    return [number_of(frame) for frame in frames]


def _block(bit: int) -> tuple[slice, slice]:
    row, column = divmod(bit, WIDTH // BLOCK)
    return (
        slice(row * BLOCK, (row + 1) * BLOCK),
        slice(column * BLOCK, (column + 1) * BLOCK),
    )
