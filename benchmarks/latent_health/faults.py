"""Requests whose newest frame is faulty, by the name of the fault.

Axes: R requests. Positions are (x, y) in pixels.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import cos, pi, sin

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from benchmarks.latent_health.requests import (
    BLOCK,
    Motion,
    Requests,
    encode,
    encode_motion,
    make_requests,
)
from lewm_models.environments import two_room
from lewm_models.environments.two_room import (
    IMAGE_SIZE,
    REACH_MAX,
    REACH_MIN,
    WALL_LEFT,
    WALL_RIGHT,
)
from lewm_models.evaluation.faults import CAMERA_FAULTS
from lewm_serve.registry.registry import LoadedModel

OCCLUSION_SIDES = (20, 40)
TELEPORT_RANGES = ((10, 20), (20, 30), (30, 50), (50, 300))
FREEZE_RANGES = ((0, 5), (5, 10), (10, 15), (15, 20), (20, 30))
"""Distances in pixels: from, to."""

BELOW_DOOR_Y = 90.0

T_BAR, T_STEM, T_THICKNESS = 28, 42, 14
T_OUTLINE = (
    (-T_BAR, 0),
    (T_BAR, 0),
    (T_BAR, T_THICKNESS),
    (T_THICKNESS / 2, T_THICKNESS),
    (T_THICKNESS / 2, T_THICKNESS + T_STEM),
    (-T_THICKNESS / 2, T_THICKNESS + T_STEM),
    (-T_THICKNESS / 2, T_THICKNESS),
    (-T_BAR, T_THICKNESS),
)
"""The T of Push-T."""


def faulty_frames(positions: Tensor, generator: torch.Generator) -> Iterator[tuple[str, Tensor]]:
    """Frames (R, 224, 224, 3) of robots at positions (R, 2), under each fault of a frame."""
    frames = two_room.render(positions)
    for name, fault in CAMERA_FAULTS.items():
        yield name, fault(frames, generator)
    for side in OCCLUSION_SIDES:
        yield f"robot behind {side} px", _occlude(frames, positions, side)
    yield "robot gone", empty_rooms().expand_as(frames)
    yield "another environment (Push-T)", push_t_frames(len(frames), generator)


def empty_rooms() -> Tensor:
    """The rooms without a robot (224, 224, 3): the empty halves of two frames."""
    left, right = two_room.render(torch.tensor([[REACH_MAX, 112.0], [REACH_MIN, 112.0]]))
    middle = IMAGE_SIZE // 2
    return torch.cat([left[:, :middle], right[:, middle:]], dim=1)


def _occlude(frames: Tensor, positions: Tensor, side: int) -> Tensor:
    """Frames with a grey square in front of the robot."""
    occluded = frames.clone()
    for frame, (x, y) in zip(occluded, positions.round().long().tolist(), strict=True):
        top, left = max(0, y - side // 2), max(0, x - side // 2)
        frame[top : y + side // 2, left : x + side // 2] = 128
    return occluded


def push_t_frames(count: int, generator: torch.Generator) -> Tensor:
    """Frames (N, 224, 224, 3) uint8 of another environment: a T that a pusher moves to its mark.

    They are drawn here, similar to Push-T, which is not installed.
    """
    frames = []
    for draws in torch.rand(count, 5, generator=generator).tolist():
        image = Image.new("RGB", (IMAGE_SIZE, IMAGE_SIZE), (255, 255, 255))
        draw = ImageDraw.Draw(image)
        draw.polygon(_place_t(112, 100, pi / 4), fill=(144, 238, 144))
        place = _place_t(50 + 124 * draws[0], 50 + 124 * draws[1], 2 * pi * draws[2])
        draw.polygon(place, fill=(119, 136, 153))
        draw.circle((20 + 184 * draws[3], 20 + 184 * draws[4]), 7, fill=(65, 105, 225))
        frames.append(np.array(image))
    return torch.from_numpy(np.stack(frames))


def _place_t(x: float, y: float, angle: float) -> list[tuple[float, float]]:
    c, s = cos(angle), sin(angle)
    return [(x + c * u - s * v, y + s * u + c * v) for u, v in T_OUTLINE]


def teleports(
    model: LoadedModel, requests: Requests, generator: torch.Generator
) -> Iterator[tuple[str, Requests]]:
    """Requests whose newest frame shows the robot elsewhere, by the distance from its position."""
    true_positions = requests.positions[:, -1]
    count = len(true_positions)
    for near, far in TELEPORT_RANGES:
        shown = two_room.sample_goals(count, generator)
        while bool((outside := ~_is_between(shown, true_positions, near, far=far)).any()):
            shown = torch.where(outside[:, None], two_room.sample_goals(count, generator), shown)
        distances = f"{near} px and more" if far >= IMAGE_SIZE else f"{near} to {far} px"
        yield (
            f"teleport of {distances}",
            requests.with_newest(encode(model, two_room.render(shown))),
        )


def freezes(requests: Requests) -> Iterator[tuple[str, Requests]]:
    """Requests that show the frame before the newest again, by how far the robot moved."""
    before, true_positions = requests.positions[:, -2], requests.positions[:, -1]
    for near, far in FREEZE_RANGES:
        frozen = requests.select(_is_between(before, true_positions, near, far=far))
        yield f"frozen, robot moved {near} to {far} px", frozen.with_newest(frozen.latents[:, -2])


def wall_crossings(
    model: LoadedModel, count: int, generator: torch.Generator
) -> tuple[Requests, Requests]:
    """Robots that push against the wall, away from its door.

    They reach the wall during the second action block, from either side.

    Returns:
        The requests of robots that the wall stops, and the same requests with a newest frame that
        shows them 25 px further on, as if they had passed through the wall.
    """
    draws = torch.rand(count, 3, generator=generator)
    y = BELOW_DOOR_Y + draws[:, 0] * (REACH_MAX - BELOW_DOOR_Y)
    to_right = draws[:, 1] < 0.5
    direction = torch.where(to_right, 1.0, -1.0)
    # After the first block the robot stands 5 to 20 px from where the wall stops it.
    x = torch.where(to_right, WALL_LEFT, WALL_RIGHT) - direction * (30 + 15 * draws[:, 2])
    starts = torch.stack([x, y], 1)
    rooms = two_room.VectorTwoRoom(starts, starts)
    action = torch.stack([direction, torch.zeros(count)], 1)
    path = [rooms.positions]
    for _ in range(2 * BLOCK):
        rooms.step(action)
        path.append(rooms.positions)
    motion = Motion(torch.stack(path, 1), action[:, None].repeat(1, 2 * BLOCK, 1))
    stopped = make_requests(model, motion, encode_motion(model, motion))
    unblocked = motion.positions[:, BLOCK] + action * BLOCK * two_room.SPEED
    beyond_wall = torch.where(to_right, WALL_RIGHT, WALL_LEFT) + 0.5 * direction
    passed_x = torch.where(
        to_right,
        unblocked[:, 0].maximum(beyond_wall),
        unblocked[:, 0].minimum(beyond_wall),
    )
    frames = two_room.render(torch.stack([passed_x, unblocked[:, 1]], 1))
    return stopped, stopped.with_newest(encode(model, frames))


def _is_between(a: Tensor, b: Tensor, near: float, far: float) -> Tensor:
    """Whether points (R, 2) are at least ``near`` and less than ``far`` pixels apart (R,)."""
    distance = two_room.distance(a, b)
    return (distance >= near) & (distance < far)
