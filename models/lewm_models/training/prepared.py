"""Prepared data: the frames of training, decoded once at the model's size, in files on disk.

A folder holds `frames.npy` (F, H, H, 3) uint8, `actions.npy` (N, A) float32, `states.npy` (N, S)
float32, `offsets.npy` (P + 1,) and `episodes.npy` (P,) int64, and `prepared.json`, which says what
the data were made from and marks a complete folder.

The N rows are steps of P pieces, one piece after another; piece p has the rows offsets[p] to
offsets[p + 1] − 1. A piece is a part of an episode without gaps, usually all of it. A row has the
action that leads to the next row, so the last action of a piece is NaN.

Usually each row has a frame, and F is N. Where frames take long to make, only every n-th row of a
piece has one, from its first row on. `prepared.json` has n as `frame_every`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lewm_models.file_kinds import NUMPY_ARRAY, kind_of_file, read_numpy_array
from lewm_models.recordings.summary import SeriesStatistics

FILE = "prepared.json"
FRAMES, ACTIONS, STATES, OFFSETS, EPISODES = (
    f"{name}.npy" for name in ("frames", "actions", "states", "offsets", "episodes")
)

STATISTICS_ROWS = 1 << 16
"""Rows of actions that are read at once."""


class FrameFile:
    """Frames (N, H, H, 3) uint8 in an `.npy` file.

    They are read, not mapped: the pages of a mapped file count as memory of the process, which
    would grow up to the size of the file.

    Raises:
        OSError: the file cannot be opened.
        ValueError: it holds something else, or is cut off.
    """

    def __init__(self, path: Path) -> None:
        if (kind := kind_of_file(path)) != NUMPY_ARRAY:
            raise ValueError(f"{path}: is {kind or 'damaged'}; expected {NUMPY_ARRAY}")
        with path.open("rb") as file:
            version = np.lib.format.read_magic(file)
            read_header = (
                np.lib.format.read_array_header_1_0
                if version == (1, 0)
                else np.lib.format.read_array_header_2_0
            )
            shape, column_order, dtype = read_header(file)
            self._start = file.tell()
        self.path = path
        self.shape: tuple[int, ...] = shape
        if dtype != np.uint8 or column_order or len(shape) != 4 or shape[3] != 3:
            raise ValueError(f"{path}: expected frames (N, H, H, 3) uint8, got {shape} of {dtype}")
        self._frame_bytes = int(np.prod(shape[1:], dtype=np.int64))
        expected = self._start + shape[0] * self._frame_bytes
        if (size := path.stat().st_size) < expected:
            raise ValueError(f"{path}: is cut off: it has {size} of {expected} bytes")

    @classmethod
    def create(cls, path: Path, count: int, size: int) -> FrameFile:
        """A file of black frames (count, size, size, 3), which takes no room on the disk yet."""
        header = {"descr": "|u1", "fortran_order": False, "shape": (count, size, size, 3)}
        with path.open("wb") as file:
            np.lib.format.write_array_header_1_0(file, header)
            file.truncate(file.tell() + count * size * size * 3)
        return cls(path)

    def __len__(self) -> int:
        return self.shape[0]

    def read(self, rows: NDArray[np.int64]) -> NDArray[np.uint8]:
        """The frames (…, H, H, 3) of rows (…)."""
        frames = np.empty((rows.size, *self.shape[1:]), np.uint8)
        with self.path.open("rb", buffering=0) as file:
            for frame, row in zip(frames, rows.reshape(-1).tolist(), strict=True):
                file.seek(self._start + row * self._frame_bytes)
                if file.readinto(frame.data) != self._frame_bytes:
                    raise ValueError(f"{self.path}: is cut off at frame {row}")
        return frames.reshape(*rows.shape, *self.shape[1:])

    def write(self, row: int, frames: NDArray[np.uint8]) -> None:
        """Write frames (n, H, H, 3) into the rows from ``row`` on.

        Raises:
            OSError: the disk is full; the error has the file's name.
        """
        try:
            with self.path.open("r+b") as file:
                file.seek(self._start + row * self._frame_bytes)
                file.write(np.ascontiguousarray(frames).data)
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(self.path)) from error

    def flush(self) -> None:
        """Wait until what any process has written is on the disk."""
        with self.path.open("r+b") as file:
            os.fsync(file.fileno())


@dataclass(frozen=True)
class PreparedData:
    """N steps of P pieces on disk, see the module.

    Attributes:
        made_from: what the data were made from, for JSON.
        frames: (F, H, H, 3) uint8. `read_frames` reads those of rows.
        actions: (N, A) float32 in the robot's units, NaN in the last row of a piece.
        states: (N, S) float32 in the robot's units; None if there are none.
        offsets: (P + 1,), the first row of each piece, and N.
        episodes: (P,), the episode of each piece, ascending.
    """

    made_from: Mapping[str, Any]
    frames: FrameFile
    actions: NDArray[np.float32]
    states: NDArray[np.float32] | None
    offsets: NDArray[np.int64]
    episodes: NDArray[np.int64]

    @classmethod
    def create(
        cls,
        folder: Path,
        made_from: Mapping[str, Any],
        *,
        steps: Sequence[int],
        episodes: Sequence[int],
        image_size: int,
        action_dim: int,
        state_dim: int | None,
    ) -> Self:
        """Create the files, given the steps and the episode of each piece.

        Fill the arrays in place, then call `finish`. ``made_from`` may have ``frame_every``.
        """
        folder.mkdir(parents=True, exist_ok=True)
        (folder / FILE).unlink(missing_ok=True)
        offsets = np.concatenate([[0], np.cumsum(steps, dtype=np.int64)])
        rows = int(offsets[-1])
        frames = int(_frame_counts(offsets, _frame_every(made_from)).sum())

        def numbers(name: str, width: int) -> NDArray[np.float32]:
            array: NDArray[np.float32] = np.lib.format.open_memmap(
                folder / name, mode="w+", dtype=np.float32, shape=(rows, width)
            )
            array[:] = np.nan
            return array

        (folder / STATES).unlink(missing_ok=True)
        np.save(folder / OFFSETS, offsets)
        np.save(folder / EPISODES, np.asarray(episodes, np.int64))
        return cls(
            made_from=made_from,
            frames=FrameFile.create(folder / FRAMES, frames, image_size),
            actions=numbers(ACTIONS, action_dim),
            states=None if state_dim is None else numbers(STATES, state_dim),
            offsets=offsets,
            episodes=np.asarray(episodes, np.int64),
        )

    def flush(self) -> None:
        """Write everything to the disk."""
        for array in (self.actions, self.states):
            if isinstance(array, np.memmap):
                array.flush()
        self.frames.flush()

    def finish(self, folder: Path) -> None:
        """Write everything to the disk, and then the file that marks complete data."""
        self.flush()
        replace_json(folder / FILE, self.made_from)

    @classmethod
    def open(cls, folder: Path) -> Self:
        """Open complete data.

        Raises:
            FileNotFoundError: there are none, or their preparation was interrupted.
            ValueError: a file is broken.
        """
        try:
            made_from = json.loads((folder / FILE).read_text())
        except ValueError as error:
            raise _broken(folder, error) from error
        return cls.reopen(folder, made_from)

    @classmethod
    def reopen(cls, folder: Path, made_from: Mapping[str, Any], *, writable: bool = False) -> Self:
        """Open data that may not be complete.

        Raises:
            FileNotFoundError: a file is missing.
            ValueError: a file is broken.
        """
        try:
            arrays = {
                name: read_numpy_array(folder / name, memory_mapped=True, writable=writable)
                for name in (ACTIONS, STATES, OFFSETS, EPISODES)
                if name != STATES or (folder / name).exists()
            }
            frames = FrameFile(folder / FRAMES)
            offsets = arrays[OFFSETS]
            if (
                len(frames) != _frame_counts(offsets, _frame_every(made_from)).sum()
                or len(arrays[ACTIONS]) != int(offsets[-1])
                or len(arrays[EPISODES]) != len(offsets) - 1
            ):
                raise ValueError("its files do not belong together")
        except (EOFError, IndexError, TypeError, ValueError) as error:
            raise _broken(folder, error) from error
        return cls(
            made_from=made_from,
            frames=frames,
            actions=arrays[ACTIONS],
            states=arrays.get(STATES),
            offsets=np.asarray(arrays[OFFSETS]),
            episodes=np.asarray(arrays[EPISODES]),
        )

    @property
    def image_size(self) -> int:
        return self.frames.shape[1]

    @property
    def frame_every(self) -> int:
        """The rows of a piece from one frame to the next."""
        return _frame_every(self.made_from)

    @cached_property
    def _frame_offsets(self) -> NDArray[np.int64]:
        """The first frame of each piece, and F: (P + 1,)."""
        return np.concatenate([[0], np.cumsum(_frame_counts(self.offsets, self.frame_every))])

    def rows(self, piece: int) -> range:
        """The rows of a piece."""
        return range(int(self.offsets[piece]), int(self.offsets[piece + 1]))

    def frame_rows(self, piece: int) -> range:
        """The rows of a piece that have a frame."""
        return self.rows(piece)[:: self.frame_every]

    def frame_indices(self, piece: int) -> range:
        """Where the frames of a piece are in `frames`."""
        return range(int(self._frame_offsets[piece]), int(self._frame_offsets[piece + 1]))

    def read_frames(self, rows: NDArray[np.int64]) -> NDArray[np.uint8]:
        """The frames (…, H, H, 3) of rows (…).

        Raises:
            ValueError: a row has no frame.
        """
        if self.frame_every == 1:
            return self.frames.read(rows)
        pieces = np.searchsorted(self.offsets, rows, side="right") - 1
        steps = rows - self.offsets[pieces]
        if (steps % self.frame_every).any():
            raise ValueError(f"only one row in {self.frame_every} has a frame")
        return self.frames.read(self._frame_offsets[pieces] + steps // self.frame_every)

    def action_statistics(
        self, low: ArrayLike = -np.inf, high: ArrayLike = np.inf
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Mean and population standard deviation (A,) of the actions, without NaN.

        Actions are first clipped to ``low`` and ``high``, numbers or (A,).
        """
        return _statistics(self.actions, low, high)

    def state_statistics(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Mean and population standard deviation (S,) of the states, without NaN.

        Raises:
            ValueError: there are no states.
        """
        if self.states is None:
            raise ValueError("the data have no states")
        return _statistics(self.states)


def _statistics(
    values: NDArray[np.float32], low: ArrayLike = -np.inf, high: ArrayLike = np.inf
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean and population standard deviation of each column, without NaN, of clipped values."""
    statistics = SeriesStatistics(values.shape[1])
    for first in range(0, len(values), STATISTICS_ROWS):
        rows = values[first : first + STATISTICS_ROWS]
        statistics.add(np.clip(rows, low, high).astype(np.float32))
    dimensions = statistics.dimensions(())
    return (
        np.array([dimension.mean for dimension in dimensions]),
        np.array([dimension.deviation for dimension in dimensions]),
    )


def frame_count(rows: int, frame_every: int) -> int:
    """The frames of a piece with this many rows."""
    return -(-rows // frame_every)


def replace_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON file completely or not at all, even if the power fails."""
    part = path.with_name(f"{path.name}.part")
    with part.open("w") as file:
        json.dump(content, file)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)


def _frame_every(made_from: Mapping[str, Any]) -> int:
    return int(made_from.get("frame_every", 1))


def _frame_counts(offsets: NDArray[np.int64], frame_every: int) -> NDArray[np.int64]:
    """The frames of each piece (P,)."""
    return -(-np.diff(offsets) // frame_every)


def _broken(folder: Path, error: Exception) -> ValueError:
    return ValueError(f"{folder}: holds broken data ({error}); remove it to prepare them again")
