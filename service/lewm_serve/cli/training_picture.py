"""`training.png`: how the reports of a training run change, drawn with Pillow."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from lewm_models.training.trainer import TrainingMetrics

Color = tuple[int, int, int]
Curves = Sequence[tuple[str, Color, Sequence[float]]]

INK, GREY, LIGHT, PAPER = (32, 36, 44), (120, 126, 136), (222, 225, 230), (255, 255, 255)
BLUE, ORANGE = (37, 99, 235), (217, 119, 6)

OVERSAMPLING = 2
"""The picture is drawn this much larger and scaled down, because Pillow draws hard edges."""

PANEL_WIDTH, PANEL_HEIGHT, COLUMNS = 360, 170, 2
LEFT, TOP, RIGHT, BOTTOM = 56, 34, 16, 26
"""The margins of a panel around its curves, in pixels."""


def draw_training(reports: Sequence[TrainingMetrics], output: Path) -> None:
    """Write a picture with a panel for each measure. The file is replaced as a whole.

    Raises:
        OSError: the file cannot be written.
    """
    steps = [report.step for report in reports]
    panels: list[tuple[str, Curves]] = [
        (
            "prediction error",
            [
                ("training", BLUE, [report.prediction for report in reports]),
                ("held out", ORANGE, [report.held_out_prediction for report in reports]),
            ],
        ),
        (
            "SIGReg",
            [
                ("training", BLUE, [report.sigreg for report in reports]),
                ("held out", ORANGE, [report.held_out_sigreg for report in reports]),
            ],
        ),
        (
            "prediction error relative to copying",
            [("held out", ORANGE, [report.prediction_to_copy for report in reports])],
        ),
        (
            "cost range of random candidates (1: collapse)",
            [("held out", ORANGE, [report.cost_range for report in reports])],
        ),
        (
            "effective rank of the latents",
            [("held out", ORANGE, [report.effective_rank for report in reports])],
        ),
        (
            "deviation of the latents",
            [("held out", ORANGE, [report.latent_std for report in reports])],
        ),
    ]
    rows = math.ceil(len(panels) / COLUMNS)
    size = (COLUMNS * PANEL_WIDTH, rows * PANEL_HEIGHT)
    image = Image.new("RGB", (size[0] * OVERSAMPLING, size[1] * OVERSAMPLING), PAPER)
    draw = ImageDraw.Draw(image)
    for number, (title, curves) in enumerate(panels):
        row, column = divmod(number, COLUMNS)
        _draw_panel(draw, column * PANEL_WIDTH, row * PANEL_HEIGHT, title, steps, curves)
    part = output.with_suffix(".part")
    image.resize(size, Image.Resampling.LANCZOS).save(part, "PNG")
    part.replace(output)


def _draw_panel(
    draw: ImageDraw.ImageDraw,
    left: float,
    top: float,
    title: str,
    steps: Sequence[int],
    curves: Curves,
) -> None:
    """Draw curves over steps, with a logarithmic axis where the values need one."""
    x0, x1 = left + LEFT, left + PANEL_WIDTH - RIGHT
    y0, y1 = top + PANEL_HEIGHT - BOTTOM, top + TOP
    values = [value for _, _, curve in curves for value in curve if math.isfinite(value)]
    low, high = min(values, default=0.0), max(values, default=1.0)
    is_logarithmic = low > 0 and high > 10 * low
    scale = math.log if is_logarithmic else float
    start, end = scale(low), scale(high)
    if end - start < 1e-9 * max(1.0, abs(end)):
        start, end = start - 0.5, end + 0.5
    first, last = min(steps, default=0), max(steps, default=1)

    def place(step: int, value: float) -> tuple[float, float]:
        share = (step - first) / max(1, last - first)
        height = (scale(value) - start) / (end - start)
        return (
            OVERSAMPLING * (x0 + share * (x1 - x0)),
            OVERSAMPLING * (y0 + height * (y1 - y0)),
        )

    _text(draw, x0, top + 8, title, INK, anchor="la")
    for y, value in ((y0, low), (y1, high)):
        draw.line([OVERSAMPLING * end for end in (x0, y, x1, y)], LIGHT, OVERSAMPLING)
        _text(draw, x0 - 6, y, f"{value:.3g}", GREY, anchor="rm")
    _text(draw, x0, y0 + 5, f"step {first:,}", GREY, anchor="la")
    _text(draw, x1, y0 + 5, f"{last:,}", GREY, anchor="ra")
    for number, (label, color, curve) in enumerate(curves):
        points = [
            place(step, value)
            for step, value in zip(steps, curve, strict=True)
            if math.isfinite(value)
        ]
        draw.line(points, color, 2 * OVERSAMPLING, joint="curve")
        for point in points[-1:]:
            draw.circle(point, 2.5 * OVERSAMPLING, color)
        if len(curves) > 1:
            _text(draw, x1 - 64 * number, top + 20, label, color, anchor="ra")


def _text(
    draw: ImageDraw.ImageDraw, x: float, y: float, text: str, color: Color, *, anchor: str
) -> None:
    font = ImageFont.load_default(11 * OVERSAMPLING)
    draw.text((OVERSAMPLING * x, OVERSAMPLING * y), text, color, font, anchor=anchor)
