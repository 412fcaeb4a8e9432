"""Pictures for `docs/latent-health.md`: the faulty frames, and how each score reacts to them."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw, ImageFont

from benchmarks.latent_health.faults import faulty_frames
from lewm_models.environments import two_room

Color = tuple[int, int, int]

OVERSAMPLING = 3
"""Pages are drawn this much larger and scaled down, because Pillow draws hard edges."""

INK, GREY, LIGHT, PAPER = (32, 36, 44), (120, 126, 136), (222, 225, 230), (255, 255, 255)
LIMIT_COLOR = (190, 30, 45)
SCORE_COLORS = {"norm": (217, 119, 6), "mahalanobis": (37, 99, 235), "surprise": (13, 148, 110)}
SCORE_NAMES = {"norm": "norm, |z|", "mahalanobis": "Mahalanobis distance", "surprise": "surprise"}

# All lengths are in points.
ROW_HEIGHT, LABEL_WIDTH, TOP, BOTTOM = 19, 220, 44, 26
BAR_WIDTH = 420
PANEL_WIDTH, PANEL_GAP = 190, 18
THUMBNAIL_SIZE, THUMBNAIL_COLUMNS = 112, 7

MIN_RATIO, MAX_RATIO = 0.05, 100.0
"""The ends of the axis of scores, as multiples of the limit."""


class Page:
    """A white page. Coordinates are (x, y) in points, to the right and downwards."""

    def __init__(self, width: int, height: int) -> None:
        self._size = width, height
        self.image = Image.new("RGB", (width * OVERSAMPLING, height * OVERSAMPLING), PAPER)
        self._draw = ImageDraw.Draw(self.image)

    def box(self, left: float, top: float, right: float, bottom: float, *, fill: Color) -> None:
        """Fill a rectangle."""
        edges = [OVERSAMPLING * edge for edge in (left, top, right, bottom)]
        self._draw.rectangle(edges, fill)

    def line(
        self, x0: float, y0: float, x1: float, y1: float, *, color: Color, width: float
    ) -> None:
        """Draw a line."""
        ends = [OVERSAMPLING * end for end in (x0, y0, x1, y1)]
        self._draw.line(ends, color, max(1, round(OVERSAMPLING * width)))

    def dot(self, x: float, y: float, *, radius: float, color: Color) -> None:
        """Draw a disc."""
        centre = (OVERSAMPLING * x, OVERSAMPLING * y)
        self._draw.circle(centre, OVERSAMPLING * radius, color)

    def text(
        self,
        x: float,
        y: float,
        text: str,
        *,
        color: Color = INK,
        size: float = 11,
        anchor: str = "lm",
    ) -> None:
        """Write text. ``anchor`` is one of Pillow's text anchors."""
        font = ImageFont.load_default(OVERSAMPLING * size)
        self._draw.text((OVERSAMPLING * x, OVERSAMPLING * y), text, color, font, anchor)

    def save(self, path: Path) -> None:
        """Write a PNG."""
        small = self.image.resize(self._size, Image.Resampling.LANCZOS)
        small.quantize(256, dither=Image.Dither.NONE).save(path, optimize=True)


def draw(results: dict[str, Any], folder: Path) -> None:
    """Write `faults.png`, `detection.png` and `scores.png`."""
    folder.mkdir(parents=True, exist_ok=True)
    draw_faults(folder / "faults.png")
    draw_detection(results["faults"], folder / "detection.png")
    draw_scores(results["faults"], folder / "scores.png")


def draw_faults(path: Path) -> None:
    """One frame under each fault, with the name of the fault."""
    position = torch.tensor([[62.0, 140.0]])
    generator = torch.Generator().manual_seed(3)
    named_frames = [("no fault", two_room.render(position)), *faulty_frames(position, generator)]
    rows = math.ceil(len(named_frames) / THUMBNAIL_COLUMNS)
    width, height = THUMBNAIL_SIZE + 10, THUMBNAIL_SIZE + 22
    page = Page(THUMBNAIL_COLUMNS * width + 10, rows * height + 10)
    for index, (name, frames) in enumerate(named_frames):
        row, column = divmod(index, THUMBNAIL_COLUMNS)
        x, y = 10 + column * width, 8 + row * height
        side = THUMBNAIL_SIZE * OVERSAMPLING
        thumbnail = Image.fromarray(frames[0].numpy()).resize((side, side))
        right, bottom = x + THUMBNAIL_SIZE + 0.5, y + THUMBNAIL_SIZE + 0.5
        page.box(x - 0.5, y - 0.5, right, bottom, fill=GREY)
        page.image.paste(thumbnail, (x * OVERSAMPLING, y * OVERSAMPLING))
        page.text(x, y + THUMBNAIL_SIZE + 9, name.split(" (")[0], size=8.5)
    page.save(path)


def draw_detection(faults: list[dict[str, Any]], path: Path) -> None:
    """For each fault the share of detected requests, in total and by score."""
    bottom = TOP + ROW_HEIGHT * len(faults)
    page = Page(LABEL_WIDTH + BAR_WIDTH + 70, bottom + BOTTOM)
    page.text(LABEL_WIDTH, 14, "detected")
    page.box(LABEL_WIDTH + 58, 10, LABEL_WIDTH + 90, 18, fill=LIGHT)
    x = LABEL_WIDTH + 120.0
    for kind, name in SCORE_NAMES.items():
        page.dot(x, 14, radius=3.6, color=SCORE_COLORS[kind])
        page.text(x + 8, 14, name)
        x += 20 + 6.2 * len(name)
    for percent in (0, 25, 50, 75, 100):
        x = LABEL_WIDTH + BAR_WIDTH * percent / 100
        page.line(x, TOP - 4, x, bottom, color=LIGHT, width=0.8)
        page.text(x, bottom + 11, f"{percent} %", color=GREY, size=10, anchor="mm")
    for row, fault in enumerate(faults):
        y = TOP + ROW_HEIGHT * (row + 0.5)
        rates = fault["rates"]
        _label(page, y, fault["name"])
        page.box(LABEL_WIDTH, y - 8, LABEL_WIDTH + BAR_WIDTH * rates["all"], y + 8, fill=LIGHT)
        # One below the other, because equal shares would hide each other.
        for place, (kind, color) in enumerate(SCORE_COLORS.items()):
            x = LABEL_WIDTH + BAR_WIDTH * rates[kind]
            page.dot(x, y + 4.5 * (place - 1), radius=2.6, color=color)
        page.text(LABEL_WIDTH + BAR_WIDTH + 12, y, f"{100 * rates['all']:.1f} %", size=10.5)
    page.save(path)


def draw_scores(faults: list[dict[str, Any]], path: Path) -> None:
    """For each fault the scores of the newest frame: 5 % to 95 %, the median, and the limit."""
    bottom = TOP + ROW_HEIGHT * len(faults)
    page = Page(LABEL_WIDTH + 3 * PANEL_WIDTH + 3 * PANEL_GAP, bottom + BOTTOM)
    for panel, (kind, color) in enumerate(SCORE_COLORS.items()):
        left = LABEL_WIDTH + panel * (PANEL_WIDTH + PANEL_GAP)
        page.text(left + PANEL_WIDTH / 2, 14, f"{SCORE_NAMES[kind]}, in limits", anchor="mm")
        for tick in (0.1, 1.0, 10.0, 100.0):
            x = _ratio_x(left, tick)
            is_limit = tick == 1
            page.line(x, TOP - 4, x, bottom, color=LIMIT_COLOR if is_limit else LIGHT, width=1.0)
            tick_color = LIMIT_COLOR if is_limit else GREY
            page.text(x, bottom + 11, f"{tick:g}", color=tick_color, size=10, anchor="mm")
        for row, fault in enumerate(faults):
            y = TOP + ROW_HEIGHT * (row + 0.5)
            low, median, high = (_ratio_x(left, ratio) for ratio in fault["ratios"][kind])
            page.line(low, y, max(high, low + 1), y, color=color, width=3)
            page.dot(median, y, radius=3.4, color=color)
    for row, fault in enumerate(faults):
        _label(page, TOP + ROW_HEIGHT * (row + 0.5), fault["name"])
    page.save(path)


def _label(page: Page, y: float, name: str) -> None:
    page.text(LABEL_WIDTH - 8, y, name, anchor="rm", size=10.5)


def _ratio_x(left: float, ratio: float) -> float:
    """Where a ratio lies on the logarithmic axis of a panel."""
    clipped = min(max(ratio, MIN_RATIO), MAX_RATIO)
    return left + PANEL_WIDTH * math.log(clipped / MIN_RATIO) / math.log(MAX_RATIO / MIN_RATIO)
