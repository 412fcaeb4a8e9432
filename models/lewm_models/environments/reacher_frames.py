"""Frames of Reacher: the arm from above, drawn without OpenGL.

A point is (x, y) in pixels, x to the right and y downwards; the shoulder is in the middle.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from lewm_models.environments.environment import FloatArray, Frame

FRAME_SIZE = 224
VIEW = 0.52
"""The side of the square that a frame shows, in metres. The stretched arm is 0.25 m long."""
PIXELS_PER_METRE = FRAME_SIZE / VIEW

UPPER_ARM = 0.12
"""The distance from the shoulder to the wrist, in metres."""
FOREARM = 0.12
"""The distance from the wrist to the middle of the finger."""
DRAWN_FOREARM = 0.1
"""The part of the forearm that is a rod."""
RADIUS = 0.01
"""The radius of both rods, of the finger and of the hub that marks the shoulder."""

GROUND = (34, 48, 66)
UPPER_ARM_COLOUR = (232, 168, 56)
FOREARM_COLOUR = (96, 200, 232)
FINGER_COLOUR = (240, 72, 72)
HUB_COLOUR = (240, 240, 240)

RENDER_CHUNK = 32
"""Frames whose pixels are computed together: more do not fit in a processor's cache."""

Points = NDArray[np.float32]


def render(angles: FloatArray) -> Frame:
    """Draw arms.

    Both rods have their own colour, and so does the finger, so a frame determines the angles, up to
    full turns of the shoulder. Edges are anti-aliased: a pixel shows the part of it that is
    covered, so that angles that differ by much less than a pixel give different frames.

    Args:
        angles: of the shoulder and the wrist, (N, 2) radians, counter-clockwise. With zeros the arm
            is stretched to the right.

    Returns:
        (N, 224, 224, 3) uint8 RGB, rows first.
    """
    frames = np.empty((len(angles), FRAME_SIZE, FRAME_SIZE, 3), np.uint8)
    frames[:] = GROUND
    for begin in range(0, len(angles), RENDER_CHUNK):
        chunk = slice(begin, begin + RENDER_CHUNK)
        _draw_arms(frames[chunk], np.asarray(angles[chunk], np.float64))
    return frames


def _draw_arms(frames: Frame, angles: NDArray[np.float64]) -> None:
    shoulder = np.full((len(angles), 2), FRAME_SIZE / 2 - 0.5, np.float32)
    upper, fore = _direction(angles[:, 0]), _direction(angles.sum(axis=1))
    wrist = shoulder + UPPER_ARM * upper
    finger = wrist + FOREARM * fore
    _draw_rods(frames, shoulder, wrist, colour=UPPER_ARM_COLOUR, length=UPPER_ARM)
    _draw_rods(
        frames, wrist, wrist + DRAWN_FOREARM * fore, colour=FOREARM_COLOUR, length=DRAWN_FOREARM
    )
    _draw_rods(frames, finger, finger, colour=FINGER_COLOUR, length=0.0)
    _draw_rods(frames, shoulder, shoulder, colour=HUB_COLOUR, length=0.0)


def _direction(angle: NDArray[np.float64]) -> Points:
    """The pixels (N, 2) of one metre in the direction of each angle (N,)."""
    metre = np.stack((np.cos(angle), -np.sin(angle)), axis=1) * PIXELS_PER_METRE
    return metre.astype(np.float32)


def _draw_rods(
    frames: Frame, begin: Points, end: Points, *, colour: tuple[int, int, int], length: float
) -> None:
    """Draw a rod with round ends into each frame (N, H, W, 3), in place.

    Args:
        frames: the frames.
        begin: the middle of one round end, (N, 2) pixels.
        end: that of the other.
        colour: RGB.
        length: the distance between both, in metres; 0 draws discs.
    """
    pixels, radius = np.float32(length * PIXELS_PER_METRE), np.float32(RADIUS * PIXELS_PER_METRE)
    side = math.ceil(pixels + 2 * radius) + 2  # of a window that holds every rod of this length
    corner = np.ceil((begin + end) / 2 - side / 2).astype(np.int64)
    in_window = corner[:, :, None] + np.arange(side) - begin[:, :, None]
    x, y = in_window[:, 0, None, :].astype(np.float32), in_window[:, 1, :, None].astype(np.float32)
    axis = (end - begin) / max(pixels, np.float32(1))
    axis_x, axis_y = axis[:, 0, None, None], axis[:, 1, None, None]
    along, across = x * axis_x + y * axis_y, y * axis_x - x * axis_y
    if length == 0:
        along, across = x, y
    along -= along.clip(0, pixels)  # beyond the ends
    distance = np.sqrt(along * along + across * across)
    opacity = (radius + np.float32(0.5) - distance).clip(0, 1)[..., None]
    for frame, (column, row), cover in zip(frames, corner.tolist(), opacity, strict=True):
        window = frame[row : row + side, column : column + side]
        window[:] = window + cover * (np.array(colour, np.float32) - window) + np.float32(0.5)
