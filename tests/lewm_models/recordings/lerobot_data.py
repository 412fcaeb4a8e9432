"""Data sets in LeRobot's layouts, written with pyarrow and av."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fractions import Fraction
from io import BytesIO
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image

from tests.lewm_models.recordings.painted import HEIGHT, WIDTH, paint

FPS = 30
LENGTHS = (20, 35, 12)
FRONT, WRIST = "observation.images.front", "observation.images.wrist"
JOINTS = ["shoulder", "elbow", "gripper"]

EPISODE_NUMBERS = 200
"""The first frame of episode e shows EPISODE_NUMBERS · e, that of the second camera 1000 more."""


def shown(camera: str, episode: int, steps: range) -> list[int]:
    """The numbers that the frames of a camera show."""
    offset = 1000 if camera == WRIST else 0
    return [offset + EPISODE_NUMBERS * episode + step for step in steps]


def actions_of(episode: int, steps: int) -> NDArray[np.float32]:
    return np.random.default_rng(episode).normal(size=(steps, 3)).astype(np.float32)


OPTIONS = {"libx264": {"preset": "veryfast"}, "libsvtav1": {"preset": "12"}}


@contextmanager
def ordinary_scheduling() -> Iterator[None]:
    """Undo what SVT-AV1 does for root: it makes the thread that encodes a real-time thread.

    All later threads and processes would inherit that, and one that is busy would stop the others.
    """
    policy, parameters = os.sched_getscheduler(0), os.sched_getparam(0)
    try:
        yield
    finally:
        os.sched_setscheduler(0, policy, parameters)


def write_video(
    path: Path,
    numbers: Sequence[int],
    *,
    codec: str = "libx264",
    options: dict[str, str] | None = None,
    keyframe_interval: int = 10,
) -> None:
    """A video of painted frames, 1 / FPS apart."""
    path.parent.mkdir(parents=True, exist_ok=True)
    options = options or OPTIONS[codec]
    with (
        ordinary_scheduling(),
        av.open(str(path), "w", options={"movflags": "faststart"}) as container,
    ):
        stream: Any = container.add_stream(codec, rate=FPS, options=options)
        stream.height, stream.width, stream.pix_fmt = HEIGHT, WIDTH, "yuv420p"
        stream.gop_size = keyframe_interval
        for time, number in enumerate(numbers):
            frame = av.VideoFrame.from_ndarray(paint(number), format="rgb24")
            frame.pts, frame.time_base = time, Fraction(1, FPS)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def rows_of(episode: int, steps: int, *, images: Sequence[str] = ()) -> pa.Table:
    """The rows of an episode, with the types that LeRobot writes."""
    vectors = pa.list_(pa.float32(), 3)
    actions = actions_of(episode, steps)
    columns: dict[str, Any] = {
        "action": pa.array(list(actions), vectors),
        "action.gripper": pa.array(actions[:, 2]),
        "observation.state": pa.array(list(actions * 2), vectors),
        "next.reward": pa.array(np.zeros(steps, np.float32)),
        # float32 of step / FPS is not exact.
        "timestamp": pa.array((np.arange(steps) / FPS).astype(np.float32)),
        "frame_index": pa.array(np.arange(steps)),
        "episode_index": pa.array(np.full(steps, episode)),
        "task_index": pa.array(np.zeros(steps, np.int64)),
    }
    for camera in images:
        numbers = shown(camera, episode, range(steps))
        columns[camera] = pa.array(
            [{"bytes": png_of(number), "path": f"frame-{number}.png"} for number in numbers],
            pa.struct([("bytes", pa.binary()), ("path", pa.string())]),
        )
    return pa.table(columns)


def png_of(number: int) -> bytes:
    buffer = BytesIO()
    Image.fromarray(paint(number)).save(buffer, "PNG")
    return buffer.getvalue()


def features_of(*, videos: Sequence[str], images: Sequence[str]) -> dict[str, Any]:
    numbers = {"dtype": "float32", "shape": [3], "names": JOINTS}
    one_number = {"dtype": "float32", "shape": [1], "names": None}
    features: dict[str, Any] = {
        "action": numbers,
        "action.gripper": one_number,
        "observation.state": {**numbers, "names": {"motors": JOINTS}},
        "next.reward": one_number,
        "timestamp": one_number,
    }
    for name in ("frame_index", "episode_index", "task_index"):
        features[name] = {"dtype": "int64", "shape": [1], "names": None}
    for camera in videos:
        features[camera] = {
            "dtype": "video",
            "shape": [3, HEIGHT, WIDTH],
            "names": ["channels", "height", "width"],
        }
    for camera in images:
        features[camera] = {
            "dtype": "image",
            "shape": [HEIGHT, WIDTH, 3],
            "names": ["height", "width", "channel"],
        }
    return features


def write_info(path: Path, **changes: Any) -> None:
    """``meta/info.json``. A change to None takes a key away."""
    info = {
        "codebase_version": "v2.1",
        "robot_type": "so100",
        "total_episodes": len(LENGTHS),
        "total_frames": sum(LENGTHS),
        "chunks_size": 1000,
        "fps": FPS,
        **changes,
    }
    (path / "meta").mkdir(parents=True, exist_ok=True)
    kept = {key: value for key, value in info.items() if value is not None}
    (path / "meta" / "info.json").write_text(json.dumps(kept))


def change_info(path: Path, **changes: Any) -> None:
    write_info(path, **{**json.loads((path / "meta" / "info.json").read_text()), **changes})


def write_version_2(
    path: Path,
    *,
    lengths: Sequence[int] = LENGTHS,
    videos: Sequence[str] = (FRONT,),
    images: Sequence[str] = (),
    codec: str = "libx264",
    chunks_size: int = 1000,
) -> Path:
    """Version 2.1: files of its own for each episode."""
    write_info(
        path,
        total_episodes=len(lengths),
        chunks_size=chunks_size,
        data_path="data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet",
        video_path="videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4",
        features=features_of(videos=videos, images=images),
    )
    lines = []
    for episode, steps in enumerate(lengths):
        chunk = f"chunk-{episode // chunks_size:03d}"
        write_table(
            path / "data" / chunk / f"episode_{episode:06d}.parquet",
            rows_of(episode, steps, images=images),
        )
        for camera in videos:
            write_video(
                path / "videos" / chunk / camera / f"episode_{episode:06d}.mp4",
                shown(camera, episode, range(steps)),
                codec=codec,
            )
        lines.append(json.dumps({"episode_index": episode, "tasks": ["lift"], "length": steps}))
    (path / "meta" / "episodes.jsonl").write_text("\n".join(lines) + "\n")
    return path


def write_version_3(
    path: Path,
    *,
    lengths: Sequence[int] = LENGTHS,
    videos: Sequence[str] = (FRONT,),
    images: Sequence[str] = (),
    codec: str = "libx264",
    episodes_in_file: int = 2,
    row_group_size: int = 16,
) -> Path:
    """Version 3.0: several episodes in a parquet file and in a video file."""
    write_info(
        path,
        codebase_version="v3.0",
        total_episodes=len(lengths),
        data_path="data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
        video_path="videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4",
        features=features_of(videos=videos, images=images),
    )
    rows = []
    for start in range(0, len(lengths), episodes_in_file):
        file = start // episodes_in_file
        episodes = range(start, min(start + episodes_in_file, len(lengths)))
        tables = [rows_of(episode, lengths[episode], images=images) for episode in episodes]
        write_table(
            path / "data" / "chunk-000" / f"file-{file:03d}.parquet",
            pa.concat_tables(tables),
            row_group_size=row_group_size,
        )
        for camera in videos:
            numbers = [
                number
                for episode in episodes
                for number in shown(camera, episode, range(lengths[episode]))
            ]
            write_video(
                path / "videos" / camera / "chunk-000" / f"file-{file:03d}.mp4",
                numbers,
                codec=codec,
                keyframe_interval=7,
            )
        time = 0.0
        for episode in episodes:
            duration = lengths[episode] / FPS
            row: dict[str, Any] = {
                "episode_index": episode,
                "length": lengths[episode],
                "data/chunk_index": 0,
                "data/file_index": file,
                "dataset_from_index": sum(lengths[:episode]),
                "dataset_to_index": sum(lengths[: episode + 1]),
                "stats/action/mean": [0.0, 0.0, 0.0],
            }
            for camera in videos:
                row[f"videos/{camera}/chunk_index"] = 0
                row[f"videos/{camera}/file_index"] = file
                row[f"videos/{camera}/from_timestamp"] = time
                row[f"videos/{camera}/to_timestamp"] = time + duration
            time += duration
            rows.append(row)
    write_table(path / "meta/episodes/chunk-000/file-000.parquet", pa.Table.from_pylist(rows))
    return path


def write_table(path: Path, table: pa.Table, *, row_group_size: int | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, row_group_size=row_group_size)


def change_rows(path: Path, column: str, values: Any) -> None:
    """Replace a column of a parquet file."""
    table = pq.read_table(path)
    place = table.column_names.index(column)
    write_table(path, table.set_column(place, column, pa.array(values)))
