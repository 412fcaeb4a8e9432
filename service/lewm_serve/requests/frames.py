"""A frame: an encoded image, raw pixels, a latent, or the name of a latent seen before."""

import binascii
import math
from typing import Annotated, Any, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import (
    BeforeValidator,
    Field,
    GetPydanticSchema,
    PlainValidator,
    StrictInt,
    WithJsonSchema,
    model_validator,
)
from pydantic_core import core_schema

from lewm_serve.errors import shorten
from lewm_serve.requests.arrays import FloatArray, Vector, refusal
from lewm_serve.requests.base import RequestModel

LATENT_LIMIT = 1e4  # trained latents are near N(0, 1); beyond this a roll-out overflows

SOURCES = ("image", "pixels", "latent", "latent_id")


def _decode_base64(value: object) -> bytes:
    """Bytes as they are (gRPC), or from strict base64 (JSON)."""
    if isinstance(value, bytes):
        return value
    if not isinstance(value, str):
        raise refusal("wrong_type", "a base64 string")
    try:
        return binascii.a2b_base64(value.encode("ascii"), strict_mode=True)
    except ValueError:
        raise refusal("invalid_image", "base64 with padding and without line breaks") from None


def _not_empty(data: bytes) -> bytes:
    if not data:
        raise refusal("invalid_image", "a PNG or JPEG image", "nothing")
    return data


def _base64_schema(description: str) -> WithJsonSchema:
    schema = {"type": "string", "format": "byte", "contentEncoding": "base64"}
    return WithJsonSchema(schema | {"description": description})


EncodedImage = Annotated[
    bytes,
    PlainValidator(lambda value: _not_empty(_decode_base64(value))),
    _base64_schema("base64 of a PNG or JPEG image, square"),
]
RawBytes = Annotated[
    bytes,
    PlainValidator(_decode_base64),
    _base64_schema("base64 of height × width × 3 bytes, row-major RGB"),
]


def _list_shape(value: object) -> object:
    if isinstance(value, list | tuple) and len(value) != 3:
        raise refusal("shape_mismatch", "[height, width, 3]")
    return value


class Pixels(RequestModel):
    """Raw pixels: `data` holds height × width × 3 unsigned bytes, row-major RGB."""

    data: RawBytes
    shape: Annotated[
        tuple[StrictInt, StrictInt, StrictInt],
        BeforeValidator(_list_shape),
        Field(description="[height, width, 3]", examples=[[64, 64, 3]]),
    ]


def _to_pixels(pixels: Pixels) -> NDArray[np.uint8]:
    """The array (H, W, 3) over the received bytes, without a copy."""
    height, width, channels = pixels.shape
    if height < 1 or width < 1 or channels != 3:
        received = shorten(pixels.shape)
        raise refusal("shape_mismatch", "[height, width, 3], all positive", received, ".shape")
    size = math.prod(pixels.shape)
    if len(pixels.data) != size:
        expected = f"{shorten(size)} bytes, height × width × 3"
        raise refusal("shape_mismatch", expected, f"{len(pixels.data)} bytes", ".data")
    return np.frombuffer(pixels.data, dtype=np.uint8).reshape(pixels.shape)


def _pixels_schema(_source: Any, handler: Any) -> core_schema.CoreSchema:
    return core_schema.no_info_after_validator_function(_to_pixels, handler(Pixels))


PixelArray = Annotated[NDArray[np.uint8], GetPydanticSchema(_pixels_schema)]


class Frame(RequestModel):
    """One frame: exactly one of its four sources is given.

    After validation `image` is still encoded, `pixels` is (H, W, 3) uint8 and `latent` is
    (latent_dim,) float32.
    """

    image: EncodedImage | None = None
    pixels: PixelArray | None = None
    latent: Vector | None = None
    latent_id: Annotated[
        str | None,
        Field(
            strict=True,
            min_length=1,
            max_length=128,
            description="the `latent_id` of an earlier response, while it is in the cache",
        ),
    ] = None

    @property
    def source(self) -> str:
        """Which of the four is given."""
        return next(name for name in SOURCES if getattr(self, name) is not None)

    @model_validator(mode="after")
    def _exactly_one_source(self) -> Self:
        given = [name for name in SOURCES if getattr(self, name) is not None]
        if not given:
            raise refusal("missing_field", f"one of {', '.join(SOURCES)}", "none of them")
        if len(given) > 1:
            expected = f"exactly one of {', '.join(SOURCES)}"
            raise refusal("conflicting_fields", expected, " and ".join(given))
        if self.latent is not None:
            _check_latent(self.latent)
        return self


def _check_latent(latent: FloatArray) -> None:
    largest = float(np.abs(latent).max())
    if largest > LATENT_LIMIT:
        expected = f"numbers within ±{LATENT_LIMIT:g}"
        raise refusal("out_of_range", expected, f"{largest:g}", ".latent")
