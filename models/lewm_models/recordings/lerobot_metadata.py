"""What the folder ``meta`` of a LeRobot data set says about its columns, episodes and files."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from lewm_models.recordings.recording import Column, RecordingError, load_library

VERSIONS = ("2.0", "2.1", "3.0")

DEFAULT_CHUNKS_SIZE = 1000
DEFAULT_DATA_PATH = {
    "2": "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet",
    "3": "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
}
DEFAULT_VIDEO_PATH = {
    "2": "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4",
    "3": "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4",
}
"""By major version: where the files are if the metadata do not say."""

ACTIONS = ("action", "actions")
"""Columns of actions have these names, or names such as ``action.arm``."""

NO_STATES = ("timestamp", "next", "reward")
"""Other columns of numbers are states, except those with these names, such as ``next.reward``."""


@dataclass(frozen=True)
class Clip:
    """The part of a video file that belongs to an episode, from ``start`` to ``end`` in seconds."""

    path: Path
    start: float = 0.0
    end: float = math.inf


@dataclass(frozen=True)
class Episode:
    """An episode as the metadata describe it.

    Attributes:
        index: its number in the data set.
        steps: its length.
        data: the parquet file that has its rows.
        clips: by camera, its part of a video file.
        first_row: where its rows begin in the parquet file. Only that file tells.
    """

    index: int
    steps: int
    data: Path
    clips: dict[str, Clip] = field(default_factory=dict)
    first_row: int = 0


class Metadata:
    """The description of a data set, from ``meta/info.json``.

    Attributes:
        version: "2.0", "2.1" or "3.0".
        fps: steps per second.
        total_episodes: how many episodes there should be; None if that is not said.
        cameras, actions, states: the columns. Depth maps are no cameras.
        videos: the names of the cameras that have video files; others are in the parquet files.
        depth_maps: the names of the depth maps.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._source = path / "meta" / "info.json"
        self._info = _read_json(self._source)
        self.version = self._read_version()
        self.fps = self._read_fps()
        self.total_episodes = self._info.get("total_episodes")
        features = self._read_features()
        depth_maps = {name for name, feature in features.items() if _is_depth_map(feature)}

        def columns(kind: Callable[[str, str], bool]) -> tuple[Column, ...]:
            return tuple(
                self._column(name, feature)
                for name, feature in features.items()
                if name not in depth_maps and kind(name, feature["dtype"])
            )

        self.cameras = columns(lambda _, dtype: dtype in ("video", "image"))
        self.actions = columns(_is_action)
        self.states = columns(_is_state)
        self.videos = tuple(
            column.name for column in self.cameras if features[column.name]["dtype"] == "video"
        )
        self.depth_maps = tuple(sorted(depth_maps))

    def episodes(self) -> list[Episode]:
        """The episodes in order, as the metadata list them.

        Raises:
            RecordingError: the list is missing, damaged or contradicts itself.
        """
        listed = self._list_version_2() if self.version[0] == "2" else self._list_version_3()
        listed.sort(key=lambda episode: episode.index)
        for one, other in pairwise(listed):
            if one.index == other.index:
                raise RecordingError(f"{self._path}: episode {one.index} is listed twice")
        return listed

    def _list_version_2(self) -> list[Episode]:
        source = self._path / "meta" / "episodes.jsonl"
        try:
            lines = source.read_text("utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise RecordingError(f"{source}: cannot be read: {error}") from error
        chunks_size = self._info.get("chunks_size", DEFAULT_CHUNKS_SIZE)
        episodes = []
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
                index, steps = int(row["episode_index"]), int(row["length"])
                chunk = index // int(chunks_size)
            except (ValueError, KeyError, TypeError, ZeroDivisionError) as error:
                raise RecordingError(
                    f"{source}: line {number}: expected episode_index and length: {error!r}"
                ) from error
            place = {"episode_chunk": chunk, "episode_index": index}
            clips = {
                name: Clip(self._file("video_path", DEFAULT_VIDEO_PATH, video_key=name, **place))
                for name in self.videos
            }
            data = self._file("data_path", DEFAULT_DATA_PATH, **place)
            episodes.append(Episode(index, steps, data, clips))
        return episodes

    def _list_version_3(self) -> list[Episode]:
        arrow = load_library("pyarrow", self._path)
        parquet = load_library("pyarrow.parquet", self._path)
        folder = self._path / "meta" / "episodes"
        files = sorted(folder.glob("*/*.parquet"))
        if not files:
            raise RecordingError(f"{folder}: the list of episodes is missing")
        keys = ["episode_index", "length", "data/chunk_index", "data/file_index"]
        video_keys = ("chunk_index", "file_index", "from_timestamp", "to_timestamp")
        for name in self.videos:
            keys.extend(f"videos/{name}/{key}" for key in video_keys)
        episodes: list[Episode] = []
        for file in files:
            try:
                # The other columns are statistics of each episode, which are larger by far.
                with parquet.ParquetFile(file) as opened:
                    rows = opened.read(columns=keys, use_threads=False).to_pylist()
                episodes.extend(map(self._episode_of_version_3, rows))
            except KeyError as error:
                raise RecordingError(f"{file}: the column {error} is missing") from error
            except (arrow.ArrowException, OSError, TypeError, ValueError) as error:
                raise RecordingError(f"{file}: cannot be read: {error}") from error
        return episodes

    def _episode_of_version_3(self, row: dict[str, Any]) -> Episode:
        clips = {}
        for name in self.videos:
            chunk, file, start, end = (
                row[f"videos/{name}/{key}"]
                for key in ("chunk_index", "file_index", "from_timestamp", "to_timestamp")
            )
            if file is not None:  # an episode may have been recorded without this camera
                path = self._file(
                    "video_path",
                    DEFAULT_VIDEO_PATH,
                    video_key=name,
                    chunk_index=chunk,
                    file_index=file,
                )
                clips[name] = Clip(path, float(start), float(end))
        data = self._file(
            "data_path",
            DEFAULT_DATA_PATH,
            chunk_index=row["data/chunk_index"],
            file_index=row["data/file_index"],
        )
        return Episode(int(row["episode_index"]), int(row["length"]), data, clips)

    def _file(self, key: str, defaults: dict[str, str], **place: Any) -> Path:
        template = self._info.get(key) or defaults[self.version[0]]
        try:
            return self._path / template.format(**place)
        except (AttributeError, KeyError, IndexError, ValueError, TypeError) as error:
            raise RecordingError(
                f"{self._source}: {key}: expected a template like "
                f"{defaults[self.version[0]]!r}, found {template!r}"
            ) from error

    def _read_version(self) -> str:
        found = self._info.get("codebase_version")
        match = re.match(r"v?(\d+\.\d+)", str(found))
        version = match[1] if match else None
        if version not in VERSIONS:
            raise RecordingError(
                f"{self._source}: codebase_version: expected {', '.join(VERSIONS)}, found {found!r}"
            )
        if self._info.get("storage_format") == "lance":
            raise RecordingError(
                f"{self._source}: storage_format: LeRobot data sets in Lance tables are not "
                "supported; use the data set in its default format, parquet and mp4"
            )
        return version

    def _read_fps(self) -> float:
        fps = self._info.get("fps")
        if not isinstance(fps, int | float) or not math.isfinite(fps) or fps <= 0:
            raise RecordingError(f"{self._source}: fps: expected a positive number, found {fps!r}")
        return float(fps)

    def _read_features(self) -> dict[str, dict[str, Any]]:
        features = self._info.get("features")
        if not isinstance(features, dict):
            raise RecordingError(f"{self._source}: features: expected the columns by name")
        for name, feature in features.items():
            shape = feature.get("shape") if isinstance(feature, dict) else None
            if (
                not isinstance(shape, list)
                or not all(isinstance(size, int) and size > 0 for size in shape)
                or not isinstance(feature.get("dtype"), str)
            ):
                raise RecordingError(
                    f"{self._source}: features: {name}: expected a dtype and a shape"
                )
        return features

    def _column(self, name: str, feature: dict[str, Any]) -> Column:
        shape = feature["shape"]
        if feature["dtype"] not in ("video", "image"):
            width = math.prod(shape)
            return Column(name, (width,), _labels(feature.get("names"), width))
        if len(shape) != 3:
            raise RecordingError(
                f"{self._source}: features: {name}: expected the shape of a frame, found {shape}"
            )
        # Either order of the axes is in use, and the names of the axes are wrong at times.
        channels_last = shape[2] in (1, 3, 4)
        height, width = shape[:2] if channels_last else shape[1:]
        return Column(name, (height, width, 3))


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise RecordingError(f"{path}: cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise RecordingError(f"{path}: expected a JSON object")
    return content


def _is_depth_map(feature: dict[str, Any]) -> bool:
    about = feature.get("info") or feature.get("video_info") or {}
    return bool(about.get("video.is_depth_map") or about.get("is_depth_map"))


def _is_action(name: str, dtype: str) -> bool:
    return name.partition(".")[0] in ACTIONS and dtype.startswith(("float", "int"))


def _is_state(name: str, dtype: str) -> bool:
    return dtype.startswith("float") and name.partition(".")[0] not in (*ACTIONS, *NO_STATES)


def _labels(names: object, width: int) -> tuple[str, ...]:
    """The names of the values: a list, or a dict with one list. They may be missing or too few."""
    if isinstance(names, dict) and len(names) == 1:
        names = next(iter(names.values()))
    if not isinstance(names, Sequence) or isinstance(names, str) or len(names) != width:
        return ()
    return tuple(str(name) for name in names)
