"""The few small JPEG images of a request, decoded where the request is read."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from lewm_models.preprocessing import resize
from lewm_serve.images import QUICK_PIXELS, decode_into, quick_shape

QUICK_FRAMES = 4
"""So many quick frames, a history of three and a goal, are decoded on the event loop: together
they take a fraction of a millisecond, less than a thread's answer takes on busy cores."""


class QuickDecoder:
    """Decodes images into memory of its own and resizes them together. Used from one thread.

    Memory that is always the same stays in the processor's caches, and of what is done once for all
    frames most is independent of how many there are.
    """

    def __init__(self, max_pixels: int) -> None:
        self._max_pixels = max_pixels
        self._memory = np.empty(3 * QUICK_PIXELS * QUICK_FRAMES, np.uint8)

    def decode(self, images: Sequence[bytes | None], size: int) -> Tensor | None:
        """Frames (N, size, size, 3) uint8; None where these images have to go another way.

        That is where they are not all quick, square and of one size, or one turns out to be
        damaged.
        """
        if len(images) > QUICK_FRAMES:
            return None
        shapes = {quick_shape(image) if image is not None else None for image in images}
        shape = shapes.pop()
        if shapes or shape is None or shape[0] != shape[1] or shape[0] ** 2 > self._max_pixels:
            return None
        whole = (len(images), *shape, 3)
        pixels = self._memory[: math.prod(whole)].reshape(whole)
        try:
            for image, place in zip(images, pixels, strict=True):
                assert image is not None  # or it had no shape
                decode_into(image, place)
        except ValueError:
            return None
        frames = torch.from_numpy(pixels)
        return resize(frames, size) if shape[0] != size else frames.clone()
