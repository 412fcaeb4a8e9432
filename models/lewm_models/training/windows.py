"""Training samples: windows of recorded episodes, and the order in which training sees them."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from lewm_models.training.recording import Recording


class Windows:
    """All windows of some episodes: T + 1 frames one action block apart, and the T blocks between.

    A window starts at each step that leaves enough steps in its episode.

    Args:
        recording: where the windows are read from.
        episodes: the episodes to use.
        history: T.
        action_block: the actions between two frames.
        mean: (action_dim,), which actions are z-scored with, as is ``std``.
        std: see ``mean``.

    Raises:
        ValueError: the episodes are shorter than a window.
    """

    def __init__(
        self,
        recording: Recording,
        episodes: range,
        *,
        history: int,
        action_block: int,
        mean: np.ndarray,
        std: np.ndarray,
    ) -> None:
        self.recording = recording
        self.history = history
        self.action_block = action_block
        self.mean = mean.astype(np.float32)
        self.std = std.astype(np.float32)
        starts_per_episode = recording.spec.steps - history * action_block + 1
        if starts_per_episode < 1:
            raise ValueError(
                f"steps: expected at least {history * action_block} per recorded episode, "
                f"got {recording.spec.steps}"
            )
        self.episodes = np.repeat(np.arange(episodes.start, episodes.stop), starts_per_episode)
        self.starts = np.tile(np.arange(starts_per_episode), len(episodes))

    def __len__(self) -> int:
        return len(self.starts)

    def batch(self, indices: np.ndarray) -> tuple[Tensor, Tensor]:
        """Read the windows of these indices (B,).

        Returns:
            Frames (B, T + 1, H, H, 3) uint8, and z-scored blocks (B, T, action_block · action_dim)
            float32. A missing action counts as the mean action, which is 0 once z-scored.
        """
        episodes, starts = self.episodes[indices], self.starts[indices]
        frame_steps = starts[:, None] + self.action_block * np.arange(self.history + 1)
        frames = self.recording.frames[episodes[:, None], frame_steps]
        action_steps = starts[:, None] + np.arange(self.history * self.action_block)
        actions = (self.recording.actions[episodes[:, None], action_steps] - self.mean) / self.std
        blocks = np.nan_to_num(actions, nan=0.0).reshape(len(indices), self.history, -1)
        return torch.from_numpy(frames), torch.from_numpy(blocks)


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


def split_episodes(episodes: int, held_out: float = 0.05) -> tuple[range, range]:
    """Split into episodes for training and held-out ones, which are the last, at least one each.

    Raises:
        ValueError: there are too few episodes.
    """
    held_out_count = max(1, math.ceil(episodes * held_out))
    if episodes <= held_out_count:
        raise ValueError(f"episodes: expected more than {held_out_count}, got {episodes}")
    first_held_out = episodes - held_out_count
    return range(first_held_out), range(first_held_out, episodes)
