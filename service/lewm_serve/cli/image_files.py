"""Image files and recordings on disk, prepared like the frames that a server receives."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lewm_models.calibration.calibrate import (
    CalibrationEpisode,
    prepared_episodes,
    recording_episodes,
)
from lewm_models.card import ModelCard
from lewm_models.checkpoint import CheckpointError
from lewm_models.file_kinds import kind_of_file, read_numpy_array
from lewm_models.file_names import natural_key
from lewm_models.probe.states import check_input, states_of_prepared_data
from lewm_models.recordings.images import CONTACT_SHEET_END, ImageFolders
from lewm_models.recordings.recording import find_reader, open_recording
from lewm_models.recordings.usable import usable_episodes
from lewm_models.training.preparation import fingerprint
from lewm_models.training.prepared import FILE, PreparedData
from lewm_serve.errors import InvalidRequest
from lewm_serve.frames.decode import frame_from_image

ACTIONS_FILE = "actions.npy"
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg")
MAX_FILE_PIXELS = 1 << 26


def read_frames(paths: Sequence[Path], card: ModelCard) -> Tensor | None:
    """PNG and JPEG files as frames (N, size, size, 3) uint8. None if there are no files.

    Raises:
        CheckpointError: a file cannot be used, or there is only one.
    """
    if not paths:
        return None
    if len(paths) < 2:
        raise CheckpointError("--frames: expected at least 2 images, a start and a goal")
    try:
        return torch.stack([_read_frame(path, card) for path in paths])
    except ValueError as error:
        raise CheckpointError(str(error)) from error


def read_episodes(
    path: Path, card: ModelCard, *, camera: str | None = None, action: str | None = None
) -> Iterator[CalibrationEpisode]:
    """The episodes of prepared data, of a recording, or of folders of images.

    ``path`` holds data that `lewm train` prepared, is a recording of any format, a folder of images
    in the order of their names (`2.png` before `10.png`), or a folder of such folders. Images with
    an `actions.npy`, (images − 1, action_dim) in the environment's units, are one step apart.
    Without it, they count as one action block apart.

    ``camera`` and ``action`` choose columns of a recording.

    Raises:
        ValueError: there are no frames, or a file is wrong.
    """
    if (path / FILE).is_file():
        data = PreparedData.open(path)
        if (actions := data.actions.shape[1]) != card.config.action_dim:
            raise ValueError(
                f"{path}: expected actions of {card.config.action_dim} values, got {actions}"
            )
        check_input(states_of_prepared_data(data, card, {}), card, path)
        pieces = np.arange(len(data.episodes))
        yield from prepared_episodes(
            data,
            pieces,
            card.config.image_size,
            with_states=card.config.state_input is not None,
        )
        return
    reader = find_reader(path) if path.exists() else None
    if path.is_dir() and reader in (None, ImageFolders) and (folders := _image_folders(path)):
        yield from _image_episodes(folders, card)
        return
    with open_recording(path) as recording:
        yield from recording_episodes(recording, card, camera=camera, action=action)


def training_data_warnings(path: Path, card: ModelCard) -> list[str]:
    """A warning if these are the data that the model was trained on, as far as its card says."""
    recording = card.provenance.get("recording")
    if not isinstance(recording, dict):
        return []
    name, expected = path.resolve().name, recording.get("fingerprint")
    if (path / FILE).is_file():
        made_from = PreparedData.open(path).made_from
        name, found = str(made_from.get("recording", name)), made_from.get("fingerprint")
    elif expected is not None and path.exists() and find_reader(path) is not None:
        found = _fingerprint(path, card, recording)
    else:
        expected, found = card.provenance.get("trained_on"), name
    if found is None or found != expected:
        return []
    return [
        f"{name} is what {card.name} was trained on: its frames are more usual to the model than "
        "new ones, so the limits become too strict; calibrate on another recording"
    ]


def _fingerprint(path: Path, card: ModelCard, trained_on: Mapping[str, Any]) -> str | None:
    """The fingerprint of a recording, used as in the training of this model; None without one."""
    action, camera = str(trained_on.get("action")), str(trained_on.get("camera"))
    with open_recording(path) as recording:
        contents = recording.contents
        names = {column.name for column in (*contents.actions, *contents.states)}
        cameras = {column.name for column in contents.cameras}
        if action not in names or camera not in cameras:
            return None
        min_steps = card.config.history * card.config.action_block + 1
        usable = usable_episodes(recording, action=action, min_steps=min_steps)
        if not usable.ranges:
            return None
        return fingerprint(recording, usable.ranges, action=action, camera=camera)


def _image_folders(path: Path) -> list[Path]:
    """The folder and those in it, as far as there are images in them."""
    inside = sorted((entry for entry in path.iterdir() if entry.is_dir()), key=natural_key)
    return [folder for folder in (path, *inside) if _image_files(folder)]


def _image_episodes(folders: Sequence[Path], card: ModelCard) -> Iterator[CalibrationEpisode]:
    _check_same_files(folders)
    for folder in folders:
        images = _image_files(folder)
        frames = torch.stack([_read_frame(image, card) for image in images])
        yield CalibrationEpisode(frames, _read_actions(folder, len(images), card))


def _image_files(folder: Path) -> list[Path]:
    images = (
        file
        for file in folder.iterdir()
        if file.suffix.lower() in IMAGE_SUFFIXES and not file.name.endswith(CONTACT_SHEET_END)
    )
    return sorted(images, key=natural_key)


def _check_same_files(folders: Sequence[Path]) -> None:
    """Refuse a mixture of episodes with and without actions.

    With actions, images are one step apart; without them, they count as one action block apart. So
    an episode whose actions are lost would be taken for another kind of data.
    """
    without = [folder for folder in folders if not (folder / ACTIONS_FILE).is_file()]
    if 0 < len(without) < len(folders):
        raise ValueError(
            f"{without[0]}: has no {ACTIONS_FILE}, as {len(without)} of {len(folders)} folders of "
            "images; expected one in every folder or in none"
        )


def _read_frame(path: Path, card: ModelCard) -> Tensor:
    try:
        return frame_from_image(
            path.read_bytes(), card, max_pixels=MAX_FILE_PIXELS, field=str(path)
        )
    except InvalidRequest as error:
        kind = kind_of_file(path)
        detail = (
            error.detail if kind is None else f"{path}: is {kind}; expected a PNG or JPEG image"
        )
        raise ValueError(detail) from error


def _read_actions(folder: Path, images: int, card: ModelCard) -> Tensor | None:
    path = folder / ACTIONS_FILE
    if not path.is_file():
        return None
    actions = read_numpy_array(path)
    _check_actions(path, actions, images, card)
    return torch.from_numpy(actions.astype(np.float32))


def _check_actions(path: Path, actions: np.ndarray, frames: int, card: ModelCard) -> None:
    expected = (frames - 1, card.config.action_dim)
    if actions.shape != expected or actions.dtype.kind != "f":
        raise ValueError(
            f"{path}: expected actions of shape {expected} in floats, "
            f"got {actions.shape} in {actions.dtype}"
        )
    if np.isinf(actions).any():
        raise ValueError(f"{path}: expected finite actions, or NaN for a missing one, got infinity")
