"""Lance tables as stable-worldmodel writes them."""

from __future__ import annotations

import pickle
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from io import BytesIO
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import lance
import numpy as np
import pyarrow as pa
import pytest
from numpy.typing import NDArray
from PIL import Image

from lewm_models.recordings.lance import LanceRecording
from lewm_models.recordings.recording import (
    INSTALL_COMMAND,
    Column,
    RecordingError,
    open_recording,
)
from tests.lewm_models.recordings.painted import HEIGHT, WIDTH, numbers_of, paint

LENGTHS = (5, 70, 12)


def shown(episode: int, steps: range, *, camera: str = "pixels") -> list[int]:
    offset = 1000 if camera == "pixels_wrist" else 0
    return [offset + 200 * episode + step for step in steps]


def actions_of(episode: int, steps: int) -> NDArray[np.float32]:
    actions = np.random.default_rng(episode).normal(size=(steps, 2)).astype(np.float32)
    actions[-1] = np.nan  # no action leads on from the last frame
    return actions


def jpeg_of(number: int) -> bytes:
    buffer = BytesIO()
    Image.fromarray(paint(number)).save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


def rows_of(episode: int, steps: int, *, cameras: Sequence[str] = ("pixels",)) -> pa.Table:
    vectors = pa.list_(pa.float32(), 2)
    actions = actions_of(episode, steps)
    columns: dict[str, Any] = {
        "episode_idx": pa.array(np.full(steps, episode, np.int32)),
        "step_idx": pa.array(np.arange(steps, dtype=np.int32)),
        "action": pa.array(list(actions), vectors),
        "proprio": pa.array(list(actions + 1), vectors),
        "reward": pa.array([[0.0]] * steps, pa.list_(pa.float32(), 1)),
        "task": pa.array(["push"] * steps),
    }
    for camera in cameras:
        numbers = shown(episode, range(steps), camera=camera)
        columns[camera] = pa.array([jpeg_of(number) for number in numbers], pa.binary())
    return pa.table(columns)


def write_table(path: Path, tables: Sequence[pa.Table]) -> Path:
    """A Lance table with a fragment for each of the tables, as an episode is appended."""
    for place, table in enumerate(tables):
        lance.write_dataset(table, path, mode="append" if place else "create")
    return path


def write_episodes(path: Path, **options: Any) -> Path:
    tables = [rows_of(episode, steps, **options) for episode, steps in enumerate(LENGTHS)]
    return write_table(path, tables)


def change(table: pa.Table, column: str, values: Any) -> pa.Table:
    kind = table.schema.field(column).type
    place = table.column_names.index(column)
    return table.set_column(place, column, pa.array(values, kind))


def test_says_what_it_holds(tmp_path: Path) -> None:
    path = write_episodes(tmp_path / "push.lance", cameras=("pixels", "pixels_wrist"))
    with LanceRecording(path) as recording:
        contents = recording.contents
    assert contents.format == "Lance"
    assert contents.cameras == (
        Column("pixels", (HEIGHT, WIDTH, 3)),
        Column("pixels_wrist", (HEIGHT, WIDTH, 3)),
    )
    assert contents.actions == (Column("action", (2,)),)
    assert contents.states == (Column("proprio", (2,)),)
    assert contents.episode_steps == LENGTHS
    assert contents.rate_hz is None
    assert contents.notes == ()


@pytest.mark.parametrize("name", ["push.lance", "with space % and #1.lance"])
def test_frames_are_those_of_their_steps(tmp_path: Path, name: str) -> None:
    path = write_episodes(tmp_path / name, cameras=("pixels", "pixels_wrist"))
    with LanceRecording(path) as recording:
        for camera in ("pixels", "pixels_wrist"):
            for episode, steps in enumerate(LENGTHS):
                frames = recording.read_frames(camera, episode)
                assert numbers_of(frames) == shown(episode, range(steps), camera=camera)
        for first, count in [(0, 1), (31, 2), (20, 45), (66, None), (69, 1), (5, 0)]:
            frames = recording.read_frames("pixels", 1, first=first, count=count)
            stop = LENGTHS[1] if count is None else first + count
            assert numbers_of(frames) == shown(1, range(first, stop))
            assert frames.shape[1:] == (HEIGHT, WIDTH, 3)


def test_frames_in_blob_columns(tmp_path: Path) -> None:
    table = rows_of(0, 10)
    blobs = pa.field("pixels", pa.large_binary(), metadata={b"lance-encoding:blob": b"true"})
    place = table.column_names.index("pixels")
    pictures = pa.array(table.column("pixels").to_pylist(), pa.large_binary())
    path = write_table(tmp_path / "t.lance", [table.set_column(place, blobs, pictures)])
    with LanceRecording(path) as recording:
        assert numbers_of(recording.read_frames("pixels", 0, first=2)) == list(range(2, 10))


def test_actions_and_states_are_exact(tmp_path: Path) -> None:
    with LanceRecording(write_episodes(tmp_path / "t.lance")) as recording:
        for episode, steps in enumerate(LENGTHS):
            actions = actions_of(episode, steps)
            np.testing.assert_array_equal(recording.read_actions("action", episode), actions)
            states = recording.read_states("proprio", episode)
            np.testing.assert_array_equal(states, actions + 1)
            assert states.dtype == np.float32


def test_columns_whose_first_value_is_missing(tmp_path: Path) -> None:
    rows = rows_of(0, 4)
    actions = [None, *rows.column("action").to_pylist()[1:]]
    recording = LanceRecording(write_table(tmp_path / "t.lance", [change(rows, "action", actions)]))
    assert recording.contents.actions == (Column("action", (2,)),)
    expected = actions_of(0, 4)
    expected[0] = np.nan
    np.testing.assert_array_equal(recording.read_actions("action", 0), expected)


def test_a_folder_with_one_table_is_that_table(tmp_path: Path) -> None:
    write_episodes(tmp_path / "push.lance")
    assert LanceRecording.recognises(tmp_path)
    assert LanceRecording(tmp_path).contents.episode_steps == LENGTHS
    write_table(tmp_path / "reach.lance", [rows_of(0, 3)])
    with pytest.raises(RecordingError, match=r"push.lance, reach.lance; give the path of one"):
        LanceRecording(tmp_path)


def test_is_opened_by_its_path(tmp_path: Path) -> None:
    with open_recording(write_episodes(tmp_path / "push.lance")) as recording:
        assert isinstance(recording, LanceRecording)


def test_is_recognised_without_the_library(tmp_path: Path) -> None:
    program = (
        "import sys\n"
        "from pathlib import Path\n"
        "sys.modules['lance'] = None\n"
        "from lewm_models.recordings.lance import LanceRecording\n"
        "path = Path(sys.argv[1])\n"
        "assert LanceRecording.recognises(path)\n"
        "assert not LanceRecording.recognises(path / 'data')\n"
        "try: LanceRecording(path)\n"
        "except ValueError as error: print(error)\n"
    )
    path = write_table(tmp_path / "t.lance", [rows_of(0, 3)])
    command = [sys.executable, "-c", program, str(path)]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "lance is needed" in result.stdout
    assert INSTALL_COMMAND in result.stdout


def test_reads_in_several_processes_what_was_there_when_it_was_opened(tmp_path: Path) -> None:
    path = write_episodes(tmp_path / "t.lance")
    recording = LanceRecording(path)
    lance.write_dataset(rows_of(7, 4).slice(0, 1), path, mode="overwrite")
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        copy = pickle.loads(pickle.dumps(recording))
        frames = list(pool.map(copy.read_frames, ["pixels"] * 3, range(3)))
    for episode, steps in enumerate(LENGTHS):
        assert numbers_of(frames[episode]) == shown(episode, range(steps))


def test_steps_that_are_missing_show_in_the_times(tmp_path: Path) -> None:
    rows = rows_of(0, 10)
    path = write_table(tmp_path / "t.lance", [pa.concat_tables([rows.slice(0, 4), rows.slice(6)])])
    recording = LanceRecording(path)
    assert recording.read_times(0).tolist() == [0, 1, 2, 3, 6, 7, 8, 9]
    assert numbers_of(recording.read_frames("pixels", 0)) == [0, 1, 2, 3, 6, 7, 8, 9]


def test_episodes_in_several_pieces_or_in_disorder_are_left_out(tmp_path: Path) -> None:
    tables = [rows_of(episode, 8) for episode in range(4)]
    disordered = change(tables[2], "step_idx", [0, 1, 2, 4, 3, 5, 6, 7])
    pieces = [tables[0].slice(0, 3), tables[1], disordered, tables[0].slice(3), tables[3]]
    path = write_table(tmp_path / "t.lance", pieces)
    with LanceRecording(path) as recording:
        assert recording.contents.episode_steps == (8, 8)
        scattered, disorder = recording.contents.notes
        assert scattered.endswith("not in one piece: 1; the first is episode 0.")
        assert disorder.endswith("step_idx does not increase: 1; the first is episode 2.")
        for place, episode in enumerate((1, 3)):
            assert numbers_of(recording.read_frames("pixels", place)) == shown(episode, range(8))
            actions = recording.read_actions("action", place)
            np.testing.assert_array_equal(actions, actions_of(episode, 8))


def test_tables_without_a_usable_episode_are_refused(tmp_path: Path) -> None:
    empty = write_table(tmp_path / "empty.lance", [rows_of(0, 3).slice(0, 0)])
    with pytest.raises(RecordingError, match="has no usable episode: it has no rows"):
        LanceRecording(empty)
    rows = change(rows_of(0, 3), "step_idx", [2, 1, 0])
    with pytest.raises(RecordingError, match=r"no usable episode: .* step_idx does not increase"):
        LanceRecording(write_table(tmp_path / "t.lance", [rows]))


@pytest.mark.parametrize("name", ["episode_idx", "step_idx"])
def test_tables_of_other_kinds_are_refused(tmp_path: Path, name: str) -> None:
    path = write_table(tmp_path / "t.lance", [rows_of(0, 3).drop_columns([name])])
    with pytest.raises(RecordingError, match=f"with the column {name}; it has .*action"):
        LanceRecording(path)


def test_tables_with_videos_are_refused(tmp_path: Path) -> None:
    path = write_table(tmp_path / "t.lance", [rows_of(0, 3)])
    (tmp_path / "t_videos.lance").mkdir()
    for place in (path, tmp_path):
        with pytest.raises(RecordingError, match="Lance tables with videos are not supported"):
            LanceRecording(place)


def test_data_sets_of_lerobot_in_lance_tables_are_left_to_their_reader(tmp_path: Path) -> None:
    write_table(tmp_path / "frames.lance", [rows_of(0, 3)])
    (tmp_path / "meta").mkdir()
    (tmp_path / "meta" / "info.json").write_text("{}")
    assert not LanceRecording.recognises(tmp_path)


def test_folders_that_are_no_table(tmp_path: Path) -> None:
    assert not LanceRecording.recognises(tmp_path)
    assert not LanceRecording.recognises(tmp_path / "missing.lance")
    path = tmp_path / "t.lance"
    path.mkdir()
    assert LanceRecording.recognises(path)
    with pytest.raises(RecordingError, match=f"{path}: cannot be opened"):
        LanceRecording(path)


def test_damaged_tables(tmp_path: Path) -> None:
    path = write_episodes(tmp_path / "t.lance")
    recording = LanceRecording(path)
    for file in (path / "data").iterdir():
        file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(RecordingError, match=f"{path}: (pixels )?cannot be read"):
        pickle.loads(pickle.dumps(recording)).read_frames("pixels", 0)
    with pytest.raises(RecordingError, match=f"{path}: cannot be read"):
        LanceRecording(path)


@pytest.mark.parametrize(
    ("picture", "message"),
    [
        (None, "the picture is missing"),
        (jpeg_of(4)[:200], "cannot be decoded"),
        (b"", "cannot be decoded"),
    ],
)
def test_damaged_pictures(tmp_path: Path, picture: bytes | None, message: str) -> None:
    rows = rows_of(0, 8)
    pictures = rows.column("pixels").to_pylist()
    pictures[5] = picture
    path = write_table(tmp_path / "t.lance", [change(rows, "pixels", pictures)])
    with LanceRecording(path) as recording:
        assert numbers_of(recording.read_frames("pixels", 0, count=5)) == list(range(5))
        with pytest.raises(RecordingError, match=f"pixels of step 5 of episode 0: .*{message}"):
            recording.read_frames("pixels", 0)


def test_pictures_of_several_sizes_are_refused(tmp_path: Path) -> None:
    rows = rows_of(0, 8)
    pictures = rows.column("pixels").to_pylist()
    buffer = BytesIO()
    Image.fromarray(paint(5)[:32]).save(buffer, "JPEG")
    pictures[5] = buffer.getvalue()
    path = write_table(tmp_path / "t.lance", [change(rows, "pixels", pictures)])
    with pytest.raises(RecordingError, match=r"step 5 .*\(64, 96, 3\), this one has \(32, 96, 3\)"):
        LanceRecording(path).read_frames("pixels", 0)


def test_columns_of_bytes_that_are_no_pictures_are_left_out(tmp_path: Path) -> None:
    rows = rows_of(0, 4).append_column("lidar", pa.array([b"points"] * 4, pa.binary()))
    contents = LanceRecording(write_table(tmp_path / "t.lance", [rows])).contents
    assert [camera.name for camera in contents.cameras] == ["pixels"]
    assert len(contents.notes) == 1
    assert contents.notes[0].startswith("The column lidar is left out, its first value is no pict")


def test_names_that_the_recording_does_not_have(tmp_path: Path) -> None:
    recording = LanceRecording(write_table(tmp_path / "t.lance", [rows_of(0, 4)]))
    with pytest.raises(RecordingError, match="has no 'top'"):
        recording.read_frames("top", 0)
    with pytest.raises(RecordingError, match="has no 'proprio'"):
        recording.read_actions("proprio", 0)
    with pytest.raises(RecordingError, match="has no 'reward'"):
        recording.read_states("reward", 0)
