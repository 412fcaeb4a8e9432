"""What recordings of all formats have in common, and how the format of a path is recognised.

A recording consists of episodes, and an episode of steps. A step has a frame of each camera, and
the action that is executed from this frame to the next. The action of an episode's last step is not
used, since no frame follows it; it may be missing.

Axes: N steps, H and W height and width of a frame, A values of an action, S values of a state.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

ENTRY_POINT_GROUP = "lewm.recordings"
"""Packages add readers by entry points of this group: each names a subclass of `Recording`."""

READERS = (
    "lewm_models.recordings.recorded:RecordedFolder",
    "lewm_models.recordings.hdf5:Hdf5Recording",
    "lewm_models.recordings.lance:LanceRecording",
    "lewm_models.recordings.lerobot:LeRobotRecording",
    "lewm_models.recordings.zarr:ZarrRecording",
    "lewm_models.recordings.images:ImageFolders",
)
"""The readers of this package, in the order in which they are asked."""

INSTALL_COMMAND = "pip install 'lewm-serve[data]'"


KINDS_OF_COLUMNS = {
    "--camera": "cameras",
    "--action": "columns of actions",
    "--state": "columns of states",
}
"""What an option chooses one of."""


class RecordingError(ValueError):
    """A recording cannot be used. The message names the path, what is wrong, and what to do."""


@dataclass(frozen=True)
class Column:
    """One camera, or one series of actions or states.

    Attributes:
        name: how the recording calls it.
        shape: the shape of one step: (H, W, 3) of a camera, (A,) or (S,) of the others.
        labels: the name of each value, such as a joint's; empty if the recording has no names.
    """

    name: str
    shape: tuple[int, ...]
    labels: tuple[str, ...] = ()


@dataclass(frozen=True)
class Contents:
    """What a recording holds.

    Attributes:
        format: the format, for people: "LeRobot 3.0".
        cameras: the cameras.
        actions: the columns of actions.
        states: the columns of states, such as joint angles.
        episode_steps: the number of steps of each episode.
        rate_hz: steps per second; None if the recording does not say.
        notes: what is unusual and does not prevent the use, one sentence each.
    """

    format: str
    cameras: tuple[Column, ...]
    actions: tuple[Column, ...]
    states: tuple[Column, ...]
    episode_steps: tuple[int, ...]
    rate_hz: float | None = None
    notes: tuple[str, ...] = ()


class Recording(ABC):
    """A recording on disk, opened for reading. Use it as a context manager.

    A reader reads only what it is asked for: a recording may be larger than the memory. It can be
    pickled, so that several processes can read from it, each with files of its own.
    """

    path: Path
    contents: Contents

    @classmethod
    @abstractmethod
    def recognises(cls, path: Path) -> bool:
        """Whether the path looks like this format. Reads no more than a few small files.

        It must not need the libraries that reading needs.
        """

    @abstractmethod
    def __init__(self, path: Path) -> None:
        """Open a recording.

        Raises:
            RecordingError: it cannot be used, or a library is missing.
        """

    @abstractmethod
    def read_frames(
        self, camera: str, episode: int, *, first: int = 0, count: int | None = None
    ) -> NDArray[np.uint8]:
        """Frames (N, H, W, 3) of an episode from step ``first`` on, RGB. None: all that follow.

        Raises:
            RecordingError: a frame is missing or damaged.
        """

    @abstractmethod
    def read_actions(self, name: str, episode: int) -> NDArray[np.float32]:
        """The actions (N, A) of an episode, in the robot's units. NaN where one is missing."""

    @abstractmethod
    def read_states(self, name: str, episode: int) -> NDArray[np.float32]:
        """The states (N, S) of an episode, in the robot's units. NaN where one is missing."""

    def read_numbers(self, name: str, episode: int) -> NDArray[np.float32]:
        """The values (N, D) of an episode in a column of actions or of states."""
        is_action = any(column.name == name for column in self.contents.actions)
        return (self.read_actions if is_action else self.read_states)(name, episode)

    def read_times(self, episode: int) -> NDArray[np.float64] | None:
        """When each step (N,) was recorded, counted in steps of the recording's rate.

        0, 1, 2, … if no step is missing and the rate is kept; a step that is missing leaves a
        difference of 2. None if the recording does not say.
        """
        return None

    def close(self) -> None:  # noqa: B027
        """Close the files. Most readers keep none open."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def open_recording(path: Path) -> Recording:
    """Open a recording of any known format.

    Raises:
        RecordingError: the path does not exist, its format is unknown, or it cannot be used.
    """
    if not path.exists():
        raise RecordingError(f"{path}: there is no such file or folder")
    if (reader := find_reader(path)) is not None:
        return reader(path)
    raise RecordingError(
        f"{path}: expected a recording: HDF5 or Lance of stable-worldmodel, LeRobot 2.1 or 3.0, "
        "zarr of diffusion policy, folders of images, or a recording of lewm_client.Recorder"
    )


def find_reader(path: Path) -> type[Recording] | None:
    """The reader that recognises a path; None if there is none."""
    return next((reader for reader in _readers() if reader.recognises(path)), None)


def choose_column(
    columns: Sequence[Column], name: str | None, *, option: str, path: Path
) -> Column:
    """The column of this name; without a name, the only one there is.

    ``option`` is the option of the command line that gives the name, such as ``--camera``.

    Raises:
        RecordingError: there is none, there is none of this name, or there are several.
    """
    names = ", ".join(column.name for column in columns)
    if name is not None:
        for column in columns:
            if column.name == name:
                return column
        raise RecordingError(f"{option}: {path} has no {name!r}; it has {names or 'none'}")
    if len(columns) == 1:
        return columns[0]
    kind = KINDS_OF_COLUMNS[option]
    if not columns:
        raise RecordingError(f"{path}: has no {kind}; nothing to choose with {option}")
    raise RecordingError(
        f"{path}: has several {kind}: {names}; choose one with {option} "
        "(several at once are not supported)"
    )


def choose_action(contents: Contents, name: str | None, path: Path) -> Column:
    """The column of actions of this name; without a name, the only one there is.

    Readers recognise actions by their names, so any other column of numbers may be named too. It
    is then no state.

    Raises:
        RecordingError: there is none, there is none of this name, or there are several.
    """
    if name is not None:
        columns = (*contents.actions, *contents.states)
        return choose_column(columns, name, option="--action", path=path)
    if not contents.actions:
        raise RecordingError(f"{path}: has no actions{other_columns(contents)}")
    return choose_column(contents.actions, None, option="--action", path=path)


def other_columns(contents: Contents) -> str:
    """The end of a sentence about missing actions: which columns may be named instead."""
    names = ", ".join(column.name for column in contents.states)
    if not names:
        return ""
    return f" (no column is called action…). If one of these holds them, name it: --action {names}"


def load_library(name: str, path: Path) -> Any:
    """Import a library that reading this recording needs.

    Raises:
        RecordingError: it is not installed; the message holds the command that installs it.
    """
    try:
        return import_module(name)
    except ImportError as error:
        raise RecordingError(
            f"{path}: {name} is needed to read it ({error}); install it with: {INSTALL_COMMAND}"
        ) from error


def natural_key(name: str) -> list[tuple[int, int, str]]:
    """A key that sorts names as people do: "frame_2" comes before "frame_10"."""
    return [
        (0, int(part), part) if part.isdecimal() else (1, 0, part)
        for part in re.split(r"(\d+)", name)
        if part
    ]


def _readers() -> Iterator[type[Recording]]:
    """The readers in order; each is imported when it is its turn."""
    for reference in READERS:
        module, _, name = reference.partition(":")
        yield getattr(import_module(module), name)
    for point in entry_points(group=ENTRY_POINT_GROUP):
        yield point.load()
