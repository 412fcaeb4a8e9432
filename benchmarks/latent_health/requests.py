"""Requests with a full history, from Two-Room episodes of seeds that no training has."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from lewm_models.environments import two_room
from lewm_models.environments.two_room_motion import simulate
from lewm_models.environments.two_room_policy import waypoint_actions
from lewm_models.evaluation.protocol import evaluation_generator, paper_episodes
from lewm_models.preprocessing import resize
from lewm_serve.frames.decode import decode_image
from lewm_serve.registry.registry import LoadedModel
from lewm_serve.solvers import make_solver
from lewm_serve.solvers.solver import Problem

BLOCK, HISTORY = 5, 3
AGENTS_AT_ONCE = 50
MAX_PIXELS = 224 * 224


@dataclass(frozen=True)
class Motion:
    """``positions`` (E, L + 1, 2) and the ``actions`` (E, L, 2) between them."""

    positions: Tensor
    actions: Tensor


def data_motion(episodes: int, steps: int, seed: int) -> Motion:
    """As the training data moves, from seeds that no training has."""
    positions, actions = simulate(episodes, steps, evaluation_generator(seed))
    return Motion(positions.transpose(0, 1).contiguous(), actions.transpose(0, 1).contiguous())


def _driven(
    episodes: int, steps: int, seed: int, choose: Callable[[two_room.VectorTwoRoom, int], Tensor]
) -> Motion:
    generator = evaluation_generator(seed)
    rooms = two_room.VectorTwoRoom(
        two_room.sample_positions(episodes, generator), two_room.sample_goals(episodes, generator)
    )
    positions, actions = [rooms.positions], []
    for step in range(steps):
        actions.append(choose(rooms, step))
        rooms.step(actions[-1])
        positions.append(rooms.positions)
        arrived = rooms.distances() < two_room.GOAL_RADIUS / 2
        fresh = two_room.sample_goals(episodes, generator)
        rooms.goals = torch.where(arrived[:, None], fresh, rooms.goals)
    return Motion(torch.stack(positions, 1), torch.stack(actions, 1))


def straight_motion(episodes: int, steps: int, seed: int) -> Motion:
    """Straight to the goal, through the door, without noise."""
    return _driven(
        episodes, steps, seed, lambda rooms, _: waypoint_actions(rooms.positions, rooms.goals)
    )


def full_speed_motion(episodes: int, steps: int, seed: int) -> Motion:
    """At full speed along both axes, another way with each block: as far off the data as can be."""
    generator = evaluation_generator(seed + 1)
    shape = (-(-steps // BLOCK), episodes, 2)
    ways = torch.rand(shape, generator=generator).sub(0.5).sign()
    return _driven(episodes, steps, seed, lambda _, step: ways[step // BLOCK])


def plan(
    model: LoadedModel, latents: Tensor, past_actions: Tensor, goal: Tensor, seed: int
) -> Tensor:
    """The best blocks (T, A), z-scored, that the model's own solver finds from latents (H, D)."""
    settings = model.card.solver
    start = torch.zeros(settings.horizon, model.card.config.block_width)
    problem = Problem(model.low, model.high, start, model.card.config.action_dim)
    search = make_solver(settings, problem, seed)
    while not search.done:
        candidates = search.ask()
        future = model.backend.rollout(latents[None], past_actions[None], candidates[None])[0]
        search.tell(candidates, (future[:, -1] - goal).square().sum(-1))
    assert search.best is not None
    return search.best.actions


def planned_motion(model: LoadedModel, episodes: int, seed: int, plans: int = 2) -> Motion:
    """As the planner moves the robots of the `paper` protocol, each plan to its end."""
    tasks = paper_episodes(episodes, seed)
    rooms = two_room.VectorTwoRoom(tasks.starts, tasks.goals)
    goals = encode(model, rooms.goal_frames())
    none = torch.empty(0, model.card.config.block_width)
    positions, actions = [rooms.positions], []
    for number in range(plans):
        latents = encode(model, rooms.frames())
        found = [
            torch.from_numpy(model.to_rows(plan(model, one[None], none, goal, number)))
            for one, goal in zip(latents, goals, strict=True)
        ]
        for action in torch.stack(found, 1):
            actions.append(action)
            rooms.step(action)
            positions.append(rooms.positions)
    return Motion(torch.stack(positions, 1), torch.stack(actions, 1))


def as_png(frames: Tensor) -> Tensor:
    """Lossless: nothing changes."""
    return frames


def as_jpeg(quality: int) -> Callable[[Tensor], Tensor]:
    """Frames (N, H, H, 3) as the server decodes them, sent as JPEG of that quality."""

    def sent(frames: Tensor) -> Tensor:
        decoded = []
        for frame in frames.numpy():
            file = io.BytesIO()
            Image.fromarray(frame).save(file, "JPEG", quality=quality)
            decoded.append(np.array(decode_image(file.getvalue(), MAX_PIXELS, "frame")))
        return torch.from_numpy(np.stack(decoded))

    return sent


def encode(model: LoadedModel, frames: Tensor) -> Tensor:
    """FrameLatents (N, D) of frames (N, 224, 224, 3), resized as those that are served."""
    return model.backend.encode(resize(frames, model.card.config.image_size))


def encode_motion(
    model: LoadedModel, motion: Motion, send: Callable[[Tensor], Tensor] = as_png
) -> Tensor:
    """FrameLatents (E, L + 1, D) of every position."""
    return torch.stack([encode(model, send(two_room.render(path))) for path in motion.positions])


@dataclass(frozen=True)
class Requests:
    """R requests: ``latents`` (R, H, D), ``actions`` (R, H − 1, A) z-scored, and where it was.

    ``positions`` (R, H, 2); the last frame is the newest.
    """

    latents: Tensor
    actions: Tensor
    positions: Tensor

    def __len__(self) -> int:
        return len(self.latents)

    def with_newest(self, latents: Tensor) -> Requests:
        """The same requests with other newest latents (R, D)."""
        return Requests(
            torch.cat([self.latents[:, :-1], latents[:, None]], 1), self.actions, self.positions
        )


def requests(model: LoadedModel, motion: Motion, latents: Tensor, every: int = 1) -> Requests:
    """A request for each frame that has a history, every so many steps; episode after episode."""
    newest = torch.arange((HISTORY - 1) * BLOCK, motion.positions.shape[1], every)
    frames = newest[:, None] + BLOCK * torch.arange(1 - HISTORY, 1)
    steps = frames[:, :1] + torch.arange((HISTORY - 1) * BLOCK)
    rows = motion.actions[:, steps]  # (E, R, (H − 1) · block, 2)
    blocks = model.to_blocks(rows.clamp(-1, 1).numpy())
    return Requests(
        latents[:, frames].flatten(0, 1),
        blocks.flatten(0, 1),
        motion.positions[:, frames].flatten(0, 1),
    )


def predicted(model: LoadedModel, asked: Requests) -> Tensor:
    """The newest latents (R, D) as predicted from those before them."""
    return torch.cat(list(_predicted(model, asked)))


def _predicted(model: LoadedModel, asked: Requests) -> Iterator[Tensor]:
    for begin in range(0, len(asked), 256):
        part = slice(begin, begin + 256)
        yield model.backend.expect(asked.latents[part], asked.actions[part])
