"""Records on the robot what it sees and does, for `lewm data inspect` and `lewm train --data`.

    with Recorder("recordings/kitchen", rate_hz=10) as recorder:
        for _ in range(20):
            robot.reset()
            while not done():
                frame = camera.frame()
                action = choose(frame)
                recorder.add(frame, action, robot.joints())
                robot.run(action)
            recorder.end_episode()

The format is described in docs/recordings.md of lewm-serve. It needs NumPy and nothing else.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

FORMAT, VERSION = "lewm-recording", 1
HEADER_FILE, EPISODES_FOLDER, STEPS_FILE = "recording.json", "episodes", "steps.bin"

ONLY_CAMERA = "camera"
"""The name of a camera whose frames are given without a name."""

PNG_MAGIC = b"\x89PNG\r\n\x1a\n"
JPEG_MAGIC = b"\xff\xd8\xff"
JPEG_FRAME_HEADERS = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}
"""The JPEG markers whose segment begins with the size of the image."""

Image: TypeAlias = NDArray[np.uint8] | bytes | bytearray | memoryview
"""Pixels (H, W, 3) of uint8 in the order RGB, or the bytes of a PNG or JPEG image.

The bytes may also be an array (n,) or (n, 1) of uint8, as `cv2.imencode` returns them.
"""


class Recorder:
    """Writes episodes into a folder, step by step. Only one thread at a time may use it.

    If the folder holds a recording already, new episodes are added to it. Nothing that is there is
    changed.

    A step is written when `add` returns: it survives a kill of the process. `end_episode` waits
    until the episode is on disk (fsync), so that it survives a loss of power too. Of an episode
    that is cut off, the steps that were written completely can be used.

    Args:
        folder: the folder of the recording; it is made if it is not there.
        rate_hz: the steps per second that the robot keeps.
        action_name: the name of the actions.
        state_name: the name of the states.
        action_labels: a name for each number of an action, such as a joint's.
        state_labels: a name for each number of a state.
        sync_every_s: None for no fsync within an episode. Otherwise the seconds after which `add`
            waits for one, which may take long on slow disks; 0 for one at each step.

    Raises:
        ValueError: an argument is wrong, or the folder holds something else, or a recording at
            another rate or of other names.
        OSError: the folder cannot be used.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        rate_hz: float,
        action_name: str = "action",
        state_name: str = "state",
        action_labels: Sequence[str] = (),
        state_labels: Sequence[str] = (),
        sync_every_s: float | None = None,
    ) -> None:
        if not np.isfinite(rate_hz) or rate_hz <= 0:
            raise ValueError(f"rate_hz: expected a number above 0, got {rate_hz}")
        self.folder = Path(folder)
        self._rate_hz = float(rate_hz)
        self._names = {"action": action_name, "state": state_name}
        self._labels = {"action": list(action_labels), "state": list(state_labels)}
        self._sync_every_s = sync_every_s
        self._episode: _Episode | None = None
        self._header = _read_header(self.folder)
        if self._header is not None:
            self._check_header(self._header)
        self.folder.mkdir(parents=True, exist_ok=True)

    def add(
        self,
        frame: Image | Mapping[str, Image],
        action: ArrayLike | None = None,
        state: ArrayLike | None = None,
        *,
        time_s: float | None = None,
    ) -> None:
        """Write one step. The first step after `end_episode` begins a new episode.

        The first step of a recording fixes the cameras, the size of their frames, and how many
        numbers an action and a state have. Images are stored as the bytes that they are.

        Args:
            frame: what the robot sees. With several cameras: a frame of each, by name.
            action: (A,), what the robot does from this frame to the next, in its own units. None
                where there is none, as at the end of an episode.
            state: (S,), such as joint angles; in all steps or in none.
            time_s: when the frame was taken, in seconds from any start; by default, now. Give it
                when you convert older data.

        Raises:
            ValueError: an argument is wrong, or not as in the steps before. Nothing is written.
            OSError: the disk is full or fails. The steps before are complete, and a later `add`
                may succeed.
        """
        frames = dict(frame) if isinstance(frame, Mapping) else {ONLY_CAMERA: frame}
        images = {name: _Image.read(name, image) for name, image in frames.items()}
        values = {"action": _numbers("action", action), "state": _numbers("state", state)}
        now = time.monotonic() if time_s is None else float(time_s)
        if not np.isfinite(now):
            raise ValueError(f"time_s: expected a finite number, got {time_s}")
        if self._header is None:
            header = self._new_header(images, values)
            _write_header(self.folder, header)
            self._header = header
        record = self._record(self._header, images, values, now)
        if self._episode is None:
            self._episode = _Episode(self.folder / EPISODES_FOLDER, len(images))
        ordered = [images[camera["name"]].data for camera in self._header["cameras"]]
        self._episode.write(record, ordered)
        if self._sync_every_s is not None:
            self._episode.sync_if_older(self._sync_every_s)

    def end_episode(self) -> None:
        """End the episode and wait until it is on disk. Does nothing if no step was added.

        Raises:
            OSError: the disk fails.
        """
        episode, self._episode = self._episode, None
        if episode is not None:
            episode.close()

    def close(self) -> None:
        """End the episode."""
        self.end_episode()

    def __enter__(self) -> Recorder:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _check_header(self, header: Mapping[str, Any]) -> None:
        if header["rate_hz"] != self._rate_hz:
            raise ValueError(
                f"rate_hz: {self.folder} holds a recording at {header['rate_hz']:g} Hz, "
                f"got {self._rate_hz:g}; record into another folder"
            )
        for kind, name in self._names.items():
            if header[kind] is not None and header[kind]["name"] != name:
                raise ValueError(
                    f"{kind}_name: {self.folder} calls it {header[kind]['name']!r}, got {name!r}"
                )

    def _new_header(
        self, images: Mapping[str, _Image], values: Mapping[str, NDArray[np.float32] | None]
    ) -> dict[str, Any]:
        if not images:
            raise ValueError("frame: expected a frame of at least one camera, got none")
        if values["action"] is None:
            raise ValueError("action: expected numbers at the first step of a recording, got none")
        series: dict[str, dict[str, Any] | None] = {"action": None, "state": None}
        for kind, numbers in values.items():
            labels = self._labels[kind]
            size = 0 if numbers is None else len(numbers)
            if labels and len(labels) != size:
                raise ValueError(f"{kind}_labels: expected {size} names, got {labels}")
            if numbers is not None:
                series[kind] = {"name": self._names[kind], "size": size, "labels": labels}
        record: list[list[Any]] = [["time_s", "<f8"], ["frame_end", "<u8", [len(images)]]]
        record += [
            [kind, "<f4", [len(numbers)]] for kind, numbers in values.items() if numbers is not None
        ]
        cameras = [
            {
                "name": name,
                "encoding": image.encoding,
                "height": image.height,
                "width": image.width,
                "file": f"frames-{number}.bin",
            }
            for number, (name, image) in enumerate(images.items())
        ]
        return {
            "format": FORMAT,
            "version": VERSION,
            "rate_hz": self._rate_hz,
            "cameras": cameras,
            **series,
            "record": record,
        }

    def _record(
        self,
        header: Mapping[str, Any],
        images: Mapping[str, _Image],
        values: Mapping[str, NDArray[np.float32] | None],
        now: float,
    ) -> NDArray[np.void]:
        """The record of the step, checked against the header. ``frame_end`` is left open."""
        names = [camera["name"] for camera in header["cameras"]]
        if sorted(images) != sorted(names):
            got = (
                "one frame without a name; give a dictionary of frames by camera"
                if list(images) == [ONLY_CAMERA]
                else str(list(images))
            )
            raise ValueError(
                f"frame: expected the cameras {names} as in the steps before, got {got}"
            )
        for camera in header["cameras"]:
            images[camera["name"]].check(camera)
        if self._episode is not None and now <= self._episode.time_s:
            raise ValueError(
                f"time_s: expected more than {self._episode.time_s:g} of the step before, "
                f"got {now:g}"
            )
        record = np.zeros((), record_dtype(header))
        record["time_s"] = now
        for kind, numbers in values.items():
            size = None if header[kind] is None else header[kind]["size"]
            if numbers is None and kind == "action":
                record["action"] = np.nan
            elif (None if numbers is None else len(numbers)) != size:
                expected = "none" if size is None else f"{size} numbers"
                got = "none" if numbers is None else f"{len(numbers)}"
                raise ValueError(f"{kind}: expected {expected} as in the steps before, got {got}")
            elif numbers is not None:
                record[kind] = numbers
        return record


class _Image:
    """A frame as it is written, with what has to be the same in all frames of a camera."""

    def __init__(self, camera: str, encoding: str, shape: tuple[int, int], data: Any) -> None:
        self.camera, self.encoding, self.data = camera, encoding, data
        self.height, self.width = shape

    @classmethod
    def read(cls, camera: str, image: Image) -> _Image:
        """Check a frame.

        Raises:
            ValueError: it is neither pixels nor an image.
        """
        if isinstance(image, (bytes, bytearray)):
            return cls._encoded(camera, bytes(image))
        if isinstance(image, (str, os.PathLike)):
            raise ValueError(
                f"frame: {camera}: expected pixels or the bytes of an image, got the name "
                f"{image!s}: write Path(name).read_bytes()"
            )
        pixels = np.asarray(image)
        if pixels.dtype == np.uint8 and (pixels.ndim == 1 or pixels.shape[1:] == (1,)):
            return cls._encoded(camera, pixels.tobytes())
        if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3 or not pixels.size:
            raise ValueError(
                f"frame: {camera}: expected pixels (height, width, 3) of uint8, "
                f"got {pixels.shape} of {pixels.dtype}"
            )
        return cls(camera, "raw", pixels.shape[:2], np.ascontiguousarray(pixels).data.cast("B"))

    @classmethod
    def _encoded(cls, camera: str, data: bytes) -> _Image:
        shape = image_shape(data)
        if shape is None:
            raise ValueError(
                f"frame: {camera}: expected a PNG or JPEG image, got {len(data)} other bytes"
            )
        return cls(camera, "image", shape, data)

    def check(self, camera: Mapping[str, Any]) -> None:
        """Raises ValueError if this frame is not like those before."""
        known = (camera["encoding"], camera["height"], camera["width"])
        if known != (self.encoding, self.height, self.width):
            kinds = {"raw": "pixels", "image": "a PNG or JPEG image"}
            raise ValueError(
                f"frame: {self.camera}: expected {kinds[known[0]]} of {known[2]} × {known[1]} as "
                f"in the steps before, got {kinds[self.encoding]} of {self.width} × {self.height}"
            )


class _Episode:
    """The files of one episode: a file of records, and a file of frames for each camera."""

    def __init__(self, episodes: Path, cameras: int) -> None:
        episodes.mkdir(exist_ok=True)
        self._folder = _make_next_folder(episodes)
        self._frames = [_new_file(self._folder / f"frames-{i}.bin") for i in range(cameras)]
        self._steps = _new_file(self._folder / STEPS_FILE)
        self._ends = [0] * cameras
        self._records_end = 0
        self._synced = time.monotonic()
        self.time_s = -np.inf

    def write(self, record: NDArray[np.void], images: Sequence[Any]) -> None:
        """Write the frames, then the record, which makes the step complete."""
        ends = [end + len(data) for end, data in zip(self._ends, images, strict=True)]
        record["frame_end"] = ends
        try:
            for file, data in zip(self._frames, images, strict=True):
                _write_all(file, data)
            _write_all(self._steps, record.tobytes())
        except OSError as error:
            self._cut()
            steps = self._records_end // record.dtype.itemsize
            raise OSError(
                error.errno,
                f"the step is not recorded ({error.strerror}); the {steps} steps before are "
                "complete",
                str(self._folder),
            ) from error
        self._ends = ends
        self._records_end += record.dtype.itemsize
        self.time_s = float(record["time_s"])

    def sync_if_older(self, seconds: float) -> None:
        if time.monotonic() - self._synced >= seconds:
            self._sync()

    def close(self) -> None:
        try:
            self._sync()
            for folder in (self._folder, self._folder.parent):
                _sync_folder(folder)
        finally:
            for file in (*self._frames, self._steps):
                file.close()

    def _sync(self) -> None:
        for file in (*self._frames, self._steps):
            os.fsync(file.fileno())
        self._synced = time.monotonic()

    def _cut(self) -> None:
        """Remove what was written of an incomplete step."""
        files, ends = (*self._frames, self._steps), (*self._ends, self._records_end)
        for file, end in zip(files, ends, strict=True):
            file.truncate(end)
            file.seek(end)


def record_dtype(header: Mapping[str, Any]) -> np.dtype[np.void]:
    """The type of the records in `steps.bin`."""
    fields = [(name, kind, *map(tuple, shape)) for name, kind, *shape in header["record"]]
    return np.dtype(fields)


def image_shape(data: bytes) -> tuple[int, int] | None:
    """Height and width of a PNG or JPEG image, from its head; None if it is neither."""
    if data.startswith(PNG_MAGIC) and len(data) >= 24:
        return int.from_bytes(data[20:24], "big"), int.from_bytes(data[16:20], "big")
    if data.startswith(JPEG_MAGIC):
        for marker, start in _jpeg_segments(data):
            if marker in JPEG_FRAME_HEADERS and len(data) >= start + 7:
                height = int.from_bytes(data[start + 3 : start + 5], "big")
                return height, int.from_bytes(data[start + 5 : start + 7], "big")
    return None


def _jpeg_segments(data: bytes) -> Iterator[tuple[int, int]]:
    """Marker and place of each segment of a JPEG image, up to its pixels."""
    place = 2
    while place + 4 <= len(data) and data[place] == 0xFF:
        marker = data[place + 1]
        if marker == 0xFF:  # a byte that fills up
            place += 1
            continue
        yield marker, place + 2
        place += 2 + int.from_bytes(data[place + 2 : place + 4], "big")


def _numbers(name: str, values: ArrayLike | None) -> NDArray[np.float32] | None:
    """Finite numbers (n,).

    Raises:
        ValueError: they are something else.
    """
    if values is None:
        return None
    with np.errstate(over="ignore"):
        numbers = np.asarray(values, dtype=np.float64).astype(np.float32)
    if numbers.ndim != 1 or not len(numbers):
        raise ValueError(f"{name}: expected numbers in one dimension, got shape {numbers.shape}")
    if not np.isfinite(numbers).all():
        raise ValueError(f"{name}: expected finite numbers, got {numbers.tolist()}")
    return numbers


def _read_header(folder: Path) -> dict[str, Any] | None:
    """The header of the recording in a folder; None if the folder is empty or not there.

    Raises:
        ValueError: the folder holds something else.
    """
    try:
        header = json.loads((folder / HEADER_FILE).read_text("utf-8"))
    except FileNotFoundError:
        if folder.is_dir() and any(not file.name.endswith(".new") for file in folder.iterdir()):
            raise ValueError(
                f"{folder}: expected a recording or an empty folder, found other files"
            ) from None
        return None
    except ValueError as error:
        raise ValueError(f"{folder / HEADER_FILE}: cannot be read: {error}") from error
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        raise ValueError(f"{folder}: holds something else than a recording of lewm_client.Recorder")
    if header.get("version") != VERSION:
        raise ValueError(
            f"{folder}: holds a recording of version {header.get('version')}; this lewm-client "
            f"writes version {VERSION}"
        )
    return header


def _write_header(folder: Path, header: Mapping[str, Any]) -> None:
    """Write the header in one go: it is there completely, or not at all."""
    new = folder / f"{HEADER_FILE}.new"
    with new.open("w", encoding="utf-8") as file:
        json.dump(header, file, indent=2)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    new.replace(folder / HEADER_FILE)
    _sync_folder(folder)


def _make_next_folder(episodes: Path) -> Path:
    """Make the folder of the next episode: six digits, one more than the last."""
    numbers = [int(folder.name) for folder in episodes.iterdir() if folder.name.isdecimal()]
    number = max(numbers, default=-1) + 1
    while True:
        folder = episodes / f"{number:06d}"
        try:
            folder.mkdir()
        except FileExistsError:  # another recorder was quicker
            number += 1
        else:
            return folder


def _new_file(path: Path) -> BinaryIO:
    return path.open("xb", buffering=0)


def _write_all(file: BinaryIO, data: Any) -> None:
    rest = memoryview(data)
    while len(rest):
        rest = rest[file.write(rest) :]


def _sync_folder(folder: Path) -> None:
    """Make the names of new files survive a loss of power, where the system can do that."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
