"""A sample of recorded steps: latents of frames one action block apart, and what belongs to them.

Prepared data and recordings are read in the same way, and their frames are encoded piece by piece,
so that the memory does not depend on the size of a recording.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from lewm_models.card import ModelCard
from lewm_models.lewm import PART_FRAMES, LeWM, encode_in_parts
from lewm_models.preprocessing import Crop, resize, to_model_frames
from lewm_models.recordings.recording import Column, Recording
from lewm_models.recordings.usable import StepRange
from lewm_models.training.prepared import PreparedData
from lewm_models.training.windows import held_out_episodes

THUMBNAIL_SIDE = 8
"""The side of the thumbnails that latents are compared with, in pixels."""

READ_STEPS = 512
"""Steps of a recording whose frames are in memory at once, as they were recorded."""

MIN_UNITS = 20
"""Intervals are made from at least this many parts of the sample: few episodes are divided."""

Progress = Callable[[int, int], None]
"""Called with the number of frames done and in all."""


class Pieces(Protocol):
    """P pieces: episodes, or parts of them without a gap.

    Attributes:
        episodes: (P,), the episode of each, ascending.
        steps: (P,), the recorded steps of each.
        frame_every: the steps from one frame to the next.
    """

    @property
    def episodes(self) -> NDArray[np.int64]: ...

    @property
    def steps(self) -> NDArray[np.int64]: ...

    @property
    def frame_every(self) -> int: ...

    def read_frames(self, piece: int, steps: NDArray[np.int64]) -> Tensor:
        """The frames (n, H, H, 3) uint8 of ascending steps (n,), at the model's size."""

    def read_actions(self, piece: int) -> NDArray[np.float32]:
        """The actions (N, A) of a piece of N steps, in the robot's units. The last is not used."""

    def read_states(self, piece: int) -> NDArray[np.float32] | None:
        """The states (N, S) of a piece, in their units; None if there are none."""


@dataclass(frozen=True)
class PreparedPieces:
    """The pieces of prepared data, with frames of ``image_size``; see `Pieces`."""

    data: PreparedData
    image_size: int

    @property
    def episodes(self) -> NDArray[np.int64]:
        return self.data.episodes

    @property
    def steps(self) -> NDArray[np.int64]:
        return np.diff(self.data.offsets)

    @property
    def frame_every(self) -> int:
        return self.data.frame_every

    def read_frames(self, piece: int, steps: NDArray[np.int64]) -> Tensor:
        frames = self.data.read_frames(self.data.rows(piece).start + steps)
        return resize(torch.from_numpy(frames), self.image_size)

    def read_actions(self, piece: int) -> NDArray[np.float32]:
        return np.array(self.data.actions[slice(*self.data.offsets[piece : piece + 2])])

    def read_states(self, piece: int) -> NDArray[np.float32] | None:
        if self.data.states is None:
            return None
        return np.array(self.data.states[slice(*self.data.offsets[piece : piece + 2])])


@dataclass(frozen=True)
class RecordingPieces:
    """The usable steps of an open recording; see `Pieces`.

    Attributes:
        recording: the recording.
        camera: the camera whose frames are taken.
        action: the column of actions.
        state: the column of states; None: there is none.
        ranges: the usable steps.
        image_size: the side of the model's frames in pixels.
        crop: how frames become square.
    """

    recording: Recording
    camera: Column
    action: Column
    state: Column | None
    ranges: Sequence[StepRange]
    image_size: int
    crop: Crop | None
    frame_every: int = 1

    @cached_property
    def episodes(self) -> NDArray[np.int64]:
        return np.array([part.episode for part in self.ranges], np.int64)

    @cached_property
    def steps(self) -> NDArray[np.int64]:
        return np.array([part.steps for part in self.ranges], np.int64)

    def read_frames(self, piece: int, steps: NDArray[np.int64]) -> Tensor:
        part = self.ranges[piece]
        first = int(steps[0])
        recorded = self.recording.read_frames(
            self.camera.name,
            part.episode,
            first=part.first + first,
            count=int(steps[-1]) + 1 - first,
        )
        frames = torch.from_numpy(np.ascontiguousarray(recorded[steps - first]))
        return to_model_frames(frames, self.image_size, self.crop)

    def read_actions(self, piece: int) -> NDArray[np.float32]:
        part = self.ranges[piece]
        actions = self.recording.read_numbers(self.action.name, part.episode)
        return actions[part.first : part.stop]

    def read_states(self, piece: int) -> NDArray[np.float32] | None:
        if self.state is None:
            return None
        part = self.ranges[piece]
        return self.recording.read_states(self.state.name, part.episode)[part.first : part.stop]


def split_pieces(pieces: Pieces) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The numbers of the pieces for training and of the held-out ones, as in training.

    Raises:
        ValueError: there is only one episode.
    """
    frames = -(-pieces.steps // pieces.frame_every)
    is_held_out = np.isin(pieces.episodes, held_out_episodes(pieces.episodes, frames))
    return np.flatnonzero(~is_held_out), np.flatnonzero(is_held_out)


@dataclass(frozen=True)
class RecordedSample:
    """N frames in sequences, one sequence after another; successive frames are one block apart.

    Attributes:
        latents: (N, D) float32.
        blocks: (N, A), z-scored: the action block that was executed after each frame. A missing
            action counts as the mean action, 0. The last block of a sequence is 0.
        left: (N,), the frames that follow in the same sequence.
        before: (N,), the frames that come before in the same sequence.
        units: (N,), the part of the sample that a frame belongs to: its episode, or a part of it.
            Frames of different units count as independent.
        episodes: (N,), the episode of each.
        states: (N, S) in their units, NaN where one is missing; None if there are none.
        thumbnails: (N, 3 · side²), the frames as small pictures, 0 to 1.
    """

    latents: Tensor
    blocks: Tensor
    left: NDArray[np.int64]
    before: NDArray[np.int64]
    units: NDArray[np.int64]
    episodes: NDArray[np.int64]
    states: NDArray[np.float32] | None
    thumbnails: Tensor

    def __len__(self) -> int:
        return len(self.latents)

    @property
    def variance(self) -> float:
        """The total variance of the latents, by which errors are divided."""
        centred = self.latents - self.latents.mean(dim=0)
        return float(centred.square().sum(dim=1).mean())

    def rows_before(self, blocks: int) -> NDArray[np.int64]:
        """The rows with at least so many frames after them in their sequence."""
        return np.flatnonzero(self.left >= blocks)

    def blocks_from(self, rows: NDArray[np.int64], count: int) -> Tensor:
        """The blocks (n, count, A) that follow rows (n,). Past a sequence's end they mean
        nothing."""
        places = np.minimum(rows[:, None] + np.arange(count), len(self) - 1)
        return self.blocks[torch.from_numpy(places)]


def encode_samples(
    model: LeWM,
    card: ModelCard,
    pieces: Pieces,
    *,
    max_frames: tuple[int, int],
    thumbnail_side: int = THUMBNAIL_SIDE,
    progress: Progress = lambda done, total: None,
) -> tuple[RecordedSample, RecordedSample]:
    """Encode frames of the training episodes, and of the held-out ones; see `encode_sample`.

    Args:
        model, card, pieces, thumbnail_side, progress: see `encode_sample`.
        max_frames: the most frames of each, about.

    Raises:
        ValueError: there is only one episode, or the frames do not fit the model.
    """
    training, held_out = (
        encode_sample(
            model,
            card,
            pieces,
            numbers,
            max_frames=most,
            thumbnail_side=thumbnail_side,
            progress=progress,
        )
        for numbers, most in zip(split_pieces(pieces), max_frames, strict=True)
    )
    return training, held_out


@torch.inference_mode()
def encode_sample(
    model: LeWM,
    card: ModelCard,
    pieces: Pieces,
    numbers: NDArray[np.int64],
    *,
    max_frames: int,
    thumbnail_side: int = THUMBNAIL_SIDE,
    progress: Progress = lambda done, total: None,
) -> RecordedSample:
    """Encode frames one action block apart of these pieces.

    Of more than ``max_frames``, those of evenly spaced pieces are taken. Of few frames, a piece
    gives several sequences, which begin at different steps.

    Args:
        model: in ``eval()`` mode, on any device.
        card: its card.
        pieces: the recorded steps.
        numbers: the pieces to take.
        max_frames: the most frames, about.
        thumbnail_side: the side of the thumbnails, in pixels.
        progress: called after each sequence.

    Raises:
        ValueError: the frames are not one action block apart, or all pieces are too short.
    """
    block, every = card.config.action_block, pieces.frame_every
    if block % every:
        raise ValueError(
            f"{card.name}: its action block of {block} is no multiple of {every}, the steps from "
            "one frame to the next"
        )
    numbers = numbers[pieces.steps[numbers] > block]
    if not len(numbers):
        raise ValueError(
            f"steps: expected at least {block + 1} in a row (action block + 1) in some episode"
        )
    chosen, shifts = _spread(pieces, numbers, block=block, max_frames=max_frames)
    steps_of = {piece: min(int(pieces.steps[piece]), max_frames * block) for piece in chosen}
    unit_steps = max(block, sum(steps_of.values()) // MIN_UNITS)
    total = sum(len(range(shift, n, block)) for n in steps_of.values() for shift in shifts)
    parts: list[RecordedSample] = []
    done = 0
    for piece, stop in steps_of.items():
        recorded = _Recorded.read(card, pieces, piece, unit_steps=unit_steps)
        for shift in shifts:
            steps = np.arange(shift, stop, block)
            done += len(steps)
            if len(steps) > 1:
                states = None
                if model.config.state_input is not None and recorded.states is not None:
                    states = torch.from_numpy(recorded.states[steps])
                encoded = _encode(model, pieces, piece, steps, states, thumbnail_side)
                parts.append(recorded.sequence(steps, *encoded))
                progress(done, total)
    return _joined(parts)


def _spread(
    pieces: Pieces, numbers: NDArray[np.int64], *, block: int, max_frames: int
) -> tuple[list[int], list[int]]:
    """The pieces to take, and the first steps of the sequences of each."""
    frames = int((-(-pieces.steps[numbers] // block)).sum())
    if frames > max_frames:
        count = max(1, len(numbers) * max_frames // frames)
        places = np.linspace(0, len(numbers) - 1, count).round().astype(np.int64)
        return numbers[places].tolist(), [0]
    phases = block // pieces.frame_every
    count = min(phases, max(1, max_frames // frames))
    shifts = np.linspace(0, phases, count, endpoint=False).astype(np.int64) * pieces.frame_every
    return numbers.tolist(), shifts.tolist()


def _encode(
    model: LeWM,
    pieces: Pieces,
    piece: int,
    steps: NDArray[np.int64],
    states: Tensor | None,
    thumbnail_side: int,
) -> tuple[Tensor, Tensor]:
    """The latents (n, D) and thumbnails of a piece's steps (n,), with the states (n, S) shown."""
    latents, thumbnails = [], []
    per_read = min(PART_FRAMES, max(1, READ_STEPS // max(1, int(steps[1] - steps[0]))))
    for first in range(0, len(steps), per_read):
        rows = slice(first, first + per_read)
        frames = pieces.read_frames(piece, steps[rows])
        latents.append(encode_in_parts(model, frames, None if states is None else states[rows]))
        pixels = frames.permute(0, 3, 1, 2).float() / 255
        thumbnails.append(F.adaptive_avg_pool2d(pixels, thumbnail_side).flatten(1))
    return torch.cat(latents), torch.cat(thumbnails)


@dataclass(frozen=True)
class _Recorded:
    """What was recorded in a piece of N steps: z-scored actions (N, A) and states (N, S)."""

    number: int
    episode: int
    zscored: NDArray[np.float64]
    states: NDArray[np.float32] | None
    block: int
    unit_steps: int

    @classmethod
    def read(cls, card: ModelCard, pieces: Pieces, piece: int, *, unit_steps: int) -> _Recorded:
        actions = pieces.read_actions(piece)
        return cls(
            number=piece,
            episode=int(pieces.episodes[piece]),
            zscored=(actions - np.array(card.action_mean)) / np.array(card.action_std),
            states=pieces.read_states(piece),
            block=card.config.action_block,
            unit_steps=unit_steps,
        )

    def sequence(
        self, steps: NDArray[np.int64], latents: Tensor, thumbnails: Tensor
    ) -> RecordedSample:
        """The part of a sample that these steps (n,) make, given their frames' latents."""
        count = len(steps)
        taken = self.zscored[steps[:-1, None] + np.arange(self.block)]
        blocks = np.zeros((count, self.block * self.zscored.shape[1]), np.float32)
        blocks[:-1] = np.nan_to_num(taken, nan=0.0).reshape(count - 1, -1)
        return RecordedSample(
            latents=latents,
            blocks=torch.from_numpy(blocks),
            left=np.arange(count)[::-1].astype(np.int64),
            before=np.arange(count),
            units=(self.number << 32) + steps // self.unit_steps,
            episodes=np.full(count, self.episode, np.int64),
            states=None if self.states is None else self.states[steps],
            thumbnails=thumbnails,
        )


def _joined(parts: Sequence[RecordedSample]) -> RecordedSample:
    def joined(name: str) -> NDArray[np.int64]:
        return np.concatenate([getattr(part, name) for part in parts])

    states = [part.states for part in parts if part.states is not None]
    return RecordedSample(
        latents=torch.cat([part.latents for part in parts]),
        blocks=torch.cat([part.blocks for part in parts]),
        left=joined("left"),
        before=joined("before"),
        units=joined("units"),
        episodes=joined("episodes"),
        states=np.concatenate(states) if states else None,
        thumbnails=torch.cat([part.thumbnails for part in parts]),
    )
