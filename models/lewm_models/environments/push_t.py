"""Push-T: a round agent pushes a block of the form of a T over a table, seen from above.

Geometry, masses and control are those of gym-pusht. The relative actions, the larger block and the
success test are those of stable-worldmodel, which the field's figures are measured with. The scene
is written anew for pymunk. Lengths are in pixels of a table of 512 x 512, x to the right and y
downwards; angles are in radians, clockwise in the picture.

A state is (agent x, agent y, block x, block y, block angle, agent velocity x and y, block velocity
x and y, block angular velocity), float64. The block's position is the middle of the outer edge of
its bar; at angle 0 its stem points downwards.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from lewm_models.environments.environment import FloatArray, Frame, load_simulator

if TYPE_CHECKING:
    import pymunk

NAME = "push-t"

STATE_DIM = 10
TABLE_SIZE = 512
WALL_LOW, WALL_HIGH = 5.0, 506.0
"""The middle lines of the walls."""
WALL_RADIUS = 2.0
AGENT_RADIUS = 15.0
BLOCK_UNIT = 40.0
"""The width of the block's bar and stem. The bar is four units long and the stem three, below it.
gym-pusht has 30, stable-worldmodel 40."""
CENTER_OF_GRAVITY = 1.5 * BLOCK_UNIT
"""The distance of the block's centre of gravity from its position, towards the stem's end."""

_BLOCK_REACH = math.hypot(2 * BLOCK_UNIT, 1.5 * BLOCK_UNIT) + BLOCK_UNIT / 8
"""More than the distance of any point of the block from its centre of gravity."""

ACTION_REACH = 100.0
"""The distance of the agent's target from the agent, per axis, for an action component of 1."""
POSITION_GAIN, VELOCITY_GAIN = 100.0, 20.0
SUBSTEPS, SUBSTEP_SECONDS = 10, 0.01
"""A step lasts 0.1 s."""

REACHED_DISTANCE = 20.0
"""A goal is reached at a smaller norm of the differences of the four positions, in pixels."""
REACHED_ANGLE = math.pi / 9

FRAME_SIZE = 96
Colours = NDArray[np.float32]
"""Of a shape's rim and of what it surrounds, (2, 3)."""
_WALL_COLOURS: Colours = np.array(((211, 211, 211), (211, 211, 211)), np.float32)
_BLOCK_COLOURS: Colours = np.array(((119, 136, 153), (143, 163, 184)), np.float32)
_AGENT_COLOURS: Colours = np.array(((65, 105, 225), (78, 126, 255)), np.float32)
_BLOCK_RIM, _AGENT_RIM = 2.0, 4.0


class PushTSimulation:
    """One table. `frame` needs no pymunk call, so it does not change what follows.

    After `reset`, all that follows depends only on the state and the actions. A simulation that
    is reset to a state of another one continues as that one would, but for the contact solver's
    memory of the last 0.01 s.

    Raises:
        ModuleNotFoundError: pymunk is missing.
    """

    def __init__(self) -> None:
        self.reset(np.array((256, 400, 256, 250, 0, 0, 0, 0, 0, 0), np.float64))

    def reset(self, state: FloatArray) -> None:
        """Start anew from a state (10,).

        Raises:
            ValueError: another shape, or a number that is not finite.
        """
        values = _checked_state(state).tolist()
        # A new scene has no memory of contacts.
        self._space, self._agent, self._block = _scene()
        self._agent.position = (values[0], values[1])
        # The angle is set first, since it turns the block around its centre of gravity.
        self._block.angle = values[4]
        self._block.position = (values[2], values[3])
        self._agent.velocity = (values[5], values[6])
        self._block.velocity = (values[7], values[8])
        self._block.angular_velocity = values[9]
        self._space.reindex_shapes_for_body(self._agent)
        self._space.reindex_shapes_for_body(self._block)

    def step(self, action: FloatArray) -> None:
        """Move the agent's target to 100 px · action from the agent, and simulate 0.1 s.

        Args:
            action: (2,); components are clipped to [-1, 1].

        Raises:
            ValueError: another shape, or a number that is not finite.
        """
        action = np.asarray(action, np.float64)
        if action.shape != (2,) or not np.isfinite(action).all():
            raise ValueError(f"action must be 2 finite numbers, got {action}")
        reach_x, reach_y = (action.clip(-1.0, 1.0) * ACTION_REACH).tolist()
        agent, space, seconds = self._agent, self._space, SUBSTEP_SECONDS
        x, y = agent.position
        target_x, target_y = x + reach_x, y + reach_y
        vx, vy = agent.velocity
        for _ in range(SUBSTEPS):
            vx += (POSITION_GAIN * (target_x - x) - VELOCITY_GAIN * vx) * seconds
            vy += (POSITION_GAIN * (target_y - y) - VELOCITY_GAIN * vy) * seconds
            agent.velocity = (vx, vy)
            space.step(seconds)
            # No contact moves the agent, so its position is known without asking for it.
            x += vx * seconds
            y += vy * seconds

    def state(self) -> NDArray[np.float64]:
        """The state, (10,); the angle lies in [0, 2π)."""
        block = self._block
        return np.array(
            (
                *self._agent.position,
                *block.position,
                block.angle % (2 * math.pi),
                *self._agent.velocity,
                *block.velocity,
                block.angular_velocity,
            )
        )

    def frame(self) -> Frame:
        """The camera's picture, (96, 96, 3) RGB."""
        return render(self.state())

    def close(self) -> None:
        """Nothing has to be released."""


def reached(state: FloatArray, goal: FloatArray) -> bool:
    """Whether agent and block are where the goal's state has them, and the block is turned so."""
    distance = np.linalg.norm(np.subtract(state[:4], goal[:4], dtype=np.float64))
    return bool(distance < REACHED_DISTANCE and angle_between(state[4], goal[4]) < REACHED_ANGLE)


def angle_between(a: float, b: float) -> float:
    """The smaller angle between two directions, in [0, π]."""
    return abs(math.remainder(float(a) - float(b), 2 * math.pi))


def block_distance(points: FloatArray) -> FloatArray:
    """The distance of points (..., 2) in the block's axes from its edge, negative inside: (...).

    Outside, opposite to a corner, it is the larger of the distances along the two axes.
    """
    return _block_distance(points[..., 0], points[..., 1])


def _block_distance(x: FloatArray, y: FloatArray) -> FloatArray:
    """`block_distance` of the points with these coordinates, which may broadcast."""
    half, beside = BLOCK_UNIT / 2, np.abs(x)
    bar = np.maximum(beside - 4 * half, np.abs(y - half) - half)
    # The stem begins within the bar, so that the distance knows no edge between the two.
    stem = np.maximum(beside - half, np.abs(y - 4 * half) - 4 * half)
    distance: FloatArray = np.minimum(bar, stem)
    return distance


def render(state: FloatArray) -> Frame:
    """The picture of a state: (96, 96, 3) RGB, rows first.

    It shows the table with its walls, the block and the agent. The share of a pixel that a shape
    covers is taken from the distance of the pixel's middle from the shape's edge. gym-pusht also
    draws a goal, which is the same in all frames; here the goal is a frame of its own.
    """
    agent_x, agent_y, block_x, block_y, angle = (float(value) for value in state[:5])
    image = _TABLE.copy()
    sin, cos = math.sin(angle), math.cos(angle)
    center_x, center_y = block_x - sin * CENTER_OF_GRAVITY, block_y + cos * CENTER_OF_GRAVITY
    window = _window(center_x, center_y, _BLOCK_REACH)
    right, down = _PIXELS[window[1]] - block_x, _PIXELS[window[0], None] - block_y
    distance = _block_distance(right * cos + down * sin, down * cos - right * sin)
    _paint(image[window], distance, _BLOCK_COLOURS, rim=_BLOCK_RIM)
    window = _window(agent_x, agent_y, AGENT_RADIUS)
    distance = np.hypot(_PIXELS[window[1]] - agent_x, _PIXELS[window[0], None] - agent_y)
    _paint(image[window], distance - AGENT_RADIUS, _AGENT_COLOURS, rim=_AGENT_RIM)
    return image.round().astype(np.uint8)


def _window(x: float, y: float, reach: float) -> tuple[slice, slice]:
    """The rows and columns of the pixels nearer to a point than `reach` and a pixel."""
    first = [max(math.floor((middle - reach) / _PIXEL) - 1, 0) for middle in (y, x)]
    last = [max(math.ceil((middle + reach) / _PIXEL) + 1, 0) for middle in (y, x)]
    return slice(first[0], last[0]), slice(first[1], last[1])


def _paint(image: NDArray[np.float32], distance: FloatArray, colours: Colours, rim: float) -> None:
    """Paint a shape with a rim, given the distances (H, W) of pixels (H, W, 3) from its edge."""
    for colour, edge in zip(colours, (0.0, -rim), strict=True):
        covered = np.clip(0.5 - (distance - edge) / _PIXEL, 0.0, 1.0)[..., None]
        image += covered.astype(np.float32) * (colour - image)


_PIXEL = TABLE_SIZE / FRAME_SIZE
_PIXELS = ((np.arange(FRAME_SIZE) + 0.5) * _PIXEL).astype(np.float32)
"""The middles of the pixels along one axis of the table."""


def _empty_table() -> NDArray[np.float32]:
    image = np.full((FRAME_SIZE, FRAME_SIZE, 3), 255, np.float32)
    # The walls are the border of a square around the table's middle.
    middle, half = (WALL_LOW + WALL_HIGH) / 2, (WALL_HIGH - WALL_LOW) / 2
    from_middle = np.abs(_PIXELS - middle)
    from_line = np.abs(np.maximum(from_middle, from_middle[:, None]) - half)
    _paint(image, from_line - WALL_RADIUS, _WALL_COLOURS, rim=0.0)
    return image


_TABLE = _empty_table()


def _checked_state(state: FloatArray) -> NDArray[np.float64]:
    values = np.asarray(state, np.float64)
    if values.shape != (STATE_DIM,) or not np.isfinite(values).all():
        raise ValueError(f"state must be {STATE_DIM} finite numbers, got {values}")
    return values


def _scene() -> tuple[pymunk.Space, pymunk.Body, pymunk.Body]:
    """A table with walls, its agent and its block.

    The damping of 0 stops the block as soon as nothing pushes it. No shape has friction: gym-pusht
    sets a friction of bodies, which pymunk does not know.
    """
    pymunk = load_simulator("pymunk", NAME)
    space = pymunk.Space()
    space.damping = 0.0
    low, high = WALL_LOW, WALL_HIGH
    # The contact solver depends on the order of shapes and of their points.
    for begin, end in (
        ((low, high), (low, low)),
        ((low, low), (high, low)),
        ((high, low), (high, high)),
        ((low, high), (high, high)),
    ):
        space.add(pymunk.Segment(space.static_body, begin, end, WALL_RADIUS))
    agent = pymunk.Body(body_type=pymunk.Body.KINEMATIC)
    space.add(agent, pymunk.Circle(agent, AGENT_RADIUS))
    unit = BLOCK_UNIT
    bar = [(-2 * unit, unit), (2 * unit, unit), (2 * unit, 0.0), (-2 * unit, 0.0)]
    stem = [(-unit / 2, unit), (-unit / 2, 4 * unit), (unit / 2, 4 * unit), (unit / 2, unit)]
    # gym-pusht gives the stem the mass and the moment of inertia of the bar.
    block = pymunk.Body(mass=1.0, moment=2 * pymunk.moment_for_poly(1.0, bar))
    block.center_of_gravity = (0.0, CENTER_OF_GRAVITY)
    space.add(block, pymunk.Poly(block, bar), pymunk.Poly(block, stem))
    return space, agent, block
