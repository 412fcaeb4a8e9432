"""Two-Room by geometry alone: to the door, through it, to the goal; no frame, no model."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from lewm_models.environments.two_room import (
    DOOR_Y,
    IMAGE_SIZE,
    REACH_MAX,
    REACH_MIN,
    SPEED,
    WALL_LEFT,
    WALL_RIGHT,
    WALL_X,
)

FloatArray = NDArray[np.float32]
Point = tuple[float, float]

ALIGNED = 10.0
"""Pixels from the door's middle in y within which an agent passes it, in any direction."""

CLEAR = 1.0
"""Pixels that waypoints before and behind the door keep from where the wall stops an agent."""


class WaypointController:
    """A fallback controller; see `lewm_serve.fallbacks.controller.Controller`.

    The state is where the agent and its goal are, in pixels. Each row is a full step towards the
    next waypoint, or less where that is nearer; having arrived, the agent stands still.
    """

    state = ("agent x", "agent y", "goal x", "goal y")

    def actions(self, state: FloatArray, rows: int) -> FloatArray:
        """Actions (rows, 2) from a state (4,); ValueError for a point outside the image."""
        x, y, goal_x, goal_y = map(float, state)
        if not all(0 <= value <= IMAGE_SIZE - 1 for value in (x, y, goal_x, goal_y)):
            raise ValueError(f"pixels within [0, {IMAGE_SIZE - 1}]")
        position, goal = (x, y), (_reachable(goal_x), _reachable(goal_y))
        actions = np.zeros((rows, 2), np.float32)
        for row in actions:
            aim = waypoint(position, goal)
            dx, dy = aim[0] - position[0], aim[1] - position[1]
            scale = 1 / max(SPEED, math.hypot(dx, dy))
            row[:] = dx * scale, dy * scale
            position = (position[0] + SPEED * scale * dx, position[1] + SPEED * scale * dy)
        return actions


def waypoint(position: Point, goal: Point) -> Point:
    """Where to head next: the goal within its own room, else the door's far or near side."""
    x, y = position
    before, behind = WALL_LEFT - CLEAR, WALL_RIGHT + CLEAR
    if goal[0] < WALL_X:
        before, behind = behind, before
    passed = x <= WALL_LEFT if goal[0] < WALL_X else x >= WALL_RIGHT
    if passed:
        return goal
    return (behind, DOOR_Y) if abs(y - DOOR_Y) <= ALIGNED else (before, DOOR_Y)


def _reachable(value: float) -> float:
    """A goal's coordinate, where an agent can stand."""
    return min(max(value, REACH_MIN), REACH_MAX)
