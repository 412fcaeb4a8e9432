"""Recorded episodes on disk and the windows that training draws from them."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class RecordingSpec:
    """What a recording is made from; the same spec gives the same bytes."""

    environment: str
    episodes: int
    steps: int
    image_size: int
    seed: int


@dataclass(frozen=True)
class Recording:
    """E episodes of L steps.

    ``states`` (E, L + 1, S) float32; ``actions`` (E, L, action_dim) float32, as executed, NaN where
    none was; ``frames`` (E, L + 1, H, H, 3) uint8, mapped from disk.
    """

    spec: RecordingSpec
    states: np.ndarray
    actions: np.ndarray
    frames: np.ndarray

    @classmethod
    def create(
        cls, folder: Path, spec: RecordingSpec, state_dim: int, action_dim: int
    ) -> Recording:
        """A recording to be filled in place; it does not exist for `open` until `finish`."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "recording.json").unlink(missing_ok=True)
        episodes, steps, size = spec.episodes, spec.steps, spec.image_size

        def array(name: str, dtype: str, *shape: int) -> np.ndarray:
            return np.lib.format.open_memmap(
                folder / f"{name}.npy", mode="w+", dtype=dtype, shape=shape
            )

        return cls(
            spec,
            array("states", "<f4", episodes, steps + 1, state_dim),
            array("actions", "<f4", episodes, steps, action_dim),
            array("frames", "|u1", episodes, steps + 1, size, size, 3),
        )

    def finish(self, folder: Path) -> None:
        """Flush the arrays; the spec is written last and marks the recording as whole."""
        for array in (self.states, self.actions, self.frames):
            if isinstance(array, np.memmap):
                array.flush()
        (folder / "recording.json").write_text(json.dumps(asdict(self.spec), indent=2) + "\n")

    @classmethod
    def open(cls, folder: Path) -> Recording:
        """Map a finished recording.

        Raises:
            FileNotFoundError: there is none in the folder, or its collection was cut off.
            ValueError: a file is broken.
        """
        try:
            spec = RecordingSpec(**json.loads((folder / "recording.json").read_text()))
            states, actions, frames = (
                np.load(folder / f"{name}.npy", mmap_mode="r")
                for name in ("states", "actions", "frames")
            )
        except (EOFError, TypeError, ValueError) as error:
            message = f"{folder}: holds a broken recording ({error}); remove it to collect again"
            raise ValueError(message) from error
        return cls(spec, states, actions, frames)

    def action_statistics(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean and population standard deviation of each raw action dimension, NaN left out."""
        flat = self.actions.reshape(-1, self.actions.shape[-1]).astype(np.float64)
        return np.nanmean(flat, axis=0), np.nanstd(flat, axis=0)


class Windows:
    """Training samples: T + 1 frames one action block apart, and the T blocks between them."""

    def __init__(
        self,
        recording: Recording,
        episodes: range,
        history: int,
        block: int,
        mean: np.ndarray,
        std: np.ndarray,
    ) -> None:
        self.recording = recording
        self.history = history
        self.block = block
        self.mean = mean.astype(np.float32)
        self.std = std.astype(np.float32)
        starts = recording.spec.steps - history * block + 1
        if starts < 1:
            raise ValueError(
                f"steps: expected at least {history * block} a recorded episode, "
                f"got {recording.spec.steps}"
            )
        self.episodes = np.repeat(np.arange(episodes.start, episodes.stop), starts)
        self.starts = np.tile(np.arange(starts), len(episodes))

    def __len__(self) -> int:
        return len(self.starts)

    def batch(self, indices: np.ndarray) -> tuple[Tensor, Tensor]:
        """Frames (B, T + 1, H, H, 3) uint8 and z-scored blocks (B, T, block · action_dim)."""
        episodes, starts = self.episodes[indices], self.starts[indices]
        frame_steps = starts[:, None] + self.block * np.arange(self.history + 1)
        frames = self.recording.frames[episodes[:, None], frame_steps]
        action_steps = starts[:, None] + np.arange(self.history * self.block)
        actions = (self.recording.actions[episodes[:, None], action_steps] - self.mean) / self.std
        # A missing action becomes the mean action, which is 0 once z-scored.
        blocks = np.nan_to_num(actions, nan=0.0).reshape(len(indices), self.history, -1)
        return torch.from_numpy(frames), torch.from_numpy(blocks)


def batch_order(samples: int, batch: int, seed: int, first_step: int) -> Iterator[np.ndarray]:
    """The indices of each batch from ``first_step`` on, for ever.

    Each epoch is a permutation fixed by (seed, epoch), so that a resumed run sees exactly what the
    run that was cut off would have seen; the last, short batch of an epoch is left out.
    """
    per_epoch = samples // batch
    if per_epoch == 0:
        raise ValueError(f"batch: expected at most the {samples} samples there are, got {batch}")
    epoch, skip = divmod(first_step, per_epoch)
    while True:
        order = np.random.default_rng((seed, epoch)).permutation(samples)
        for index in range(skip, per_epoch):
            yield order[index * batch : (index + 1) * batch]
        epoch, skip = epoch + 1, 0


def split(episodes: int, held_out: float = 0.05) -> tuple[range, range]:
    """Training episodes and the held-out ones at the end, at least one of each."""
    held = max(1, math.ceil(episodes * held_out))
    if episodes <= held:
        raise ValueError(f"episodes: expected more than {held}, got {episodes}")
    return range(episodes - held), range(episodes - held, episodes)
