"""Folders of PNG or JPEG images, with the actions in CSV or npy files.

An episode is a folder with images, or with a folder of images for each camera. A recording is one
such folder, or a folder of them. `docs/recordings.md` shows the layouts.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lewm_models.recordings.pictures import decode_picture, picture_shape, stack_frames
from lewm_models.recordings.recording import (
    Column,
    Contents,
    Recording,
    RecordingError,
    natural_key,
)
from lewm_models.recordings.tables import (
    ACTION_PREFIXES,
    EPISODE_NAMES,
    IMAGE_SUFFIXES,
    NUMBER_NAMES,
    TABLE_SUFFIXES,
    TIME_NAMES,
    read_table,
)

ONLY_CAMERA = "images"
"""The name of the camera whose images lie in the episode's folder itself."""
ACTION, STATE = "action", "state"
CONTACT_SHEET_END = "-contact.png"
"""The end of the names of contact sheets, which are no frames."""
MAX_STEP_S = 10.0
"""Times that are further apart are not in seconds."""


@dataclass(frozen=True)
class _Episode:
    """The files of one episode, and its small columns.

    Attributes:
        folder: its folder.
        images: the names of each camera's images, relative to the folder, in order.
        series: the actions and states by name, (N, D) each.
        labels: the names of their columns in the tables, empty where there are none.
        times: (N,), see `Recording.read_times`; in seconds if ``timed``.
        timed: whether times are seconds.
    """

    folder: Path
    images: dict[str, list[str]]
    series: dict[str, NDArray[np.float32]]
    labels: dict[str, tuple[str, ...]]
    times: NDArray[np.float64] | None
    timed: bool

    @property
    def steps(self) -> int:
        return len(next(iter(self.images.values())))


class ImageFolders(Recording):
    """Images in folders."""

    @classmethod
    def recognises(cls, path: Path) -> bool:
        return path.is_dir() and bool(_episode_folders(path))

    def __init__(self, path: Path) -> None:
        self.path = path
        self._episodes = [
            episode for folder in _episode_folders(path) for episode in _read_episodes(folder)
        ]
        first = self._episodes[0]
        notes = []
        for episode in self._episodes:
            if list(episode.images) != list(first.images):
                raise RecordingError(
                    f"{episode.folder}: expected the cameras {list(first.images)} as in "
                    f"{first.folder}, found {list(episode.images)}"
                )
        series = {name: values for item in self._episodes for name, values in item.series.items()}
        for episode in self._episodes:
            for name, values in episode.series.items():
                if values.shape[1] != series[name].shape[1]:
                    raise RecordingError(
                        f"{episode.folder}: {name}: expected {series[name].shape[1]} numbers in "
                        f"each step as in the other episodes, got {values.shape[1]}"
                    )
        without = [item.folder.name for item in self._episodes if not item.series]
        if without and series:
            notes.append(f"Folders without actions: {', '.join(without[:5])}.")
        self._size = {name: values.shape[1] for name, values in series.items()}
        labels = {name: texts for item in self._episodes for name, texts in item.labels.items()}
        columns = {name: Column(name, (size,), labels[name]) for name, size in self._size.items()}
        self.contents = Contents(
            format="folders of images",
            cameras=tuple(
                Column(camera, _first_shape(first.folder / names[0]))
                for camera, names in first.images.items()
            ),
            actions=tuple(item for name, item in columns.items() if _is_action(name)),
            states=tuple(item for name, item in columns.items() if not _is_action(name)),
            episode_steps=tuple(episode.steps for episode in self._episodes),
            rate_hz=_rate_hz(self._episodes),
            notes=tuple(notes),
        )

    def read_frames(
        self, camera: str, episode: int, *, first: int = 0, count: int | None = None
    ) -> NDArray[np.uint8]:
        item = self._episodes[episode]
        stop = None if count is None else first + count
        names = item.images[camera][first:stop]
        shape = next(column.shape for column in self.contents.cameras if column.name == camera)
        if not names:
            return np.empty((0, *shape), np.uint8)
        frames = []
        for name in names:
            path = item.folder / name
            try:
                frame = decode_picture(path.read_bytes(), source=str(path))
            except OSError as error:
                raise RecordingError(f"{path}: cannot be read: {error.strerror}") from error
            if frame.shape != shape:
                raise RecordingError(
                    f"{path}: expected {shape[1]} × {shape[0]} pixels as in the first image, "
                    f"got {frame.shape[1]} × {frame.shape[0]}"
                )
            frames.append(frame)
        return stack_frames(frames, source=str(item.folder))

    def read_actions(self, name: str, episode: int) -> NDArray[np.float32]:
        return self._read_series(name, episode)

    def read_states(self, name: str, episode: int) -> NDArray[np.float32]:
        return self._read_series(name, episode)

    def read_times(self, episode: int) -> NDArray[np.float64] | None:
        item = self._episodes[episode]
        if item.times is None or not item.timed:
            return item.times
        return None if self.contents.rate_hz is None else item.times * self.contents.rate_hz

    def _read_series(self, name: str, episode: int) -> NDArray[np.float32]:
        item = self._episodes[episode]
        missing = np.full((item.steps, self._size[name]), np.nan, np.float32)
        return item.series.get(name, missing)


def _episode_folders(path: Path) -> list[Path]:
    """The folders of the episodes, in natural order.

    A folder that holds images is an episode. So is a folder with tables whose sub-folders hold
    images: those are its cameras.
    """
    if _is_episode(path):
        return [path]
    folders = _sub_folders(path)
    return [folder for folder in folders if _is_episode(folder) or _cameras(folder)]


def _is_episode(folder: Path) -> bool:
    if _image_names(folder):
        return True
    cameras = _cameras(folder)
    return bool(_tables(folder) and cameras) and not any(_tables(folder / name) for name in cameras)


def _cameras(folder: Path) -> list[str]:
    """The names of the sub-folders that hold images."""
    return [item.name for item in _sub_folders(folder) if _image_names(item)]


def _sub_folders(folder: Path) -> list[Path]:
    return sorted(
        (item for item in folder.iterdir() if item.is_dir()),
        key=lambda item: natural_key(item.name),
    )


def _image_names(folder: Path) -> list[str]:
    names = (
        item.name
        for item in folder.iterdir()
        if item.suffix.lower() in IMAGE_SUFFIXES
        and not item.name.startswith(".")
        and not item.name.endswith(CONTACT_SHEET_END)
    )
    return sorted(names, key=natural_key)


def _tables(folder: Path) -> list[Path]:
    tables = (item for item in folder.iterdir() if item.suffix.lower() in TABLE_SUFFIXES)
    return sorted(tables, key=lambda item: natural_key(item.name))


def _read_episodes(folder: Path) -> list[_Episode]:
    """Read the names of a folder's images and its tables.

    A folder is one episode, unless a table has a column with the episode of each step.

    Raises:
        RecordingError: images and tables do not fit each other.
    """
    names = _image_names(folder)
    images = {ONLY_CAMERA: names} if names else {}
    if not images:
        for camera in _cameras(folder):
            images[camera] = [f"{camera}/{name}" for name in _image_names(folder / camera)]
    counts = {camera: len(names) for camera, names in images.items()}
    if len(set(counts.values())) > 1:
        raise RecordingError(f"{folder}: the cameras have different numbers of images: {counts}")
    steps = next(iter(counts.values()))
    series: dict[str, NDArray[np.float32]] = {}
    labels: dict[str, tuple[str, ...]] = {}
    seconds = numbers = episodes = None
    paths = _tables(folder)
    action_paths = [path for path in paths if _is_action(path.stem)] if len(paths) > 1 else paths
    for path in paths:
        table = read_table(path)
        if table.images is not None and len(images) == 1:
            (camera,) = images
            images[camera] = _listed_images(path, table.images, images[camera])
            steps = len(table.images)
        name = path.stem
        if path in action_paths:
            action = ACTION if len(action_paths) == 1 else name
            columns = {action: table.action_columns(), STATE: table.state_columns()}
        else:
            columns = {STATE if name == "states" else name: table.number_columns()}
        for column, selected in columns.items():
            if selected:
                series[column] = _rows_for_steps(path, table.select(selected), steps)
                labels[column] = tuple(table.names[place] for place in selected if table.names)
        seconds = _first_of(seconds, table.column(TIME_NAMES), steps)
        numbers = _first_of(numbers, table.column(NUMBER_NAMES), steps)
        episodes = _first_of(episodes, table.column(EPISODE_NAMES), steps)
    if numbers is None:
        numbers = _numbers_in_names(next(iter(images.values())))
    changes = [] if episodes is None else (np.flatnonzero(np.diff(episodes)) + 1).tolist()
    parts = [slice(first, stop) for first, stop in pairwise([0, *changes, steps])]
    return [
        _Episode(
            folder=folder,
            images={camera: names[part] for camera, names in images.items()},
            series={name: values[part] for name, values in series.items()},
            labels=labels,
            times=_step_times(numbers, part)
            if seconds is None
            else seconds[part] - seconds[part][0],
            timed=seconds is not None,
        )
        for part in parts
    ]


def _listed_images(path: Path, listed: Sequence[str], present: list[str]) -> list[str]:
    """The images that a table names, one a row."""
    known = {Path(name).name: name for name in present}
    missing = [name for name in listed if Path(name).name not in known]
    if missing:
        raise RecordingError(f"{path}: names the image {missing[0]}, which is not there")
    return [known[Path(name).name] for name in listed]


def _rows_for_steps(path: Path, rows: NDArray[np.float32], steps: int) -> NDArray[np.float32]:
    """One row per image. The last may be missing, since no frame follows the last image."""
    if len(rows) == steps - 1:
        return np.concatenate([rows, np.full((1, rows.shape[1]), np.nan, np.float32)])
    if len(rows) != steps:
        raise RecordingError(
            f"{path}: expected {steps} rows, or {steps - 1}, for {steps} images, got {len(rows)}"
        )
    return rows


def _first_of(
    known: NDArray[np.float64] | None, column: NDArray[np.float64] | None, steps: int
) -> NDArray[np.float64] | None:
    if known is not None or column is None or len(column) != steps:
        return known
    return column if np.isfinite(column).all() else None


def _numbers_in_names(names: Sequence[str]) -> NDArray[np.float64] | None:
    """The last number in the name of each image, if all names have one."""
    found = [re.findall(r"\d+", Path(name).stem) for name in names]
    if not all(found):
        return None
    return np.array([float(numbers[-1]) for numbers in found])


def _step_times(numbers: NDArray[np.float64] | None, part: slice) -> NDArray[np.float64] | None:
    """Growing numbers, such as of files, as times in steps: the usual difference is one step."""
    if numbers is None or len(numbers[part]) < 2:
        return None
    differences = np.diff(numbers[part])
    if (differences <= 0).any():
        return None
    return np.asarray((numbers[part] - numbers[part][0]) / np.median(differences))


def _rate_hz(episodes: Sequence[_Episode]) -> float | None:
    """The rate of the median episode, if the tables have times."""
    periods = [
        float(np.median(np.diff(episode.times)))
        for episode in episodes
        if episode.timed and episode.times is not None and len(episode.times) > 1
    ]
    period = float(np.median(periods)) if periods else 0.0
    return 1 / period if 0 < period <= MAX_STEP_S else None


def _first_shape(path: Path) -> tuple[int, int, int]:
    return picture_shape(path.read_bytes(), source=str(path))


def _is_action(name: str) -> bool:
    return name.lower().startswith(ACTION_PREFIXES)
