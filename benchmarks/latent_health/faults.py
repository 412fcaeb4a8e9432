"""Requests whose newest frame is not what it should be, by the name of what went wrong."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from benchmarks.latent_health.requests import (
    BLOCK,
    Motion,
    Requests,
    encode,
    encode_motion,
    requests,
)
from benchmarks.latent_health.scene import push_t_frames
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

TELEPORTS = ((10, 20), (20, 30), (30, 50), (50, 300))
FREEZES = ((0, 5), (5, 10), (10, 15), (15, 20), (20, 30))
"""Pixels from, pixels to."""

BELOW_DOOR = 90.0


def faulty_frames(positions: Tensor, generator: torch.Generator) -> Iterator[tuple[str, Tensor]]:
    """Frames (R, 224, 224, 3) of robots at these positions (R, 2), under each fault of a frame."""
    frames = two_room.render(positions)
    for name, fault in CAMERA_FAULTS.items():
        yield name, fault(frames, generator)
    for side in (20, 40):
        yield f"robot behind {side} px", _hidden(frames, positions, side)
    yield "robot gone", empty_rooms().expand_as(frames)
    yield "another environment (Push-T)", push_t_frames(len(frames), generator)


def empty_rooms() -> Tensor:
    """The rooms without a robot (224, 224, 3): of two frames the halves that have none."""
    left, right = two_room.render(torch.tensor([[REACH_MAX, 112.0], [REACH_MIN, 112.0]]))
    middle = IMAGE_SIZE // 2
    return torch.cat([left[:, :middle], right[:, middle:]], dim=1)


def _hidden(frames: Tensor, positions: Tensor, side: int) -> Tensor:
    """A grey square in front of the robot."""
    hidden = frames.clone()
    for frame, (x, y) in zip(hidden, positions.round().long().tolist(), strict=True):
        top, left = max(0, y - side // 2), max(0, x - side // 2)
        frame[top : y + side // 2, left : x + side // 2] = 128
    return hidden


def teleports(
    model: LoadedModel, asked: Requests, generator: torch.Generator
) -> Iterator[tuple[str, Requests]]:
    """The robot is suddenly elsewhere, so far from where it should be."""
    true = asked.positions[:, -1]
    for near, far in TELEPORTS:
        places = two_room.sample_goals(len(true), generator)
        while bool((wrong := ~_between(places, true, near, far)).any()):
            places = torch.where(
                wrong[:, None], two_room.sample_goals(len(true), generator), places
            )
        name = (
            f"teleport of {near} px and more"
            if far >= IMAGE_SIZE
            else f"teleport of {near} to {far} px"
        )
        yield name, asked.with_newest(encode(model, two_room.render(places)))


def freezes(asked: Requests) -> Iterator[tuple[str, Requests]]:
    """The camera shows the frame before once more, while the robot moved so far."""
    before, true = asked.positions[:, -2], asked.positions[:, -1]
    for near, far in FREEZES:
        chosen = _between(before, true, near, far)
        frozen = Requests(asked.latents[chosen], asked.actions[chosen], asked.positions[chosen])
        yield f"frozen, robot moved {near} to {far} px", frozen.with_newest(frozen.latents[:, -2])


def wall_crossings(
    model: LoadedModel, count: int, generator: torch.Generator
) -> tuple[Requests, Requests]:
    """Robots that push against the wall, away from its door: stopped, and as if they went through.

    They reach it during the second block from either side; who passes is 25 px further on.
    """
    draws = torch.rand(count, 3, generator=generator)
    y = BELOW_DOOR + draws[:, 0] * (REACH_MAX - BELOW_DOOR)
    to_right = draws[:, 1] < 0.5
    way = torch.where(to_right, 1.0, -1.0)
    # After the first block the robot stands 5 to 20 px from where the wall stops it.
    x = torch.where(to_right, WALL_LEFT, WALL_RIGHT) - way * (30 + 15 * draws[:, 2])
    rooms = two_room.VectorTwoRoom(torch.stack([x, y], 1), torch.stack([x, y], 1))
    action = torch.stack([way, torch.zeros(count)], 1)
    path = [rooms.positions]
    for _ in range(2 * BLOCK):
        rooms.step(action)
        path.append(rooms.positions)
    motion = Motion(torch.stack(path, 1), action[:, None].repeat(1, 2 * BLOCK, 1))
    stopped = requests(model, motion, encode_motion(model, motion))
    passed = motion.positions[:, BLOCK] + action * BLOCK * two_room.SPEED
    other_side = torch.where(to_right, WALL_RIGHT, WALL_LEFT) + 0.5 * way
    through = torch.where(
        to_right, passed[:, 0].maximum(other_side), passed[:, 0].minimum(other_side)
    )
    frames = two_room.render(torch.stack([through, passed[:, 1]], 1))
    return stopped, stopped.with_newest(encode(model, frames))


def _between(a: Tensor, b: Tensor, near: float, far: float) -> Tensor:
    distance = two_room.distance(a, b)
    return (distance >= near) & (distance < far)
