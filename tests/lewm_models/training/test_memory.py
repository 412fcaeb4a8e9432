"""A large recording is prepared and trained in as little memory as a small one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np

ROOT = Path(__file__).parents[3]
SMALL, LARGE = 4_000, 200_000
STEPS_PER_EPISODE = 200
MAX_GROWTH_MIB = 60
"""The frames of the large recording take 230 MB, and prepared 154 MB."""


def write_recording(path: Path, rows: int) -> Path:
    """Noisy frames of 24 × 16."""
    generator = np.random.default_rng(0)
    with h5py.File(path, "w") as file:
        pixels = file.create_dataset("pixels", (rows, 16, 24, 3), np.uint8, chunks=(50, 16, 24, 3))
        for first in range(0, rows, SMALL):
            pixels[first : first + SMALL] = generator.integers(0, 256, (SMALL, 16, 24, 3), np.uint8)
        file["action"] = generator.standard_normal((rows, 2), np.float32)
        file["ep_len"] = np.full(rows // STEPS_PER_EPISODE, STEPS_PER_EPISODE)
        file["ep_offset"] = np.arange(0, rows, STEPS_PER_EPISODE)
        file.attrs["fps"] = 10
    return path


def peak_mib(recording: Path, output: Path) -> int:
    """The most memory of a process that prepares and trains."""
    command = ["-m", "tests.lewm_models.training.memory_program", str(recording), str(output)]
    done = subprocess.run(
        [sys.executable, *command], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return int(done.stdout)


def test_memory_does_not_grow_with_the_recording(tmp_path: Path) -> None:
    small, large = (
        peak_mib(write_recording(tmp_path / f"{rows}.h5", rows), tmp_path / f"run-{rows}")
        for rows in (SMALL, LARGE)
    )
    assert (tmp_path / f"run-{LARGE}" / "model" / "model.json").is_file()
    assert large - small < MAX_GROWTH_MIB
