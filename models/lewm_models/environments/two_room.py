"""Two-Room: a dot that has to find the door to reach a goal, for any number of agents at once.

A point is (x, y) in pixels of a 224 x 224 frame, x to the right and y downwards. Everything here
takes and gives float32 tensors of shape (N, 2), on the CPU or an accelerator, and needs torch
alone. On the CPU, frames and moves equal those of the public environment exactly (Two-Room in
`stable_worldmodel`, the task of arXiv 2603.19312), whose float32 operations are followed one by
one: a fade that rounds down to 254 on a white ground there does so here. On an accelerator, whose
exponential rounds differently, a pixel of the dot may differ by one.
"""

from functools import lru_cache

import torch
from torch import Tensor

IMAGE_SIZE = 224
SPEED = 5.0
"""Pixels moved for an action component of 1."""
GOAL_RADIUS = 16.0
"""A goal is reached strictly below this distance."""
AGENT_RADIUS = 7.0
"""How far the agent's body keeps from lines and walls; also the standard deviation of its dot."""

BORDER = 14
BORDER_LINE = 4
WALL_X = 112
WALL_HALF_WIDTH = 5
DOOR_Y = 49
DOOR_HALF_HEIGHT = 14
DOOR_MARGIN = 1.75
"""By how much the passable height of the door exceeds the drawn one, at either end."""
PUSHBACK = 0.5
"""Where the wall stops an agent, it is put back by this much."""

REACH_MIN = BORDER + AGENT_RADIUS
REACH_MAX = IMAGE_SIZE - BORDER - AGENT_RADIUS
START_MIN = float(BORDER)
START_MAX = float(IMAGE_SIZE - BORDER - 1)
WALL_LEFT = WALL_X - WALL_HALF_WIDTH - AGENT_RADIUS
WALL_RIGHT = WALL_X + WALL_HALF_WIDTH + AGENT_RADIUS
DOOR_TOP = DOOR_Y - DOOR_HALF_HEIGHT - DOOR_MARGIN
DOOR_BOTTOM = DOOR_Y + DOOR_HALF_HEIGHT + DOOR_MARGIN

# The dot fades as a = exp(-d² / 98) / max, where max >= exp(-0.5 / 98) as some pixel lies within
# half a pixel on both axes. From d² = 98 · 25 · ln 2 + 0.5, that is d = 41.3, a <= 2^-25: then
# 1 - a is 1 in float32, 255 + 255 · a is 255, and 0 + 255 · a truncates to 0. A window that
# reaches 42 pixels from the agent therefore holds every pixel that the dot changes.
WINDOW_REACH = 41
WINDOW = 2 * WINDOW_REACH + 2

RENDER_CHUNK = 128
"""Frames blended at once. Fewer make many small operations, each of which waits for all of torch's
threads: on shared cores 32 took three times as long. More only need more memory."""


def render(positions: Tensor) -> Tensor:
    """Draw one frame for each agent.

    Args:
        positions: (N, 2) float32, each within the image, [0, 223] on both axes.

    Returns:
        (N, 224, 224, 3) uint8 RGB on the same device, rows first.

    Raises:
        ValueError: for another shape or type, or a point outside the image.
    """
    check_points("positions", positions)
    if not bool(((positions >= 0) & (positions <= IMAGE_SIZE - 1)).all()):
        raise ValueError(f"positions must lie within [0, {IMAGE_SIZE - 1}], got {positions}")
    frames = _background(positions.device).repeat(len(positions), 1, 1, 1)
    for begin in range(0, len(positions), RENDER_CHUNK):
        chunk = slice(begin, begin + RENDER_CHUNK)
        _blend_agents(frames[chunk], positions[chunk])
    return frames


def move(positions: Tensor, actions: Tensor) -> Tensor:
    """Take one step: clip the action, keep the agent off the border, then off the wall.

    The wall looks at the next centre alone: outside the door's height an agent that would enter
    it, or already stands in it, is put back on the side on which it was before, and slides in y.

    Args:
        positions: (N, 2) float32.
        actions: (N, 2) float32, in units of `SPEED` pixels; components are clipped to [-1, 1].

    Returns:
        The next positions, (N, 2) float32.

    Raises:
        ValueError: for another shape or type, or shapes that differ.
    """
    check_points("positions", positions)
    check_points("actions", actions)
    _check_alike("actions", actions, positions)
    reached = (positions + actions.clamp(-1.0, 1.0) * SPEED).clamp(REACH_MIN, REACH_MAX)
    x, y = reached.unbind(-1)
    blocked = (y < DOOR_TOP) | (y > DOOR_BOTTOM)
    left = _in_left_room(positions)
    x = torch.where(blocked & left & (x > WALL_LEFT), WALL_LEFT - PUSHBACK, x)
    x = torch.where(blocked & ~left & (x < WALL_RIGHT), WALL_RIGHT + PUSHBACK, x)
    return torch.stack((x, y), dim=-1)


def same_room(a: Tensor, b: Tensor) -> Tensor:
    """Say for each pair of points, (N, 2) and (N, 2), whether one room holds both: (N,) bool."""
    return _in_left_room(a) == _in_left_room(b)


def distance(a: Tensor, b: Tensor) -> Tensor:
    """Measure the straight line between each pair of points, (N, 2) and (N, 2): (N,) pixels."""
    lengths: Tensor = torch.linalg.vector_norm(a - b, dim=-1)
    return lengths


def sample_positions(count: int, generator: torch.Generator) -> Tensor:
    """Draw starts as the public environment does: uniform within the border, not at the wall.

    Some lie closer to the border than an agent can stand: its first move puts it right.

    Args:
        count: how many points, N.
        generator: the source of all randomness; the points lie on its device.

    Returns:
        (N, 2) float32 on [14, 209]² without x in [100, 124].
    """
    return _sample_rooms(count, generator, START_MIN, START_MAX)


def sample_goals(count: int, generator: torch.Generator) -> Tensor:
    """Draw goals uniformly from where an agent can stand: [21, 203]² without x in [100, 124].

    The public environment draws goals up to the border and within the wall as well; those it can
    only near. Arguments and result are those of `sample_positions`.
    """
    return _sample_rooms(count, generator, REACH_MIN, REACH_MAX)


class VectorTwoRoom:
    """N agents with a goal each, stepped and drawn together; nothing ends or resets by itself.

    Attributes:
        positions: where the agents are, (N, 2) float32.
        goals: where they should be, (N, 2) float32.
    """

    positions: Tensor
    goals: Tensor

    def __init__(self, positions: Tensor, goals: Tensor) -> None:
        self.reset(positions, goals)

    def reset(self, positions: Tensor, goals: Tensor) -> None:
        """Put agents and goals at these points, (N, 2) float32 each; N may change.

        Raises:
            ValueError: for another shape or type, or shapes that differ.
        """
        check_points("positions", positions)
        check_points("goals", goals)
        _check_alike("goals", goals, positions)
        self.positions = positions.clone()
        self.goals = goals.clone()

    def step(self, actions: Tensor) -> Tensor:
        """Move each agent by its action, (N, 2), and say which are now at their goals: (N,) bool.

        An agent that has reached its goal moves on and may leave it: to latch success is the
        caller's part.
        """
        self.positions = move(self.positions, actions)
        return self.distances() < GOAL_RADIUS

    def distances(self) -> Tensor:
        """Measure how far each agent is from its goal, (N,) pixels, through walls."""
        return distance(self.positions, self.goals)

    def frames(self) -> Tensor:
        """Draw the agents where they are, (N, 224, 224, 3) uint8."""
        return render(self.positions)

    def goal_frames(self) -> Tensor:
        """Draw the agents as if they were at their goals, (N, 224, 224, 3) uint8."""
        return render(self.goals)


def check_points(name: str, points: Tensor) -> None:
    """Raise a ValueError that calls `points` by `name` unless they are (N, 2) float32."""
    if points.ndim != 2 or points.shape[1] != 2 or points.dtype != torch.float32:
        raise ValueError(f"{name} must be (N, 2) float32, got {tuple(points.shape)} {points.dtype}")


def _check_alike(name: str, points: Tensor, positions: Tensor) -> None:
    # Broadcasting would give one agent's goal or action to all.
    if points.shape != positions.shape:
        raise ValueError(f"{len(positions)} positions but {len(points)} {name}")


def _in_left_room(points: Tensor) -> Tensor:
    return points[..., 0] < WALL_X


def _sample_rooms(count: int, generator: torch.Generator, low: float, high: float) -> Tensor:
    unit = torch.rand(count, 2, generator=generator, device=generator.device)
    left, right = WALL_LEFT - low, high - WALL_RIGHT
    # One draw chooses both the room, by its width, and the place in it. The right room is measured
    # from its far side, so that both rooms are open at the wall.
    along = unit[:, 0] * (left + right)
    x = torch.where(along < left, low + along, high - (along - left))
    y = low + unit[:, 1] * (high - low)
    return torch.stack((x, y), dim=-1)


@lru_cache
def _background(device: torch.device) -> Tensor:
    """Draw the empty rooms, (224, 224, 3) uint8."""
    image = torch.full((IMAGE_SIZE, IMAGE_SIZE, 3), 255, dtype=torch.uint8)
    wall = slice(WALL_X - WALL_HALF_WIDTH, WALL_X + WALL_HALF_WIDTH + 1)
    image[:, wall] = 0
    image[DOOR_Y - DOOR_HALF_HEIGHT : DOOR_Y + DOOR_HALF_HEIGHT + 1, wall] = 255
    for begin in (BORDER - BORDER_LINE, IMAGE_SIZE - BORDER):
        image[begin : begin + BORDER_LINE] = 0
        image[:, begin : begin + BORDER_LINE] = 0
    return image.to(device)


@lru_cache
def _grey(device: torch.device) -> Tensor:
    """Give the empty rooms' one channel, pixel after pixel, (224 * 224,) float32."""
    return _background(device)[..., 0].flatten().float()


def _blend_agents(frames: Tensor, positions: Tensor) -> None:
    """Blend a red dot at each position, (M, 2), into its frame, (M, 224, 224, 3), in place."""
    device = positions.device
    first = (positions.floor().long() - WINDOW_REACH).clamp(0, IMAGE_SIZE - WINDOW)
    pixels = first[:, :, None] + torch.arange(WINDOW, device=device)  # (M, 2, WINDOW)
    columns, rows = pixels[:, 0, None, :], pixels[:, 1, :, None]
    squares = (pixels.float() - positions[:, :, None]).square_()
    alpha = squares[:, 0, None, :] + squares[:, 1, :, None]  # (M, WINDOW, WINDOW)
    # A tensor, since dividing by a number becomes a rounded reciprocal's product on CUDA.
    alpha.div_(torch.tensor(-2.0 * AGENT_RADIUS * AGENT_RADIUS, device=device)).exp_()
    alpha.div_(alpha.amax(dim=(1, 2), keepdim=True))
    # The ground is grey and the dot pure red: green and blue fade alike, and red adds to the fade.
    within = rows * IMAGE_SIZE + columns
    fade = (1.0 - alpha).mul_(_grey(device).take(within))
    red = alpha.mul_(255.0).add_(fade).to(torch.uint8)
    rest = fade.to(torch.uint8)
    frame_starts = torch.arange(len(positions), device=device) * (IMAGE_SIZE * IMAGE_SIZE)
    pixel_numbers = (within + frame_starts[:, None, None]).flatten()
    dot = torch.stack((red, rest, rest), dim=-1).view(-1, 3)
    frames.view(-1, 3).index_copy_(0, pixel_numbers, dot)
