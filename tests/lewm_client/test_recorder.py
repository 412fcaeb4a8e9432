"""`Recorder` writes what can be read back, whatever happens to it."""

import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image as PillowImage

from lewm_client import Recorder
from lewm_client.recorder import Image, image_shape
from lewm_models.recordings.recorded import RecordedFolder
from lewm_models.recordings.recording import RecordingError, open_recording
from tests.lewm_client import recorder_program

FRAME = np.zeros((6, 8, 3), np.uint8)


def frame(step: int) -> NDArray[np.uint8]:
    return np.full((6, 8, 3), step, np.uint8)


def encoded(step: int, image_format: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    PillowImage.fromarray(frame(step)).save(buffer, image_format, **options)
    return buffer.getvalue()


def record(
    folder: Path,
    steps: tuple[int, ...],
    *,
    make_frame: Callable[[int], Any] = frame,
    rate_hz: float = 10,
) -> None:
    """Episodes whose frames, actions and states tell their step."""
    with Recorder(folder, rate_hz=rate_hz) as recorder:
        for count in steps:
            for step in range(count):
                recorder.add(make_frame(step), [step, -step], [step / 2], time_s=step / rate_hz)
            recorder.end_episode()


def check(recording: RecordedFolder, episode: int, camera: str = "camera") -> None:
    """The episode holds what `record` wrote."""
    steps = np.arange(recording.contents.episode_steps[episode])
    frames = recording.read_frames(camera, episode)
    np.testing.assert_array_equal(frames, np.stack([frame(int(step)) for step in steps]))
    np.testing.assert_array_equal(
        recording.read_actions("action", episode), np.stack([steps, -steps], axis=1)
    )
    np.testing.assert_array_equal(recording.read_states("state", episode)[:, 0], steps / 2)
    times = recording.read_times(episode)
    assert times is not None
    assert times == pytest.approx(steps)


@pytest.mark.parametrize("make_frame", [frame, encoded], ids=["pixels", "png"])
def test_episodes_of_different_lengths(tmp_path: Path, make_frame: Callable[[int], Any]) -> None:
    record(tmp_path / "a", (5, 12, 1), make_frame=make_frame)
    with open_recording(tmp_path / "a") as recording:
        assert isinstance(recording, RecordedFolder)
        assert recording.contents.episode_steps == (5, 12, 1)
        assert recording.contents.rate_hz == 10
        for episode in range(3):
            check(recording, episode)
        np.testing.assert_array_equal(
            recording.read_frames("camera", 1, first=4, count=2), [frame(4), frame(5)]
        )
        assert recording.read_frames("camera", 1, first=12).shape == (0, 6, 8, 3)


def test_images_are_stored_as_they_are(tmp_path: Path) -> None:
    images = [encoded(step, "JPEG", quality=50, progressive=bool(step % 2)) for step in range(4)]
    with Recorder(tmp_path / "a", rate_hz=10) as recorder:
        kinds: list[Callable[[bytes], Image]] = [
            bytes,
            bytearray,
            memoryview,
            lambda data: np.frombuffer(data, np.uint8),
        ]
        for image, kind in zip(images, kinds, strict=True):
            recorder.add(kind(image), [0.0])
    (file,) = (tmp_path / "a").glob("episodes/*/frames-0.bin")
    assert file.read_bytes() == b"".join(images)
    with open_recording(tmp_path / "a") as recording:
        assert recording.contents.states == ()
        assert recording.read_frames("camera", 0).shape == (4, 6, 8, 3)


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"comment": b"x" * 500}])
def test_the_size_of_a_jpeg_image(mode: str, options: dict[str, Any]) -> None:
    buffer = io.BytesIO()
    PillowImage.new(mode, (300, 17)).save(buffer, "JPEG", **options)
    assert image_shape(buffer.getvalue()) == (17, 300)
    assert image_shape(buffer.getvalue()[:30]) is None


def test_several_cameras_names_and_labels(tmp_path: Path) -> None:
    with Recorder(
        tmp_path / "a",
        rate_hz=10,
        action_name="velocity",
        state_name="joints",
        action_labels=["left", "right"],
    ) as recorder:
        for step in range(3):
            frames: dict[str, Image] = {"front": frame(step), "wrist": encoded(step + 100)}
            recorder.add(frames, [1, 2], [3, 4, 5], time_s=step / 10)
        with pytest.raises(ValueError, match=r"expected the cameras \['front', 'wrist'\]"):
            recorder.add({"front": FRAME}, [1, 2], [3, 4, 5])
        with pytest.raises(ValueError, match="got one frame without a name; give a dictionary"):
            recorder.add(FRAME, [1, 2], [3, 4, 5])
        with pytest.raises(ValueError, match=r"got the name a.png: write Path\(name\).read_bytes"):
            recorder.add({"front": "a.png", "wrist": encoded(1)}, [1, 2], [3, 4, 5])  # type: ignore[dict-item]
    with open_recording(tmp_path / "a") as recording:
        contents = recording.contents
        assert [camera.name for camera in contents.cameras] == ["front", "wrist"]
        assert contents.actions[0].name == "velocity"
        assert contents.actions[0].labels == ("left", "right")
        assert contents.states[0].name == "joints"
        wrist = recording.read_frames("wrist", 0, first=1)
        np.testing.assert_array_equal(wrist, [frame(101), frame(102)])


def test_another_session_adds_episodes(tmp_path: Path) -> None:
    record(tmp_path / "a", (5, 6))
    before = {path: path.read_bytes() for path in (tmp_path / "a").rglob("*.*") if path.is_file()}
    record(tmp_path / "a", (7,))
    with open_recording(tmp_path / "a") as recording:
        assert recording.contents.episode_steps == (5, 6, 7)
    assert {path: path.read_bytes() for path in before} == before


def test_a_session_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    record(tmp_path / "a", (5,))
    with pytest.raises(ValueError, match=r"rate_hz: .* holds a recording at 10 Hz, got 20"):
        Recorder(tmp_path / "a", rate_hz=20)
    with pytest.raises(ValueError, match=r"action_name: .* calls it 'action', got 'velocity'"):
        Recorder(tmp_path / "a", rate_hz=10, action_name="velocity")
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="expected a recording or an empty folder"):
        Recorder(tmp_path / "b", rate_hz=10)
    with pytest.raises(ValueError, match="rate_hz: expected a number above 0"):
        Recorder(tmp_path / "c", rate_hz=0)


@pytest.mark.parametrize(
    ("step", "message"),
    [
        ((frame(0)[:5], [1, 2], [3]), "camera: expected pixels of 8 × 6 .* got pixels of 8 × 5"),
        ((encoded(0), [1, 2], [3]), "expected pixels of 8 × 6 .* got a PNG or JPEG image"),
        ((frame(0).astype(float), [1, 2], [3]), "expected pixels .* got .* of float64"),
        ((b"text", [1, 2], [3]), "expected a PNG or JPEG image, got 4 other bytes"),
        ((FRAME, [1, 2, 3], [3]), "action: expected 2 numbers as in the steps before, got 3"),
        ((FRAME, [1, np.nan], [3]), r"action: expected finite numbers, got \[1.0, nan\]"),
        ((FRAME, [1, 1e300], [3]), "action: expected finite numbers"),
        ((FRAME, [1, 2], [np.inf]), "state: expected finite numbers"),
        ((FRAME, [1, 2], None), "state: expected 1 numbers as in the steps before, got none"),
        ((FRAME, [[1, 2]], [3]), "action: expected numbers in one dimension"),
    ],
)
def test_a_wrong_step_is_refused_and_nothing_else_is_harmed(
    tmp_path: Path, step: tuple[Any, Any, Any], message: str
) -> None:
    with Recorder(tmp_path / "a", rate_hz=10) as recorder:
        for number in range(4):
            if number == 2:
                with pytest.raises(ValueError, match=message):
                    recorder.add(step[0], step[1], step[2], time_s=0.2)
            recorder.add(frame(number), [number, -number], [number / 2], time_s=number / 10)
    with RecordedFolder(tmp_path / "a") as recording:
        assert recording.contents.episode_steps == (4,)
        check(recording, 0)


def test_the_first_step_needs_an_action_and_later_ones_may_lack_it(tmp_path: Path) -> None:
    with Recorder(tmp_path / "a", rate_hz=10) as recorder:
        with pytest.raises(ValueError, match="action: expected numbers at the first step"):
            recorder.add(FRAME)
        recorder.add(FRAME, [1, 2])
        recorder.add(FRAME)
    with open_recording(tmp_path / "a") as recording:
        actions = recording.read_actions("action", 0)
        np.testing.assert_array_equal(actions, [[1, 2], [np.nan, np.nan]])


def test_times_go_forward(tmp_path: Path) -> None:
    with Recorder(tmp_path / "a", rate_hz=10) as recorder:
        recorder.add(FRAME, [1], time_s=5.0)
        with pytest.raises(ValueError, match="time_s: expected more than 5 of the step before"):
            recorder.add(FRAME, [1], time_s=5.0)
        recorder.end_episode()
        recorder.add(FRAME, [1], time_s=0.0)


def test_steps_that_are_written_at_once_have_no_times(tmp_path: Path) -> None:
    with Recorder(tmp_path / "a", rate_hz=0.01) as recorder:
        for _ in range(5):
            recorder.add(FRAME, [1])
    with open_recording(tmp_path / "a") as recording:
        assert recording.read_times(0) is None
        assert "no live recording" in recording.contents.notes[0]


@pytest.mark.parametrize("episode_steps", [7, 10_000])
def test_a_kill_loses_no_complete_step(tmp_path: Path, episode_steps: int) -> None:
    program = [sys.executable, recorder_program.__file__, str(tmp_path / "a"), str(episode_steps)]
    process = subprocess.Popen(program, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    acknowledged = 0
    while acknowledged < 40:
        acknowledged = int(process.stdout.readline())
    process.kill()
    acknowledged = int([str(acknowledged), *process.stdout.read().split()][-1])
    process.stdout.close()
    process.wait()
    with open_recording(tmp_path / "a") as recording:
        steps = recording.contents.episode_steps
        assert acknowledged <= sum(steps) <= acknowledged + 1
        numbers = [
            int(image[0, 0, 0])
            for episode in range(len(steps))
            for image in recording.read_frames("camera", episode)
        ]
        assert numbers == [step % 251 for step in range(sum(steps))]
    with Recorder(tmp_path / "a", rate_hz=10) as recorder:
        recorder.add(np.zeros((120, 160, 3), np.uint8), [1, 2], [3])
    with open_recording(tmp_path / "a") as recording:
        assert recording.contents.episode_steps == (*steps, 1)


@pytest.mark.parametrize("make_frame", [frame, encoded], ids=["pixels", "png"])
def test_a_tail_that_is_cut_anywhere_is_not_read(
    tmp_path: Path, make_frame: Callable[[int], Any]
) -> None:
    record(tmp_path / "a", (6,), make_frame=make_frame)
    folder = tmp_path / "a" / "episodes" / "000000"
    contents = {name: (folder / name).read_bytes() for name in ("steps.bin", "frames-0.bin")}
    sizes = {"steps.bin": len(contents["steps.bin"]) // 6}
    for name, data in contents.items():
        for lost in range(1, len(data) // 2, 7):
            (folder / name).write_bytes(data[:-lost])
            with RecordedFolder(tmp_path / "a") as recording:
                (steps,) = recording.contents.episode_steps
                assert steps < 6
                if name in sizes:
                    assert steps == (len(data) - lost) // sizes[name]
                check(recording, 0)
        # A file system may also leave zeros where data were lost.
        (folder / name).write_bytes(data[: -len(data) // 6] + bytes(len(data) // 6))
        with RecordedFolder(tmp_path / "a") as recording:
            assert recording.contents.episode_steps[0] in (5, 6)
            recording.read_actions("action", 0)
        (folder / name).write_bytes(data)


def test_a_recording_without_a_complete_step(tmp_path: Path) -> None:
    record(tmp_path / "a", (2, 3))
    (tmp_path / "a" / "episodes" / "000000" / "steps.bin").write_bytes(b"")
    with open_recording(tmp_path / "a") as recording:
        assert recording.contents.episode_steps == (3,)
        assert recording.contents.notes == (
            "Episodes without a complete step: 1. They are left out.",
        )
    (tmp_path / "a" / "episodes" / "000001" / "steps.bin").unlink()
    with pytest.raises(RecordingError, match="holds no complete step"):
        open_recording(tmp_path / "a")


def test_a_full_disk_is_a_clear_error_and_keeps_the_steps_before(tmp_path: Path) -> None:
    """A limit on the size of files stands for a full disk: a write fails halfway."""
    program = f"""
import resource
import signal
import numpy as np
from lewm_client import Recorder
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
no_limit = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, no_limit[1]))
recorder = Recorder({str(tmp_path / "a")!r}, rate_hz=10)
written = 0
for step in range(100):
    try:
        recorder.add(np.full((6, 8, 3), step, np.uint8), [step, -step], [step / 2],
                     time_s=step / 10)
        written += 1
    except OSError as error:
        print(written, error)
        break
try:
    recorder.add(np.zeros((6, 8, 3), np.uint8), [0, 0], [0], time_s=99)
except OSError:
    pass
recorder.close()
resource.setrlimit(resource.RLIMIT_FSIZE, no_limit)  # what measures the coverage writes now
"""
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    written = int(result.stdout.split()[0])
    assert 10_000 // FRAME.size == written
    assert f"the {written} steps before are complete" in result.stdout
    assert os.strerror(27) in result.stdout
    with RecordedFolder(tmp_path / "a") as recording:
        assert recording.contents.episode_steps == (written,)
        check(recording, 0)


def test_a_recording_is_readable_with_numpy_alone(tmp_path: Path) -> None:
    """As docs/recordings.md describes it."""
    record(tmp_path / "a", (5,))
    header = json.loads((tmp_path / "a" / "recording.json").read_text())
    dtype = np.dtype([(name, kind, *map(tuple, shape)) for name, kind, *shape in header["record"]])
    steps = np.fromfile(tmp_path / "a" / "episodes" / "000000" / "steps.bin", dtype)
    np.testing.assert_array_equal(steps["action"][:, 0], np.arange(5))
    end = steps["frame_end"][:, 0]
    data = (tmp_path / "a" / "episodes" / "000000" / "frames-0.bin").read_bytes()
    third = np.frombuffer(data[end[1] : end[2]], np.uint8).reshape(6, 8, 3)
    np.testing.assert_array_equal(third, frame(2))


def test_syncing_at_each_step(tmp_path: Path) -> None:
    with Recorder(tmp_path / "a", rate_hz=10, sync_every_s=0) as recorder:
        for step in range(3):
            recorder.add(frame(step), [step, -step], [step / 2], time_s=step / 10)
        with RecordedFolder(tmp_path / "a") as recording:  # while it is being written
            check(recording, 0)
            assert recording.contents.episode_steps == (3,)
