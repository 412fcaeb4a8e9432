"""Shortest ways in Two-Room: around the wall and through the door.

The wall without the door is two rectangles, which an agent's centre cannot enter. A shortest way
around them is straight from corner to corner. Agents move in steps of several pixels and may cut a
corner by a fraction of a step, so a way can be shorter by about a hundredth.
"""

from __future__ import annotations

import math
from functools import lru_cache
from itertools import pairwise

from lewm_models.environments.two_room import DOOR_BOTTOM, DOOR_TOP, WALL_LEFT, WALL_RIGHT

Point = tuple[float, float]

CORNERS: tuple[Point, ...] = tuple(
    (float(x), y) for x in (WALL_LEFT, WALL_RIGHT) for y in (DOOR_TOP, DOOR_BOTTOM)
)
"""The corners of the passage, where an agent's centre can be."""


def shortest_way(start: Point, goal: Point, *, radius: float = 0.0) -> float:
    """The pixels of the shortest way from a point to the disc of this radius around another one.

    The last part of a shortest way to a disc is perpendicular to it, or touches a corner. So it is
    enough to look at the start, the corners, and straight ways from these towards the centre.
    """
    lengths = {start: 0.0} | {corner: _to_corner(start, corner) for corner in CORNERS}
    return min(
        length + max(0.0, math.dist(point, goal) - radius)
        for point, length in lengths.items()
        if _is_free(point, _towards(point, goal, radius))
    )


def travelled(path: list[Point], goal: Point, *, radius: float) -> float:
    """The length of a path, of its last step only the part outside the disc around the goal."""
    lengths = [math.dist(a, b) for a, b in pairwise(path)]
    return sum(lengths[:-1]) + lengths[-1] * _entry(path[-2], path[-1], goal, radius)


def _to_corner(start: Point, corner: Point) -> float:
    """The shortest way to a corner, by a visibility graph; infinite if there is none."""
    lengths = {other: math.dist(start, other) for other in CORNERS if _is_free(start, other)}
    # A way visits each corner at most once, so as many rounds as corners find the shortest one.
    for _ in CORNERS:
        for a in [*lengths]:
            for b in CORNERS:
                if _is_free(a, b):
                    lengths[b] = min(lengths.get(b, math.inf), lengths[a] + math.dist(a, b))
    return lengths.get(corner, math.inf)


def _towards(point: Point, goal: Point, radius: float) -> Point:
    """The first point of the disc on the straight way to its centre."""
    distance = math.dist(point, goal)
    if distance <= radius:
        return point
    share = (distance - radius) / distance
    return point[0] + share * (goal[0] - point[0]), point[1] + share * (goal[1] - point[1])


@lru_cache(4096)
def _is_free(a: Point, b: Point) -> bool:
    """Whether the straight way from a to b stays out of the wall."""
    (x0, y0), (x1, y1) = a, b
    left, right = max(WALL_LEFT, min(x0, x1)), min(WALL_RIGHT, max(x0, x1))
    if x0 == x1:
        heights = [y0, y1] if WALL_LEFT < x0 < WALL_RIGHT else []
    elif left < right:
        heights = [y0 + (y1 - y0) * (x - x0) / (x1 - x0) for x in (left, right)]
    else:
        heights = []  # beside the wall
    tolerance = 1e-6
    return all(DOOR_TOP - tolerance <= y <= DOOR_BOTTOM + tolerance for y in heights)


def _entry(a: Point, b: Point, goal: Point, radius: float) -> float:
    """The share of the way from a, outside the disc, to b, inside, at which it enters the disc."""
    dx, dy, gx, gy = b[0] - a[0], b[1] - a[1], a[0] - goal[0], a[1] - goal[1]
    squared = dx * dx + dy * dy
    if squared == 0:
        return 0.0
    half = (dx * gx + dy * gy) / squared
    root = half * half - (gx * gx + gy * gy - radius * radius) / squared
    return min(1.0, max(0.0, -half - math.sqrt(max(0.0, root))))
