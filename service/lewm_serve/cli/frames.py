"""Image files as a model's frames."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lewm_models.card import ModelCard
from lewm_models.checkpoint import CheckpointError
from lewm_models.preprocessing import resize
from lewm_serve.errors import InvalidRequest
from lewm_serve.images import decode_image
from lewm_serve.latents import central_square
from lewm_serve.settings import Settings


def read_frames(paths: Sequence[Path], card: ModelCard) -> Tensor | None:
    """PNG and JPEG files → frames (N, size, size, 3) uint8, as the server would see them.

    None where there are no files.

    Raises:
        CheckpointError: a file cannot be used, or there is only one.
    """
    if not paths:
        return None
    if len(paths) < 2:
        raise CheckpointError("--frames: expected at least 2 images, a start and a goal")
    return torch.stack([_read(path, card) for path in paths])


def _read(path: Path, card: ModelCard) -> Tensor:
    limit = Settings.model_fields["max_pixels"].default
    try:
        pixels = decode_image(path.read_bytes(), limit, str(path))
    except InvalidRequest as error:
        raise CheckpointError(error.detail) from error
    if pixels.shape[0] != pixels.shape[1]:
        if card.crop is None:
            raise CheckpointError(f"{path}: expected a square image, got {pixels.shape[:2]}")
        pixels = central_square(pixels)
    frames = torch.from_numpy(np.require(pixels, requirements=["C", "W"]))
    return resize(frames.unsqueeze(0), card.config.image_size)[0]
