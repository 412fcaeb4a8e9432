"""Zarr of diffusion policy, written with zarr."""

import shutil
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import zarr

from lewm_models.recordings.recording import RecordingError, open_recording
from lewm_models.recordings.zarr import ZarrRecording
from tests.lewm_models.recordings.made_data import STEPS, frames_of, write_zarr


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_columns_episodes_and_values(tmp_path: Path, zarr_format: Literal[2, 3]) -> None:
    arrays = write_zarr(tmp_path / "a.zarr", zarr_format=zarr_format)
    with open_recording(tmp_path / "a.zarr") as recording:
        assert isinstance(recording, ZarrRecording)
        contents = recording.contents
        assert contents.episode_steps == STEPS
        assert contents.rate_hz is None
        assert [(c.name, c.shape) for c in contents.cameras] == [("img", (12, 16, 3))]
        assert [(c.name, c.shape) for c in contents.actions] == [("action", (2,))]
        assert [(c.name, c.shape) for c in contents.states] == [("state", (5,))]
        assert any("keypoint" in note for note in contents.notes)
        rows = slice(STEPS[0], STEPS[0] + STEPS[1])
        np.testing.assert_array_equal(recording.read_actions("action", 1), arrays["action"][rows])
        np.testing.assert_array_equal(recording.read_states("state", 1), arrays["state"][rows])
        np.testing.assert_array_equal(recording.read_frames("img", 1), arrays["img"][rows])


def test_a_zip_is_read_like_a_folder(tmp_path: Path) -> None:
    arrays = write_zarr(tmp_path / "a.zarr")
    archive = shutil.make_archive(str(tmp_path / "b.zarr"), "zip", tmp_path / "a.zarr")
    with open_recording(Path(archive)) as recording:
        frames = recording.read_frames("img", 0, first=2, count=3)
        np.testing.assert_array_equal(frames, arrays["img"][2:5])


@pytest.mark.parametrize("scale", [1.0, 1 / 255])
def test_float_frames_of_either_range(tmp_path: Path, scale: float) -> None:
    frames = frames_of(sum(STEPS))
    write_zarr(tmp_path / "a.zarr", frames=(frames * scale).astype(np.float32))
    with open_recording(tmp_path / "a.zarr") as recording:
        np.testing.assert_array_equal(recording.read_frames("img", 0), frames[: STEPS[0]])


def test_rows_outside_of_episodes_and_impossible_ends(tmp_path: Path) -> None:
    write_zarr(tmp_path / "a.zarr")
    ends = zarr.open_array(str(tmp_path / "a.zarr" / "meta" / "episode_ends"), mode="r+")
    ends[:] = np.array([40, 65, 120])
    with open_recording(tmp_path / "a.zarr") as recording:
        assert recording.contents.episode_steps == (40, 25, 55)
        assert "5 rows belong to no episode and are not used." in recording.contents.notes
    ends[:] = np.array([40, 20, 120])
    with pytest.raises(RecordingError, match="meta/episode_ends: expected numbers that grow"):
        open_recording(tmp_path / "a.zarr")
