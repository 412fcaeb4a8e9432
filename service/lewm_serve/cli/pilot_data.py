"""What a recording holds, for `lewm pilot`: what is checked before a model is trained."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from lewm_models.preprocessing import to_model_frames
from lewm_models.recordings.recording import (
    Column,
    Recording,
    RecordingError,
    choose_action,
    choose_column,
)
from lewm_models.recordings.summary import DEFAULT_IMAGE_SIZE, Dimension, Summary, summarise
from lewm_models.recordings.usable import RULES, StepRange
from lewm_models.training.advice import warnings_about
from lewm_serve.cli.contact_sheet import draw_contact_sheet
from lewm_serve.cli.recorded_data import DataChoice

MAX_RANGES, PAIRS_OF_RANGE = 20, 8
"""The parts of a recording, and the pairs of successive frames of each, that are compared."""

THUMBNAIL_SIDE = 16
CONSTANT_DEVIATION = 1e-6
"""A dimension is constant if its deviation is below this share of its largest value."""


@dataclass(frozen=True)
class RecordedData:
    """What is known of a recording before there is a model.

    Attributes:
        summary: as `lewm data inspect` has it, of one camera and one column of actions.
        camera: the camera.
        contact_sheet: a picture of frames (PNG); None if nothing can be used.
        is_varying: whether each action dimension varies.
        succession: see `measure_succession`.
        problem: why nothing can be used; empty: something can.
        notes: what is wrong with the recording, one sentence each.
    """

    summary: Summary
    camera: Column
    contact_sheet: Path | None
    is_varying: tuple[bool, ...]
    succession: float
    problem: str
    notes: tuple[str, ...]

    @property
    def dimensions(self) -> tuple[Dimension, ...]:
        """Of the actions."""
        return self.summary.actions[0].dimensions

    @property
    def varying(self) -> float:
        """The share of the action dimensions that vary."""
        return float(np.mean(self.is_varying)) if self.is_varying else 0.0

    @property
    def steps(self) -> int:
        """How many steps can be used."""
        return 0 if self.summary.usable is None else self.summary.usable.steps

    @property
    def episodes(self) -> int:
        """How many episodes can be used."""
        return 0 if self.summary.usable is None else self.summary.usable.episodes

    def to_json(self) -> dict[str, Any]:
        return {
            **self.summary.to_json(),
            "camera": self.camera.name,
            "usable_episodes": self.episodes,
            "usable_steps": self.steps,
            "warnings": list(self.notes),
        }


def inspect_recording(recording: Recording, choice: DataChoice, sheet: Path) -> RecordedData:
    """Read the numbers of a recording and some of its frames, and draw a contact sheet.

    Raises:
        ValueError: a column has to be chosen, or there is none of the name.
        OSError: the recording cannot be read, or the sheet cannot be written.
    """
    path, contents = recording.path, recording.contents
    camera = choose_column(contents.cameras, choice.camera, option="--camera", path=path)
    action = choose_action(contents, choice.action, path)
    summary = summarise(recording, camera=camera.name, action=action.name, state=choice.state)
    usable, problem = summary.usable, ""
    assert usable is not None  # one column of actions was chosen
    try:
        usable.require_some(path)
    except RecordingError as error:
        problem = str(error)
    notes = [*contents.notes]
    notes += [
        f"{RULES[kind][0]}: {sum(found.count for found in problems):,}; {RULES[kind][1]}"
        for kind, problems in usable.by_kind().items()
    ]
    drawn = None
    if not problem:
        notes += warnings_about(usable)
        title = f"{path.resolve().name}, {contents.format}"
        notes += draw_contact_sheet(recording, (camera,), title, sheet)
        drawn = sheet
    return RecordedData(
        summary=summary,
        camera=camera,
        contact_sheet=drawn,
        is_varying=tuple(
            item.deviation > CONSTANT_DEVIATION * max(abs(item.low), abs(item.high))
            for item in summary.actions[0].dimensions
        ),
        succession=measure_succession(recording, camera, usable.ranges),
        problem=problem,
        notes=tuple(notes),
    )


def measure_succession(
    recording: Recording, camera: Column, ranges: tuple[StepRange, ...]
) -> float:
    """How much successive frames differ, divided by how much frames do that are far apart.

    The differences are mean squares of small pictures; the frames are of the same episode. The
    ratio is far below 1 where time runs as the robot lived it, and about 1 where frames are out of
    order. NaN without any difference.
    """
    if not ranges:
        return math.nan
    places = np.linspace(0, len(ranges) - 1, min(MAX_RANGES, len(ranges))).round().astype(int)
    successive, apart = [], []
    for place in places:
        part = ranges[place]
        steps = np.linspace(part.first, part.stop - 2, PAIRS_OF_RANGE).round().astype(int)
        pairs = np.stack(
            [
                _thumbnails(
                    recording.read_frames(camera.name, part.episode, first=int(step), count=2)
                )
                for step in steps
            ]
        )
        successive.append(np.square(pairs[:, 1] - pairs[:, 0]).mean())
        others = np.roll(pairs[:, 0], PAIRS_OF_RANGE // 2, axis=0)
        apart.append(np.square(others - pairs[:, 0]).mean())
    far = float(np.mean(apart))
    return float(np.mean(successive)) / far if far > 0 else math.nan


def sample_frames(recording: Recording, data: RecordedData, count: int) -> list[NDArray[np.uint8]]:
    """Frames (H, W, 3) as the camera gave them, evenly over the usable parts."""
    assert data.summary.usable is not None
    ranges = data.summary.usable.ranges
    frames = []
    for number in range(count):
        part = ranges[number * len(ranges) // count]
        step = part.first + (part.stop - part.first - 1) * number // max(1, count - 1)
        read = recording.read_frames(data.camera.name, part.episode, first=step, count=1)
        frames.append(np.array(read[0]))
    return frames


def _thumbnails(frames: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Frames (N, H, W, 3) as small pictures (N, 3, S, S)."""
    square = to_model_frames(
        torch.from_numpy(np.ascontiguousarray(frames)), DEFAULT_IMAGE_SIZE, "stretch"
    )
    planes = square.permute(0, 3, 1, 2).float()
    small: NDArray[np.float32] = F.adaptive_avg_pool2d(planes, THUMBNAIL_SIDE).numpy()
    return small
