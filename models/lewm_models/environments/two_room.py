"""Two-Room: agents that have to go through a door to goals in another room, for N agents at once.

A point is (x, y) in pixels of a 224 x 224 frame, x to the right and y downwards. All functions take
and return float32 tensors of shape (N, 2), on the CPU or an accelerator, and need only torch.

On a CPU, frames and moves are exactly those of the public environment (Two-Room in
`stable_worldmodel`, the task of arXiv 2603.19312): the float32 operations are the same, so that
they round in the same way. On an accelerator, a pixel of an agent may differ by one grey level,
because the exponential rounds differently.
"""

from functools import lru_cache

import torch
from torch import Tensor

IMAGE_SIZE = 224
SPEED = 5.0
"""The pixels that an agent moves for an action component of 1."""
GOAL_RADIUS = 16.0
"""A goal is reached at a smaller distance than this, in pixels."""
AGENT_RADIUS = 7.0
"""The distance that an agent keeps from border and wall, and the standard deviation of its dot."""

BORDER = 14
"""The inner edge of the border line, in pixels from the edge of the image."""
BORDER_LINE = 4
"""The width of the border line."""
WALL_X = 112
"""The middle of the wall."""
WALL_HALF_WIDTH = 5
DOOR_Y = 49
"""The middle of the door."""
DOOR_HALF_HEIGHT = 14
"""Half the height of the drawn door."""
DOOR_MARGIN = 1.75
"""The pixels by which the door's passable part exceeds the drawn one, at each end."""
PUSHBACK = 0.5
"""The pixels by which an agent that the wall stops is put back."""

# The least and greatest coordinates of an agent, and of a start.
REACH_MIN = BORDER + AGENT_RADIUS
REACH_MAX = IMAGE_SIZE - BORDER - AGENT_RADIUS
START_MIN = float(BORDER)
START_MAX = float(IMAGE_SIZE - BORDER - 1)
# An agent between these x is in the wall, unless its y is between these: then it is in the door.
WALL_LEFT = WALL_X - WALL_HALF_WIDTH - AGENT_RADIUS
WALL_RIGHT = WALL_X + WALL_HALF_WIDTH + AGENT_RADIUS
DOOR_TOP = DOOR_Y - DOOR_HALF_HEIGHT - DOOR_MARGIN
DOOR_BOTTOM = DOOR_Y + DOOR_HALF_HEIGHT + DOOR_MARGIN

# An agent's dot has the opacity a = exp(-d² / 98) / max at distance d. Some pixel lies within half
# a pixel of the agent on both axes, so max >= exp(-0.5 / 98). From d² = 98 · 25 · ln 2 + 0.5, that
# is from d = 41.3, a <= 2^-25: then 1 - a is 1 in float32, 255 + 255 · a is 255, and 0 + 255 · a
# truncates to 0. So a window of 42 pixels around the agent holds every pixel that the dot changes.
DOT_REACH = 41
DOT_WINDOW = 2 * DOT_REACH + 2

RENDER_CHUNK = 128
"""Frames that are drawn at once. With 32 it took three times as long on shared cores, since each
operation waits for all threads of torch. More frames only need more memory."""


def render(positions: Tensor) -> Tensor:
    """Draw one frame per agent.

    Args:
        positions: (N, 2) float32, each within the image, [0, 223] on both axes.

    Returns:
        (N, 224, 224, 3) uint8 RGB on the same device, rows first.

    Raises:
        ValueError: another shape or type, or a point outside the image.
    """
    check_points("positions", positions)
    if not bool(((positions >= 0) & (positions <= IMAGE_SIZE - 1)).all()):
        raise ValueError(f"positions must lie within [0, {IMAGE_SIZE - 1}], got {positions}")
    frames = background(positions.device).repeat(len(positions), 1, 1, 1)
    for begin in range(0, len(positions), RENDER_CHUNK):
        chunk = slice(begin, begin + RENDER_CHUNK)
        _draw_dots(frames[chunk], positions[chunk])
    return frames


def move(positions: Tensor, actions: Tensor) -> Tensor:
    """Move each agent by one step.

    The action is clipped, then the agent is kept within the border, then out of the wall. Only the
    next position counts for the wall: at another height than the door's, an agent that would be in
    the wall is put back on the side it came from. Its y changes all the same.

    Args:
        positions: (N, 2) float32.
        actions: (N, 2) float32, in units of `SPEED` pixels; components are clipped to [-1, 1].

    Returns:
        The next positions, (N, 2) float32.

    Raises:
        ValueError: another shape or type, or shapes that differ.
    """
    check_points("positions", positions)
    check_points("actions", actions)
    _check_same_count("actions", actions, positions)
    moved = (positions + actions.clamp(-1.0, 1.0) * SPEED).clamp(REACH_MIN, REACH_MAX)
    x, y = moved.unbind(-1)
    beside_door = (y < DOOR_TOP) | (y > DOOR_BOTTOM)
    from_left = _in_left_room(positions)
    x = torch.where(beside_door & from_left & (x > WALL_LEFT), WALL_LEFT - PUSHBACK, x)
    x = torch.where(beside_door & ~from_left & (x < WALL_RIGHT), WALL_RIGHT + PUSHBACK, x)
    return torch.stack((x, y), dim=-1)


def same_room(a: Tensor, b: Tensor) -> Tensor:
    """Whether both points of each pair, (N, 2) and (N, 2), are in the same room: (N,) bool."""
    return _in_left_room(a) == _in_left_room(b)


def distance(a: Tensor, b: Tensor) -> Tensor:
    """The straight distance between the points of each pair, (N, 2) and (N, 2): (N,) pixels."""
    lengths: Tensor = torch.linalg.vector_norm(a - b, dim=-1)
    return lengths


def sample_positions(count: int, generator: torch.Generator) -> Tensor:
    """Draw starts as the public environment does: uniform within the border, but not in the wall.

    Some starts are nearer to the border than an agent can be; its first move corrects that.

    Args:
        count: the number of points, N.
        generator: the source of randomness; the points are on its device.

    Returns:
        (N, 2) float32 on [14, 209]² without x in [100, 124].
    """
    return _sample_rooms(count, generator, low=START_MIN, high=START_MAX)


def sample_goals(count: int, generator: torch.Generator) -> Tensor:
    """Draw goals uniformly from all points that an agent can be at.

    The public environment also draws goals at the border and in the wall, which an agent cannot
    reach exactly.

    Args:
        count: the number of points, N.
        generator: the source of randomness; the points are on its device.

    Returns:
        (N, 2) float32 on [21, 203]² without x in [100, 124].
    """
    return _sample_rooms(count, generator, low=REACH_MIN, high=REACH_MAX)


class VectorTwoRoom:
    """N agents with a goal each, in one room plan. No episode ends or resets by itself.

    Attributes:
        positions: of the agents, (N, 2) float32.
        goals: one per agent, (N, 2) float32.
    """

    positions: Tensor
    goals: Tensor

    def __init__(self, positions: Tensor, goals: Tensor) -> None:
        self.reset(positions, goals)

    def reset(self, positions: Tensor, goals: Tensor) -> None:
        """Place agents and goals at these points, (N, 2) float32 each; N may change.

        Raises:
            ValueError: another shape or type, or shapes that differ.
        """
        check_points("positions", positions)
        check_points("goals", goals)
        _check_same_count("goals", goals, positions)
        self.positions = positions.clone()
        self.goals = goals.clone()

    def step(self, actions: Tensor) -> Tensor:
        """Move each agent by its action, (N, 2); return which are now at their goals, (N,) bool.

        An agent can leave its goal again, so the caller has to remember which were reached.
        """
        self.positions = move(self.positions, actions)
        return self.distances() < GOAL_RADIUS

    def distances(self) -> Tensor:
        """The straight distance of each agent from its goal, (N,) pixels."""
        return distance(self.positions, self.goals)

    def frames(self) -> Tensor:
        """A frame of each agent, (N, 224, 224, 3) uint8."""
        return render(self.positions)

    def goal_frames(self) -> Tensor:
        """A frame of each agent at its goal, (N, 224, 224, 3) uint8."""
        return render(self.goals)


def check_points(name: str, points: Tensor) -> None:
    """Raise a ValueError with this name unless the points are (N, 2) float32."""
    if points.ndim != 2 or points.shape[1] != 2 or points.dtype != torch.float32:
        raise ValueError(f"{name} must be (N, 2) float32, got {tuple(points.shape)} {points.dtype}")


def _check_same_count(name: str, points: Tensor, positions: Tensor) -> None:
    # Without this check, broadcasting would give one action or goal to all agents.
    if points.shape != positions.shape:
        raise ValueError(f"{len(positions)} positions but {len(points)} {name}")


def _in_left_room(points: Tensor) -> Tensor:
    return points[..., 0] < WALL_X


def _sample_rooms(count: int, generator: torch.Generator, *, low: float, high: float) -> Tensor:
    unit = torch.rand(count, 2, generator=generator, device=generator.device)
    left, right = WALL_LEFT - low, high - WALL_RIGHT
    # One number chooses the room, in proportion to its width, and the place in it. In the right
    # room x is counted from the border, so that in both rooms the wall's side is excluded.
    offset = unit[:, 0] * (left + right)
    x = torch.where(offset < left, low + offset, high - (offset - left))
    y = low + unit[:, 1] * (high - low)
    return torch.stack((x, y), dim=-1)


@lru_cache
def background(device: torch.device) -> Tensor:
    """The rooms without an agent, (224, 224, 3) uint8; not to be written to."""
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
    """The grey levels of `background`, (224 · 224,) float32."""
    return background(device)[..., 0].flatten().float()


def _draw_dots(frames: Tensor, positions: Tensor) -> None:
    """Draw a red dot at each position, (M, 2), into its frame, (M, 224, 224, 3), in place."""
    device = positions.device
    first = (positions.floor().long() - DOT_REACH).clamp(0, IMAGE_SIZE - DOT_WINDOW)
    pixels = first[:, :, None] + torch.arange(DOT_WINDOW, device=device)  # (M, 2, window)
    columns, rows = pixels[:, 0, None, :], pixels[:, 1, :, None]
    squares = (pixels.float() - positions[:, :, None]).square_()
    alpha = squares[:, 0, None, :] + squares[:, 1, :, None]  # (M, window, window)
    # The divisor is a tensor, because CUDA replaces the division by a number with a product.
    alpha.div_(torch.tensor(-2.0 * AGENT_RADIUS * AGENT_RADIUS, device=device)).exp_()
    alpha.div_(alpha.amax(dim=(1, 2), keepdim=True))
    # The background is grey and the dot is red: in green and blue only the background shows.
    in_frame = rows * IMAGE_SIZE + columns
    faded = (1.0 - alpha).mul_(_grey(device).take(in_frame))
    red = alpha.mul_(255.0).add_(faded).to(torch.uint8)
    green_and_blue = faded.to(torch.uint8)
    frame_starts = torch.arange(len(positions), device=device) * (IMAGE_SIZE * IMAGE_SIZE)
    in_frames = (in_frame + frame_starts[:, None, None]).flatten()
    dots = torch.stack((red, green_and_blue, green_and_blue), dim=-1).view(-1, 3)
    frames.view(-1, 3).index_copy_(0, in_frames, dots)
