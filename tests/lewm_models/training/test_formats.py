"""Recordings of every format are prepared by several processes, as one process reads them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from lewm_models.preprocessing import to_model_frames
from lewm_models.recordings.recording import open_recording
from lewm_models.training import preparation as module
from lewm_models.training.preparation import RecordingSource
from lewm_models.training.settings import Choices, recording_run
from tests.lewm_models.recordings.lerobot_data import write_version_2, write_version_3
from tests.lewm_models.recordings.made_data import frames_of, write_hdf5, write_images, write_zarr
from tests.lewm_models.recordings.test_lance import write_episodes
from tests.lewm_models.training.sources import prepare


def write_folders(path: Path) -> None:
    for episode in range(3):
        folder = path / f"episode_{episode}"
        frames = frames_of(30 + episode)
        write_images(folder, frames, [f"{number}.png" for number in range(len(frames))])
        np.save(
            folder / "actions.npy", np.random.default_rng(episode).normal(size=(len(frames), 2))
        )


WRITERS: dict[str, Callable[[Path], object]] = {
    "hdf5": write_hdf5,
    "zarr": write_zarr,
    "lerobot-2": write_version_2,
    "lerobot-3": write_version_3,
    "lance": write_episodes,
    "images": write_folders,
}


@pytest.mark.parametrize("name", WRITERS)
def test_several_processes_read_a_format_alike(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    path = tmp_path / f"recording.{name}"
    WRITERS[name](path)
    with open_recording(path) as recording:
        monkeypatch.setattr(module, "MIN_POOL_BYTES", 0)
        height, width = recording.contents.cameras[0].shape[:2]
        monkeypatch.setattr(module, "PART_BYTES", 7 * height * width * 3)
        action = "action" if name.startswith("lerobot") else None
        run = recording_run(recording, Choices(action_block=2), name="any", action=action)
        source = run.source
        assert isinstance(source, RecordingSource)
        data = prepare(source, tmp_path / "data")
        assert len(source.ranges) >= 2
        for piece, steps in enumerate(source.ranges):
            rows = np.array(data.rows(piece))
            recorded = recording.read_frames(source.camera.name, steps.episode)
            expected = to_model_frames(
                torch.from_numpy(recorded[steps.first : steps.stop].copy()), 64, source.crop
            )
            np.testing.assert_array_equal(data.frames.read(rows), expected.numpy())
            actions = recording.read_actions(source.action.name, steps.episode)
            np.testing.assert_array_equal(
                data.actions[rows[:-1]], actions[steps.first : steps.stop - 1]
            )
