"""Frames of videos are found by time, wherever the keyframes are."""

from __future__ import annotations

from pathlib import Path

import pytest

from lewm_models.recordings.recording import RecordingError
from lewm_models.recordings.video import read_video_frames
from tests.lewm_models.recordings.lerobot_data import FPS, write_video
from tests.lewm_models.recordings.painted import HEIGHT, WIDTH, numbers_of

FRAMES = 60
OPEN_GROUPS = {
    "libx264": {"x264-params": "open-gop=1:bframes=3:b-adapt=0:scenecut=0"},
    "libx265": {"x265-params": "log-level=error:open-gop=1:bframes=3:keyint=10"},
}
"""Frames before a keyframe are stored behind it, so that a search may end too late."""


def read(path: Path, first: int, count: int) -> list[int]:
    times = [(first + step) / FPS for step in range(count)]
    return numbers_of(read_video_frames(path, times, period=1 / FPS, size=(HEIGHT, WIDTH)))


@pytest.mark.parametrize("codec", OPEN_GROUPS)
def test_every_frame_can_be_the_first(tmp_path: Path, codec: str) -> None:
    path = tmp_path / "video.mp4"
    write_video(path, range(FRAMES), codec=codec, options=OPEN_GROUPS[codec])
    for first in range(FRAMES):
        count = min(2, FRAMES - first)
        assert read(path, first, count) == list(range(first, first + count))


def test_frames_that_are_skipped(tmp_path: Path) -> None:
    path = tmp_path / "video.mp4"
    write_video(path, range(FRAMES))
    times = [step / FPS for step in range(3, FRAMES, 4)]
    frames = read_video_frames(path, times, period=4 / FPS, size=(HEIGHT, WIDTH))
    assert numbers_of(frames) == list(range(3, FRAMES, 4))


def test_lists_of_other_files_are_refused(tmp_path: Path) -> None:
    write_video(tmp_path / "other.mp4", range(3))
    path = tmp_path / "video.mp4"
    path.write_text("ffconcat version 1.0\nfile other.mp4\n")
    with pytest.raises(RecordingError, match=r"video.mp4: the video cannot be decoded"):
        read(path, 0, 1)
