"""Pictures that a recording holds as encoded bytes: JPEG, PNG and what else Pillow reads."""

from __future__ import annotations

from io import BytesIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lewm_models.recordings.recording import RecordingError

_MODES = ("RGB", "RGBA", "L", "LA", "P", "CMYK", "YCbCr")
"""Pillow's modes with 8 bits a value. Others, such as depth of 16 bits, would lose their range."""


def decode_picture(data: bytes, *, source: str) -> NDArray[np.uint8]:
    """The pixels (H, W, 3) of an encoded picture, RGB.

    Args:
        data: the encoded picture.
        source: where it comes from, for errors.

    Raises:
        RecordingError: it is damaged, or its pixels are not 8-bit colours or grey.
    """
    try:
        with Image.open(BytesIO(data)) as image:
            image.load()
            mode, pixels = image.mode, np.asarray(image.convert("RGB"))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise RecordingError(f"{source}: the picture cannot be decoded: {error}") from error
    if mode not in _MODES:
        raise RecordingError(f"{source}: expected 8-bit colours, the picture has mode {mode}")
    return pixels
