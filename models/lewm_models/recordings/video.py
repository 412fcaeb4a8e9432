"""Frames of video files, found by their times."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lewm_models.recordings.recording import RecordingError, load_library

CONTAINERS = "mov,mp4,matroska,webm,avi"
"""The kinds of files that are opened. A list of other files in disguise is not among them."""

FIRST_STEP_BACK_S = 1.0
"""How far before the first frame a second search for a keyframe begins."""


def read_video_frames(
    path: Path, times: Sequence[float], *, period: float, size: tuple[int, int]
) -> NDArray[np.uint8]:
    """The frames (N, H, W, 3) of a video at N times, RGB, decoded in one pass.

    The frame of a time is the nearest one. It is at most half a period away, and no two times have
    the same frame. Decoding begins at the last keyframe before the first time.

    Args:
        path: the video.
        times: increasing times in seconds, by the clock of the video.
        period: seconds between two steps of the recording.
        size: height and width of each frame.

    Raises:
        RecordingError: the file is missing or damaged, or a frame is missing or has another size.
    """
    av = load_library("av", path)
    if not path.is_file():
        raise RecordingError(f"{path}: the video is missing")
    pixels = np.empty((len(times), *size, 3), dtype=np.uint8)
    if not len(times):
        return pixels
    reformatter = av.video.reformatter.VideoReformatter()
    try:
        options = {"protocol_whitelist": "file", "format_whitelist": CONTAINERS}
        with av.open(str(path.absolute()), options=options) as container:
            if not container.streams.video:
                raise RecordingError(f"{path}: the file holds no video")
            stream = container.streams.video[0]
            # Frames are decoded by several processes, each with one thread.
            stream.codec_context.thread_count = 1
            frames = _frames_from(container, stream, times[0], path)
            for step, frame in enumerate(_nearest_frames(frames, times, period, path)):
                if (frame.height, frame.width) != size:
                    raise RecordingError(
                        f"{path}: expected frames of {size[0]} × {size[1]}, the frame at "
                        f"{frame.time:.3f} s has {frame.height} × {frame.width}"
                    )
                pixels[step] = reformatter.reformat(frame, format="rgb24").to_ndarray()
    except (av.error.FFmpegError, OSError) as error:
        raise RecordingError(f"{path}: the video cannot be decoded: {error}") from error
    return pixels


def _frames_from(container: Any, stream: Any, time: float, path: Path) -> Iterator[Any]:
    """The frames in order, from a keyframe at or before this time on.

    A search for a keyframe may end behind the time, since containers search by the order of
    decoding. It is then repeated from farther back.
    """
    start = time
    step_back = FIRST_STEP_BACK_S
    while True:
        container.seek(max(0, int(start / stream.time_base)), stream=stream)
        frames = container.decode(stream)
        first = next(frames, None)
        if first is None or first.time is None or first.time <= time or start <= 0:
            break
        start -= step_back
        step_back *= 2
    while first is not None:
        if first.time is None or first.is_corrupt:
            raise RecordingError(f"{path}: the video is damaged at {first.time or time:.3f} s")
        yield first
        first = next(frames, None)


def _nearest_frames(
    frames: Iterator[Any], times: Sequence[float], period: float, path: Path
) -> Iterator[Any]:
    """The nearest frame of each time. Both come in increasing order."""
    frame: Any = next(frames, None)
    following = next(frames, None)
    if frame is None:
        raise RecordingError(f"{path}: the video has no frames from {times[0]:.3f} s on")
    last_taken: Any = None
    for time in times:
        while following is not None and abs(following.time - time) < abs(frame.time - time):
            frame, following = following, next(frames, None)
        if abs(frame.time - time) > period / 2:
            raise RecordingError(
                f"{path}: the frame at {time:.3f} s is missing, the nearest one is at "
                f"{frame.time:.3f} s"
            )
        if frame is last_taken:
            raise RecordingError(
                f"{path}: the frame at {frame.time:.3f} s is the nearest one of two steps: a frame "
                "is missing, or the steps are not evenly spaced"
            )
        last_taken = frame
        yield frame
