"""Draws Two-Room episodes with Pillow: a picture and an animation."""

from __future__ import annotations

import colorsys
from collections.abc import Callable, Sequence
from math import cos, pi, sin
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from lewm_models.environments import two_room
from lewm_models.environments.environment import FloatArray
from lewm_models.evaluation.episode import Outcome
from lewm_models.evaluation.protocol import Episodes
from lewm_serve.cli.animation import moments, save_animation

Color = tuple[int, int, int]
Point = Sequence[float] | FloatArray

PICTURE_SCALE = 4
"""Pixels of the picture per pixel of the environment."""

SMOOTHING_SCALE = 2
"""The picture is drawn this much larger and then reduced, because Pillow draws hard edges."""

DRAWING_SCALE = PICTURE_SCALE * SMOOTHING_SCALE

ROOMS_START = two_room.BORDER - two_room.BORDER_LINE
"""The picture shows the rooms up to the outer edge of their border lines."""
ROOMS_SIZE = two_room.IMAGE_SIZE - 2 * ROOMS_START
MARGIN, HEADER, FOOTER = 6, 20, 11
"""The space beside, above and below the rooms. All sizes here are pixels of the environment."""
PICTURE_WIDTH, PICTURE_HEIGHT = ROOMS_SIZE + 2 * MARGIN, HEADER + ROOMS_SIZE + FOOTER

INK: Color = (32, 36, 44)
GREY: Color = (120, 126, 136)
WALL: Color = (52, 58, 70)
FLOOR: Color = (255, 255, 255)
PAPER: Color = (242, 243, 246)
LINE_WIDTH = 0.8

ROBOT_RADIUS, START_RADIUS, BADGE_RADIUS = 3.6, 1.5, 2.9


def draw_episodes(
    episodes: Episodes,
    outcomes: Sequence[Outcome],
    *,
    title: str,
    caption: str,
    output: Path,
) -> tuple[Path, Path]:
    """Write an animation to ``output``, and its last frame beside it as a PNG.

    Each robot has a colour and a number. Time is counted in the steps of each robot.

    Returns:
        The paths of the animation and of the picture.
    """
    colors = [robot_color(outcome.index) for outcome in outcomes]
    goals = episodes.goals
    background = _background(title, outcomes, colors, goals)
    steps = max(outcome.steps for outcome in outcomes)
    frames = []
    for step in moments(steps):
        canvas = Canvas(background)
        _draw_robots(canvas, outcomes, colors, goals, step)
        reached = sum(outcome.reached and outcome.steps <= step for outcome in outcomes)
        bottom = ROOMS_START + ROOMS_SIZE + FOOTER / 2
        canvas.text(
            (ROOMS_START, bottom),
            f"step {step:>2}    {reached} of {len(outcomes)} at their goals",
            INK,
            5,
        )
        canvas.text((ROOMS_START + ROOMS_SIZE, bottom), caption, GREY, 4.5, "rm")
        frames.append(canvas.finished())
    picture = output.with_suffix(".png")
    output.parent.mkdir(parents=True, exist_ok=True)
    frames[-1].save(picture, optimize=True)
    save_animation(frames, output)
    return output, picture


def robot_color(index: int) -> Color:
    """A colour for each robot: hues one golden angle apart, in three levels of lightness."""
    hue = (0.02 + index * 0.381966) % 1
    lightness = (0.40, 0.50, 0.32)[index % 3]
    red, green, blue = colorsys.hls_to_rgb(hue, lightness, 0.75)
    return round(255 * red), round(255 * green), round(255 * blue)


def _background(
    title: str, outcomes: Sequence[Outcome], colors: Sequence[Color], goals: FloatArray
) -> Image.Image:
    """Everything that does not move: rooms, legend and goals."""
    canvas = Canvas()
    canvas.text((ROOMS_START, ROOMS_START - HEADER + 6), title, INK, 6.5)
    _draw_legend(canvas, ROOMS_START, ROOMS_START - 5.5)
    _draw_rooms(canvas)
    for outcome, color in zip(outcomes, colors, strict=True):
        canvas.circle(goals[outcome.index], two_room.GOAL_RADIUS, color, color, alpha=20, width=0.5)
    return canvas.image


def _draw_rooms(canvas: Canvas) -> None:
    near, far = ROOMS_START - 0.5, ROOMS_START + ROOMS_SIZE - 0.5
    inner_near, inner_far = near + two_room.BORDER_LINE, far - two_room.BORDER_LINE
    canvas.box(near, near, far, far, WALL)
    canvas.box(inner_near, inner_near, inner_far, inner_far, FLOOR)
    left = two_room.WALL_X - two_room.WALL_HALF_WIDTH - 0.5
    right = two_room.WALL_X + two_room.WALL_HALF_WIDTH + 0.5
    canvas.box(left, near, right, far, WALL)
    top = two_room.DOOR_Y - two_room.DOOR_HALF_HEIGHT - 0.5
    canvas.box(left, top, right, two_room.DOOR_Y + two_room.DOOR_HALF_HEIGHT + 0.5, FLOOR)


def _draw_legend(canvas: Canvas, x: float, y: float) -> None:
    color = robot_color(1)

    def path(x: float) -> None:
        canvas.line([(x - 2, y + 1.2), (x, y - 1), (x + 2, y + 0.8)], color)

    entries: Sequence[tuple[str, Callable[[float], None]]] = (
        ("start", lambda x: _draw_start(canvas, (x, y), color)),
        ("path", path),
        ("robot", lambda x: canvas.circle((x, y), 2.5, color)),
        ("goal, 16 px", lambda x: canvas.circle((x, y), 2.7, color, color, alpha=40, width=0.5)),
        ("reached", lambda x: _draw_badge(canvas, (x, y), color, True)),
        ("missed", lambda x: _draw_badge(canvas, (x, y), color, False)),
    )
    for text, draw_symbol in entries:
        draw_symbol(x + 3)
        x += 7.5
        x += canvas.text((x, y), text, GREY, 4.5) + 6


def _draw_robots(
    canvas: Canvas,
    outcomes: Sequence[Outcome],
    colors: Sequence[Color],
    goals: FloatArray,
    step: int,
) -> None:
    """Draw paths, goal numbers, robots and results; later ones cover earlier ones."""
    drawn = list(zip(outcomes, colors, strict=True))
    for outcome, color in drawn:
        path = outcome.states[: step + 1]
        if len(path) > 1:
            canvas.line(list(path), color)
        _draw_start(canvas, path[0], color)
    for outcome, color in drawn:
        canvas.text(goals[outcome.index], str(outcome.index + 1), color, 5, "mm")
    for outcome, color in drawn:
        here = outcome.states[min(step, outcome.steps)]
        canvas.circle(here, ROBOT_RADIUS, color, FLOOR, width=0.4)
        canvas.text(here, str(outcome.index + 1), FLOOR, 3.6, "mm")
    for outcome, color in drawn:
        if step >= outcome.steps:
            x, y = goals[outcome.index]
            reach = two_room.GOAL_RADIUS
            rim = (x + reach * cos(pi / 4), y - reach * sin(pi / 4))
            if outcome.reached:
                canvas.circle(goals[outcome.index], reach, None, color, width=1.0)
            _draw_badge(canvas, rim, color, outcome.reached)


def _draw_start(canvas: Canvas, at: Point, color: Color) -> None:
    canvas.circle(at, START_RADIUS, FLOOR, color, width=0.6)


def _draw_badge(canvas: Canvas, at: Point, color: Color, reached: bool) -> None:
    """Draw a tick for a reached goal, a cross for a missed one."""
    x, y = at
    canvas.circle(at, BADGE_RADIUS, color if reached else GREY, FLOOR, width=0.4)
    if reached:
        canvas.line([(x - 1.3, y + 0.1), (x - 0.3, y + 1.1), (x + 1.4, y - 1.1)], FLOOR, 0.6)
    else:
        canvas.line([(x - 1, y - 1), (x + 1, y + 1)], FLOOR, 0.6)
        canvas.line([(x - 1, y + 1), (x + 1, y - 1)], FLOOR, 0.6)


class Canvas:
    """An image on which one draws in pixels of the environment: x to the right, y downwards."""

    def __init__(self, image: Image.Image | None = None) -> None:
        size = (PICTURE_WIDTH * DRAWING_SCALE, PICTURE_HEIGHT * DRAWING_SCALE)
        self.image = Image.new("RGB", size, PAPER) if image is None else image.copy()
        self._draw = ImageDraw.Draw(self.image, "RGBA")

    def box(self, left: float, top: float, right: float, bottom: float, fill: Color) -> None:
        """Fill a rectangle without its right and bottom edges."""
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
        width: float = LINE_WIDTH,
    ) -> None:
        """Draw a disc with this opacity (0 to 255), a ring, or both."""
        inside = None if fill is None else (*fill, alpha)
        x, y = self._at(centre)
        thickness = round(width * DRAWING_SCALE) if outline else 0
        self._draw.circle((x, y), radius * DRAWING_SCALE, inside, outline, thickness)

    def line(self, points: Sequence[Point], color: Color, width: float = LINE_WIDTH) -> None:
        """Draw a line through the points."""
        at = [self._at(point) for point in points]
        self._draw.line(at, color, round(width * DRAWING_SCALE), joint="curve")

    def text(self, at: Point, text: str, color: Color, size: float, anchor: str = "lm") -> float:
        """Write text and return its width. The anchor is one of Pillow's."""
        font = ImageFont.load_default(size * DRAWING_SCALE)
        self._draw.text(self._at(at), text, color, font, anchor)
        return font.getlength(text) / DRAWING_SCALE

    def finished(self) -> Image.Image:
        """The image at its final size."""
        return self.image.resize(
            (PICTURE_WIDTH * PICTURE_SCALE, PICTURE_HEIGHT * PICTURE_SCALE),
            Image.Resampling.LANCZOS,
        )

    def _at(self, point: Point) -> tuple[float, float]:
        # A pixel of the environment is a square around its centre, (x, y).
        x, y = (float(value) + 0.5 for value in point)
        return (x - ROOMS_START + MARGIN) * DRAWING_SCALE, (
            y - ROOMS_START + HEADER
        ) * DRAWING_SCALE
