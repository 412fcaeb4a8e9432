"""Pictures for the documentation: the faults themselves, and what each score makes of them."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw, ImageFont

from benchmarks.latent_health.faults import faulty_frames
from lewm_models.environments import two_room

SMOOTH = 3
"""Drawn this much larger, then scaled down, since Pillow draws hard edges."""
INK, GREY, LIGHT, PAPER = (32, 36, 44), (120, 126, 136), (222, 225, 230), (255, 255, 255)
COLORS = {"norm": (217, 119, 6), "mahalanobis": (37, 99, 235), "surprise": (13, 148, 110)}
NAMES = {"norm": "norm, |z|", "mahalanobis": "Mahalanobis distance", "surprise": "surprise"}
ALARM = (190, 30, 45)

ROW, LABEL, PANEL, GAP, TOP, BOTTOM = 19, 220, 190, 18, 44, 26
LOW, HIGH = 0.05, 100.0
"""Ends of the axis of scores, in units of the limit."""

THUMBNAIL, COLUMNS = 112, 7


class Page:
    """A white page that is drawn on in points, (x, y) to the right and downwards."""

    def __init__(self, width: int, height: int) -> None:
        self._size = width, height
        self.image = Image.new("RGB", (width * SMOOTH, height * SMOOTH), PAPER)
        self._draw = ImageDraw.Draw(self.image)

    def box(
        self, left: float, top: float, right: float, bottom: float, fill: tuple[int, int, int]
    ) -> None:
        """Fill a rectangle."""
        self._draw.rectangle([SMOOTH * edge for edge in (left, top, right, bottom)], fill)

    def line(
        self, x0: float, y0: float, x1: float, y1: float, color: tuple[int, int, int], width: float
    ) -> None:
        """Draw a line."""
        ends = [SMOOTH * place for place in (x0, y0, x1, y1)]
        self._draw.line(ends, color, max(1, round(SMOOTH * width)))

    def dot(self, x: float, y: float, radius: float, color: tuple[int, int, int]) -> None:
        """Draw a disc."""
        self._draw.circle((SMOOTH * x, SMOOTH * y), SMOOTH * radius, color)

    def text(
        self,
        x: float,
        y: float,
        text: str,
        color: tuple[int, int, int] = INK,
        size: float = 11,
        anchor: str = "lm",
    ) -> None:
        """Write; the anchor is Pillow's."""
        font = ImageFont.load_default(SMOOTH * size)
        self._draw.text((SMOOTH * x, SMOOTH * y), text, color, font, anchor)

    def save(self, path: Path) -> None:
        """Write a PNG."""
        small = self.image.resize(self._size, Image.Resampling.LANCZOS)
        small.quantize(256, dither=Image.Dither.NONE).save(path, optimize=True)


def draw(figures: dict[str, Any], folder: Path) -> None:
    """Write `faults.png`, `detection.png` and `scores.png`."""
    folder.mkdir(parents=True, exist_ok=True)
    draw_faults(folder / "faults.png")
    draw_detection(figures["faults"], folder / "detection.png")
    draw_scores(figures["faults"], folder / "scores.png")


def draw_faults(path: Path) -> None:
    """One frame under each fault, with its name."""
    position = torch.tensor([[62.0, 140.0]])
    generator = torch.Generator().manual_seed(3)
    shown = [("no fault", two_room.render(position)), *faulty_frames(position, generator)]
    rows = math.ceil(len(shown) / COLUMNS)
    width, height = THUMBNAIL + 10, THUMBNAIL + 22
    page = Page(COLUMNS * width + 10, rows * height + 10)
    for index, (name, frames) in enumerate(shown):
        row, column = divmod(index, COLUMNS)
        x, y = 10 + column * width, 8 + row * height
        side = THUMBNAIL * SMOOTH
        thumbnail = Image.fromarray(frames[0].numpy()).resize((side, side))
        page.box(x - 0.5, y - 0.5, x + THUMBNAIL + 0.5, y + THUMBNAIL + 0.5, GREY)
        page.image.paste(thumbnail, (x * SMOOTH, y * SMOOTH))
        page.text(x, y + THUMBNAIL + 9, name.split(" (")[0], size=8.5)
    page.save(path)


def draw_detection(faults: list[dict[str, Any]], path: Path) -> None:
    """For each fault the share that was detected, and by which score."""
    width = 420
    page = Page(LABEL + width + 70, TOP + ROW * len(faults) + BOTTOM)
    x = LABEL + 120.0
    page.text(LABEL, 14, "detected")
    page.box(LABEL + 58, 10, LABEL + 90, 18, LIGHT)
    for kind, name in NAMES.items():
        page.dot(x, 14, 3.6, COLORS[kind])
        page.text(x + 8, 14, name)
        x += 20 + 6.2 * len(name)
    bottom = TOP + ROW * len(faults)
    for share in (0, 25, 50, 75, 100):
        at = LABEL + width * share / 100
        page.line(at, TOP - 4, at, bottom, LIGHT, 0.8)
        page.text(at, bottom + 11, f"{share} %", GREY, 10, "mm")
    for row, fault in enumerate(faults):
        y = TOP + ROW * (row + 0.5)
        page.text(LABEL - 8, y, fault["name"], anchor="rm", size=10.5)
        rates = fault["rates"]
        page.box(LABEL, y - 8, LABEL + width * rates["all"], y + 8, LIGHT)
        # One below the other, or equal shares would hide each other.
        for place, (kind, color) in enumerate(COLORS.items()):
            page.dot(LABEL + width * rates[kind], y + 4.5 * (place - 1), 2.6, color)
        page.text(LABEL + width + 12, y, f"{100 * rates['all']:.1f} %", size=10.5)
    page.save(path)


def draw_scores(faults: list[dict[str, Any]], path: Path) -> None:
    """For each fault the scores of the newest frame: 5 % to 95 %, the median, and the limit."""
    page = Page(LABEL + 3 * PANEL + 3 * GAP, TOP + ROW * len(faults) + BOTTOM)
    bottom = TOP + ROW * len(faults)
    for panel, (kind, color) in enumerate(COLORS.items()):
        left = LABEL + panel * (PANEL + GAP)
        page.text(left + PANEL / 2, 14, f"{NAMES[kind]}, in limits", anchor="mm")
        for tick in (0.1, 1.0, 10.0, 100.0):
            at = _along(left, tick)
            page.line(at, TOP - 4, at, bottom, ALARM if tick == 1 else LIGHT, 1.0)
            page.text(at, bottom + 11, f"{tick:g}", ALARM if tick == 1 else GREY, 10, "mm")
        for row, fault in enumerate(faults):
            y = TOP + ROW * (row + 0.5)
            low, median, high = (_along(left, ratio) for ratio in fault["ratios"][kind])
            page.line(low, y, max(high, low + 1), y, color, 3)
            page.dot(median, y, 3.4, color)
    for row, fault in enumerate(faults):
        page.text(LABEL - 8, TOP + ROW * (row + 0.5), fault["name"], anchor="rm", size=10.5)
    page.save(path)


def _along(left: float, ratio: float) -> float:
    share = math.log(min(max(ratio, LOW), HIGH) / LOW) / math.log(HIGH / LOW)
    return left + PANEL * share
