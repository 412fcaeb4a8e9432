"""Recordings of `lewm_client.Recorder`. docs/recordings.md describes their files.

A step is complete when its record in `steps.bin` is. What follows the last complete step, after a
kill or a loss of power, is not read.
"""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lewm_models.recordings.pictures import decode_picture, stack_frames
from lewm_models.recordings.recording import (
    Column,
    Contents,
    Recording,
    RecordingError,
    natural_key,
)

HEADER_FILE, EPISODES_FOLDER, STEPS_FILE = "recording.json", "episodes", "steps.bin"
FORMAT, VERSION = "lewm-recording", 1

LIVE_PERIOD = 0.5
"""An episode whose usual step took less than this share of its period was not recorded live: its
times say how fast it was written."""


class RecordedFolder(Recording):
    """A folder that `lewm_client.Recorder` wrote, or is still writing."""

    @classmethod
    def recognises(cls, path: Path) -> bool:
        try:
            header = json.loads((path / HEADER_FILE).read_text("utf-8"))
        except (OSError, ValueError):
            return False
        return isinstance(header, dict) and header.get("format") == FORMAT

    def __init__(self, path: Path) -> None:
        self.path = path
        header = json.loads((path / HEADER_FILE).read_text("utf-8"))
        if header.get("version") != VERSION:
            raise RecordingError(
                f"{path}: is a recording of version {header.get('version')}; "
                f"expected version {VERSION}"
            )
        try:
            self._cameras = {camera["name"]: camera for camera in header["cameras"]}
            self._camera_numbers = {name: number for number, name in enumerate(self._cameras)}
            self._record = np.dtype(
                [(name, kind, *map(tuple, shape)) for name, kind, *shape in header["record"]]
            )
            series = {
                kind: tuple(
                    Column(item["name"], (item["size"],), tuple(item["labels"]))
                    for item in (header[kind],)
                    if item
                )
                for kind in ("action", "state")
            }
            cameras = tuple(
                Column(camera["name"], (camera["height"], camera["width"], 3))
                for camera in header["cameras"]
            )
            rate_hz = float(header["rate_hz"])
        except (KeyError, TypeError, ValueError) as error:
            raise RecordingError(f"{path / HEADER_FILE}: is damaged: {error!r}") from error
        self._folders: list[Path] = []
        episode_steps = []
        empty = 0
        folders = (path / EPISODES_FOLDER).glob("*/")
        for folder in sorted(folders, key=lambda item: natural_key(item.name)):
            steps = self._complete_steps(folder)
            if steps:
                self._folders.append(folder)
                episode_steps.append(steps)
            else:
                empty += 1
        if not self._folders:
            raise RecordingError(f"{path}: holds no complete step")
        self.contents = Contents(
            format="recording of lewm_client.Recorder",
            cameras=cameras,
            actions=series["action"],
            states=series["state"],
            episode_steps=tuple(episode_steps),
            rate_hz=rate_hz,
        )
        notes = []
        if empty:
            notes.append(f"Episodes without a complete step: {empty}. They are left out.")
        if self.read_times(0) is None and episode_steps[0] > 1:
            notes.append(
                f"Steps were written more than twice as fast as {rate_hz:g} Hz. This is no live "
                "recording, and its times are not used."
            )
        self.contents = Contents(**{**vars(self.contents), "notes": tuple(notes)})

    def read_frames(
        self, camera: str, episode: int, *, first: int = 0, count: int | None = None
    ) -> NDArray[np.uint8]:
        header = self._cameras[camera]
        shape = (header["height"], header["width"], 3)
        steps = self.contents.episode_steps[episode]
        stop = steps if count is None else min(steps, first + count)
        if stop <= first:
            return np.empty((0, *shape), np.uint8)
        ends = self._records(episode)["frame_end"][:, self._camera_numbers[camera]].astype(np.int64)
        edges = np.concatenate([[0], ends])[first : stop + 1]
        file = self._folders[episode] / header["file"]
        source = f"{file}: steps {first} to {stop - 1}"
        if header["encoding"] == "raw":
            size = int(edges[-1] - edges[0])
            data = np.fromfile(file, np.uint8, count=size, offset=int(edges[0]))
            if data.size != (stop - first) * np.prod(shape):
                raise RecordingError(f"{source}: are damaged")
            return data.reshape(-1, *shape)
        frames = []
        with file.open("rb") as images:
            for step, (start, end) in enumerate(pairwise(edges), first):
                images.seek(start)
                frames.append(
                    decode_picture(images.read(end - start), source=f"{file}: step {step}")
                )
        return stack_frames(frames, source=source)

    def read_actions(self, name: str, episode: int) -> NDArray[np.float32]:
        return self._records(episode)["action"].astype(np.float32)

    def read_states(self, name: str, episode: int) -> NDArray[np.float32]:
        return self._records(episode)["state"].astype(np.float32)

    def read_times(self, episode: int) -> NDArray[np.float64] | None:
        times = self._records(episode)["time_s"] * (self.contents.rate_hz or 1.0)
        if len(times) > 1 and np.median(np.diff(times)) < LIVE_PERIOD:
            return None
        return np.asarray(times - times[0], np.float64)

    def _records(self, episode: int) -> NDArray[Any]:
        return np.fromfile(
            self._folders[episode] / STEPS_FILE,
            self._record,
            count=self.contents.episode_steps[episode],
        )

    def _complete_steps(self, folder: Path) -> int:
        """The steps of an episode that were written completely, frames included."""
        try:
            records = (folder / STEPS_FILE).stat().st_size // self._record.itemsize
            sizes = np.array(
                [(folder / camera["file"]).stat().st_size for camera in self._cameras.values()]
            )
        except FileNotFoundError:
            return 0
        if not records:
            return 0
        mapped = np.memmap(folder / STEPS_FILE, self._record, mode="r", shape=(records,))
        last = mapped["frame_end"][-1].astype(np.int64)
        if ((last > 0) & (last <= sizes)).all():
            return records
        # After a loss of power, records may be on disk whose frames are not.
        ends = mapped["frame_end"].astype(np.int64)
        grows = np.diff(ends, axis=0, prepend=0) > 0
        complete = (grows & (ends <= sizes)).all(axis=1)
        return int(records if complete.all() else np.argmin(complete))
