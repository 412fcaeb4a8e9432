"""LeRobot data sets of versions 2.1 and 3.0, as LeRobot lays them out."""

from __future__ import annotations

import json
import pickle
import re
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lewm_models.recordings.lerobot import LeRobotRecording
from lewm_models.recordings.recording import (
    INSTALL_COMMAND,
    Column,
    Recording,
    RecordingError,
    open_recording,
)
from tests.lewm_models.recordings.lerobot_data import (
    FPS,
    FRONT,
    JOINTS,
    LENGTHS,
    WRIST,
    actions_of,
    change_info,
    change_rows,
    png_of,
    shown,
    write_version_2,
    write_version_3,
    write_video,
)
from tests.lewm_models.recordings.painted import HEIGHT, WIDTH, numbers_of

Writer = Callable[..., Path]
WRITERS: dict[str, Writer] = {"2.1": write_version_2, "3.0": write_version_3}


@pytest.fixture(params=WRITERS)
def version(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def write(version: str) -> Writer:
    return WRITERS[version]


def data_file(path: Path, version: str, episode: int = 0) -> Path:
    """The parquet file that has the rows of an episode."""
    if version == "2.1":
        return path / f"data/chunk-000/episode_{episode:06d}.parquet"
    return path / f"data/chunk-000/file-{episode // 2:03d}.parquet"


def video_file(path: Path, version: str, camera: str = FRONT, episode: int = 0) -> Path:
    if version == "2.1":
        return path / f"videos/chunk-000/{camera}/episode_{episode:06d}.mp4"
    return path / f"videos/{camera}/chunk-000/file-{episode // 2:03d}.mp4"


def episode_frames(recording: Recording, camera: str, episode: int) -> list[int]:
    return numbers_of(recording.read_frames(camera, episode))


def test_says_what_it_holds(tmp_path: Path, write: Writer, version: str) -> None:
    path = write(tmp_path, videos=(FRONT, WRIST))
    with LeRobotRecording(path) as recording:
        contents = recording.contents
    assert contents.format == f"LeRobot {version}"
    assert contents.cameras == (
        Column(FRONT, (HEIGHT, WIDTH, 3)),
        Column(WRIST, (HEIGHT, WIDTH, 3)),
    )
    assert contents.actions == (
        Column("action", (3,), tuple(JOINTS)),
        Column("action.gripper", (1,)),
    )
    assert contents.states == (Column("observation.state", (3,), tuple(JOINTS)),)
    assert contents.episode_steps == LENGTHS
    assert contents.rate_hz == FPS
    assert contents.notes == ()


@pytest.mark.parametrize("codec", ["libx264", "libsvtav1"])
def test_frames_of_videos_are_those_of_their_steps(
    tmp_path: Path, write: Writer, codec: str
) -> None:
    path = write(tmp_path, videos=(FRONT, WRIST), codec=codec)
    with LeRobotRecording(path) as recording:
        for camera in (FRONT, WRIST):
            for episode, steps in enumerate(LENGTHS):
                expected = shown(camera, episode, range(steps))
                assert episode_frames(recording, camera, episode) == expected
        # Parts of an episode, across keyframes and up to its end.
        for first, count in [(0, 1), (6, 3), (8, 20), (33, 2), (30, None), (34, 1), (5, 0)]:
            part = recording.read_frames(FRONT, 1, first=first, count=count)
            stop = LENGTHS[1] if count is None else first + count
            assert numbers_of(part) == shown(FRONT, 1, range(first, stop))
            assert part.shape[1:] == (HEIGHT, WIDTH, 3)


def test_frames_of_pictures_in_parquet_files(tmp_path: Path, write: Writer) -> None:
    # More pictures than are in memory together, over several row groups in version 3.
    lengths = (20, 75, 40)
    path = write(tmp_path, lengths=lengths, videos=(), images=(FRONT, WRIST))
    with LeRobotRecording(path) as recording:
        assert [camera.name for camera in recording.contents.cameras] == [FRONT, WRIST]
        for camera in (FRONT, WRIST):
            for episode, steps in enumerate(lengths):
                expected = shown(camera, episode, range(steps))
                assert episode_frames(recording, camera, episode) == expected
        for first, count in [(0, 1), (31, 2), (40, 35), (70, None), (5, 0)]:
            part = recording.read_frames(WRIST, 1, first=first, count=count)
            stop = lengths[1] if count is None else first + count
            assert numbers_of(part) == shown(WRIST, 1, range(first, stop))


def test_actions_and_states_are_exact(tmp_path: Path, write: Writer) -> None:
    with LeRobotRecording(write(tmp_path)) as recording:
        for episode, steps in enumerate(LENGTHS):
            actions = actions_of(episode, steps)
            np.testing.assert_array_equal(recording.read_actions("action", episode), actions)
            gripper = recording.read_actions("action.gripper", episode)
            np.testing.assert_array_equal(gripper, actions[:, 2:])
            states = recording.read_states("observation.state", episode)
            np.testing.assert_array_equal(states, actions * 2)
            assert states.dtype == np.float32


def test_times_are_in_steps_and_show_gaps(tmp_path: Path, write: Writer, version: str) -> None:
    path = write(tmp_path)
    file = data_file(path, version)
    timestamps = pq.read_table(file).column("timestamp").to_numpy().copy()
    timestamps[15 : LENGTHS[0]] += 4 / FPS
    change_rows(file, "timestamp", timestamps)
    if version == "3.0":
        widen_clip(path)
    recording = LeRobotRecording(path)
    times = recording.read_times(0)
    np.testing.assert_allclose(times[:15], np.arange(15), atol=1e-3)
    np.testing.assert_allclose(times[15:], np.arange(15, 20) + 4, atol=1e-3)
    np.testing.assert_allclose(recording.read_times(1), np.arange(35), atol=1e-3)


def widen_clip(path: Path, **changes: float) -> None:
    """Change the times that the metadata of version 3 give for the video of episode 0."""
    file = path / "meta/episodes/chunk-000/file-000.parquet"
    rows = pq.read_table(file).to_pylist()
    for key, value in (changes or {"to_timestamp": 1.0}).items():
        rows[0][f"videos/{FRONT}/{key}"] = value
    pq.write_table(pa.Table.from_pylist(rows), file)


def test_missing_values_are_nan(tmp_path: Path, write: Writer, version: str) -> None:
    path = write(tmp_path)
    file = data_file(path, version)
    table = pq.read_table(file)
    rows = table.column("action").to_pylist()
    rows[3], rows[5] = None, [1.0, None, 3.0]
    place = table.column_names.index("action")
    pq.write_table(table.set_column(place, "action", pa.array(rows)), file)
    with LeRobotRecording(path) as recording:
        actions = recording.read_actions("action", 0)
        expected = actions_of(0, LENGTHS[0])
        expected[3], expected[5] = np.nan, (1, np.nan, 3)
        np.testing.assert_array_equal(actions, expected)


def test_steps_with_another_number_of_values_are_refused(
    tmp_path: Path, write: Writer, version: str
) -> None:
    path = write(tmp_path)
    file = data_file(path, version)
    rows = pq.read_table(file).column("action").to_pylist()
    rows[3], rows[4] = [1.0, 2.0], [1.0, 2.0, 3.0, 4.0]  # as many values in all
    table = pq.read_table(file)
    place = table.column_names.index("action")
    pq.write_table(table.set_column(place, "action", pa.array(rows)), file)
    recording = LeRobotRecording(path)
    with pytest.raises(RecordingError, match="action: expected 3 values a step"):
        recording.read_actions("action", 0)


def test_timestamps_need_not_be_exact(tmp_path: Path, write: Writer, version: str) -> None:
    """Each step is up to a third of a period early or late."""
    path = write(tmp_path)
    for episode in (0, 2):
        file = data_file(path, version, episode)
        timestamps = pq.read_table(file).column("timestamp").to_numpy()
        jitter = np.random.default_rng(episode).uniform(-0.33, 0.33, len(timestamps)) / FPS
        change_rows(file, "timestamp", timestamps + jitter.astype(np.float32))
    with LeRobotRecording(path) as recording:
        for episode, steps in enumerate(LENGTHS):
            expected = shown(FRONT, episode, range(steps))
            assert episode_frames(recording, FRONT, episode) == expected


def test_episodes_of_several_chunks(tmp_path: Path) -> None:
    path = write_version_2(tmp_path, lengths=(4, 5, 6, 7, 8), videos=(FRONT,), chunks_size=2)
    assert (path / "data/chunk-002/episode_000004.parquet").is_file()
    with LeRobotRecording(path) as recording:
        assert recording.contents.episode_steps == (4, 5, 6, 7, 8)
        assert episode_frames(recording, FRONT, 4) == shown(FRONT, 4, range(8))


def test_reads_in_several_processes(tmp_path: Path, write: Writer) -> None:
    path = write(tmp_path)
    with LeRobotRecording(path) as recording:
        recording.read_actions("action", 0)  # a file is open
        with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
            frames = list(pool.map(pickle.loads(pickle.dumps(recording)).read_frames, *CALLS))
    for episode, numbers in enumerate(map(numbers_of, frames)):
        assert numbers == shown(FRONT, episode, range(LENGTHS[episode]))


CALLS = ([FRONT] * 3, range(3))


@pytest.mark.parametrize("library", ["pyarrow", "av"])
def test_is_recognised_without_the_libraries(tmp_path: Path, write: Writer, library: str) -> None:
    program = (
        "import sys\n"
        "from pathlib import Path\n"
        f"sys.modules[{library!r}] = None\n"
        "from lewm_models.recordings.lerobot import LeRobotRecording\n"
        "path = Path(sys.argv[1])\n"
        "assert LeRobotRecording.recognises(path)\n"
        "assert not LeRobotRecording.recognises(path / 'data')\n"
        "try: LeRobotRecording(path)\n"
        "except ValueError as error: print(error)\n"
    )
    command = [sys.executable, "-c", program, str(write(tmp_path))]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert f"{library} is needed" in result.stdout
    assert INSTALL_COMMAND in result.stdout


def test_is_opened_by_its_path(tmp_path: Path, write: Writer) -> None:
    with open_recording(write(tmp_path)) as recording:
        assert isinstance(recording, LeRobotRecording)


# Episodes that are left out, with a note.


def expect_left_out(path: Path, *, left_out: set[int], note: str) -> LeRobotRecording:
    """The recording, whose other episodes are read as if nothing had happened."""
    recording = LeRobotRecording(path)
    kept = [episode for episode in range(len(LENGTHS)) if episode not in left_out]
    assert recording.contents.episode_steps == tuple(LENGTHS[episode] for episode in kept)
    assert len(recording.contents.notes) == 1, recording.contents.notes
    assert re.search(note, recording.contents.notes[0]), recording.contents.notes[0]
    for place, episode in enumerate(kept):
        actions = recording.read_actions("action", place)
        np.testing.assert_array_equal(actions, actions_of(episode, LENGTHS[episode]))
        expected = shown(FRONT, episode, range(LENGTHS[episode]))
        assert episode_frames(recording, FRONT, place) == expected
    return recording


@pytest.mark.parametrize(
    ("damage", "reason"), [("missing", "missing"), ("cut", "damaged"), ("empty", "damaged")]
)
def test_episodes_without_their_data_file(
    tmp_path: Path, write: Writer, version: str, damage: str, reason: str
) -> None:
    path = write(tmp_path)
    file = data_file(path, version, 2)
    content = file.read_bytes()
    file.unlink()
    if damage != "missing":
        file.write_bytes(content[: len(content) // 2] if damage == "cut" else b"")
    expect_left_out(path, left_out={2}, note=f"data file is {reason}: 1; the first is episode 2: ")


def test_episodes_without_their_video(tmp_path: Path, write: Writer, version: str) -> None:
    path = write(tmp_path)
    file = video_file(path, version, episode=2)
    file.unlink()
    expect_left_out(path, left_out={2}, note=f"a video is missing: 1; .* episode 2: {file}")


def test_cameras_without_any_video(tmp_path: Path, write: Writer, version: str) -> None:
    path = write(tmp_path, videos=(FRONT, WRIST))
    for episode in range(len(LENGTHS)):
        video_file(path, version, WRIST, episode).unlink(missing_ok=True)
    recording = expect_left_out(path, left_out=set(), note=f"camera {WRIST} is left out")
    assert [camera.name for camera in recording.contents.cameras] == [FRONT]


def test_depth_maps_are_no_cameras(tmp_path: Path, write: Writer) -> None:
    path = write(tmp_path, videos=(FRONT, WRIST))
    features = json.loads((path / "meta/info.json").read_text())["features"]
    features[WRIST]["info"] = {"video.is_depth_map": True}
    change_info(path, features=features)
    recording = expect_left_out(path, left_out=set(), note=f"depth map {WRIST} is left out")
    assert [camera.name for camera in recording.contents.cameras] == [FRONT]


def test_episodes_with_more_or_fewer_rows(tmp_path: Path, write: Writer, version: str) -> None:
    path = write(tmp_path)
    file = data_file(path, version, 2)
    table = pq.read_table(file)
    pq.write_table(table.slice(0, 10), file)
    note = f"number of its rows .*: 1; .* episode 2: {file} has 10, the metadata promise 12"
    expect_left_out(path, left_out={2}, note=note)
    pq.write_table(pa.concat_tables([table, table.slice(0, 1)]), file)
    expect_left_out(path, left_out={2}, note="has 13, the metadata promise 12")


def test_episodes_whose_steps_are_missing_or_in_disorder(
    tmp_path: Path, write: Writer, version: str
) -> None:
    path = write(tmp_path)
    file = data_file(path, version, 2)
    for indices in ([*range(5), *range(6, 13)], [*range(5), 6, 5, *range(7, 12)]):
        change_rows(file, "frame_index", indices)
        note = "missing or in disorder: 1; the first is episode 2: frame_index is 6 at step 5"
        expect_left_out(path, left_out={2}, note=note)


def test_episodes_whose_time_stands_still(tmp_path: Path, write: Writer, version: str) -> None:
    path = write(tmp_path)
    file = data_file(path, version, 2)
    timestamps = pq.read_table(file).column("timestamp").to_numpy().copy()
    for wrong in (timestamps[4], np.float32(np.nan)):
        timestamps[5] = wrong
        change_rows(file, "timestamp", timestamps)
        expect_left_out(path, left_out={2}, note="timestamps do not increase: 1")


def test_episodes_whose_part_of_a_video_is_too_short(tmp_path: Path) -> None:
    """The frames behind it belong to the next episode."""
    path = write_version_3(tmp_path)
    widen_clip(path, to_timestamp=(LENGTHS[0] - 1) / FPS)
    expect_left_out(path, left_out={0}, note="part of a video is too short: 1")


def test_episodes_whose_rows_are_between_others(tmp_path: Path) -> None:
    path = write_version_3(tmp_path)
    file = data_file(path, "3.0")
    table = pq.read_table(file)
    pieces = [table.slice(0, 10), table.slice(20, 35), table.slice(10, 10)]
    pq.write_table(pa.concat_tables(pieces), file)
    expect_left_out(path, left_out={0}, note="rows in one piece is wrong: 1; .* episode 0")


def test_episodes_that_are_not_listed_are_noted(tmp_path: Path, write: Writer) -> None:
    path = write(tmp_path)
    change_info(path, total_episodes=5)
    expect_left_out(path, left_out=set(), note="promises 5 episodes, and 3 are listed")


def test_recordings_without_a_usable_episode_are_refused(
    tmp_path: Path, write: Writer, version: str
) -> None:
    path = write(tmp_path)
    for episode in range(len(LENGTHS)):
        data_file(path, version, episode).unlink(missing_ok=True)
    with pytest.raises(RecordingError, match=r"no usable episode: .*data file is missing: 3"):
        LeRobotRecording(path)


# Frames that cannot be had.


def test_frames_that_are_missing_in_a_video(tmp_path: Path) -> None:
    path = write_version_2(tmp_path)
    numbers = shown(FRONT, 0, range(LENGTHS[0]))
    write_video(video_file(path, "2.1"), numbers[:-3])
    recording = LeRobotRecording(path)
    assert numbers_of(recording.read_frames(FRONT, 0, count=17)) == numbers[:17]
    with pytest.raises(RecordingError, match=r"episode_000000.mp4: the frame at 0.567 s is miss"):
        recording.read_frames(FRONT, 0)
    with pytest.raises(RecordingError, match=r"the frame at 0.600 s is missing"):
        recording.read_frames(FRONT, 0, first=18)


def test_steps_that_share_a_frame(tmp_path: Path, write: Writer, version: str) -> None:
    """Steps at twice the rate of the video. Every second one has no frame of its own."""
    path = write(tmp_path)
    file = data_file(path, version, 2)
    timestamps = pq.read_table(file).column("timestamp").to_numpy() * np.float32(0.6)
    change_rows(file, "timestamp", timestamps)
    with pytest.raises(RecordingError, match="nearest one of two steps"):
        LeRobotRecording(path).read_frames(FRONT, 2)


def test_damaged_videos(tmp_path: Path, write: Writer, version: str) -> None:
    path = write(tmp_path)
    file = video_file(path, version, episode=2)
    content = file.read_bytes()
    recording = LeRobotRecording(path)
    for damaged in (b"", b"no video", content[: len(content) // 2], content[:-200]):
        file.write_bytes(damaged)
        with pytest.raises(RecordingError, match=str(file)):
            recording.read_frames(FRONT, 2)
    flipped = bytearray(content)
    for place in range(content.index(b"mdat") + 900, len(content), 150):
        flipped[place] ^= 0xFF
    file.write_bytes(flipped)
    with pytest.raises(RecordingError, match=str(file)):
        recording.read_frames(FRONT, 2)
    file.unlink()
    with pytest.raises(RecordingError, match=f"{file}: the video is missing"):
        recording.read_frames(FRONT, 2)


def test_frames_of_another_size_than_promised(tmp_path: Path, write: Writer) -> None:
    for kind in ("videos", "images"):
        path = write(tmp_path / kind, **{"videos": (), "images": (), kind: (FRONT,)})
        features = json.loads((path / "meta/info.json").read_text())["features"]
        features[FRONT]["shape"] = [HEIGHT, 2 * WIDTH, 3]
        change_info(path, features=features)
        with pytest.raises(RecordingError, match=r"192.*96"):
            LeRobotRecording(path).read_frames(FRONT, 0)


@pytest.mark.parametrize(
    ("picture", "message"),
    [
        ({"bytes": None, "path": "a.png"}, "expected the bytes of a picture, got .*a.png"),
        ({"bytes": png_of(1)[:100], "path": None}, "cannot be decoded"),
        ({"bytes": b"no picture", "path": None}, "cannot be decoded"),
    ],
)
def test_damaged_pictures(
    tmp_path: Path, write: Writer, version: str, picture: object, message: str
) -> None:
    path = write(tmp_path, videos=(), images=(FRONT,))
    file = data_file(path, version)
    pictures = pq.read_table(file).column(FRONT).to_pylist()
    pictures[7] = picture
    change_rows(file, FRONT, pictures)
    recording = LeRobotRecording(path)
    assert numbers_of(recording.read_frames(FRONT, 0, count=7)) == list(range(7))
    with pytest.raises(RecordingError, match=f"{file}: {FRONT} of step 7: .*{message}"):
        recording.read_frames(FRONT, 0)


def test_pictures_as_plain_bytes(tmp_path: Path) -> None:
    path = write_version_2(tmp_path, videos=(), images=(FRONT,))
    change_rows(data_file(path, "2.1"), FRONT, [png_of(step) for step in range(LENGTHS[0])])
    assert episode_frames(LeRobotRecording(path), FRONT, 0) == list(range(LENGTHS[0]))


def test_names_that_the_recording_does_not_have(tmp_path: Path, write: Writer) -> None:
    recording = LeRobotRecording(write(tmp_path))
    with pytest.raises(RecordingError, match="has no 'top'"):
        recording.read_frames("top", 0)
    with pytest.raises(RecordingError, match=r"has no 'observation.state'"):
        recording.read_actions("observation.state", 0)
    with pytest.raises(RecordingError, match="has no 'action'"):
        recording.read_states("action", 0)


# Metadata that cannot be used.


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"codebase_version": "v1.6"}, "codebase_version: expected 2.0, 2.1, 3.0, found 'v1.6'"),
        ({"codebase_version": "v4.0"}, "codebase_version: expected 2.0, 2.1, 3.0, found 'v4.0'"),
        ({"codebase_version": None}, "codebase_version: expected 2.0, 2.1, 3.0, found None"),
        ({"storage_format": "lance"}, "storage_format: .*Lance tables are not supported"),
        ({"fps": None}, "fps: expected a positive number, found None"),
        ({"fps": 0}, "fps: expected a positive number, found 0"),
        ({"fps": "30"}, "fps: expected a positive number, found '30'"),
        ({"features": None}, "features: expected the columns by name"),
        ({"features": {"action": {"dtype": "float32"}}}, "features: action: expected a dtype and"),
        (
            {"features": {FRONT: {"dtype": "video", "shape": [3]}}},
            "features: .*shape of a frame, found",
        ),
        ({"data_path": "data/{episode}.parquet"}, "data_path: expected a template like 'data/"),
    ],
)
def test_descriptions_that_cannot_be_used(
    tmp_path: Path, write: Writer, changes: dict[str, object], message: str
) -> None:
    path = write(tmp_path)
    change_info(path, **changes)
    assert LeRobotRecording.recognises(path)
    with pytest.raises(RecordingError, match=f"info.json: {message}"):
        LeRobotRecording(path)


def test_metadata_that_are_no_json(tmp_path: Path, write: Writer) -> None:
    path = write(tmp_path)
    for text in ("{", "[1, 2]", ""):
        (path / "meta/info.json").write_text(text)
        with pytest.raises(RecordingError, match=r"info.json: (cannot be read|expected a JSON ob)"):
            LeRobotRecording(path)


def test_lists_of_episodes_of_version_2_that_cannot_be_used(tmp_path: Path) -> None:
    path = write_version_2(tmp_path)
    file = path / "meta/episodes.jsonl"
    line = '{"episode_index": 0, "length": 20}\n'
    for text, message in [
        (line + "{", "line 2: expected episode_index and length"),
        (line + '{"episode_index": 1}', "line 2: expected episode_index and length: .*length"),
        (line + line, "episode 0 is listed twice"),
        ("", "no usable episode: .*promises 3 episodes, and 0 are listed"),
    ]:
        file.write_text(text)
        with pytest.raises(RecordingError, match=message):
            LeRobotRecording(path)
    file.unlink()
    with pytest.raises(RecordingError, match=r"episodes.jsonl: cannot be read"):
        LeRobotRecording(path)


def test_lists_of_episodes_of_version_3_that_cannot_be_used(tmp_path: Path) -> None:
    path = write_version_3(tmp_path)
    file = path / "meta/episodes/chunk-000/file-000.parquet"
    table = pq.read_table(file)
    for name in ("length", "data/file_index", f"videos/{FRONT}/from_timestamp"):
        pq.write_table(table.drop_columns([name]), file)
        with pytest.raises(RecordingError, match=f"{file}: the column '{name}' is missing"):
            LeRobotRecording(path)
    file.write_bytes(b"PAR1")
    with pytest.raises(RecordingError, match=f"{file}: cannot be read"):
        LeRobotRecording(path)
    file.unlink()
    with pytest.raises(RecordingError, match="meta/episodes: the list of episodes is missing"):
        LeRobotRecording(path)


@pytest.mark.parametrize("name", ["episode_index", "frame_index", "timestamp"])
def test_data_files_without_an_index_column(
    tmp_path: Path, write: Writer, version: str, name: str
) -> None:
    path = write(tmp_path)
    file = data_file(path, version)
    pq.write_table(pq.read_table(file).drop_columns([name]), file)
    with pytest.raises(RecordingError, match=f"{file}: the column {name} is missing"):
        LeRobotRecording(path)


def test_columns_that_only_the_description_has(tmp_path: Path, write: Writer, version: str) -> None:
    path = write(tmp_path)
    file = data_file(path, version)
    pq.write_table(pq.read_table(file).drop_columns(["action"]), file)
    with pytest.raises(RecordingError, match=f"{file}: the column action is missing"):
        LeRobotRecording(path).read_actions("action", 0)
