"""A fallback controller for Two-Room that uses positions only, no frames and no model."""

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

DOOR_ALIGNMENT = 10.0
"""The distance in y from the door's centre, in pixels, within which an agent can pass the door."""

WALL_CLEARANCE = 1.0
"""The distance of the waypoints beside the door from where the wall stops an agent, in pixels."""


class WaypointController:
    """Moves an agent to its goal, through the door if necessary.

    The state is the agent's position and its goal, in pixels. Each action is a full step towards
    the next waypoint, or a shorter one to a waypoint that is nearer. At its goal the agent rests.
    The interface is that of all fallback controllers, see `docs/models.md`.
    """

    state = ("agent x", "agent y", "goal x", "goal y")

    def actions(self, state: FloatArray, rows: int) -> FloatArray:
        """Actions (rows, 2) from a state (4,).

        Raises:
            ValueError: a point outside the image.
        """
        x, y, goal_x, goal_y = map(float, state)
        if not all(0 <= value <= IMAGE_SIZE - 1 for value in (x, y, goal_x, goal_y)):
            raise ValueError(f"pixels within [0, {IMAGE_SIZE - 1}]")
        position, goal = (x, y), (_reachable(goal_x), _reachable(goal_y))
        actions = np.zeros((rows, 2), np.float32)
        for action in actions:
            waypoint = next_waypoint(position, goal)
            dx, dy = waypoint[0] - position[0], waypoint[1] - position[1]
            scale = 1 / max(SPEED, math.hypot(dx, dy))
            action[:] = dx * scale, dy * scale
            position = (position[0] + SPEED * scale * dx, position[1] + SPEED * scale * dy)
        return actions


def next_waypoint(position: Point, goal: Point) -> Point:
    """The point to head for: the goal within its room, else a point before or behind the door."""
    x, y = position
    goal_is_left = goal[0] < WALL_X
    if (x <= WALL_LEFT) if goal_is_left else (x >= WALL_RIGHT):
        return goal
    left, right = WALL_LEFT - WALL_CLEARANCE, WALL_RIGHT + WALL_CLEARANCE
    before, behind = (right, left) if goal_is_left else (left, right)
    return (behind if abs(y - DOOR_Y) <= DOOR_ALIGNMENT else before, DOOR_Y)


def _reachable(coordinate: float) -> float:
    """The coordinate of a goal, moved to where an agent can be."""
    return min(max(coordinate, REACH_MIN), REACH_MAX)
