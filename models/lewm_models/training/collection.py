"""Collect recordings with an environment's data-collecting policy."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from lewm_models.environments import two_room
from lewm_models.environments.two_room_motion import simulate
from lewm_models.preprocessing import resize
from lewm_models.training.recording import Recording, RecordingSpec

Progress = Callable[[int, int], None]
"""Called with (done, total)."""


def collect(folder: Path, spec: RecordingSpec, progress: Progress | None = None) -> Recording:
    """Open the folder's recording if it is this one, else collect it.

    Raises:
        ValueError: the environment is unknown, or the folder holds a recording of another spec.
    """
    if spec.environment not in COLLECTORS:
        raise ValueError(f"env: expected one of {sorted(COLLECTORS)}, got {spec.environment!r}")
    if (folder / "recording.json").exists():
        recording = Recording.open(folder)
        if recording.spec != spec:
            raise ValueError(f"{folder}: holds a recording of {recording.spec}, not of {spec}")
        return recording
    return COLLECTORS[spec.environment](folder, spec, progress)


def collect_two_room(
    folder: Path, spec: RecordingSpec, progress: Progress | None = None
) -> Recording:
    """All episodes side by side: first the motion, which is cheap, then the frames."""
    generator = torch.Generator().manual_seed(spec.seed)
    recording = Recording.create(folder, spec, state_dim=2, action_dim=2)
    positions, actions = simulate(spec.episodes, spec.steps, generator)
    recording.states[:] = positions.transpose(0, 1)
    recording.actions[:] = actions.transpose(0, 1)
    for episode in range(spec.episodes):
        frames = two_room.render(torch.from_numpy(recording.states[episode]))
        recording.frames[episode] = resize(frames, spec.image_size)
        if progress is not None:
            progress(episode + 1, spec.episodes)
    recording.finish(folder)
    return recording


COLLECTORS = {"two-room": collect_two_room}
