"""Two-Room episodes as a person sees them: a still picture and an animation, made with Pillow."""

from __future__ import annotations

import colorsys
from collections.abc import Callable, Sequence
from math import cos, pi, sin
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lewm_models.environments import two_room
from lewm_models.evaluation.episode import Outcome
from lewm_models.evaluation.protocol import Episodes
from lewm_serve.cli.canvas import (
    FLOOR,
    FOOTER,
    GREY,
    HEADER,
    INK,
    ROOMS,
    VIEW,
    WALL,
    Canvas,
    Color,
    Point,
)

DOT, START, BADGE = 3.6, 1.5, 2.9
"""Radii, in pixels of the environment."""
FRAME_MS, LAST_MS = 140, 4000
PALETTE = 255


def draw_episodes(
    episodes: Episodes, outcomes: Sequence[Outcome], title: str, caption: str, output: Path
) -> tuple[Path, Path]:
    """Write an animation to ``output`` and its last frame beside it, as a PNG.

    Each robot has a colour and a number; time is counted in a robot's own steps.

    Returns:
        The animation and the picture.
    """
    colors = [robot_color(outcome.index) for outcome in outcomes]
    goals = episodes.goals.numpy()
    ground = _ground(title, outcomes, colors, goals)
    steps = max(outcome.steps for outcome in outcomes)
    frames = []
    for step in range(steps + 1):
        canvas = Canvas(ground)
        _robots(canvas, outcomes, colors, goals, step)
        reached = sum(outcome.reached and outcome.steps <= step for outcome in outcomes)
        bottom = VIEW + ROOMS + FOOTER / 2
        canvas.text(
            (VIEW, bottom), f"step {step:>2}    {reached} of {len(outcomes)} at their goals", INK, 5
        )
        canvas.text((VIEW + ROOMS, bottom), caption, GREY, 4.5, "rm")
        frames.append(canvas.finished())
    picture = output.with_suffix(".png")
    output.parent.mkdir(parents=True, exist_ok=True)
    frames[-1].save(picture, optimize=True)
    _save_animation(frames, output)
    return output, picture


def robot_color(index: int) -> Color:
    """A colour for each robot: hues a golden angle apart, in three depths."""
    hue = (0.02 + index * 0.381966) % 1
    lightness = (0.40, 0.50, 0.32)[index % 3]
    red, green, blue = colorsys.hls_to_rgb(hue, lightness, 0.75)
    return round(255 * red), round(255 * green), round(255 * blue)


def _ground(
    title: str, outcomes: Sequence[Outcome], colors: Sequence[Color], goals: NDArray[np.float32]
) -> Image.Image:
    """All that does not move: rooms, legend, starts and goals."""
    canvas = Canvas()
    canvas.text((VIEW, VIEW - HEADER + 6), title, INK, 6.5)
    _legend(canvas, VIEW, VIEW - 5.5)
    _rooms(canvas)
    for outcome, color in zip(outcomes, colors, strict=True):
        canvas.circle(goals[outcome.index], two_room.GOAL_RADIUS, color, color, alpha=20, width=0.5)
    return canvas.image


def _rooms(canvas: Canvas) -> None:
    near, far = VIEW - 0.5, VIEW + ROOMS - 0.5
    inner_near, inner_far = near + two_room.BORDER_LINE, far - two_room.BORDER_LINE
    canvas.box(near, near, far, far, WALL)
    canvas.box(inner_near, inner_near, inner_far, inner_far, FLOOR)
    left = two_room.WALL_X - two_room.WALL_HALF_WIDTH - 0.5
    right = two_room.WALL_X + two_room.WALL_HALF_WIDTH + 0.5
    canvas.box(left, near, right, far, WALL)
    top = two_room.DOOR_Y - two_room.DOOR_HALF_HEIGHT - 0.5
    canvas.box(left, top, right, two_room.DOOR_Y + two_room.DOOR_HALF_HEIGHT + 0.5, FLOOR)


def _legend(canvas: Canvas, x: float, y: float) -> None:
    color = robot_color(1)

    def path(x: float) -> None:
        canvas.line([(x - 2, y + 1.2), (x, y - 1), (x + 2, y + 0.8)], color)

    entries: Sequence[tuple[str, Callable[[float], None]]] = (
        ("start", lambda x: _start(canvas, (x, y), color)),
        ("path", path),
        ("robot", lambda x: canvas.circle((x, y), 2.5, color)),
        ("goal, 16 px", lambda x: canvas.circle((x, y), 2.7, color, color, alpha=40, width=0.5)),
        ("reached", lambda x: _badge(canvas, (x, y), color, True)),
        ("missed", lambda x: _badge(canvas, (x, y), color, False)),
    )
    for text, sign in entries:
        sign(x + 3)
        x += 7.5
        x += canvas.text((x, y), text, GREY, 4.5) + 6


def _robots(
    canvas: Canvas,
    outcomes: Sequence[Outcome],
    colors: Sequence[Color],
    goals: NDArray[np.float32],
    step: int,
) -> None:
    """Paths, goals' numbers, robots, verdicts: in this order, so what matters is not hidden."""
    drawn = list(zip(outcomes, colors, strict=True))
    for outcome, color in drawn:
        path = outcome.path[: step + 1]
        if len(path) > 1:
            canvas.line(list(path), color)
        _start(canvas, path[0], color)
    for outcome, color in drawn:
        canvas.text(goals[outcome.index], str(outcome.index + 1), color, 5, "mm")
    for outcome, color in drawn:
        here = outcome.path[min(step, outcome.steps)]
        canvas.circle(here, DOT, color, FLOOR, width=0.4)
        canvas.text(here, str(outcome.index + 1), FLOOR, 3.6, "mm")
    for outcome, color in drawn:
        if step >= outcome.steps:
            x, y = goals[outcome.index]
            reach = two_room.GOAL_RADIUS
            rim = (x + reach * cos(pi / 4), y - reach * sin(pi / 4))
            if outcome.reached:
                canvas.circle(goals[outcome.index], reach, None, color, width=1.0)
            _badge(canvas, rim, color, outcome.reached)


def _start(canvas: Canvas, at: Point, color: Color) -> None:
    canvas.circle(at, START, FLOOR, color, width=0.6)


def _badge(canvas: Canvas, at: Point, color: Color, reached: bool) -> None:
    """A tick for a goal that was reached, a cross for one that was not."""
    x, y = at
    canvas.circle(at, BADGE, color if reached else GREY, FLOOR, width=0.4)
    if reached:
        canvas.line([(x - 1.3, y + 0.1), (x - 0.3, y + 1.1), (x + 1.4, y - 1.1)], FLOOR, 0.6)
    else:
        canvas.line([(x - 1, y - 1), (x + 1, y + 1)], FLOOR, 0.6)
        canvas.line([(x - 1, y + 1), (x + 1, y - 1)], FLOOR, 0.6)


def _save_animation(frames: Sequence[Image.Image], path: Path) -> None:
    # One palette for all frames, without dithering: still parts stay still, and the file small.
    palette = frames[-1].quantize(PALETTE)
    first, *rest = (frame.quantize(palette=palette, dither=Image.Dither.NONE) for frame in frames)
    durations = [FRAME_MS] * len(rest) + [LAST_MS]
    first.save(path, save_all=True, append_images=rest, duration=durations, loop=0, optimize=False)
