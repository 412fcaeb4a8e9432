"""HDF5 of stable-worldmodel, written with h5py and hdf5plugin."""

import multiprocessing
import pickle
import re
import tracemalloc
from pathlib import Path

import h5py
import numpy as np
import pytest

from lewm_models.recordings.hdf5 import Hdf5Recording
from lewm_models.recordings.recording import RecordingError, open_recording
from tests.lewm_models.recordings.made_data import STEPS, actions_of, frames_of, write_hdf5


def test_columns_episodes_and_values(tmp_path: Path) -> None:
    path = tmp_path / "robot.h5"
    arrays = write_hdf5(path, attributes={"fps": 20})
    with open_recording(path) as recording:
        contents = recording.contents
        assert isinstance(recording, Hdf5Recording)
        assert contents.episode_steps == STEPS
        assert contents.rate_hz == 20
        assert [(c.name, c.shape) for c in contents.cameras] == [("pixels", (12, 16, 3))]
        assert [(c.name, c.shape) for c in contents.actions] == [("action", (2,))]
        assert [(c.name, c.shape) for c in contents.states] == [("proprio", (3,))]
        first = STEPS[0]
        frames = recording.read_frames("pixels", 1, first=3, count=4)
        np.testing.assert_array_equal(frames, arrays["pixels"][first + 3 : first + 7])
        assert len(recording.read_frames("pixels", 1, first=20)) == 5
        assert recording.read_frames("pixels", 1, first=25).shape == (0, 12, 16, 3)
        rows = slice(first, first + STEPS[1])
        np.testing.assert_array_equal(recording.read_actions("action", 1), arrays["action"][rows])
        np.testing.assert_array_equal(recording.read_states("proprio", 1), arrays["proprio"][rows])
        times = recording.read_times(2)
        assert times is not None
        np.testing.assert_array_equal(times, np.arange(STEPS[2]))


def test_frames_with_the_channels_first_and_grey_frames(tmp_path: Path) -> None:
    frames = frames_of(sum(STEPS))
    write_hdf5(
        tmp_path / "a.h5",
        columns={
            "pixels": np.ascontiguousarray(frames.transpose(0, 3, 1, 2)),
            "grey": np.ascontiguousarray(frames[..., :1]),
        },
    )
    with open_recording(tmp_path / "a.h5") as recording:
        assert {c.name: c.shape for c in recording.contents.cameras} == {
            "pixels": (12, 16, 3),
            "grey": (12, 16, 3),
        }
        np.testing.assert_array_equal(recording.read_frames("pixels", 0, count=2), frames[:2])
        grey = recording.read_frames("grey", 0, count=2)
        np.testing.assert_array_equal(grey, np.repeat(frames[:2, ..., :1], 3, axis=-1))


def test_timestamps_give_the_rate_and_show_gaps(tmp_path: Path) -> None:
    times = np.concatenate([np.arange(count) / 25 for count in STEPS])
    times[10 : STEPS[0]] += 0.2
    write_hdf5(tmp_path / "a.h5", columns={"timestamp": times})
    with open_recording(tmp_path / "a.h5") as recording:
        assert recording.contents.rate_hz == pytest.approx(25)
        steps = recording.read_times(0)
        assert steps is not None
        assert np.diff(steps)[8:11] == pytest.approx([1, 6, 1])


def _first_frame(recording: Hdf5Recording) -> int:
    return int(recording.read_frames("pixels", 2, first=7, count=1)[0, 0, 0, 0])


def test_several_processes_read_with_files_of_their_own(tmp_path: Path) -> None:
    write_hdf5(tmp_path / "a.h5")
    expected = STEPS[0] + STEPS[1] + 7
    with Hdf5Recording(tmp_path / "a.h5") as recording:
        assert _first_frame(pickle.loads(pickle.dumps(recording))) == expected
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            assert pool.apply(_first_frame, (recording,)) == expected


def test_only_what_is_asked_for_is_read(tmp_path: Path) -> None:
    """A recording of 2.4 GB opens and gives a few frames within a few megabytes."""
    rows = 200_000
    with h5py.File(tmp_path / "large.h5", "w") as file:
        file.create_dataset("pixels", (rows, 64, 64, 3), "u1", chunks=(1, 64, 64, 3))
        file.create_dataset("action", (rows, 2), "f4", chunks=(1000, 2))
        file["ep_len"], file["ep_offset"] = [rows], [0]
    tracemalloc.start()
    try:
        with open_recording(tmp_path / "large.h5") as recording:
            assert recording.read_frames("pixels", 0, first=rows - 4, count=4).shape[0] == 4
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()


def test_a_damaged_or_foreign_file_is_named(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "foreign.h5", "w") as file:
        file["observations/qpos"] = np.zeros((3, 2))
    with pytest.raises(RecordingError, match=r"foreign\.h5: has no ep_len.*observations/qpos"):
        open_recording(tmp_path / "foreign.h5")
    write_hdf5(tmp_path / "a.h5")
    data = (tmp_path / "a.h5").read_bytes()
    (tmp_path / "cut.h5").write_bytes(data[: len(data) // 2])
    with pytest.raises(RecordingError, match=r"cut\.h5: cannot be opened"):
        open_recording(tmp_path / "cut.h5")
    with h5py.File(tmp_path / "a.h5", "a") as file:
        file["ep_len"][0] = 10_000
    with pytest.raises(RecordingError, match="action has 125 rows; the episodes need 10000"):
        open_recording(tmp_path / "a.h5")


def test_a_file_without_frames(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["action"], file["ep_len"], file["ep_offset"] = np.zeros((3, 2)), [3], [0]
    with pytest.raises(RecordingError, match="has no camera: expected an array"):
        open_recording(tmp_path / "a.h5")


def test_the_conversion_in_the_documentation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    document = (Path(__file__).parents[3] / "docs" / "recordings.md").read_text()
    (code,) = re.findall(r"^```python\n(.*?)^```$", document, re.DOTALL | re.MULTILINE)
    monkeypatch.chdir(tmp_path)
    episodes = [(frames_of(steps), actions_of([steps], 3)) for steps in (20, 31)]
    exec(compile(code, "recordings.md", "exec"), {"my_episodes": lambda: episodes})
    with open_recording(Path("robot.h5")) as recording:
        contents = recording.contents
        assert (contents.episode_steps, contents.rate_hz) == ((20, 31), 10)
        for number, (frames, actions) in enumerate(episodes):
            assert np.array_equal(recording.read_frames("camera", number), frames)
            np.testing.assert_array_equal(recording.read_actions("action", number), actions)
