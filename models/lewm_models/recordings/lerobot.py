"""Data sets of LeRobot, versions 2.0, 2.1 and 3.0: parquet files, and video files of each camera.

In version 2 each episode has files of its own. In version 3 a file holds many episodes.

An episode is left out, and a note says why, if

- its data file is missing or damaged, or does not have the rows that the metadata promise;
- `frame_index` does not count 0, 1, 2 and so on;
- `timestamp` does not increase;
- a video file is missing, or its part for this episode (version 3) is too short.

A camera without any video file is left out, and so is a depth map. A recording without an episode
that can be used is refused. Videos are decoded only when frames are asked for. The frame of a step
is the one that is nearest to its `timestamp`, at most half a period (1 / fps) away.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lewm_models.recordings.arrow import numbers
from lewm_models.recordings.lerobot_metadata import Episode, Metadata
from lewm_models.recordings.pictures import decode_picture
from lewm_models.recordings.recording import (
    Contents,
    Recording,
    RecordingError,
    choose_column,
    load_library,
)
from lewm_models.recordings.video import read_video_frames

INDEX_COLUMNS = ("episode_index", "frame_index", "timestamp")
"""The columns that every data file must have."""

PICTURES_AT_ONCE = 32
"""How many encoded pictures are in memory together."""


class _UnusableEpisode(Exception):
    """The reason why an episode is left out, and the detail of this episode."""

    def __init__(self, reason: str, detail: object) -> None:
        super().__init__(reason)
        self.reason = reason
        self.detail = detail


@dataclass(frozen=True)
class _Rows:
    """The rows of an episode in a data file. ``in_one_piece``: other episodes are not between."""

    first: int
    frame_indices: NDArray[Any]
    timestamps: NDArray[Any]
    in_one_piece: bool


class LeRobotRecording(Recording):
    """A data set of LeRobot."""

    @classmethod
    def recognises(cls, path: Path) -> bool:
        return (path / "meta" / "info.json").is_file()

    def __init__(self, path: Path) -> None:
        load_library("pyarrow", path)
        self.path = path
        self._file: tuple[Path, Any] | None = None
        metadata = Metadata(path)
        listed = metadata.episodes()
        self._period = 1 / metadata.fps
        self._videos = tuple(name for name in metadata.videos if _has_files(name, listed))
        if self._videos:
            load_library("av", path)
        absent = set(metadata.videos) - set(self._videos)
        self._episodes, notes = self._usable_episodes(listed)
        notes.extend(f"The depth map {name} is left out." for name in metadata.depth_maps)
        notes.extend(
            f"The camera {name} is left out: it has no video file." for name in sorted(absent)
        )
        if metadata.total_episodes not in (None, len(listed)):
            notes.append(
                f"meta/info.json promises {metadata.total_episodes} episodes, and {len(listed)} "
                "are listed."
            )
        if not self._episodes:
            raise RecordingError(
                f"{path}: has no usable episode: {' '.join(notes) or 'none is listed'}"
            )
        self.contents = Contents(
            format=f"LeRobot {metadata.version}",
            cameras=tuple(camera for camera in metadata.cameras if camera.name not in absent),
            actions=metadata.actions,
            states=metadata.states,
            episode_steps=tuple(episode.steps for episode in self._episodes),
            rate_hz=metadata.fps,
            notes=tuple(notes),
        )

    def read_frames(
        self, camera: str, episode: int, *, first: int = 0, count: int | None = None
    ) -> NDArray[np.uint8]:
        shape = choose_column(
            self.contents.cameras, camera, option="--camera", path=self.path
        ).shape
        source = self._episodes[episode]
        steps = range(source.steps)[first : None if count is None else first + count]
        if camera in self._videos:
            clip = source.clips[camera]
            times = clip.start + self._read_timestamps(source)[steps.start : steps.stop]
            return read_video_frames(
                clip.path,
                times.tolist(),
                period=self._period,
                size=(shape[0], shape[1]),
            )
        frames = np.empty((len(steps), *shape), dtype=np.uint8)
        for frame, step, pixels in zip(
            frames, steps, self._read_pictures(source, camera, steps), strict=True
        ):
            if pixels.shape != shape:
                raise RecordingError(
                    f"{source.data}: {camera} of step {step}: meta/info.json promises the shape "
                    f"{shape}, the picture has {pixels.shape}"
                )
            frame[:] = pixels
        return frames

    def read_actions(self, name: str, episode: int) -> NDArray[np.float32]:
        column = choose_column(self.contents.actions, name, option="--action", path=self.path)
        return self._read_column(self._episodes[episode], name, width=column.shape[0])

    def read_states(self, name: str, episode: int) -> NDArray[np.float32]:
        column = choose_column(self.contents.states, name, option="--state", path=self.path)
        return self._read_column(self._episodes[episode], name, width=column.shape[0])

    def read_times(self, episode: int) -> NDArray[np.float64]:
        times = self._read_timestamps(self._episodes[episode]) / self._period
        return times - times[:1]

    def close(self) -> None:
        if self._file is not None:
            self._file[1].close()
            self._file = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_file": None}

    def _usable_episodes(self, listed: list[Episode]) -> tuple[list[Episode], list[str]]:
        """The episodes that can be used, with their rows, and notes on those that are left out."""
        usable = []
        left_out: dict[str, list[str]] = defaultdict(list)
        rows_of: tuple[Path, dict[int, _Rows]] | None = None
        for episode in listed:
            try:
                self._check_videos(episode)
                if rows_of is None or rows_of[0] != episode.data:
                    rows_of = (episode.data, self._read_rows(episode.data))
                usable.append(self._check_rows(episode, rows_of[1].get(episode.index)))
            except _UnusableEpisode as error:
                left_out[error.reason].append(f"episode {episode.index}: {error.detail}")
        notes = [
            f"Episodes that are left out because {reason}: {len(details)}; the first is "
            f"{details[0]}."
            for reason, details in left_out.items()
        ]
        return usable, notes

    def _check_videos(self, episode: Episode) -> None:
        for camera in self._videos:
            clip = episode.clips.get(camera)
            if clip is None:
                raise _UnusableEpisode("a video is not listed", camera)
            if not clip.path.is_file():
                raise _UnusableEpisode("a video is missing", clip.path)

    def _check_rows(self, episode: Episode, rows: _Rows | None) -> Episode:
        """The episode with the place of its rows, once all of them are as expected."""
        if rows is None:
            raise _UnusableEpisode("its rows are missing", episode.data)
        found = len(rows.frame_indices)
        if found != episode.steps or not rows.in_one_piece:
            raise _UnusableEpisode(
                "the number of its rows in one piece is wrong",
                f"{episode.data} has {found}, the metadata promise {episode.steps}",
            )
        wrong = np.flatnonzero(rows.frame_indices != np.arange(found))
        if len(wrong):
            raise _UnusableEpisode(
                "steps are missing or in disorder",
                f"frame_index is {rows.frame_indices[wrong[0]]} at step {wrong[0]}",
            )
        if not (np.diff(rows.timestamps) > 0).all():
            raise _UnusableEpisode("its timestamps do not increase", episode.data)
        for camera in self._videos:
            clip = episode.clips[camera]
            if clip.start + rows.timestamps[-1] + self._period / 2 > clip.end:
                raise _UnusableEpisode(
                    "its part of a video is too short",
                    f"{clip.end - clip.start:.3f} s of {clip.path} for {episode.steps} steps",
                )
        return replace(episode, first_row=rows.first)

    def _read_rows(self, path: Path) -> dict[int, _Rows]:
        """The rows of each episode in a data file."""
        if not path.is_file():
            raise _UnusableEpisode("its data file is missing", path)
        try:
            table = _guarded(
                path, self._open(path).read, columns=list(INDEX_COLUMNS), use_threads=False
            )
        except RecordingError as error:
            raise _UnusableEpisode("its data file is damaged", error) from error
        for name in INDEX_COLUMNS:
            if name not in table.column_names:
                raise RecordingError(f"{path}: the column {name} is missing")
        indices, frame_indices, timestamps = (
            table.column(name).to_numpy() for name in INDEX_COLUMNS
        )
        starts = [0, *(np.flatnonzero(np.diff(indices)) + 1).tolist(), len(indices)]
        rows: dict[int, _Rows] = {}
        for start, end in pairwise(starts):
            if start < end:
                index = int(indices[start])
                rows[index] = _Rows(
                    first=start,
                    frame_indices=frame_indices[start:end],
                    timestamps=timestamps[start:end],
                    in_one_piece=index not in rows,
                )
        return rows

    def _read_column(self, episode: Episode, name: str, *, width: int) -> NDArray[np.float32]:
        """The values (N, width) of an episode. Only its row groups are read."""
        file = self._open(episode.data)
        groups, skipped = _row_groups(file, episode.first_row, episode.steps)
        table = _guarded(
            episode.data, file.read_row_groups, groups, columns=[name], use_threads=False
        )
        if name not in table.column_names:
            raise RecordingError(f"{episode.data}: the column {name} is missing")
        rows = table.column(name).slice(skipped, episode.steps)
        return numbers(rows, width=width, source=f"{episode.data}: {name}")

    def _read_timestamps(self, episode: Episode) -> NDArray[np.float64]:
        return self._read_column(episode, "timestamp", width=1)[:, 0].astype(np.float64)

    def _read_pictures(
        self, episode: Episode, camera: str, steps: range
    ) -> Iterator[NDArray[np.uint8]]:
        """The pixels of the pictures in a column, a few rows at a time."""
        file = self._open(episode.data)
        groups, skipped = _row_groups(file, episode.first_row + steps.start, len(steps))
        batches = file.iter_batches(
            PICTURES_AT_ONCE, row_groups=groups, columns=[camera], use_threads=False
        )
        remaining = iter(steps)
        left = len(steps)
        while left and (batch := _guarded(episode.data, next, batches, None)) is not None:
            if camera not in batch.schema.names:
                raise RecordingError(f"{episode.data}: the column {camera} is missing")
            wanted = batch.column(camera).slice(skipped, left)
            skipped = max(0, skipped - batch.num_rows)
            left -= len(wanted)
            for value in wanted.to_pylist():
                source = f"{episode.data}: {camera} of step {next(remaining)}"
                data = value.get("bytes") if isinstance(value, dict) else value
                if not isinstance(data, bytes):
                    raise RecordingError(f"{source}: expected the bytes of a picture, got {value}")
                yield decode_picture(data, source=source)

    def _open(self, path: Path) -> Any:
        """A data file. The last one stays open, since it holds many episodes in version 3."""
        if self._file is None or self._file[0] != path:
            self.close()
            parquet = load_library("pyarrow.parquet", self.path)
            self._file = (path, _guarded(path, parquet.ParquetFile, path))
        return self._file[1]


def _has_files(camera: str, episodes: list[Episode]) -> bool:
    return any(
        camera in episode.clips and episode.clips[camera].path.is_file() for episode in episodes
    )


def _row_groups(file: Any, first_row: int, count: int) -> tuple[list[int], int]:
    """The row groups of a parquet file that hold these rows, and the rows before them in these."""
    groups: list[int] = []
    skipped = row = 0
    for group in range(file.metadata.num_row_groups):
        end = row + file.metadata.row_group(group).num_rows
        if row < first_row + count and end > first_row:
            if not groups:
                skipped = first_row - row
            groups.append(group)
        row = end
    return groups, skipped


def _guarded(path: Path, call: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    """The result of a call that reads a parquet file. Its errors name the file."""
    arrow = load_library("pyarrow", path)
    try:
        return call(*arguments, **options)
    except (arrow.ArrowException, OSError) as error:
        raise RecordingError(f"{path}: cannot be read: {error}") from error
