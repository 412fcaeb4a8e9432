"""An expert for Push-T that knows the state: it goes around the block and pushes it to its goal.

The block stops as soon as nothing pushes it, and contacts have no friction. So while the agent
follows one point of the block's edge along the edge's normal, the block turns around a point that
is fixed to it, and its pose after a push of any length is known in closed form. The expert compares
pushes at points all around the block, of several lengths, and makes the one that brings the block
nearer to its goal most quickly, the way to its first point included.

Names that end in `_b` are points and directions in the block's axes; all others are on the table.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lewm_models.environments.environment import FloatArray
from lewm_models.environments.push_t import (
    ACTION_REACH,
    AGENT_RADIUS,
    BLOCK_UNIT,
    CENTER_OF_GRAVITY,
    POSITION_GAIN,
    SUBSTEP_SECONDS,
    SUBSTEPS,
    TABLE_SIZE,
    VELOCITY_GAIN,
    angle_between,
    block_distance,
)

Array = NDArray[np.float64]
RingIndex = int | tuple[slice, None]

CLEARANCE = 9.0
"""The gap between agent and block on the way around the block, in pixels."""
FREE_GAP = 4.0
"""A straight way is free if it leaves this gap."""
BLOCK_WALL_GAP = 32.0
"""The least distance of a pushed block from the table's edge. The agent gets through there."""
AGENT_WALL_GAP = 0.0
"""The least distance of the agent's middle from the table's edge, on its ways."""
LANE_HALF_WIDTH, LANE_END = 6.0, 8.0
"""The agent can push from a point of the ring if it is not farther beside the straight way to the
block, and not farther before its begin or behind its end, in pixels."""
FAR = 1e4
"""The pixels that a way gets longer at a point that the agent cannot go to."""

PUSH_LENGTHS = np.array((3.0, 6.0, 10.0, 16.0, 24.0, 36.0, 50.0, 70.0))
STEPS_BETWEEN_CHOICES = 6
BLOCK_TOLERANCE, BLOCK_ANGLE_TOLERANCE = 9.0, math.pi / 20
"""The block is placed if it is nearer to its goal than these."""

_UNIT = BLOCK_UNIT
_CENTER_B = np.array((0.0, CENTER_OF_GRAVITY))
_MOMENT = ((4 * _UNIT) ** 2 + _UNIT**2) / 6 + _UNIT**2 / 2
"""The block's moment of inertia for a mass of 1, as the simulation has it."""
_RADIUS_OF_GYRATION = math.sqrt(_MOMENT)
"""The pixels that a radian counts in the distance of two poses of the block."""
_CORNERS_B = np.array(
    [(x, y) for x in (-2 * _UNIT, 2 * _UNIT) for y in (0.0, _UNIT)]
    + [(x, 4 * _UNIT) for x in (-_UNIT / 2, _UNIT / 2)]
)


def _outline(distance: float, spacing: float) -> tuple[Array, Array]:
    """Points (N, 2) around the block at this distance from it, and the normals out of it there."""
    bar, stem = 2 * _UNIT + distance, _UNIT / 2 + distance
    top, middle, bottom = -distance, _UNIT + distance, 4 * _UNIT + distance
    right = [(bar, top), (bar, middle), (stem, middle), (stem, bottom)]
    corners = np.array(right + [(-x, y) for x, y in reversed(right)])
    points, normals = [], []
    for begin, end in zip(corners, np.roll(corners, -1, axis=0), strict=True):
        along = end - begin
        length = float(np.hypot(*along))
        count = math.ceil(length / spacing)
        points.append(begin + along * (np.arange(count)[:, None] + 0.5) / count)
        normals.append(np.tile((along[1] / length, -along[0] / length), (count, 1)))
    return np.concatenate(points), np.concatenate(normals)


_RING_B, _OUTWARD_B = _outline(AGENT_RADIUS + CLEARANCE, spacing=12.0)
"""The points of the agent's way around the block, (R, 2); a push begins at one of them."""
_RING_STEPS = np.hypot(*(np.roll(_RING_B, -1, axis=0) - _RING_B).T)
"""The length of the way from each point to the next, (R,)."""
_TOUCHING_B = _RING_B - CLEARANCE * _OUTWARD_B
"""The agent's middle where it touches the block, on the straight way from each point, (R, 2)."""
_TOUCHED_B = _TOUCHING_B - AGENT_RADIUS * _OUTWARD_B
_WAY_SHARES = np.linspace(0.1, 1.0, 12)[:, None]
"""Where a straight way is looked at, as shares of its length."""
_MEETS_FACE = np.abs(block_distance(_TOUCHED_B)) < 1e-9
"""Whether a straight way from a point to the block meets one of its faces, (R,)."""


def _rotated(points: FloatArray, angle: FloatArray | float) -> Array:
    """Points (..., 2), turned by angles (...)."""
    sin, cos = np.sin(angle), np.cos(angle)
    x, y = points[..., 0], points[..., 1]
    return np.stack((cos * x - sin * y, sin * x + cos * y), axis=-1)


_ARM_B = _TOUCHED_B - _CENTER_B
_TORQUE = _ARM_B[:, 1] * _OUTWARD_B[:, 0] - _ARM_B[:, 0] * _OUTWARD_B[:, 1]
"""The torque of a unit impulse against a face at each point of the ring, (R,)."""
_MOTION_RATE = 1 / (1 + _TORQUE**2 / _MOMENT)
"""The motion of the centre of gravity for each pixel of a push, (R,).

An impulse along the normal n at r from the centre of gravity moves the block by n and turns it by
(r x n) / moment, in proportion. The touched point moves along n as far as the agent does.
"""
_TURN_RATE = _MOTION_RATE * _TORQUE / _MOMENT


def _push_effect(ring: RingIndex, length: Array) -> tuple[Array, Array]:
    """How pushes of a length from points of the ring move the block.

    Returns:
        The motion of the centre of gravity, (..., 2) in the block's axes before the push, and the
        turn (...).
    """
    turn = _TURN_RATE[ring] * length
    # The centre of gravity goes along an arc: the chord is shorter, and turned by half the angle.
    chord = _MOTION_RATE[ring] * length * np.sinc(turn / (2 * math.pi))
    return -chord[..., None] * _rotated(_OUTWARD_B[ring], turn / 2), turn


def _motion_of_step() -> tuple[float, float]:
    """The pixels that the agent moves in a step, for an action of 1 and for a velocity of 1."""
    moved = []
    for target, velocity in ((ACTION_REACH, 0.0), (0.0, 1.0)):
        x = 0.0
        for _ in range(SUBSTEPS):
            velocity += (POSITION_GAIN * (target - x) - VELOCITY_GAIN * velocity) * SUBSTEP_SECONDS
            x += velocity * SUBSTEP_SECONDS
        moved.append(x)
    return moved[0], moved[1]


_PIXELS_OF_ACTION, _PIXELS_OF_VELOCITY = _motion_of_step()


class _Block:
    """The pose of a block: the way between its axes and the table's."""

    def __init__(self, center: Array, angle: float) -> None:
        self.center = center
        self.angle = angle

    @classmethod
    def of(cls, state: FloatArray) -> _Block:
        angle = float(state[4])
        return cls(np.asarray(state[2:4], np.float64) + _rotated(_CENTER_B, angle), angle)

    def to_table(self, points_b: Array) -> Array:
        return self.center + _rotated(points_b - _CENTER_B, self.angle)

    def to_block(self, points: Array) -> Array:
        return _CENTER_B + _rotated(points - self.center, -self.angle)

    def after_push(self, ring: int, length: float) -> _Block:
        motion_b, turn = _push_effect(ring, np.array(length))
        return _Block(self.center + _rotated(motion_b, self.angle), self.angle + float(turn))


@dataclass
class _Push:
    """A push in progress: from which point of the ring, and the pixels that remain."""

    ring: int
    remaining: float


class PushTExpert:
    """Brings the block, then the agent, to where a goal state has them.

    Args:
        push_speed: pixels a step, while it pushes.
        travel_speed: pixels a step on its ways, at most about 38.
    """

    def __init__(self, push_speed: float = 10.0, travel_speed: float = 25.0) -> None:
        self.push_speed = push_speed
        self.travel_speed = travel_speed
        self._push: _Push | None = None
        self._steps_to_choice = 0

    def restart(self) -> None:
        """Forget the push in progress, since the goal has changed."""
        self._push = None

    def action(self, state: FloatArray, goal_state: FloatArray) -> Array:
        """The next action, (2,) in [-1, 1], given two states (10,)."""
        block, agent = _Block.of(state), np.asarray(state[:2], np.float64)
        agent_b = block.to_block(agent)
        if block_is_placed(state, goal_state):
            self._push = None
            goal_b = block.to_block(np.asarray(goal_state[:2], np.float64))
            aim_b, speed = _Ways(agent_b, block).towards(goal_b), self.travel_speed
        else:
            aim_b, speed = self._push_on(agent_b, block, _Block.of(goal_state))
        return _action(block.to_table(aim_b) - agent, np.asarray(state[5:7], np.float64), speed)

    def _push_on(self, agent_b: Array, block: _Block, goal: _Block) -> tuple[Array, float]:
        """Where the agent shall go next in order to push the block, and how fast."""
        ways = _Ways(agent_b, block)
        self._steps_to_choice -= 1
        push = self._push
        if push is None or push.remaining <= 0 or self._steps_to_choice <= 0:
            push = self._push = self._choose(ways, block, goal)
            self._steps_to_choice = STEPS_BETWEEN_CHOICES
        if not ways.in_lane[push.ring]:
            return ways.towards(_ring_point(push.ring)), self.travel_speed
        gap = float(ways.gaps[push.ring])
        advance = min(self.push_speed - gap, push.remaining)
        touching_b: Array = _TOUCHING_B[push.ring]
        if advance <= 0:
            return touching_b, self.push_speed
        push.remaining -= advance
        # The agent follows the touched point, which moves with the block.
        aim = block.after_push(push.ring, advance).to_table(touching_b)
        return block.to_block(aim), 2 * self.push_speed

    def _choose(self, ways: _Ways, block: _Block, goal: _Block) -> _Push:
        """The push that gains most in a step."""
        motions_b, turns = _push_effect(np.s_[:, None], PUSH_LENGTHS)
        centers = block.center + _rotated(motions_b, block.angle)
        angles = block.angle + turns
        now = _pose_distance(block.center, block.angle, goal)
        gain = now - _pose_distance(centers, angles, goal)
        corners = centers[:, :, None] + _rotated(_CORNERS_B - _CENTER_B, angles[..., None])
        gain -= 3 * _outside(corners, BLOCK_WALL_GAP).max(axis=-1)
        gain /= 1 + PUSH_LENGTHS / self.push_speed + (ways.lengths / self.travel_speed)[:, None]
        gain[~_MEETS_FACE] = -np.inf
        ring, length = np.unravel_index(int(np.argmax(gain)), gain.shape)
        return _Push(int(ring), float(PUSH_LENGTHS[length]))


class _Ways:
    """The ways of the agent to the points of the ring.

    Attributes:
        gaps: between the agent and the face that a push meets, (R,) pixels.
        in_lane: whether the agent is on the straight way of a push, (R,).
        lengths: of the ways, (R,) pixels; a way over the table's edge is very long.
    """

    def __init__(self, agent_b: Array, block: _Block) -> None:
        self._agent_b = agent_b
        self._open = _outside(block.to_table(_RING_B), AGENT_WALL_GAP) == 0
        offsets_b = agent_b - _RING_B
        heights = (offsets_b * _OUTWARD_B).sum(axis=1)
        beside = np.abs(offsets_b[:, 0] * _OUTWARD_B[:, 1] - offsets_b[:, 1] * _OUTWARD_B[:, 0])
        self.gaps = heights + CLEARANCE
        self.in_lane = (beside < LANE_HALF_WIDTH) & (np.abs(heights) < CLEARANCE + LANE_END)
        distances = np.hypot(offsets_b[:, 0], offsets_b[:, 1])
        self._is_free = self._free_to(_RING_B)
        self._nearest = int(np.argmin(distances + np.where(self._is_free, 0.0, 1e3)))
        steps = _RING_STEPS + np.where(self._open, 0.0, FAR)
        around_to, around_all = np.cumsum(steps) - steps, steps.sum()
        self._forward = (around_to - around_to[self._nearest]) % around_all
        self._backward = (around_to[self._nearest] - around_to) % around_all
        around = distances[self._nearest] + np.minimum(self._forward, self._backward)
        self.lengths = np.where(self._is_free, distances, around) + np.where(self._open, 0.0, FAR)
        self.lengths[self.in_lane] = np.maximum(self.gaps[self.in_lane], 0.0)

    def towards(self, goal_b: Array) -> Array:
        """The goal if the straight way to it is free, else a point on the way around the block."""
        if block_distance(self._agent_b) < AGENT_RADIUS + FREE_GAP - 1:
            return _ring_point(self._nearest)
        if self._free_to(goal_b[None])[0]:
            return goal_b
        last = int(np.argmin(np.hypot(*(_RING_B - goal_b).T)))
        gone = self._forward if self._forward[last] < self._backward[last] else self._backward
        usable = self._is_free & self._open & (gone <= gone[last])
        usable[self._nearest] = True
        return _ring_point(int(np.argmax(np.where(usable, gone, -1.0))))

    def _free_to(self, points_b: Array) -> NDArray[np.bool_]:
        """Whether the straight ways to points (N, 2) are free of the block: (N,)."""
        along_b = self._agent_b + _WAY_SHARES * (points_b - self._agent_b)[:, None]
        gap = min(FREE_GAP, float(block_distance(self._agent_b)) - AGENT_RADIUS - 0.5)
        is_free: NDArray[np.bool_] = np.all(block_distance(along_b) > AGENT_RADIUS + gap, axis=1)
        return is_free


def _ring_point(index: int) -> Array:
    point: Array = _RING_B[index]
    return point


def block_is_placed(state: FloatArray, goal_state: FloatArray) -> bool:
    """Whether the block is well within what counts as reached."""
    distance = math.hypot(state[2] - goal_state[2], state[3] - goal_state[3])
    turn = angle_between(state[4], goal_state[4])
    return distance < BLOCK_TOLERANCE and turn < BLOCK_ANGLE_TOLERANCE


def is_clear(state: FloatArray) -> bool:
    """Whether the expert can go around the block, and the agent does not touch it."""
    block, agent = _Block.of(state), np.asarray(state[:2], np.float64)
    is_on_table = (
        _outside(block.to_table(_CORNERS_B), BLOCK_WALL_GAP).max() == 0
        and _outside(agent, AGENT_RADIUS) == 0
    )
    return bool(is_on_table and block_distance(block.to_block(agent)) > AGENT_RADIUS + FREE_GAP)


def _pose_distance(centers: Array, angles: FloatArray | float, goal: _Block) -> Array:
    """The distance of poses (..., 2) and (...) from the goal's, in pixels."""
    turn = (angles - goal.angle + math.pi) % (2 * math.pi) - math.pi
    offset = centers - goal.center
    distances: Array = np.sqrt((offset**2).sum(axis=-1) + (_RADIUS_OF_GYRATION * turn) ** 2)
    return distances


def _outside(points: Array, gap: float) -> Array:
    """How much is missing to this gap between points (..., 2) and the table's edge: (...)."""
    from_middle = np.abs(points - TABLE_SIZE / 2).max(axis=-1)
    excess: Array = np.maximum(from_middle - TABLE_SIZE / 2 + gap, 0.0)
    return excess


def _action(motion: Array, velocity: Array, speed: float) -> Array:
    """The action that moves the agent by this many pixels, but not faster than `speed`."""
    length = float(np.hypot(*motion))
    motion = motion * min(1.0, speed / max(length, 1e-9))
    action: Array = (motion - _PIXELS_OF_VELOCITY * velocity) / _PIXELS_OF_ACTION
    return action.clip(-1.0, 1.0)
