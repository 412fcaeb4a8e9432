"""Preparing data for training from recordings of robots."""

from __future__ import annotations

import hashlib
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lewm_models.cores import usable_cores
from lewm_models.preprocessing import Crop, to_model_frames
from lewm_models.recordings.recording import Column, Recording, RecordingError
from lewm_models.recordings.usable import StepRange
from lewm_models.training.parts import PartsDone, do_parts, forget_parts
from lewm_models.training.prepared import FILE, FrameFile, PreparedData

PART_BYTES = 1 << 26
"""The frames of one part as they are recorded: what a process holds at once."""

MIN_POOL_BYTES = 1 << 28
"""Fewer bytes of recorded frames are decoded in this process: others take seconds to start."""

SAVE_PERIOD_S = 20.0
"""After this time, what is decoded is saved. A preparation that is killed repeats no more."""

DISK_MARGIN_BYTES = 1 << 27
"""The bytes that have to stay free for the checkpoint and the model."""

FINGERPRINT_FRAMES = 8

Progress = Callable[[int, int], None]
"""Called with the number of frames (in an environment: of episodes) done and in all."""

Message = Callable[[str], None]
"""Called with a line for people."""


@dataclass(frozen=True)
class _FrameRun:
    """Successive frames of an episode, and the row of the first one in the prepared data."""

    row: int
    episode: int
    first: int
    count: int


@dataclass(frozen=True)
class RecordingSource:
    """The usable steps of a recording, with frames at the model's size.

    Attributes:
        recording: an open recording.
        camera: the camera whose frames are taken.
        action: the column of actions.
        state: the column of states that is kept beside them; None keeps none.
        ranges: the usable steps.
        image_size: the side of the frames in pixels.
        crop: how frames become square.
    """

    recording: Recording
    camera: Column
    action: Column
    state: Column | None
    ranges: Sequence[StepRange]
    image_size: int
    crop: Crop | None

    def prepare(self, folder: Path, progress: Progress, announce: Message) -> PreparedData:
        """Decode all frames once, in several processes, or open the data in the folder.

        A preparation that was interrupted continues where it was last saved.

        Raises:
            ValueError: the folder holds other data, or the disk has too little room.
            RecordingError: a frame cannot be read.
        """
        made_from = self._made_from()
        if (data := open_same(folder, made_from)) is not None:
            return data
        done = PartsDone.read(folder, made_from)
        if done is None:
            data = self._create(folder, made_from, announce)
            done = PartsDone(folder, made_from)
            done.save()
        else:
            data = PreparedData.reopen(folder, made_from)
        parts = self._parts()
        ready = sum(run.count for number in done.numbers for run in parts[number])
        progress(ready, len(data.frames))
        missing = [number for number in range(len(parts)) if number not in done.numbers]
        recorded_bytes = int(np.prod(self.camera.shape)) * (len(data.frames) - ready)
        processes = min(usable_cores(), len(missing))
        for number in do_parts(
            _Decoding(self, data.frames, parts),
            missing,
            processes=processes if recorded_bytes >= MIN_POOL_BYTES else 1,
            name=str(self.recording.path),
        ):
            done.numbers.add(number)
            ready += sum(run.count for run in parts[number])
            progress(ready, len(data.frames))
            if time.monotonic() - done.saved > SAVE_PERIOD_S:
                data.frames.flush()
                done.save()
        data.finish(folder)
        forget_parts(folder)
        return PreparedData.open(folder)

    def decode(self, part: Sequence[_FrameRun], frames: FrameFile) -> None:
        """Write the frames of a part at the model's size.

        Raises:
            RecordingError: a frame cannot be read.
        """
        for run in part:
            recorded = self.recording.read_frames(
                self.camera.name, run.episode, first=run.first, count=run.count
            )
            if len(recorded) != run.count:
                raise RecordingError(
                    f"{self.recording.path}: {self.camera.name}: episode {run.episode}: expected "
                    f"{run.count} frames from step {run.first} on, got {len(recorded)}"
                )
            tensor = torch.from_numpy(np.require(recorded, requirements=["C", "W"]))
            prepared = to_model_frames(tensor, self.image_size, self.crop)
            frames.write(run.row, prepared.numpy())

    def _made_from(self) -> dict[str, Any]:
        """What the prepared data depend on, for JSON."""
        return {
            "recording": self.recording.path.resolve().name,
            "fingerprint": fingerprint(
                self.recording, self.ranges, action=self.action.name, camera=self.camera.name
            ),
            "episodes": len({part.episode for part in self.ranges}),
            "steps": sum(part.steps for part in self.ranges),
            "camera": self.camera.name,
            "action": self.action.name,
            "state": None if self.state is None else self.state.name,
            "image_size": self.image_size,
            "crop": self.crop,
        }

    def _create(
        self, folder: Path, made_from: Mapping[str, Any], announce: Message
    ) -> PreparedData:
        """Create the files, with the actions and states."""
        rows = sum(part.steps for part in self.ranges)
        check_disk(folder, rows, self.image_size, announce)
        data = PreparedData.create(
            folder,
            made_from,
            steps=[part.steps for part in self.ranges],
            episodes=[part.episode for part in self.ranges],
            image_size=self.image_size,
            action_dim=self.action.shape[0],
            state_dim=None if self.state is None else self.state.shape[0],
        )
        for number, part in enumerate(self.ranges):
            rows_of_part = data.rows(number)
            actions = self.recording.read_numbers(self.action.name, part.episode)
            data.actions[rows_of_part.start : rows_of_part.stop - 1] = actions[
                part.first : part.stop - 1
            ]
            if self.state is not None and data.states is not None:
                states = self.recording.read_states(self.state.name, part.episode)
                data.states[rows_of_part.start : rows_of_part.stop] = states[part.first : part.stop]
        data.flush()
        return data

    def _parts(self) -> list[list[_FrameRun]]:
        """All frames in parts of about `PART_BYTES`, but at least one frame."""
        most = max(1, PART_BYTES // int(np.prod(self.camera.shape)))
        parts: list[list[_FrameRun]] = [[]]
        row, room = 0, most
        for part in self.ranges:
            first = part.first
            while first < part.stop:
                if room == 0:
                    parts.append([])
                    room = most
                count = min(room, part.stop - first)
                parts[-1].append(_FrameRun(row, part.episode, first, count))
                row, room, first = row + count, room - count, first + count
        return parts


@dataclass(frozen=True)
class _Decoding:
    """Decodes the part of this number."""

    source: RecordingSource
    frames: FrameFile
    parts: Sequence[Sequence[_FrameRun]]

    def __call__(self, number: int) -> None:
        self.source.decode(self.parts[number], self.frames)


def fingerprint(
    recording: Recording, ranges: Sequence[StepRange], *, action: str, camera: str
) -> str:
    """A hash of all usable actions and a few frames, 16 hexadecimal digits.

    It is not of the files: a copy of a recording is the same recording.

    Args:
        recording: an open recording.
        ranges: the usable steps, at least one range.
        action: the column of actions.
        camera: the camera.
    """
    content = hashlib.sha256()
    for part in ranges:
        content.update(f"{part.episode} {part.first} {part.stop}\n".encode())
        actions = recording.read_numbers(action, part.episode)
        content.update(np.ascontiguousarray(actions[part.first : part.stop - 1]).tobytes())
    places = np.linspace(0, len(ranges) - 1, FINGERPRINT_FRAMES).round().astype(int)
    for part in (ranges[place] for place in np.unique(places)):
        frames = recording.read_frames(camera, part.episode, first=part.first, count=1)
        content.update(np.ascontiguousarray(frames).tobytes())
    return content.hexdigest()[:16]


def open_same(folder: Path, made_from: Mapping[str, Any]) -> PreparedData | None:
    """The complete data in a folder; None if there are none.

    Raises:
        ValueError: they are broken, or made from something else.
    """
    if not (folder / FILE).exists():
        return None
    data = PreparedData.open(folder)
    names = [name for name in made_from if data.made_from.get(name) != made_from[name]]
    if names or set(data.made_from) != set(made_from):
        found, expected = (
            ", ".join(f"{name} {values.get(name)}" for name in names or values)
            for values in (data.made_from, made_from)
        )
        raise ValueError(
            f"{folder}: holds data of {found}, and this run is of {expected}; give another "
            "--output, or remove this folder"
        )
    return data


def check_disk(folder: Path, frames: int, size: int, announce: Message) -> None:
    """Announce what the frames take on the disk.

    Raises:
        ValueError: the disk has too little room.
    """
    disk = next(place for place in (folder, *folder.resolve().parents) if place.exists())
    free, needed = shutil.disk_usage(disk).free, frames * size * size * 3
    announce(
        f"preparing {frames:,} frames of {size} × {size} pixels: {_bytes(needed)} in {folder} "
        f"({_bytes(free)} are free)"
    )
    if free < needed + DISK_MARGIN_BYTES:
        raise ValueError(
            f"--output: {folder} has {_bytes(free)} of free disk space, and the frames need "
            f"{_bytes(needed)}; choose another disk, or a smaller --image-size"
        )


def _bytes(count: int) -> str:
    return f"{count / 1e9:,.1f} GB" if count >= 1e9 else f"{count / 1e6:,.1f} MB"
