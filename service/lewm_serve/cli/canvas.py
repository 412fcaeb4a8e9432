"""What Two-Room is drawn on: an image with the environment's coordinates, larger and smooth."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from lewm_models.environments import two_room

Color = tuple[int, int, int]
Point = Sequence[float] | NDArray[np.float32]

SCALE = 4
"""Pixels of the picture for one of the environment."""
SMOOTH = 2
"""Drawn this much larger, then scaled down, since Pillow draws hard edges."""
UNIT = SCALE * SMOOTH

VIEW = two_room.BORDER - two_room.BORDER_LINE
"""The rooms are shown up to the outer edge of their border lines."""
ROOMS = two_room.IMAGE_SIZE - 2 * VIEW
MARGIN, HEADER, FOOTER = 6, 20, 11
"""Beside, above and below the rooms, in pixels of the environment, as all sizes here."""
WIDTH, HEIGHT = ROOMS + 2 * MARGIN, HEADER + ROOMS + FOOTER

INK: Color = (32, 36, 44)
GREY: Color = (120, 126, 136)
WALL: Color = (52, 58, 70)
FLOOR: Color = (255, 255, 255)
PAPER: Color = (242, 243, 246)
LINE = 0.8


class Canvas:
    """An image that is drawn on in the environment's pixels, (x, y) to the right and downwards."""

    def __init__(self, image: Image.Image | None = None) -> None:
        size = (WIDTH * UNIT, HEIGHT * UNIT)
        self.image = Image.new("RGB", size, PAPER) if image is None else image.copy()
        self._draw = ImageDraw.Draw(self.image, "RGBA")

    def box(self, left: float, top: float, right: float, bottom: float, fill: Color) -> None:
        """Fill a rectangle up to, but without, its right and bottom edges."""
        (x0, y0), (x1, y1) = self._at((left, top)), self._at((right, bottom))
        self._draw.rectangle((x0, y0, x1 - 1, y1 - 1), fill=fill)

    def circle(
        self,
        centre: Point,
        radius: float,
        fill: Color | None = None,
        outline: Color | None = None,
        *,
        alpha: int = 255,
        width: float = LINE,
    ) -> None:
        """Draw a disc of this opacity, a ring, or both."""
        inside = None if fill is None else (*fill, alpha)
        x, y = self._at(centre)
        thickness = round(width * UNIT) if outline else 0
        self._draw.circle((x, y), radius * UNIT, inside, outline, thickness)

    def line(self, points: Sequence[Point], color: Color, width: float = LINE) -> None:
        """Join the points."""
        at = [self._at(point) for point in points]
        self._draw.line(at, color, round(width * UNIT), joint="curve")

    def text(self, at: Point, text: str, color: Color, size: float, anchor: str = "lm") -> float:
        """Write; the anchor is Pillow's. Gives the width."""
        font = ImageFont.load_default(size * UNIT)
        self._draw.text(self._at(at), text, color, font, anchor)
        return font.getlength(text) / UNIT

    def finished(self) -> Image.Image:
        """The image at its final size."""
        return self.image.resize((WIDTH * SCALE, HEIGHT * SCALE), Image.Resampling.LANCZOS)

    def _at(self, point: Point) -> tuple[float, float]:
        # A pixel of the environment is a square around its centre, (x, y).
        x, y = (float(value) + 0.5 for value in point)
        return (x - VIEW + MARGIN) * UNIT, (y - VIEW + HEADER) * UNIT
