"""Requests with a full history of frames, from Two-Room episodes that no training has seen.

Axes: E episodes, L steps, R requests, H context frames, D latent_dim, A one action block. Positions
are (x, y) in pixels.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from benchmarks.in_process import SearchLoop
from lewm_models.environments import two_room
from lewm_models.environments.two_room_environment import TWO_ROOM
from lewm_models.environments.two_room_policy import (
    evaluation_generator,
    simulate_trajectories,
    waypoint_actions,
)
from lewm_models.evaluation.protocol import sample_episodes
from lewm_models.preprocessing import resize
from lewm_serve.frames.decode import decode_image
from lewm_serve.registry.registry import LoadedModel

BLOCK, HISTORY = 5, 3
MAX_PIXELS = 224 * 224

SendFrames = Callable[[Tensor], Tensor]
"""Frames (N, 224, 224, 3) to those that the server decodes."""


@dataclass(frozen=True)
class Motion:
    """``positions`` (E, L + 1, 2) and the ``actions`` (E, L, 2) between them."""

    positions: Tensor
    actions: Tensor


def training_motion(episodes: int, steps: int, seed: int) -> Motion:
    """Robots that move as in the training data, from seeds that no training has."""
    positions, actions = simulate_trajectories(episodes, steps, evaluation_generator(seed))
    return Motion(positions.transpose(0, 1).contiguous(), actions.transpose(0, 1).contiguous())


def straight_motion(episodes: int, steps: int, seed: int) -> Motion:
    """Robots that move straight to their goals, through the door, without noise."""

    def choose(rooms: two_room.VectorTwoRoom, _step: int) -> Tensor:
        return waypoint_actions(rooms.positions, rooms.goals)

    return _simulate(episodes, steps, seed, choose=choose)


def full_speed_motion(episodes: int, steps: int, seed: int) -> Motion:
    """Robots at full speed along both axes, in a new direction with each action block.

    No training data moves like this.
    """
    generator = evaluation_generator(seed + 1)
    shape = (-(-steps // BLOCK), episodes, 2)
    directions = torch.rand(shape, generator=generator).sub(0.5).sign()
    return _simulate(episodes, steps, seed, choose=lambda _rooms, step: directions[step // BLOCK])


def _simulate(
    episodes: int, steps: int, seed: int, choose: Callable[[two_room.VectorTwoRoom, int], Tensor]
) -> Motion:
    """Robots that ``choose`` moves from random starts to one goal after another."""
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
        new_goals = two_room.sample_goals(episodes, generator)
        rooms.goals = torch.where(arrived[:, None], new_goals, rooms.goals)
    return Motion(torch.stack(positions, 1), torch.stack(actions, 1))


def planned_motion(model: LoadedModel, episodes: int, seed: int, plans: int = 2) -> Motion:
    """Robots that the planner moves in the protocol `paper`; each plan is run to its end."""
    tasks = sample_episodes(TWO_ROOM, "paper", episodes, seed)
    rooms = two_room.VectorTwoRoom(torch.from_numpy(tasks.starts), torch.from_numpy(tasks.goals))
    goals = encode(model, rooms.goal_frames())
    positions, actions = [rooms.positions], []
    for number in range(plans):
        latents = encode(model, rooms.frames())
        plan_rows = [
            torch.from_numpy(_plan_rows(model, latent, goal, seed=number))
            for latent, goal in zip(latents, goals, strict=True)
        ]
        for step_actions in torch.stack(plan_rows, 1):
            actions.append(step_actions)
            rooms.step(step_actions)
            positions.append(rooms.positions)
    return Motion(torch.stack(positions, 1), torch.stack(actions, 1))


def _plan_rows(
    model: LoadedModel, latent: Tensor, goal: Tensor, seed: int
) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    """The actions (T · block, 2) that the model's own solver finds from one frame."""
    search = SearchLoop(model, model.card.solver, latents=latent[None], goal=goal, seed=seed)
    return model.to_rows(search.run().actions)


def as_png(frames: Tensor) -> Tensor:
    """Frames that are sent without loss."""
    return frames


def as_jpeg(quality: int) -> SendFrames:
    """Frames that are sent as JPEG images of this quality."""

    def send(frames: Tensor) -> Tensor:
        decoded = []
        for frame in frames.numpy():
            file = io.BytesIO()
            Image.fromarray(frame).save(file, "JPEG", quality=quality)
            decoded.append(np.array(decode_image(file.getvalue(), MAX_PIXELS, "frame")))
        return torch.from_numpy(np.stack(decoded))

    return send


def encode(model: LoadedModel, frames: Tensor) -> Tensor:
    """Latents (N, D) of frames (N, 224, 224, 3), which are resized as a server does."""
    return model.backend.encode(resize(frames, model.card.config.image_size))


def encode_motion(model: LoadedModel, motion: Motion, send: SendFrames = as_png) -> Tensor:
    """Latents (E, L + 1, D) of the frames at every position."""
    return torch.stack([encode(model, send(two_room.render(path))) for path in motion.positions])


@dataclass(frozen=True)
class Requests:
    """R requests, each with a full history. The last frame of each is the newest.

    Attributes:
        latents: (R, H, D).
        actions: the z-scored action blocks (R, H − 1, A) between the frames.
        positions: where the robot was at each frame (R, H, 2).
    """

    latents: Tensor
    actions: Tensor
    positions: Tensor

    def __len__(self) -> int:
        return len(self.latents)

    def select(self, chosen: Tensor) -> Requests:
        """The requests that an index or a mask chooses."""
        return Requests(self.latents[chosen], self.actions[chosen], self.positions[chosen])

    def with_newest(self, latents: Tensor) -> Requests:
        """The same requests with other newest latents (R, D)."""
        changed = torch.cat([self.latents[:, :-1], latents[:, None]], 1)
        return Requests(changed, self.actions, self.positions)


def make_requests(model: LoadedModel, motion: Motion, latents: Tensor, every: int = 1) -> Requests:
    """A request at every ``every``-th frame that has a full history, episode after episode.

    ``latents`` (E, L + 1, D) are those of the motion.
    """
    newest = torch.arange((HISTORY - 1) * BLOCK, motion.positions.shape[1], every)
    frames = newest[:, None] + BLOCK * torch.arange(1 - HISTORY, 1)
    steps = frames[:, :1] + torch.arange((HISTORY - 1) * BLOCK)
    rows = motion.actions[:, steps]  # (E, requests of an episode, (H − 1) · block, 2)
    blocks = model.to_blocks(rows.clamp(-1, 1).numpy())
    return Requests(
        latents[:, frames].flatten(0, 1),
        blocks.flatten(0, 1),
        motion.positions[:, frames].flatten(0, 1),
    )
