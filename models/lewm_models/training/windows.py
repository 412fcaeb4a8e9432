"""Training samples: windows of recorded episodes, and the order in which training sees them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from lewm_models.calibration.calibrate import MIN_CALIBRATION_FRAMES
from lewm_models.training.prepared import PreparedData

HELD_OUT_SHARES = (0.05, 0.2)
"""The least and the largest share of the episodes that are held out."""

HELD_OUT_FRAMES = 1500
"""More than the least share is held out, until there are this many frames for the calibration."""


class Batch(NamedTuple):
    """B windows of T blocks.

    Attributes:
        frames: (B, T + 1, H, H, 3) uint8.
        actions: (B, T, action_block · action_dim) float32, z-scored. A missing action counts as the
            mean action, which is 0 once z-scored.
        states: (B, T + 1, S) float32 in their units, those of the frames; None if the data have
            none, or if they were not asked for.
    """

    frames: Tensor
    actions: Tensor
    states: Tensor | None


class Windows:
    """All windows of some pieces: T + 1 frames one action block apart, and the T blocks between.

    A window starts at each step that has a frame and leaves enough steps in its piece. The frames
    are read from the disk when they are asked for.

    Args:
        data: where the windows are read from.
        pieces: the numbers of the pieces to use.
        history: T.
        action_block: the actions between two frames.
        mean: (action_dim,), which actions are z-scored with, as is ``std``.
        std: see ``mean``.
        low: actions are clipped to this, a number or (action_dim,), and to ``high``.
        high: see ``low``.
        with_states: whether batches hold the states of the data.

    Raises:
        ValueError: all pieces are shorter than a window, or frames are missing between blocks.
    """

    def __init__(
        self,
        data: PreparedData,
        pieces: NDArray[np.int64],
        *,
        history: int,
        action_block: int,
        mean: NDArray[np.float64],
        std: NDArray[np.float64],
        low: ArrayLike = -np.inf,
        high: ArrayLike = np.inf,
        with_states: bool = False,
    ) -> None:
        self.data = data
        self.states = data.states if with_states else None
        self.history = history
        self.action_block = action_block
        self.mean = mean.astype(np.float32)
        self.std = std.astype(np.float32)
        self.low, self.high = (np.asarray(bound, np.float32) for bound in (low, high))
        every = data.frame_every
        if action_block % every:
            raise ValueError(
                f"action block: expected a multiple of {every}, the steps from one frame of the "
                f"data to the next, got {action_block}"
            )
        steps = history * action_block
        first, stop = data.offsets[pieces], data.offsets[pieces + 1]
        counts = np.maximum(0, -(-(stop - first - steps) // every))
        if not counts.any():
            longest = int((stop - first).max(initial=0))
            raise ValueError(
                f"steps: expected at least {steps + 1} in a row in some episode, got {longest}"
            )
        first_window = np.cumsum(counts) - counts
        number_in_piece = np.arange(counts.sum()) - np.repeat(first_window, counts)
        self.starts = np.repeat(first, counts) + every * number_in_piece

    def __len__(self) -> int:
        return len(self.starts)

    def batch(self, indices: NDArray[np.int64]) -> Batch:
        """Read the windows of these indices (B,)."""
        starts = self.starts[indices][:, None]
        rows = starts + self.action_block * np.arange(self.history + 1)
        frames = self.data.read_frames(rows)
        taken = self.data.actions[starts + np.arange(self.history * self.action_block)]
        taken = np.clip(taken, self.low, self.high)
        blocks = np.nan_to_num((taken - self.mean) / self.std, nan=0.0)
        return Batch(
            frames=torch.from_numpy(frames),
            actions=torch.from_numpy(blocks.reshape(len(indices), self.history, -1)),
            states=None if self.states is None else torch.from_numpy(self.states[rows]),
        )


def batch_order(samples: int, batch: int, *, seed: int, first_step: int) -> Iterator[np.ndarray]:
    """Yield the indices (batch,) of each training step from ``first_step`` on, without end.

    The order of an epoch is a permutation that depends on the seed and the epoch only, so that a
    resumed run sees the batches that the interrupted run would have seen. Samples that do not fill
    the last batch of an epoch are left out.

    Raises:
        ValueError: there are fewer samples than in one batch.
    """
    steps_per_epoch = samples // batch
    if steps_per_epoch == 0:
        raise ValueError(f"batch: expected at most the number of samples, {samples}, got {batch}")
    epoch, skipped = divmod(first_step, steps_per_epoch)
    while True:
        order = np.random.default_rng((seed, epoch)).permutation(samples)
        for index in range(skipped, steps_per_epoch):
            yield order[index * batch : (index + 1) * batch]
        epoch, skipped = epoch + 1, 0


def split_episodes(data: PreparedData) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The pieces for training and the held-out ones. Whole episodes are held out.

    Raises:
        ValueError: there is only one episode.
    """
    frames = np.array([len(data.frame_rows(piece)) for piece in range(len(data.episodes))])
    is_held_out = np.isin(data.episodes, held_out_episodes(data.episodes, frames))
    return np.flatnonzero(~is_held_out), np.flatnonzero(is_held_out)


def held_out_episodes(episodes: NDArray[np.int64], frames: NDArray[np.int64]) -> NDArray[np.int64]:
    """The numbers of the episodes that are held out, evenly spread over the data.

    It is one in twenty, or as many more as `HELD_OUT_FRAMES` need, up to one in five. If even one
    in five gives too few frames for a calibration, it is one in twenty, so that training has more.

    Args:
        episodes: (P,), the episode of each piece, ascending.
        frames: (P,), the frames of each piece.

    Raises:
        ValueError: there is only one episode.
    """
    numbers, places = np.unique(episodes, return_inverse=True)
    if len(numbers) < 2:
        raise ValueError(f"episodes: expected at least 2, one of them held out, got {len(numbers)}")
    episode_frames = np.bincount(places, weights=frames)
    least, most = (int(np.ceil(share * len(numbers))) for share in HELD_OUT_SHARES)

    def spread(count: int) -> NDArray[np.int64]:
        """The places of this many episodes."""
        return np.linspace(0, len(numbers) - 1, 2 * count + 1)[1::2].round().astype(np.int64)

    for count in range(least, most + 1):
        if episode_frames[spread(count)].sum() >= HELD_OUT_FRAMES:
            return numbers[spread(count)]
    is_enough = episode_frames[spread(most)].sum() >= MIN_CALIBRATION_FRAMES
    return numbers[spread(most if is_enough else least)]
