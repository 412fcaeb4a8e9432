"""Tables of numbers beside the images of an episode: CSV files and npy files."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lewm_models.recordings.recording import RecordingError

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg")
TABLE_SUFFIXES = (".csv", ".npy")
EPISODE_NAMES = ("episode", "episode_idx", "episode_index", "ep", "ep_idx")
TIME_NAMES = ("timestamp", "time", "time_s", "t")
NUMBER_NAMES = ("step", "step_idx", "frame", "frame_index", "frame_idx", "index", "idx", "")
BOOKKEEPING_NAMES = (*EPISODE_NAMES, *TIME_NAMES, *NUMBER_NAMES)
"""Columns of a CSV file with each step's episode, with its time in seconds, and with its number."""
ACTION_PREFIXES, STATE_PREFIXES = ("action", "cmd", "command"), ("state", "obs", "joint", "proprio")


@dataclass(frozen=True)
class Table:
    """Rows of numbers. NaN where a cell is empty.

    Attributes:
        values: (rows, columns).
        names: the columns' names; None if the file has none.
        images: the name of the image of each row, if the file says so.
    """

    values: NDArray[np.float64]
    names: tuple[str, ...] | None = None
    images: tuple[str, ...] | None = None

    def select(self, columns: list[int]) -> NDArray[np.float32]:
        with np.errstate(over="ignore"):  # too large for float32 is infinite, and is reported
            return self.values[:, columns].astype(np.float32)

    def column(self, names: tuple[str, ...]) -> NDArray[np.float64] | None:
        """The first column of one of these names."""
        for number, name in enumerate(self.names or ()):
            if name.strip().lower() in names:
                return self.values[:, number]
        return None

    def action_columns(self) -> list[int]:
        """Those whose names begin like actions; if there are none, all that are nothing else."""
        actions = self._columns_like(ACTION_PREFIXES)
        if actions:
            return actions
        return [
            number
            for number in range(self.values.shape[1])
            if self.names is None or not _is_other(self.names[number])
        ]

    def state_columns(self) -> list[int]:
        """Those whose names begin like states."""
        return self._columns_like(STATE_PREFIXES)

    def number_columns(self) -> list[int]:
        """All columns but times and numbers of steps."""
        return [
            number
            for number in range(self.values.shape[1])
            if self.names is None or self.names[number].strip().lower() not in BOOKKEEPING_NAMES
        ]

    def _columns_like(self, prefixes: tuple[str, ...]) -> list[int]:
        return [
            number
            for number, name in enumerate(self.names or ())
            if name.strip().lower().startswith(prefixes)
        ]


def read_table(path: Path) -> Table:
    """Read a CSV or npy file.

    Raises:
        RecordingError: it holds something else than rows of numbers.
    """
    return _read_npy(path) if path.suffix.lower() == ".npy" else _read_csv(path)


def _read_npy(path: Path) -> Table:
    try:
        values = np.load(path, allow_pickle=False)
    except (EOFError, OSError, ValueError) as error:
        raise RecordingError(f"{path}: cannot be read: {error}") from error
    if values.dtype.kind not in "fiub" or values.ndim not in (1, 2):
        raise RecordingError(
            f"{path}: expected numbers (steps, dimensions), got {values.shape} of {values.dtype}"
        )
    return Table(values.reshape(len(values), -1).astype(np.float64))


def _read_csv(path: Path) -> Table:
    """A first line without numbers is a header. A column of text holds the names of the images."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            sample = file.read(4096)
            file.seek(0)
            delimiter = max(",;\t", key=sample.count)
            lines = [line for line in csv.reader(file, delimiter=delimiter) if any(line)]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise RecordingError(f"{path}: cannot be read: {error}") from error
    if not lines:
        raise RecordingError(f"{path}: is empty")
    has_header = not any(_is_number(cell) for cell in lines[0])
    header, rows = (lines[0], lines[1:]) if has_header else (None, lines)
    width = len(lines[0])
    first_row = 2 if has_header else 1
    for number, row in enumerate(rows, first_row):
        if len(row) != width:
            raise RecordingError(f"{path}: row {number}: expected {width} cells, got {len(row)}")
    text = [
        column
        for column in range(width)
        if rows and not _is_number(rows[0][column]) and rows[0][column].strip()
    ]
    numbers = [column for column in range(width) if column not in text]
    values = np.empty((len(rows), len(numbers)))
    for number, row in enumerate(rows):
        for place, column in enumerate(numbers):
            cell = row[column].strip()
            try:
                values[number, place] = float(cell) if cell else np.nan
            except ValueError:
                raise RecordingError(
                    f"{path}: row {number + first_row}: expected a number, got {cell!r}"
                ) from None
    images = [column for column in text if rows[0][column].strip().lower().endswith(IMAGE_SUFFIXES)]
    return Table(
        values,
        names=None if header is None else tuple(header[column] for column in numbers),
        images=tuple(row[images[0]].strip() for row in rows) if images else None,
    )


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _is_other(name: str) -> bool:
    """Whether a column with this name holds no action."""
    plain = name.strip().lower()
    return plain in BOOKKEEPING_NAMES or plain.startswith(STATE_PREFIXES)
