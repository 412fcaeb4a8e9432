"""Pictures for the pages: what robots saw, and what latents look like.

A latent becomes a picture by the model's decoder. Without one, it is shown by the frame of the kept
plans whose latent is nearest.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from lewm_models.checkpoint import ViewingParts
from lewm_serve.api.requests import Frame
from lewm_serve.frames.decode import decode_image

PREVIEW_SIDE = 224
"""The longest side of a picture, in pixels."""

MAX_SHOWN_PIXELS = 1 << 24

Shower = Literal["decoder", "nearest"]

Picture = NDArray[np.uint8]


@dataclass(frozen=True)
class KnownFrame:
    """A frame that was sent, and its latent (D,)."""

    frame: Frame
    latent: Tensor


def data_url(picture: Picture) -> str:
    """A picture (H, W, 3) uint8 as a `data:` URL, not larger than a preview."""
    image = Image.fromarray(picture)
    image.thumbnail((PREVIEW_SIDE, PREVIEW_SIDE), Image.Resampling.BOX)
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=3)
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def sent_picture(frame: Frame) -> Picture | None:
    """The picture that a client sent; None if it sent a latent."""
    if frame.image is not None:
        return decode_image(frame.image, MAX_SHOWN_PIXELS, "image")
    if frame.pixels is not None:
        return np.asarray(frame.pixels)
    return None


def picture_of_frame(frame: Frame, latent: Tensor | None, parts: ViewingParts | None) -> str | None:
    """The picture of a frame: as it was sent, else as the decoder shows its latent (D,)."""
    picture = sent_picture(frame)
    if picture is None and latent is not None and parts is not None and parts.decoder is not None:
        picture = parts.decoder.pictures(latent.unsqueeze(0))[0].numpy()
    return None if picture is None else data_url(picture)


def imagined(
    latents: Tensor, parts: ViewingParts | None, known: Iterable[KnownFrame]
) -> tuple[list[str], Shower] | None:
    """Pictures of predicted latents (T, D), and what they were made by; None if nothing can."""
    if parts is not None and parts.decoder is not None:
        pictures = parts.decoder.pictures(latents).numpy()
        return [data_url(picture) for picture in pictures], "decoder"
    candidates = [item for item in known if item.frame.latent is None]
    if not candidates:
        return None
    distances = torch.cdist(latents, torch.stack([item.latent for item in candidates]))
    urls: dict[int, str] = {}
    for index in distances.argmin(dim=1).tolist():
        if index not in urls:
            picture = sent_picture(candidates[index].frame)
            assert picture is not None  # latents were left out
            urls[index] = data_url(picture)
    return [urls[index] for index in distances.argmin(dim=1).tolist()], "nearest"
