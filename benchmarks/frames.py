"""Camera frames that no server has seen before."""

from __future__ import annotations

import io
import itertools
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from lewm_models.environments import two_room

SIZE = 224
PICTURES = 8
QUALITY = 90
NUMBER_BYTES = 8


def rendered() -> list[NDArray[np.uint8]]:
    """Frames (224, 224, 3) of Two-Room, which the embedded model plans for."""
    positions = two_room.sample_positions(PICTURES, torch.Generator().manual_seed(0))
    return list(two_room.render(positions).numpy())


def photographs() -> list[NDArray[np.uint8]]:
    """Smooth shapes under a sensor's noise (224, 224, 3): as hard to compress as a photograph."""
    generator = np.random.default_rng(0)
    pictures = []
    for _ in range(PICTURES):
        coarse = Image.fromarray(generator.integers(0, 256, (8, 8, 3), dtype=np.uint8))
        smooth = np.asarray(coarse.resize((SIZE, SIZE), Image.Resampling.BICUBIC), np.float32)
        noisy = smooth + generator.normal(0, 6, smooth.shape)
        pictures.append(noisy.clip(0, 255).astype(np.uint8))
    return pictures


def jpeg(picture: NDArray[np.uint8]) -> bytes:
    """The picture as a JPEG image."""
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "JPEG", quality=QUALITY)
    return buffer.getvalue()


def fresh(images: Sequence[bytes]) -> Iterator[bytes]:
    """JPEG images whose bytes are all different, without end.

    A comment with a number makes an image that no cache knows, at no cost for the client that is
    measured.
    """
    for number in itertools.count():
        image = images[number % len(images)]
        comment = b"\xff\xfe" + (2 + NUMBER_BYTES).to_bytes(2, "big")
        yield image[:2] + comment + number.to_bytes(NUMBER_BYTES, "big") + image[2:]
