"""Recordings that are a set of arrays with one row per step, such as HDF5 and zarr."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lewm_models.recordings.recording import Column, Contents, Recording, RecordingError

STEP_NUMBERS = ("step_idx", "frame_index")
TIMESTAMPS = ("timestamp", "timestamps", "time")
"""Columns with the number of each step in its episode, and with its time in seconds."""

BOOKKEEPING = {
    *STEP_NUMBERS,
    *TIMESTAMPS,
    *("ep_idx", "episode_idx", "episode_index", "index", "id", "task_index", "seed"),
    *("reward", "rewards", "terminated", "truncated", "done", "dones", "success", "is_success"),
    *("ep_len", "ep_offset", "render_time"),
}
"""Columns that are neither actions nor states."""

EPISODES_FOR_RATE = 100
FRAMES_FOR_RANGE = 8
"""Episodes and frames that are looked at for the rate and for the range of values."""

MAX_STEP_S = 10.0
"""Timestamps that are further apart are not in seconds."""


class ArrayRecording(Recording):
    """A recording whose columns are arrays (rows, …).

    A camera is an array (rows, H, W, C) or (rows, C, H, W) of uint8 or floats, C = 3 or 1. Names
    that begin with "action" are actions. Other numbers (rows,) or (rows, S) are states, unless
    `BOOKKEEPING` names them.

    Subclasses give the arrays, and call `_describe` when they are opened.
    """

    _first: NDArray[np.int64]
    """The first row of each episode."""
    _frame_scale: dict[str, float]
    """What the values of each camera are multiplied with."""
    _times_column: str | None

    @abstractmethod
    def _arrays(self) -> Mapping[str, Any]:
        """The arrays by name: they have a shape, a dtype, and are read by slices."""

    def _describe(
        self,
        format_name: str,
        *,
        first: NDArray[np.int64],
        steps: NDArray[np.int64],
        rate_hz: float | None = None,
    ) -> None:
        """Find out what the arrays hold, given the first row and the steps of each episode.

        Raises:
            RecordingError: the episodes do not fit the arrays, or there is no camera.
        """
        if len(steps) == 0:
            raise RecordingError(f"{self.path}: has no episodes")
        self._first = first
        rows = int((first + steps).max())
        if first.min() < 0 or steps.min() < 0:
            raise RecordingError(f"{self.path}: an episode begins or ends before row 0")
        cameras: list[Column] = []
        actions: list[Column] = []
        states: list[Column] = []
        ignored: list[str] = []
        self._frame_scale = {}
        unused_rows = 0
        for name, array in self._arrays().items():
            if _is_bookkeeping(name):
                continue
            shape = frame_shape(array)
            is_series = array.dtype.kind in "fiu" and array.ndim in (1, 2)
            if shape is None and not is_series:
                ignored.append(f"{name} {tuple(array.shape)} {array.dtype}")
                continue
            if array.shape[0] < rows:
                raise RecordingError(
                    f"{self.path}: {name} has {array.shape[0]} rows; the episodes need {rows}"
                )
            unused_rows = max(unused_rows, array.shape[0] - rows)
            if shape is not None:
                cameras.append(Column(name, shape))
                self._frame_scale[name] = self._scale_of(name, array)
            else:
                column = Column(name, tuple(array.shape[1:]) or (1,))
                (actions if _is_action(name) else states).append(column)
        if not cameras:
            raise RecordingError(
                f"{self.path}: has no camera: expected an array (steps, height, width, 3) of "
                f"uint8, got {', '.join(ignored) or 'none'}"
            )
        notes = []
        if ignored:
            notes.append(f"Columns that are not used: {', '.join(ignored)}.")
        if unused_rows:
            notes.append(f"{unused_rows} rows belong to no episode and are not used.")
        self._find_times(steps)
        if rate_hz is None:
            rate_hz = self._rate_from_timestamps(steps)
        self.contents = Contents(
            format=format_name,
            cameras=tuple(cameras),
            actions=tuple(actions),
            states=tuple(states),
            episode_steps=tuple(map(int, steps)),
            rate_hz=rate_hz,
            notes=tuple(notes),
        )

    def read_frames(
        self, camera: str, episode: int, *, first: int = 0, count: int | None = None
    ) -> NDArray[np.uint8]:
        rows = self._rows(episode, first, count)
        array = self._arrays()[camera]
        frames = self._read(camera, rows)
        if array.shape[-1] not in (1, 3):
            frames = np.moveaxis(frames, 1, -1)
        if frames.dtype != np.uint8:
            scaled = frames.astype(np.float32) * self._frame_scale[camera]
            if not np.isfinite(scaled).all():
                raise RecordingError(f"{self.path}: {camera}: episode {episode} has a frame of NaN")
            frames = scaled.round().clip(0, 255).astype(np.uint8)
        if frames.shape[-1] == 1:
            frames = np.repeat(frames, 3, axis=-1)
        return np.ascontiguousarray(frames)

    def read_actions(self, name: str, episode: int) -> NDArray[np.float32]:
        return self._read_series(name, episode)

    def read_states(self, name: str, episode: int) -> NDArray[np.float32]:
        return self._read_series(name, episode)

    def read_times(self, episode: int) -> NDArray[np.float64] | None:
        if self._times_column is None:
            return None
        times = self._read(self._times_column, self._rows(episode)).astype(np.float64).reshape(-1)
        if self._times_column in TIMESTAMPS:
            times *= self.contents.rate_hz or 1.0
        return times - times[:1]

    def _read_series(self, name: str, episode: int) -> NDArray[np.float32]:
        rows = self._rows(episode)
        with np.errstate(over="ignore"):  # too large for float32 is infinite, and is reported
            values = self._read(name, rows).astype(np.float32)
        return values.reshape(rows.stop - rows.start, -1)

    def _rows(self, episode: int, first: int = 0, count: int | None = None) -> slice:
        start = int(self._first[episode])
        steps = self.contents.episode_steps[episode]
        stop = steps if count is None else min(steps, first + count)
        return slice(start + first, start + max(first, stop))

    def _read(self, name: str, rows: slice) -> NDArray[Any]:
        try:
            return np.asarray(self._arrays()[name][rows])
        except Exception as error:  # libraries fail on damaged data in ways of their own
            raise RecordingError(
                f"{self.path}: {name}: rows {rows.start} to {rows.stop - 1} cannot be read: "
                f"{' '.join(str(error).split())}"
            ) from error

    def _scale_of(self, name: str, array: Any) -> float:
        """1, or 255 for floats of 0 to 1. A few frames decide."""
        if array.dtype.kind != "f" or not array.shape[0]:
            return 1.0
        places = np.linspace(0, array.shape[0] - 1, FRAMES_FOR_RANGE, dtype=int)
        largest = max(float(self._read(name, slice(row, row + 1)).max()) for row in places)
        return 255.0 if largest <= 1.0 else 1.0

    def _find_times(self, steps: NDArray[np.int64]) -> None:
        """Choose the column of times: timestamps in seconds, or else numbers of steps."""
        self._times_column = None
        rows = int((self._first + steps).max())
        for name in (*TIMESTAMPS, *STEP_NUMBERS):
            array = self._arrays().get(name)
            if array is None or array.dtype.kind not in "fiu" or array.shape[0] < rows:
                continue
            if name in STEP_NUMBERS or self._timestamp_period(name, steps) is not None:
                self._times_column = name
                return

    def _rate_from_timestamps(self, steps: NDArray[np.int64]) -> float | None:
        if self._times_column not in TIMESTAMPS:
            return None
        period = self._timestamp_period(self._times_column, steps)
        return None if period is None else 1 / period

    def _timestamp_period(self, name: str, steps: NDArray[np.int64]) -> float | None:
        """The usual seconds from one step to the next; None if the values are no times."""
        periods = []
        for episode in range(min(len(steps), EPISODES_FOR_RATE)):
            start = int(self._first[episode])
            times = self._read(name, slice(start, start + int(steps[episode])))
            if len(times) > 1:
                periods.append(np.median(np.diff(times.astype(np.float64).reshape(-1))))
        period = float(np.median(periods)) if periods else 0.0
        return period if 0 < period <= MAX_STEP_S else None


def frame_shape(array: Any) -> tuple[int, int, int] | None:
    """(H, W, 3) if the array holds frames, (rows, H, W, C) or (rows, C, H, W)."""
    if array.ndim != 4 or not (array.dtype == np.uint8 or array.dtype.kind == "f"):
        return None
    _, second, third, last = array.shape
    if last in (1, 3):
        return second, third, 3
    return (third, last, 3) if second in (1, 3) else None


def last_part(name: str) -> str:
    """The last part of a name: "action" of "robot/action" and of "robot.action"."""
    return name.replace("/", ".").rpartition(".")[2].lower()


def _is_action(name: str) -> bool:
    return last_part(name).startswith("action")


def _is_bookkeeping(name: str) -> bool:
    return last_part(name) in BOOKKEEPING
