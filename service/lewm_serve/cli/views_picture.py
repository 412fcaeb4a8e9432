"""Draws what robots see: the camera, the goal, and what the model imagines."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from lewm_serve.cli.animation import moments, save_animation
from lewm_serve.cli.imagination import WatchedRobot

Color = tuple[int, int, int]
Box = tuple[int, int, int, int]

INK: Color = (32, 36, 44)
GREY: Color = (120, 126, 136)
LINE: Color = (206, 210, 217)
PAPER: Color = (242, 243, 246)
CARD: Color = (255, 255, 255)
NOW: Color = (44, 110, 203)
REACHED: Color = (38, 140, 82)
MISSED: Color = (176, 72, 60)

COLUMNS = 2
TILE, GAP, PADDING, MARGIN = 150, 8, 10, 14
CARD_WIDTH = 2 * PADDING + 2 * TILE + GAP
HEADER, FOOTER, LABEL = 34, 26, 20
TITLE_SIZE, TEXT_SIZE, LABEL_SIZE = 17, 13, 11
BORDER, FRAME_BORDER = 3, 1

STILL_SHARE = 0.4
"""The picture beside the animation shows the robots after this share of the longest way."""


def draw_views(
    robots: Sequence[WatchedRobot], *, title: str, caption: str, output: Path
) -> tuple[Path, Path]:
    """Write an animation to ``output``, and a frame of it beside it as a PNG.

    Each robot has a card: its camera, its goal, and below them a strip with what the model imagines
    for the plan that is being executed. A bar is under the action block of the moment.

    Returns:
        The paths of the animation and of the picture.
    """
    longest = max(robot.steps for robot in robots)
    frames = [_draw(robots, step, title, caption) for step in moments(longest)]
    picture = output.with_suffix(".png")
    output.parent.mkdir(parents=True, exist_ok=True)
    frames[round(STILL_SHARE * (len(frames) - 1))].save(picture, optimize=True)
    save_animation(frames, output)
    return output, picture


def _draw(robots: Sequence[WatchedRobot], step: int, title: str, caption: str) -> Image.Image:
    """All robots at a step."""
    columns = min(COLUMNS, len(robots))
    rows = -(-len(robots) // columns)
    heights = [_card_height(robot) for robot in robots]
    card_height = max(heights)
    width = 2 * MARGIN + columns * CARD_WIDTH + (columns - 1) * GAP
    top = MARGIN + HEADER
    image = Image.new("RGB", (width, top + rows * (card_height + GAP) + FOOTER), PAPER)
    draw = ImageDraw.Draw(image)
    _text(draw, (MARGIN, MARGIN + HEADER // 2 - 4), title, INK, TITLE_SIZE)
    for number, robot in enumerate(robots):
        row, column = divmod(number, columns)
        left = MARGIN + column * (CARD_WIDTH + GAP)
        box = (left, top + row * (card_height + GAP))
        _draw_card(image, robot, step, box, card_height)
    reached = sum(robot.reached and robot.steps <= step for robot in robots)
    bottom = image.height - MARGIN - 4
    _text(
        draw,
        (MARGIN, bottom),
        f"step {step}    {reached} of {len(robots)} at their goals",
        INK,
        TEXT_SIZE,
    )
    _text(draw, (width - MARGIN, bottom), caption, GREY, TEXT_SIZE, "rm")
    return image


def _draw_card(
    image: Image.Image, robot: WatchedRobot, step: int, corner: tuple[int, int], height: int
) -> None:
    draw = ImageDraw.Draw(image)
    left, top = corner
    draw.rectangle((left, top, left + CARD_WIDTH - 1, top + height - 1), CARD, LINE)
    x, y = left + PADDING, top + PADDING
    has_ended = step >= robot.steps
    state, color = "camera", GREY
    if has_ended:
        state, color = ("goal reached", REACHED) if robot.reached else ("goal missed", MISSED)
    for offset, label, frame, border, label_color in (
        (0, state, robot.camera[min(step, robot.steps)], color if has_ended else LINE, color),
        (TILE + GAP, "goal", robot.goal, LINE, GREY),
    ):
        _text(draw, (x + offset, y + LABEL // 2 - 2), label, label_color, LABEL_SIZE)
        width = FRAME_BORDER if border == LINE else BORDER
        _paste(image, frame, (x + offset, y + LABEL, TILE, TILE), border, width)
    _draw_strip(image, robot, min(step, max(0, robot.steps - 1)), (x, y + LABEL + TILE + GAP))


def _draw_strip(
    image: Image.Image, robot: WatchedRobot, step: int, corner: tuple[int, int]
) -> None:
    """What the model imagines for the plan that is executed at this step."""
    if not robot.imagined:
        return
    draw = ImageDraw.Draw(image)
    x, y = corner
    plan = int(np.searchsorted(robot.plan_starts, step, side="right")) - 1
    imagined = robot.imagined[min(plan, len(robot.imagined) - 1)]
    block = (step - robot.plan_starts[plan]) // robot.action_block
    size = _thumb_size(len(imagined))
    text = f"plan {plan + 1}: what the model imagines"
    _text(draw, (x, y + LABEL // 2 - 2), text, GREY, LABEL_SIZE)
    for number, frame in enumerate(imagined):
        left = x + number * (size + GAP)
        is_now = number == block
        _paste(
            image,
            frame,
            (left, y + LABEL, size, size),
            NOW if is_now else LINE,
            BORDER - 1 if is_now else FRAME_BORDER,
        )
        ahead = f"+{(number + 1) * robot.action_block}"
        place = (left + size // 2, y + LABEL + size + LABEL // 2)
        _text(draw, place, ahead, NOW if is_now else GREY, LABEL_SIZE, "mm")


def _thumb_size(count: int) -> int:
    return min(TILE, (2 * TILE + GAP - (count - 1) * GAP) // count)


def _card_height(robot: WatchedRobot) -> int:
    strip = GAP + 2 * LABEL + _thumb_size(len(robot.imagined[0])) if robot.imagined else 0
    return 2 * PADDING + LABEL + TILE + strip


def _paste(
    image: Image.Image, frame: NDArray[np.uint8], box: Box, border: Color, width: int
) -> None:
    """Draw a frame in a box (left, top, width, height), with a border outside of it."""
    left, top, box_width, box_height = box
    picture = Image.fromarray(frame)
    is_smaller = picture.width < box_width
    smoothing = Image.Resampling.BICUBIC if is_smaller else Image.Resampling.LANCZOS
    image.paste(picture.resize((box_width, box_height), smoothing), (left, top))
    ImageDraw.Draw(image).rectangle(
        (left - width, top - width, left + box_width - 1 + width, top + box_height - 1 + width),
        outline=border,
        width=width,
    )


def _text(
    draw: ImageDraw.ImageDraw,
    at: tuple[int, int],
    text: str,
    color: Color,
    size: int,
    anchor: str = "lm",
) -> None:
    draw.text(at, text, color, ImageFont.load_default(size), anchor)
