"""Pictures, and frames as JSON documents hold them. The sizes are those of the random model."""

import base64
import io
import struct
import zlib
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

IMAGE_SIZE = 64
LATENT_DIM = 128
ACTION_BLOCK = 5
ACTION_DIM = 2


def picture(seed: int = 0, height: int = IMAGE_SIZE, width: int | None = None) -> NDArray[np.uint8]:
    """A smooth random picture (H, W, 3)."""
    width = height if width is None else width
    coarse = np.random.default_rng(seed).integers(0, 255, (4, 4, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BILINEAR))


def base64_of(data: bytes) -> str:
    """Base64 as a JSON string."""
    return base64.b64encode(data).decode()


def encoded(image_format: str, seed: int = 0, **size: Any) -> bytes:
    """The bytes of a picture as PNG, JPEG or another format."""
    buffer = io.BytesIO()
    Image.fromarray(picture(seed, **size)).save(buffer, image_format)
    return buffer.getvalue()


def pixels(seed: int = 0, height: int = IMAGE_SIZE, width: int | None = None) -> dict[str, Any]:
    """A frame of raw pixels."""
    array = picture(seed, height, width)
    return {"pixels": {"data": base64_of(array.tobytes()), "shape": list(array.shape)}}


def image(image_format: str = "PNG", seed: int = 0, **size: Any) -> dict[str, Any]:
    """A frame of an encoded image."""
    return {"image": base64_of(encoded(image_format, seed, **size))}


def latent(value: float = 0.1) -> dict[str, Any]:
    """A frame given by its latent."""
    return {"latent": [value] * LATENT_DIM}


def png_chunk(kind: bytes, data: bytes) -> bytes:
    """One chunk of a PNG file."""
    checksum = struct.pack(">I", zlib.crc32(kind + data))
    return struct.pack(">I", len(data)) + kind + data + checksum


def png(width: int, height: int, *chunks: bytes, rows: bytes = b"") -> bytes:
    """A PNG file of 8-bit grey whose header announces this size."""
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    body = png_chunk(b"IDAT", zlib.compress(rows))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(chunks) + body + png_chunk(b"IEND", b"")
