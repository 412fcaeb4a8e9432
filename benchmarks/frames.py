"""Camera frames that no server has seen before."""

from __future__ import annotations

import io
import itertools

import numpy as np
from PIL import Image

QUALITY = 90
SEQUENCE_BYTES = 8


def picture(seed: int, size: int = 224) -> Image.Image:
    """Smooth shapes under a sensor's noise: as hard to compress as a photograph."""
    generator = np.random.default_rng(seed)
    coarse = Image.fromarray(generator.integers(0, 256, (8, 8, 3), dtype=np.uint8))
    smooth = np.asarray(coarse.resize((size, size), Image.Resampling.BICUBIC), np.float32)
    noisy = smooth + generator.normal(0, 6, smooth.shape)
    return Image.fromarray(noisy.clip(0, 255).astype(np.uint8))


class FreshFrames:
    """JPEG images whose bytes are all different, from a few pictures.

    A comment segment with a number makes an image that no cache knows, at no cost for the client
    that is measured.
    """

    def __init__(self, size: int = 224, pictures: int = 8) -> None:
        self._count = itertools.count()
        self._images = []
        for seed in range(pictures):
            buffer = io.BytesIO()
            picture(seed, size).save(buffer, "JPEG", quality=QUALITY)
            self._images.append(buffer.getvalue())

    @property
    def mean_bytes(self) -> float:
        """How long an image is, on average."""
        return float(np.mean([len(image) for image in self._images]))

    def next(self) -> bytes:
        """The next image."""
        number = next(self._count)
        image = self._images[number % len(self._images)]
        comment = b"\xff\xfe" + (2 + SEQUENCE_BYTES).to_bytes(2, "big")
        return image[:2] + comment + number.to_bytes(SEQUENCE_BYTES, "big") + image[2:]
