"""Data are prepared once, completely, from what they say they are made from."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import h5py
import numpy as np
import pytest
import torch

from lewm_models.environments import two_room as room
from lewm_models.preprocessing import resize, to_model_frames
from lewm_models.recordings.recording import RecordingError, open_recording
from lewm_models.recordings.usable import StepRange
from lewm_models.training import preparation as module
from lewm_models.training.preparation import RecordingSource
from lewm_models.training.prepared import PreparedData
from tests.lewm_models.training.sources import prepare, two_room, write_robot
from tests.patience import wait_until

ROOT = Path(__file__).parents[3]
SMALL = two_room(episodes=3, steps=20, image_size=16, seed=7)
FILES = ("prepared.json", "states.npy", "actions.npy", "frames.npy", "offsets.npy", "episodes.npy")


def contents(folder: Path) -> list[bytes]:
    return [(folder / name).read_bytes() for name in FILES]


def test_the_same_seed_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in ("first", "again"):
        prepare(SMALL, tmp_path / name)
    prepare(replace(SMALL, seed=8), tmp_path / "other")
    assert contents(tmp_path / "first") == contents(tmp_path / "again")
    first, other = contents(tmp_path / "first"), contents(tmp_path / "other")
    assert all(ours != theirs for ours, theirs in zip(first[:4], other[:4], strict=True))


def test_complete_data_are_not_recorded_again(tmp_path: Path) -> None:
    progress: list[tuple[int, int]] = []
    for _ in range(2):
        SMALL.prepare(tmp_path, lambda done, total: progress.append((done, total)), print)
        assert progress == [(1, 3), (2, 3), (3, 3)]
    with pytest.raises(ValueError, match=r"holds data of episodes 3, .* of episodes 4; give"):
        prepare(replace(SMALL, episodes=4), tmp_path)


def test_interrupted_data_are_recorded_again(tmp_path: Path) -> None:
    prepare(SMALL, tmp_path)
    complete = contents(tmp_path)
    (tmp_path / "prepared.json").unlink()
    (tmp_path / "frames.npy").write_bytes(b"")
    with pytest.raises(FileNotFoundError):
        PreparedData.open(tmp_path)
    prepare(SMALL, tmp_path)
    assert contents(tmp_path) == complete


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("prepared.json", b"{"),
        ("frames.npy", b""),
        ("actions.npy", b"no array"),
        ("offsets.npy", b""),
    ],
)
def test_broken_data_are_refused(tmp_path: Path, name: str, content: bytes) -> None:
    prepare(SMALL, tmp_path)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match="holds broken data"):
        PreparedData.open(tmp_path)


def test_frames_that_are_cut_off_are_refused(tmp_path: Path) -> None:
    data = prepare(SMALL, tmp_path)
    frames = tmp_path / "frames.npy"
    os.truncate(frames, frames.stat().st_size - 1)
    with pytest.raises(ValueError, match="is cut off"):
        PreparedData.open(tmp_path)
    with pytest.raises(ValueError, match="is cut off at frame 62"):
        data.frames.read(np.array([0, 62]))


def test_an_unknown_environment_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"--env: expected one of cube, .* got 'chess'"):
        prepare(replace(SMALL, environment="chess"), tmp_path)


def test_states_actions_and_frames_belong_together(data: PreparedData) -> None:
    assert data.states is not None
    for piece in (0, 31):
        rows = np.array(data.rows(piece))
        states, actions = torch.tensor(data.states[rows]), torch.tensor(data.actions[rows])
        assert torch.equal(room.move(states[:-1], actions[:-1]), states[1:])
        assert actions[-1].isnan().all()
        frames = resize(room.render(states), data.image_size)
        assert torch.equal(torch.tensor(data.frames.read(rows)), frames)


def test_trajectories_cover_both_rooms_and_the_door(data: PreparedData) -> None:
    assert data.states is not None
    states = np.array(data.states).reshape(32, 151, 2)
    x, y = states[..., 0], states[..., 1]
    is_left = x < room.WALL_X
    visits_both = is_left.any(axis=1) & ~is_left.all(axis=1)
    # With one goal per episode it would be 60 %.
    assert visits_both.mean() > 0.7
    assert 0.25 < is_left.mean() < 0.75
    in_door = (np.abs(x - room.WALL_X) < 12) & (np.abs(y - room.DOOR_Y) < 16)
    assert in_door.any(axis=1).mean() > 0.5
    crossings = np.diff(is_left.astype(int), axis=1)
    assert (crossings == 1).any()
    assert (crossings == -1).any()


def test_action_statistics_leave_missing_actions_out(
    data: PreparedData, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lewm_models.training.prepared.STATISTICS_ROWS", 100)
    mean, std = data.action_statistics()
    known = np.array(data.actions, np.float64)
    known = known[~np.isnan(known).any(axis=1)]
    assert len(known) == 32 * 150
    np.testing.assert_allclose(mean, known.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(std, known.std(axis=0, ddof=0), rtol=1e-12)


def robot_source(path: Path, **changes: Any) -> RecordingSource:
    """The robot's recording with a range that was cut out of its second episode."""
    recording = open_recording(path)
    source = RecordingSource(
        recording=recording,
        camera=recording.contents.cameras[0],
        action=recording.contents.actions[0],
        state=None,
        ranges=(StepRange(0, 0, 60), StepRange(1, 5, 20), StepRange(1, 22, 45)),
        image_size=16,
        crop="pad",
    )
    return replace(source, **changes)


def assert_is_prepared(data: PreparedData, path: Path) -> None:
    """The data are those of `robot_source`."""
    assert data.offsets.tolist() == [0, 60, 75, 98]
    assert data.episodes.tolist() == [0, 1, 1]
    with h5py.File(path, locking=False) as file:  # as the reader opens it
        rows = np.r_[0:60, 65:80, 82:105]
        recorded, actions = file["pixels"][:][rows], file["action"][:][rows]
    expected = to_model_frames(torch.from_numpy(recorded), 16, "pad").numpy()
    np.testing.assert_array_equal(data.frames.read(np.arange(98)), expected)
    actions[data.offsets[1:] - 1] = np.nan
    np.testing.assert_array_equal(np.asarray(data.actions), actions)


def test_a_recording_is_prepared_at_the_model_s_size(tmp_path: Path) -> None:
    path = write_robot(tmp_path / "robot.h5")
    lines: list[str] = []
    progress: list[tuple[int, int]] = []
    with robot_source(path).recording:
        data = robot_source(path).prepare(
            tmp_path / "data", lambda *counts: progress.append(counts), lines.append
        )
    assert_is_prepared(data, path)
    assert progress[0] == (0, 98)
    assert progress[-1] == (98, 98)
    (line,) = lines
    assert line.startswith(f"preparing 98 frames of 16 × 16 pixels: 0.1 MB in {tmp_path}/data (")
    assert sorted(file.name for file in (tmp_path / "data").iterdir()) == [
        "actions.npy",
        "episodes.npy",
        "frames.npy",
        "offsets.npy",
        "prepared.json",
    ]


def test_several_processes_prepare_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MIN_POOL_BYTES", 0)
    monkeypatch.setattr(module, "PART_BYTES", 7 * 64 * 96 * 3)
    path = write_robot(tmp_path / "robot.h5")
    assert_is_prepared(prepare(robot_source(path), tmp_path / "data"), path)


def test_a_damaged_frame_in_another_process_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MIN_POOL_BYTES", 0)
    monkeypatch.setattr(module, "PART_BYTES", 7 * 64 * 96 * 3)
    path = write_robot(tmp_path / "robot.h5")
    with h5py.File(path, "r+") as file:
        pixels = file["pixels"][:]
        del file["pixels"]
        stored = file.create_dataset("pixels", data=pixels, chunks=(1, 64, 96, 3), compression=1)
        place = stored.id.get_chunk_info_by_coord((30, 0, 0, 0)).byte_offset
    with path.open("r+b") as raw:
        raw.seek(place)
        raw.write(b"damaged")
    with pytest.raises(RecordingError, match=r"robot.h5: pixels: rows 28 to 34 cannot be read"):
        prepare(robot_source(path), tmp_path / "data")


def test_a_killed_preparation_continues(tmp_path: Path) -> None:
    """Its processes end with it, and no frame is decoded twice."""
    path = write_robot(tmp_path / "robot.h5")
    program = "tests.lewm_models.training.slow_preparation"
    command = [sys.executable, "-m", program, str(path), str(tmp_path / "data")]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as killed:
        assert killed.stdout is not None
        while not killed.stdout.readline().startswith("49 "):
            pass
        children = Path(f"/proc/{killed.pid}/task/{killed.pid}/children").read_text().split()
        killed.send_signal(signal.SIGKILL)
    assert len(children) >= 2
    wait_until(lambda: not any(is_running(int(child)) for child in children))
    progress: list[int] = []
    source = robot_source(path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "PART_BYTES", 7 * 64 * 96 * 3)
        data = source.prepare(tmp_path / "data", lambda done, total: progress.append(done), print)
    assert 35 <= progress[0] < 98
    assert_is_prepared(data, path)


def is_running(process: int) -> bool:
    try:
        status = Path(f"/proc/{process}/stat").read_text()
    except OSError:
        return False
    return status.rpartition(")")[2].split()[0] != "Z"


@pytest.mark.parametrize(
    "change",
    [{"image_size": 32}, {"crop": "stretch"}, {"ranges": (StepRange(0, 0, 60),)}],
)
def test_data_of_other_settings_are_refused(tmp_path: Path, change: dict[str, object]) -> None:
    path = write_robot(tmp_path / "robot.h5")
    prepare(robot_source(path), tmp_path / "data")
    with pytest.raises(ValueError, match=r"holds data of .*; give another --output"):
        prepare(robot_source(path, **change), tmp_path / "data")


@pytest.mark.parametrize("column", ["pixels", "action"])
def test_data_of_a_recording_that_has_changed_are_refused(tmp_path: Path, column: str) -> None:
    path = write_robot(tmp_path / "robot.h5")
    prepare(robot_source(path), tmp_path / "data")
    with h5py.File(path, "r+") as file:
        file[column][0] = 1
    with pytest.raises(ValueError, match="holds data of fingerprint"):
        prepare(robot_source(path), tmp_path / "data")


def test_a_copy_of_the_recording_is_the_same_recording(tmp_path: Path) -> None:
    path = write_robot(tmp_path / "robot.h5")
    prepare(robot_source(path), tmp_path / "data")
    (tmp_path / "copy").mkdir()
    copy = tmp_path / "copy" / "robot.h5"
    copy.write_bytes(path.read_bytes())
    path.unlink()
    prepare(robot_source(copy), tmp_path / "data")


def test_a_disk_that_is_too_small_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=1 << 20))
    with pytest.raises(ValueError, match=r"^--output: .*data has 1.0 MB of free .* need 0.0 MB;"):
        prepare(SMALL, tmp_path / "data")
    assert not (tmp_path / "data").exists()
