"""Zarr of diffusion policy: arrays in the group `data`, `meta/episode_ends`; a folder or a zip."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from lewm_models.recordings.arrays import ArrayRecording
from lewm_models.recordings.recording import RecordingError, load_library

DATA_GROUP, EPISODE_ENDS = "data", "meta/episode_ends"
ARRAY_FILES = tuple(f"{EPISODE_ENDS}/{name}" for name in (".zarray", "zarr.json"))
"""The file that makes a folder an array, in version 2 and version 3 of zarr's format."""


class ZarrRecording(ArrayRecording):
    """A zarr store, of version 2 or 3 of the format."""

    @classmethod
    def recognises(cls, path: Path) -> bool:
        if path.is_dir():
            return any((path / name).is_file() for name in ARRAY_FILES)
        if not path.is_file() or not zipfile.is_zipfile(path):
            return False
        with zipfile.ZipFile(path) as archive:
            return not set(ARRAY_FILES).isdisjoint(archive.namelist())

    def __init__(self, path: Path) -> None:
        self.path = path
        self._columns: dict[str, Any] = {}
        self._store: Any = None
        self._arrays()
        ends = self._episode_ends
        first = np.concatenate([[0], ends[:-1]])
        if (ends < first).any():
            raise RecordingError(f"{path}: {EPISODE_ENDS}: expected numbers that grow")
        self._describe("zarr of diffusion policy", first=first, steps=ends - first)

    def close(self) -> None:
        self._columns = {}
        if self._store is not None:
            self._store.close()
            self._store = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_columns": {}, "_store": None}

    def _arrays(self) -> Mapping[str, Any]:
        if not self._columns:
            zarr = load_library("zarr", self.path)
            try:
                if self.path.is_file():
                    self._store = zarr.storage.ZipStore(self.path, mode="r")
                root = zarr.open_group(self._store or str(self.path), mode="r")
                self._columns = dict(root[DATA_GROUP].arrays())
                self._episode_ends = np.asarray(root[EPISODE_ENDS][:], np.int64).reshape(-1)
            except Exception as error:  # zarr's errors have no common class
                raise RecordingError(f"{self.path}: cannot be opened: {error}") from error
        return self._columns
