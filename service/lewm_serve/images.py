"""PNG and JPEG to pixels, bounded before anything is allocated.

Greyscale, palette, 16-bit and CMYK images become RGB (of 16 bits the upper 8 are kept), an alpha
channel is dropped, an EXIF orientation is not applied: a frame is what the sensor wrote.

Ordinary JPEG images are decoded by simplejpeg, which takes half of Pillow's time over the same
library and gives the same pixels. Pillow decodes everything else.
"""

import io
import warnings
from contextlib import suppress
from typing import cast

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image, PngImagePlugin

from lewm_serve.errors import InvalidRequest, Phrase

PNG_MAGIC = b"\x89PNG\r\n\x1a\n"
JPEG_MAGIC = b"\xff\xd8\xff"
START_OF_SCAN = b"\xff\xda"
QUICK_PIXELS = 256 * 256
QUICK_BYTES = 64 * 1024
MAX_SCANS = 100  # a progressive JPEG has about ten; each one costs a pass over all pixels

# The size is checked here against the server's own limit, for every image.
Image.MAX_IMAGE_PIXELS = None
PngImagePlugin.MAX_TEXT_MEMORY = 1 << 20
warnings.filterwarnings("ignore", module=r"PIL\.")


def decode_image(data: bytes, max_pixels: int, field: str) -> NDArray[np.uint8]:
    """The pixels (H, W, 3) of a PNG or JPEG image.

    Raises `InvalidRequest` naming `field`: `invalid_image` for other formats and for damaged or
    truncated data, `image_too_large` when the header announces more than `max_pixels` pixels.
    """
    if data.startswith(JPEG_MAGIC):
        if data.count(START_OF_SCAN) > MAX_SCANS:
            expected = f"a JPEG image of at most {MAX_SCANS} scans"
            raise InvalidRequest("invalid_image", field, data, expected)
        height, width = _colour_shape(data)
        if 0 < height * width <= max_pixels:
            with suppress(ValueError):
                return cast(NDArray[np.uint8], simplejpeg.decode_jpeg(data))
    elif not data.startswith(PNG_MAGIC):
        raise InvalidRequest("invalid_image", field, data, "a PNG or JPEG image")
    return _decode_slowly(data, max_pixels, field)


def quick_shape(data: bytes) -> tuple[int, int] | None:
    """Height and width of a small JPEG image of one scan, which is decoded in no time.

    None for any other image.
    """
    if len(data) > QUICK_BYTES or not data.startswith(JPEG_MAGIC):
        return None
    height, width = _colour_shape(data)
    quick = 0 < height * width <= QUICK_PIXELS and data.count(START_OF_SCAN) == 1
    return (height, width) if quick else None


def decode_into(data: bytes, pixels: NDArray[np.uint8]) -> None:
    """Decode an image with a `quick_shape` (H, W) into pixels (H, W, 3), C-contiguous.

    Raises:
        ValueError: it is damaged.
    """
    simplejpeg.decode_jpeg(data, buffer=pixels)


def _colour_shape(data: bytes) -> tuple[int, int]:
    """Height and width of a JPEG image in the usual colours; nothing for any other."""
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
    except ValueError:
        return 0, 0
    return (height, width) if colours == "YCbCr" else (0, 0)


def _decode_slowly(data: bytes, max_pixels: int, field: str) -> NDArray[np.uint8]:
    """Whatever the quick decoder does not take: Pillow reads it, or says what is wrong."""
    try:
        with Image.open(io.BytesIO(data), formats=["PNG", "JPEG"]) as image:
            width, height = image.size
            if width * height > max_pixels:
                raise InvalidRequest(
                    "image_too_large",
                    field,
                    Phrase(f"{width} x {height} pixels"),
                    f"at most {max_pixels} pixels",
                )
            return _to_rgb(image)
    except InvalidRequest:
        raise
    except Exception as error:
        # Decoders fail on hostile bytes in more ways than they document.
        reason = type(error).__name__
        expected = f"an undamaged PNG or JPEG image ({reason} while decoding)"
        raise InvalidRequest("invalid_image", field, data, expected) from None


def _to_rgb(image: Image.Image) -> NDArray[np.uint8]:
    image.load()
    if image.mode.startswith("I"):
        grey = (np.asarray(image).astype(np.uint32) >> 8).clip(0, 255).astype(np.uint8)
        return np.repeat(grey[:, :, None], 3, axis=2)
    if image.mode == "P":
        image = image.convert("RGBA")
    return cast(NDArray[np.uint8], np.asarray(image.convert("RGB")))
