"""Images to frames: decoded, checked or cropped, and resized to what the model sees.

Greyscale, palette, 16-bit and CMYK images become RGB. 16-bit values are reduced to their upper 8
bits. An alpha channel is dropped. An EXIF orientation is not applied, because the model sees what
the sensor wrote.

simplejpeg decodes ordinary JPEG images. It gives the same pixels as Pillow in half the time, and
reports damage that Pillow does not. Pillow decodes everything else.
"""

from __future__ import annotations

import io
import math
import re
import struct
import warnings
import zlib
from collections.abc import Sequence
from typing import NamedTuple, cast

import numpy as np
import simplejpeg
import torch
from numpy.typing import NDArray
from PIL import Image, PngImagePlugin
from torch import Tensor

from lewm_models.card import ModelCard
from lewm_models.preprocessing import CROPS, resize, to_model_frames
from lewm_serve.errors import InvalidRequest, Unquoted

Pixels = NDArray[np.uint8]
"""An image (height, width, 3), RGB."""

PNG_MAGIC = b"\x89PNG\r\n\x1a\n"
JPEG_MAGIC = b"\xff\xd8\xff"
JPEG_START_OF_SCAN = b"\xff\xda"

PNG_SIZE = slice(16, 24)
"""Where a PNG file has its width and height."""

MAX_JPEG_SCANS = 32
"""A progressive JPEG has about ten scans. Each scan costs a pass over all pixels."""

MIN_IMAGE_PIXELS = 1 << 14
"""Opening an image costs as much as decoding this many pixels."""

JPEG_END_OF_IMAGE = b"\xff\xd9"

JPEG_DAMAGE = ("Corrupt JPEG data", "Premature end of JPEG file", "Inconsistent progression")
"""How messages of libjpeg begin if the pixels cannot be trusted."""

JPEG_PADDING = re.compile(r"(\d+) extraneous bytes before marker 0xd9")
JPEG_BAD_PROFILE = "Corrupt JPEG data: bad ICC marker"

PNG_CHUNK_BYTES = 12
"""The bytes of a chunk beside its data: length, type and CRC."""

PNG_ANCILLARY_BIT = 0x20
"""Set in the first byte of a chunk's type if the pixels do not depend on it."""

MAX_PNG_CHUNKS = 1 << 16

MAX_PNG_TEXT_BYTES = 1 << 20

SQUARE_FRAME = (
    'a square frame: crop or pad it, or set "crop" in the model\'s card to '
    + " or ".join(f'"{crop}"' for crop in CROPS)
)

SMALL_IMAGE_PIXELS = 256 * 256
SMALL_IMAGE_BYTES = 64 * 1024
"""A JPEG of one scan within these limits is small: its decoding takes less than half a
millisecond."""

SMALL_BATCH_FRAMES = 4
"""This many small frames (a history of three and a goal) are decoded on the event loop. Together
they take less time than waking a thread on busy cores."""

# Turn off Pillow's limit of pixels: the server checks its own limit for every image.
Image.MAX_IMAGE_PIXELS = None
PngImagePlugin.MAX_TEXT_MEMORY = MAX_PNG_TEXT_BYTES
warnings.filterwarnings("ignore", module=r"PIL\.")


class DecodeWork(NamedTuple):
    """What it costs to decode an image: pixels × scans, and a format with a cost per pixel."""

    image_format: str
    pixels: int


def image_work(data: bytes, *, count_scans: bool) -> DecodeWork:
    """The work to decode an image, as its head announces it. 0 pixels if it is not an image.

    Counting scans reads the whole image, which takes a millisecond per megabyte. Without
    ``count_scans``, large images count as if they had one scan.
    """
    if data.startswith(JPEG_MAGIC):
        try:
            height, width, _, _ = simplejpeg.decode_jpeg_header(data)
        except ValueError:
            return DecodeWork("jpeg", 0)
        scans = 1
        if count_scans or len(data) <= SMALL_IMAGE_BYTES:
            scans = max(1, data.count(JPEG_START_OF_SCAN))
        image_format = "jpeg" if scans == 1 else "jpeg of several scans"
        return DecodeWork(image_format, max(MIN_IMAGE_PIXELS, height * width * scans))
    if data.startswith(PNG_MAGIC) and len(data) >= PNG_SIZE.stop:
        width, height = struct.unpack(">II", data[PNG_SIZE])
        return DecodeWork("png", max(MIN_IMAGE_PIXELS, height * width))
    return DecodeWork("unknown", 0)


def frame_from_image(data: bytes, card: ModelCard, *, max_pixels: int, field: str) -> Tensor:
    """An encoded image as a frame (size, size, 3) uint8 of the model's image size.

    Raises:
        InvalidRequest: see `decode_image` and `frame_from_pixels`; ``field`` is its path.
    """
    pixels = decode_image(data, max_pixels, field)
    return frame_from_pixels(pixels, card, max_pixels=max_pixels, field=field)


def frame_from_pixels(pixels: Pixels, card: ModelCard, *, max_pixels: int, field: str) -> Tensor:
    """Pixels (height, width, 3) as a frame (size, size, 3) uint8 of the model's image size.

    Raises:
        InvalidRequest: `image_too_large`; or `not_square`, if the card has no crop.
    """
    height, width = pixels.shape[:2]
    if height * width > max_pixels:
        raise InvalidRequest(
            "image_too_large",
            field,
            received=Unquoted(f"{width} x {height}"),
            expected=f"at most {max_pixels} pixels",
        )
    if height != width and card.crop is None:
        received = Unquoted(f"{width} x {height}")
        raise InvalidRequest("not_square", field, received=received, expected=SQUARE_FRAME)
    # Received bytes are read-only. torch cannot express that and would warn.
    frame = torch.from_numpy(np.require(pixels, requirements=["C", "W"]))
    return to_model_frames(frame.unsqueeze(0), card.config.image_size, card.crop)[0]


def decode_image(data: bytes, max_pixels: int, field: str) -> Pixels:
    """The pixels (height, width, 3) of a PNG or JPEG image.

    Raises:
        InvalidRequest: `invalid_image` for other formats and damaged data; `image_too_large` if the
            header announces more than ``max_pixels`` pixels, before the pixels are allocated.
    """
    if data.startswith(JPEG_MAGIC):
        if data.count(JPEG_START_OF_SCAN) > MAX_JPEG_SCANS:
            expected = f"a JPEG image of at most {MAX_JPEG_SCANS} scans"
            raise InvalidRequest("invalid_image", field, received=data, expected=expected)
        height, width, colour_space = _jpeg_header(data)
        if 0 < height * width <= max_pixels:
            layout = "CMYK" if colour_space in ("CMYK", "YCCK") else "RGB"
            try:
                pixels = simplejpeg.decode_jpeg(data, layout)
            except ValueError as error:
                if _is_damage(str(error), data):
                    expected = f"an undamaged PNG or JPEG image ({error})"
                    raise InvalidRequest(
                        "invalid_image", field, received=data, expected=expected
                    ) from None
            else:
                if colour_space in ("YCbCr", "Gray"):  # in others, Pillow's pixels differ
                    return cast(Pixels, pixels)
    elif not data.startswith(PNG_MAGIC):
        raise InvalidRequest("invalid_image", field, received=data, expected="a PNG or JPEG image")
    elif not _has_valid_checksums(data):
        expected = "an undamaged PNG or JPEG image (a checksum of PNG is wrong)"
        raise InvalidRequest("invalid_image", field, received=data, expected=expected)
    return _decode_with_pillow(data, max_pixels, field)


def _has_valid_checksums(png: bytes) -> bool:
    """Whether the CRC of every chunk that matters is right, which Pillow does not check.

    A file that ends too early is left to Pillow.
    """
    view, position = memoryview(png), len(PNG_MAGIC)
    for _ in range(MAX_PNG_CHUNKS):
        if position + PNG_CHUNK_BYTES > len(png):
            return True
        length = int.from_bytes(view[position : position + 4], "big")
        end = position + PNG_CHUNK_BYTES + length
        is_critical = not png[position + 4] & PNG_ANCILLARY_BIT
        checksum = int.from_bytes(view[end - 4 : end], "big")
        if end > len(png):
            return True
        if is_critical and zlib.crc32(view[position + 4 : end - 4]) != checksum:
            return False
        position = end
    return False


def small_jpeg_shape(data: bytes) -> tuple[int, int] | None:
    """Height and width of a small JPEG image of one scan; None for any other image."""
    if len(data) > SMALL_IMAGE_BYTES or not data.startswith(JPEG_MAGIC):
        return None
    height, width, colour_space = _jpeg_header(data)
    is_small = (
        colour_space in ("YCbCr", "Gray")
        and 0 < height * width <= SMALL_IMAGE_PIXELS
        and data.count(JPEG_START_OF_SCAN) == 1
    )
    return (height, width) if is_small else None


class SmallFrameDecoder:
    """Decodes a few small JPEG images into memory that it keeps, and resizes them together.

    This memory stays in the processor's caches, and most of the fixed costs arise once for all
    frames. Used only from one thread.
    """

    def __init__(self, max_pixels: int) -> None:
        self._max_pixels = max_pixels
        self._memory = np.empty(3 * SMALL_IMAGE_PIXELS * SMALL_BATCH_FRAMES, np.uint8)

    def decode(self, images: Sequence[bytes | None], size: int) -> Tensor | None:
        """Frames (N, size, size, 3) uint8.

        None if the images have to be decoded one by one: if there are too many, if they are not
        all small, square and of one size, or if one is damaged.
        """
        if len(images) > SMALL_BATCH_FRAMES:
            return None
        shapes = {small_jpeg_shape(image) if image is not None else None for image in images}
        if len(shapes) != 1:
            return None
        shape = shapes.pop()
        if shape is None or shape[0] != shape[1] or shape[0] ** 2 > self._max_pixels:
            return None
        batch_shape = (len(images), *shape, 3)
        pixels = self._memory[: math.prod(batch_shape)].reshape(batch_shape)
        try:
            for image, frame_pixels in zip(images, pixels, strict=True):
                assert image is not None  # it has a shape
                simplejpeg.decode_jpeg(image, buffer=frame_pixels)
        except ValueError:
            return None
        frames = torch.from_numpy(pixels)
        # A copy, because the memory is used again.
        return resize(frames, size) if shape[0] != size else frames.clone()


def _jpeg_header(data: bytes) -> tuple[int, int, str]:
    """Height, width and colour space of a JPEG image; 0, 0 and "" if simplejpeg cannot tell."""
    try:
        height, width, colour_space, _ = simplejpeg.decode_jpeg_header(data)
    except ValueError:
        return 0, 0, ""
    return height, width, colour_space


def _is_damage(message: str, data: bytes) -> bool:
    """Whether simplejpeg's message about a JPEG image means that its pixels are wrong.

    Some cameras fill up the data with zeros before the end of the image. That is no damage, nor is
    a broken colour profile, which is not used.
    """
    if not message.startswith(JPEG_DAMAGE) or message.startswith(JPEG_BAD_PROFILE):
        return False
    padding = JPEG_PADDING.search(message)
    if padding is None:
        return True
    count, end = int(padding[1]), data.rfind(JPEG_END_OF_IMAGE)
    return end < count or data[end - count : end] != bytes(count)


def _decode_with_pillow(data: bytes, max_pixels: int, field: str) -> Pixels:
    try:
        with Image.open(io.BytesIO(data), formats=["PNG", "JPEG"]) as image:
            width, height = image.size
            if width * height > max_pixels:
                raise InvalidRequest(
                    "image_too_large",
                    field,
                    received=Unquoted(f"{width} x {height} pixels"),
                    expected=f"at most {max_pixels} pixels",
                )
            return _to_rgb(image)
    except InvalidRequest:
        raise
    except Exception as error:
        # Decoders fail on damaged data in more ways than they document.
        reason = type(error).__name__
        expected = f"an undamaged PNG or JPEG image ({reason} while decoding)"
        raise InvalidRequest("invalid_image", field, received=data, expected=expected) from None


def _to_rgb(image: Image.Image) -> Pixels:
    image.load()
    if image.mode.startswith("I"):
        grey = (np.asarray(image).astype(np.uint32) >> 8).clip(0, 255).astype(np.uint8)
        return np.repeat(grey[:, :, None], 3, axis=2)
    if image.mode == "P":
        image = image.convert("RGBA")
    return cast(Pixels, np.asarray(image.convert("RGB")))
