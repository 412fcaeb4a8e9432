"""Recordings: episodes of an environment, collected with its data policy and kept on disk."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch

from lewm_models.environments import two_room
from lewm_models.environments.two_room_policy import simulate_trajectories
from lewm_models.file_kinds import read_numpy_array
from lewm_models.preprocessing import resize

SPEC_FILE = "recording.json"

CollectionProgress = Callable[[int, int], None]
"""Called after each episode with the number of episodes done and in all."""


@dataclass(frozen=True)
class RecordingSpec:
    """What a recording is made from; the same spec gives the same bytes.

    ``steps`` is the number of actions per episode, and ``image_size`` the side of the frames in px.
    """

    environment: str
    episodes: int
    steps: int
    image_size: int
    seed: int


@dataclass(frozen=True)
class Recording:
    """E episodes of L steps, as arrays that are mapped from disk.

    Args:
        spec: what the recording is made from.
        states: (E, L + 1, S) float32, in the environment's units.
        actions: (E, L, action_dim) float32, as executed, NaN for a missing action.
        frames: (E, L + 1, H, H, 3) uint8.
    """

    spec: RecordingSpec
    states: np.ndarray
    actions: np.ndarray
    frames: np.ndarray

    @classmethod
    def create(
        cls, folder: Path, spec: RecordingSpec, *, state_dim: int, action_dim: int
    ) -> Recording:
        """Create the files of a recording. Fill the arrays in place, then call `finish`."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / SPEC_FILE).unlink(missing_ok=True)
        episodes, steps, size = spec.episodes, spec.steps, spec.image_size

        def create_array(name: str, dtype: str, shape: tuple[int, ...]) -> np.ndarray:
            path = folder / f"{name}.npy"
            return np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=shape)

        return cls(
            spec=spec,
            states=create_array("states", "<f4", (episodes, steps + 1, state_dim)),
            actions=create_array("actions", "<f4", (episodes, steps, action_dim)),
            frames=create_array("frames", "|u1", (episodes, steps + 1, size, size, 3)),
        )

    def finish(self, folder: Path) -> None:
        """Write everything to disk. The spec comes last, since it marks a complete recording."""
        for array in (self.states, self.actions, self.frames):
            if isinstance(array, np.memmap):
                array.flush()
        (folder / SPEC_FILE).write_text(json.dumps(asdict(self.spec), indent=2) + "\n")

    @classmethod
    def open(cls, folder: Path) -> Recording:
        """Open a complete recording.

        Raises:
            FileNotFoundError: there is no recording, or its collection was interrupted.
            ValueError: a file is broken.
        """
        try:
            spec = RecordingSpec(**json.loads((folder / SPEC_FILE).read_text()))
            states, actions, frames = (
                read_numpy_array(folder / f"{name}.npy", memory_mapped=True)
                for name in ("states", "actions", "frames")
            )
        except (EOFError, TypeError, ValueError) as error:
            message = f"{folder}: holds a broken recording ({error}); remove it to collect again"
            raise ValueError(message) from error
        return cls(spec=spec, states=states, actions=actions, frames=frames)

    def action_statistics(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean and population standard deviation (action_dim,) of the actions, without NaN."""
        flat = self.actions.reshape(-1, self.actions.shape[-1]).astype(np.float64)
        return np.nanmean(flat, axis=0), np.nanstd(flat, axis=0)


def collect(
    folder: Path, spec: RecordingSpec, progress: CollectionProgress | None = None
) -> Recording:
    """Collect a recording, or open the one in the folder if it has the same spec.

    Raises:
        ValueError: the environment is unknown, or the folder holds a recording of another spec.
    """
    if spec.environment not in COLLECTORS:
        raise ValueError(f"env: expected one of {sorted(COLLECTORS)}, got {spec.environment!r}")
    if (folder / SPEC_FILE).exists():
        recording = Recording.open(folder)
        if recording.spec != spec:
            raise ValueError(f"{folder}: holds a recording of {recording.spec}, not of {spec}")
        return recording
    return COLLECTORS[spec.environment](folder, spec, progress)


def _collect_two_room(
    folder: Path, spec: RecordingSpec, progress: CollectionProgress | None
) -> Recording:
    """Simulate all episodes together, which is cheap, then draw the frames of one after another."""
    generator = torch.Generator().manual_seed(spec.seed)
    recording = Recording.create(folder, spec, state_dim=2, action_dim=2)
    positions, actions = simulate_trajectories(spec.episodes, spec.steps, generator)
    recording.states[:] = positions.transpose(0, 1)
    recording.actions[:] = actions.transpose(0, 1)
    for episode in range(spec.episodes):
        frames = two_room.render(torch.from_numpy(recording.states[episode]))
        recording.frames[episode] = resize(frames, spec.image_size)
        if progress is not None:
            progress(episode + 1, spec.episodes)
    recording.finish(folder)
    return recording


COLLECTORS: Mapping[str, Callable[[Path, RecordingSpec, CollectionProgress | None], Recording]] = {
    "two-room": _collect_two_room
}
"""The function that collects each environment's recordings."""
