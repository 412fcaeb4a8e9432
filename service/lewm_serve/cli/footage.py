"""What a person gives to calibrate a model on: a recording, or folders of images."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lewm_models.calibration.calibrate import Episode
from lewm_models.calibration.recorded import recorded_episodes
from lewm_models.card import ModelCard
from lewm_models.preprocessing import resize
from lewm_models.training.recording import Recording
from lewm_serve.errors import InvalidRequest
from lewm_serve.images import decode_image
from lewm_serve.latents import central_square

ACTIONS = "actions.npy"
IMAGES = (".png", ".jpg", ".jpeg")
MAX_PIXELS = 1 << 26


def footage(path: Path, card: ModelCard) -> Iterator[Episode]:
    """The episodes that a folder holds, prepared as frames that are served.

    The folder is a recording, as `lewm train` makes them; or holds images, an episode in the order
    of their names; or such folders. Images with an `actions.npy`, (images − 1, action_dim) in the
    environment's units, are one step apart; without, they count as one action block apart.

    Raises:
        ValueError: there are no frames, or a file is not what it should be.
    """
    if (path / "recording.json").is_file():
        recording = Recording.open(path)
        _check_actions(path, recording.actions[0], recording.frames.shape[1], card)
        yield from recorded_episodes(
            recording, range(len(recording.frames)), card.config.image_size
        )
        return
    folders = [folder for folder in (path, *sorted(path.glob("*/"))) if _images(folder)]
    if not folders:
        raise ValueError(f"{path}: expected a recording, PNG or JPEG images, or folders of them")
    for folder in folders:
        images = _images(folder)
        frames = torch.stack([_frame(image, card) for image in images])
        yield Episode(frames, _actions(folder, len(images), card))


def _images(folder: Path) -> list[Path]:
    return sorted(file for file in folder.iterdir() if file.suffix.lower() in IMAGES)


def _frame(path: Path, card: ModelCard) -> Tensor:
    try:
        pixels = decode_image(path.read_bytes(), MAX_PIXELS, str(path))
    except InvalidRequest as error:
        raise ValueError(str(error)) from error
    if pixels.shape[0] != pixels.shape[1]:
        if card.crop is None:
            raise ValueError(f"{path}: expected a square image, got {pixels.shape[:2]}")
        pixels = central_square(pixels)
    return resize(torch.from_numpy(np.array(pixels)).unsqueeze(0), card.config.image_size)[0]


def _actions(folder: Path, images: int, card: ModelCard) -> Tensor | None:
    path = folder / ACTIONS
    if not path.is_file():
        return None
    try:
        actions = np.load(path)
    except (EOFError, ValueError) as error:
        raise ValueError(f"{path}: cannot be read: {error}") from error
    _check_actions(path, actions, images, card)
    return torch.from_numpy(actions.astype(np.float32))


def _check_actions(path: Path, actions: np.ndarray, frames: int, card: ModelCard) -> None:
    expected = (frames - 1, card.config.action_dim)
    if actions.shape != expected or actions.dtype.kind != "f":
        raise ValueError(
            f"{path}: expected actions of shape {expected} in floats, "
            f"got {actions.shape} in {actions.dtype}"
        )
