"""PNG and JPEG images to frames."""

from __future__ import annotations

import io

import numpy as np
from numpy.typing import NDArray

from lewm_models.recordings.recording import RecordingError


def decode_picture(data: bytes, *, source: str) -> NDArray[np.uint8]:
    """The pixels (H, W, 3) of an image, as the server decodes it.

    16-bit values are reduced to their upper 8 bits, an alpha channel is dropped, and an EXIF
    orientation is not applied.

    Raises:
        RecordingError: it is damaged; the message begins with ``source``.
    """
    from PIL import Image

    try:
        with Image.open(io.BytesIO(data)) as image:
            image.load()
            if image.mode.startswith("I"):
                grey = (np.asarray(image).astype(np.uint32) >> 8).clip(0, 255).astype(np.uint8)
                return np.repeat(grey[:, :, None], 3, axis=2)
            converted = image.convert("RGBA") if image.mode == "P" else image
            return np.array(converted.convert("RGB"))
    except Exception as error:  # decoders fail on damaged data in more ways than they document
        raise RecordingError(f"{source}: cannot be decoded: {error}") from error


def picture_shape(data: bytes, *, source: str) -> tuple[int, int, int]:
    """(H, W, 3) of an image, from its head.

    Raises:
        RecordingError: it is no image.
    """
    from PIL import Image

    try:
        with Image.open(io.BytesIO(data)) as image:
            return image.height, image.width, 3
    except Exception as error:
        raise RecordingError(f"{source}: is no image: {error}") from error


def stack_frames(frames: list[NDArray[np.uint8]], *, source: str) -> NDArray[np.uint8]:
    """Frames of one size as (N, H, W, 3).

    Raises:
        RecordingError: their sizes differ.
    """
    sizes = {frame.shape[:2] for frame in frames}
    if len(sizes) > 1:
        names = ", ".join(f"{width} × {height}" for height, width in sorted(sizes))
        raise RecordingError(f"{source}: expected frames of one size, found {names}")
    return np.stack(frames)
