"""Folders of images with CSV or npy files, written with Pillow and NumPy."""

from pathlib import Path

import numpy as np
import pytest

from lewm_models.recordings.recording import RecordingError, open_recording
from tests.lewm_models.recordings.made_data import frames_of, write_csv, write_images

ACTIONS = np.arange(24, dtype=np.float32).reshape(12, 2)


def test_names_are_in_natural_order(tmp_path: Path) -> None:
    for number in (1, 2, 10):
        folder = tmp_path / f"episode_{number}"
        write_images(folder, frames_of(12) + number, [f"{step}.png" for step in range(12)])
        np.save(folder / "actions.npy", ACTIONS + number)
    with open_recording(tmp_path) as recording:
        assert recording.contents.episode_steps == (12, 12, 12)
        for episode, number in enumerate((1, 2, 10)):
            np.testing.assert_array_equal(
                recording.read_frames("images", episode), frames_of(12) + number
            )
            np.testing.assert_array_equal(
                recording.read_actions("action", episode), ACTIONS + number
            )
        np.testing.assert_array_equal(
            recording.read_frames("images", 1, first=9, count=2), frames_of(12)[9:11] + 2
        )


def test_one_folder_with_a_csv_of_actions_states_and_times(tmp_path: Path) -> None:
    write_images(tmp_path, frames_of(12), [f"{step}.png" for step in range(12)])
    rows = [[step / 10, *action, step] for step, action in enumerate(ACTIONS)]
    rows[4][1] = ""
    write_csv(tmp_path / "log.csv", ["time", "action_x", "action_y", "state_x"], rows)
    with open_recording(tmp_path) as recording:
        contents = recording.contents
        assert contents.rate_hz == pytest.approx(10)
        assert [(c.name, c.labels) for c in contents.actions] == [
            ("action", ("action_x", "action_y"))
        ]
        assert [(c.name, c.labels) for c in contents.states] == [("state", ("state_x",))]
        expected = ACTIONS.copy()
        expected[4, 0] = np.nan
        np.testing.assert_array_equal(recording.read_actions("action", 0), expected)
        np.testing.assert_array_equal(recording.read_states("state", 0)[:, 0], np.arange(12))
        times = recording.read_times(0)
        assert times is not None
        assert times == pytest.approx(np.arange(12))


def test_one_folder_of_several_episodes(tmp_path: Path) -> None:
    write_images(tmp_path, frames_of(12), [f"{step}.png" for step in range(12)])
    rows = [[int(step >= 5), *action] for step, action in enumerate(ACTIONS)]
    write_csv(tmp_path / "actions.csv", ["episode", "x", "y"], rows)
    with open_recording(tmp_path) as recording:
        assert recording.contents.episode_steps == (5, 7)
        np.testing.assert_array_equal(recording.read_actions("action", 1), ACTIONS[5:])
        np.testing.assert_array_equal(recording.read_frames("images", 1), frames_of(12)[5:])


def test_a_table_may_name_the_images(tmp_path: Path) -> None:
    write_images(tmp_path, frames_of(3), ["b.png", "c.png", "a.png"])
    rows = [["b.png", 1], ["c.png", 2], ["a.png", 3]]
    write_csv(tmp_path / "actions.csv", ["file", "x"], rows)
    with open_recording(tmp_path) as recording:
        np.testing.assert_array_equal(recording.read_frames("images", 0), frames_of(3))
    write_csv(tmp_path / "actions.csv", ["file", "x"], [["d.png", 1], *rows[1:]])
    with pytest.raises(RecordingError, match=r"names the image d\.png, which is not there"):
        open_recording(tmp_path)


def test_a_folder_for_each_camera(tmp_path: Path) -> None:
    names = [f"{step}.png" for step in range(12)]
    for episode in ("1", "2"):
        write_images(tmp_path / episode / "front", frames_of(12), names)
        write_images(tmp_path / episode / "wrist", frames_of(12, height=8), names)
        np.save(tmp_path / episode / "actions.npy", ACTIONS[:-1])
    with open_recording(tmp_path) as recording:
        assert {c.name: c.shape for c in recording.contents.cameras} == {
            "front": (12, 16, 3),
            "wrist": (8, 16, 3),
        }
        np.testing.assert_array_equal(recording.read_frames("wrist", 1), frames_of(12, height=8))
        actions = recording.read_actions("action", 1)
        np.testing.assert_array_equal(actions[:-1], ACTIONS[:-1])
        assert np.isnan(actions[-1]).all()
    with open_recording(tmp_path / "1") as recording:
        assert len(recording.contents.cameras) == 2


def test_a_missing_image_is_a_gap(tmp_path: Path) -> None:
    write_images(tmp_path, frames_of(12), [f"frame_{2 * step}.png" for step in range(12)])
    (tmp_path / "frame_8.png").unlink()
    np.save(tmp_path / "actions.npy", ACTIONS[:11])
    with open_recording(tmp_path) as recording:
        times = recording.read_times(0)
        assert times is not None
        np.testing.assert_array_equal(np.diff(times), [1, 1, 1, 2, 1, 1, 1, 1, 1, 1])


def test_an_episode_without_actions_among_others(tmp_path: Path) -> None:
    names = [f"{step}.png" for step in range(12)]
    for episode in ("1", "2"):
        write_images(tmp_path / episode, frames_of(12), names)
    np.save(tmp_path / "1" / "actions.npy", ACTIONS)
    with open_recording(tmp_path) as recording:
        assert np.isnan(recording.read_actions("action", 1)).all()
        assert recording.contents.notes == ("Folders without actions: 2.",)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([[1, 2]] * 9, "expected 12 rows, or 11, for 12 images, got 9"),
        ([[1, 2]] * 3 + [[1, "left"]] + [[1, 2]] * 8, "row 5: expected a number, got 'left'"),
        ([[1, 2]] * 3 + [[1]] + [[1, 2]] * 8, "row 5: expected 2 cells, got 1"),
    ],
)
def test_a_wrong_table_is_named(tmp_path: Path, rows: list[list[object]], message: str) -> None:
    write_images(tmp_path, frames_of(12), [f"{step}.png" for step in range(12)])
    write_csv(tmp_path / "actions.csv", ["x", "y"], rows)
    with pytest.raises(RecordingError, match=rf"actions\.csv: {message}"):
        open_recording(tmp_path)


def test_a_damaged_image_and_one_of_another_size_are_named(tmp_path: Path) -> None:
    write_images(tmp_path, frames_of(12), [f"{step}.png" for step in range(12)])
    np.save(tmp_path / "actions.npy", ACTIONS)
    (tmp_path / "3.png").write_bytes((tmp_path / "3.png").read_bytes()[:50])
    write_images(tmp_path, frames_of(1, width=9), ["7.png"])
    with open_recording(tmp_path) as recording:
        assert len(recording.read_frames("images", 0, count=3)) == 3
        with pytest.raises(RecordingError, match=r"3\.png: cannot be decoded"):
            recording.read_frames("images", 0, first=3, count=1)
        with pytest.raises(RecordingError, match=r"7\.png: expected 16 × 12 pixels.*got 9 × 12"):
            recording.read_frames("images", 0, first=6, count=2)


def test_cameras_and_actions_are_the_same_in_all_episodes(tmp_path: Path) -> None:
    names = [f"{step}.png" for step in range(12)]
    for episode in ("1", "2"):
        write_images(tmp_path / episode, frames_of(12), names)
        np.save(tmp_path / episode / "actions.npy", ACTIONS)
    np.save(tmp_path / "2" / "actions.npy", np.zeros((12, 3)))
    with pytest.raises(RecordingError, match=r"action: expected . numbers in each step"):
        open_recording(tmp_path)
