"""Data for tests: episodes of Two-Room, and recordings of a robot with three joints."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import h5py
import numpy as np

from lewm_models.training.environment_source import EnvironmentSource
from lewm_models.training.preparation import RecordingSource
from lewm_models.training.prepared import PreparedData

JOINT_RANGES = np.array([10.0, 1.0, 0.1], np.float32)


def two_room(episodes: int, steps: int, image_size: int, seed: int = 0) -> EnvironmentSource:
    return EnvironmentSource("two-room", episodes, steps, image_size, seed)


def prepare(source: EnvironmentSource | RecordingSource, folder: Path) -> PreparedData:
    """Prepare data without any progress bar."""
    return source.prepare(folder, lambda done, total: None, lambda line: None)


def write_robot(
    path: Path,
    steps: Sequence[int] = (60, 45, 70, 52, 61, 80),
    *,
    height: int = 64,
    width: int = 96,
    seed: int = 0,
) -> Path:
    """HDF5 as stable-worldmodel writes it; the blots on a frame show the joints.

    Each episode ends with an action of NaN.
    """
    generator = np.random.default_rng(seed)
    rows = sum(steps)
    y, x = np.mgrid[:height, :width]
    state = np.zeros(3)
    pixels = np.empty((rows, height, width, 3), np.uint8)
    actions = np.empty((rows, 3), np.float32)
    for row in range(rows):
        action = generator.uniform(-1, 1, 3)
        actions[row] = action * JOINT_RANGES
        for joint, angle in enumerate(state):
            distance = np.square(x - width * (0.5 + 0.4 * angle)) + np.square(
                y - height * (0.25 + 0.25 * joint)
            )
            pixels[row, ..., joint] = 255 * np.exp(-distance / (2 * (height / 12) ** 2))
        state = np.clip(state + 0.2 * action, -1, 1)
    ends = np.cumsum(steps)
    actions[ends - 1] = np.nan
    with h5py.File(path, "w") as file:
        file["pixels"], file["action"] = pixels, actions
        file["ep_len"], file["ep_offset"] = np.array(steps), ends - np.array(steps)
        file.attrs["fps"] = 10
    return path
