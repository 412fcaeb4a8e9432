"""HDF5 of stable-worldmodel: one data set per column, episodes one after another.

`ep_len` holds the steps of each episode and `ep_offset` its first row. Frames may be compressed
with the filters of hdf5plugin.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from lewm_models.recordings.arrays import ArrayRecording
from lewm_models.recordings.recording import RecordingError, load_library

SIGNATURE = b"\x89HDF\r\n\x1a\n"
LENGTHS, OFFSETS = "ep_len", "ep_offset"
RATE_ATTRIBUTES = ("fps", "rate_hz", "control_freq")


class Hdf5Recording(ArrayRecording):
    """One HDF5 file."""

    @classmethod
    def recognises(cls, path: Path) -> bool:
        if not path.is_file():
            return False
        with path.open("rb") as file:
            return file.read(len(SIGNATURE)) == SIGNATURE

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: Any = None
        self._columns: dict[str, Any] = {}
        self._process = 0
        columns = self._arrays()
        missing = [name for name in (LENGTHS, OFFSETS) if name not in columns]
        if missing:
            raise RecordingError(
                f"{path}: has no {' and no '.join(missing)}: expected HDF5 of stable-worldmodel, "
                f"with {LENGTHS} and {OFFSETS} of each episode; it has {', '.join(columns)}"
            )
        steps, first = (
            np.asarray(columns[name][:], np.int64).reshape(-1) for name in (LENGTHS, OFFSETS)
        )
        if len(steps) != len(first):
            raise RecordingError(
                f"{path}: {LENGTHS} has {len(steps)} episodes, and {OFFSETS} has {len(first)}"
            )
        self._describe("HDF5", first=first, steps=steps, rate_hz=self._rate())

    def close(self) -> None:
        self._columns = {}
        if self._file is not None:
            self._file.close()
            self._file = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_file": None, "_columns": {}}

    def _arrays(self) -> Mapping[str, Any]:
        """The data sets by name. A process that was forked opens the file again."""
        if self._file is None or self._process != os.getpid():
            h5py = load_library("h5py", self.path)
            load_library("hdf5plugin", self.path)  # registers its filters
            try:
                self._file = h5py.File(self.path, "r", locking=False)
            except OSError as error:
                raise RecordingError(f"{self.path}: cannot be opened: {error}") from error
            self._process = os.getpid()
            self._columns = columns = {}

            def collect(name: str, item: Any) -> None:
                if isinstance(item, h5py.Dataset):
                    columns[name] = item

            self._file.visititems(collect)
        return self._columns

    def _rate(self) -> float | None:
        for name in RATE_ATTRIBUTES:
            with suppress(KeyError, TypeError, ValueError):
                rate = float(self._file.attrs[name])
                if np.isfinite(rate) and rate > 0:
                    return rate
        return None
