"""Request bodies to JSON documents, and responses to JSON bodies.

FastAPI could read bodies and write responses too. But it would accept a body of any size, wait for
it without a limit, and take several times longer to write arrays.
"""

from __future__ import annotations

import asyncio
import base64
import codecs
import re
import zlib
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

import numpy as np
import orjson
from pydantic_core import from_json
from starlette.requests import Request
from starlette.responses import Response as HttpResponse
from starlette.types import Receive, Scope, Send

from lewm_serve.api.responses import EncodeResponse, PlanResponse, PredictResponse
from lewm_serve.constants import JSON_MEDIA_TYPE
from lewm_serve.errors import (
    BodyTooLarge,
    MalformedJson,
    RequestTimeout,
    UnsupportedMediaType,
    shorten,
)
from lewm_serve.transports.exchange import MemoryReservation, RequestMemory, Response

BINARY_MEDIA_TYPE = "application/octet-stream"

JSON_BYTES_PER_VALUE = 12
"""The approximate size of a float32 in JSON."""

MAX_JSON_VALUES = 300_000
"""A parsed number takes up to 30 times the bytes of its text. Larger arrays belong on gRPC."""

LONE_SURROGATE = re.compile(
    r"\\u[dD][89abAB][0-9a-fA-F]{2}(?!\\u[dD][c-fC-F])"
    r"|(?<!\\u[dD][89abAB][0-9a-fA-F]{2})\\u[dD][c-fC-F][0-9a-fA-F]{2}"
)
"""An escape of UTF-16's first half of a character without the second half, or the reverse."""

GZIP_MAGIC = b"\x1f\x8b"
GZIP_WINDOW_BITS = 31
"""Of zlib: only gzip, with the largest window."""

GZIP_PIECE_BYTES = 128 * 1024
"""The most bytes that are decompressed at once. It takes a fraction of a millisecond."""


async def read_body(
    request: Request,
    *,
    limit: int,
    timeout_s: float,
    memory: MemoryReservation,
    media_types: Sequence[str] = (JSON_MEDIA_TYPE,),
) -> bytearray:
    """The whole body. Its bytes are counted in ``memory``.

    Raises:
        UnsupportedMediaType: it is not declared as one of the media types (an empty one stands for
            no declaration), or has an encoding other than gzip.
        BodyTooLarge: it has more than ``limit`` bytes, before or after it is decompressed.
        MalformedJson: it is declared as gzip, and is not.
        RequestTimeout: it does not arrive within ``timeout_s`` seconds.
        Overloaded: the server holds too many bytes already.
    """
    is_gzip = _check_media_type(request, media_types)
    announced = request.headers.get("content-length", "0")
    if int(announced) > limit:
        raise BodyTooLarge(f"body: received {announced} bytes, expected at most {limit}")
    body = bytearray()
    try:
        async with asyncio.timeout(timeout_s):
            chunks = request.stream()
            async for chunk in _decompressed(chunks) if is_gzip else chunks:
                memory.add(len(chunk))
                body += chunk
                if len(body) > limit:
                    raise BodyTooLarge(f"body: received more than {limit} bytes, the maximum")
    except TimeoutError:
        detail = f"body: received {len(body)} bytes in {timeout_s:g} s, expected the whole body"
        raise RequestTimeout(detail) from None
    return body


async def _decompressed(chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """The content of gzip data, in small pieces. Others have their turns between them.

    Raises:
        MalformedJson: it is not gzip, or does not end.
    """
    decompressor = zlib.decompressobj(GZIP_WINDOW_BITS)
    async for chunk in chunks:
        while chunk:
            try:
                yield decompressor.decompress(chunk, GZIP_PIECE_BYTES)
            except zlib.error:
                detail = "body: received bytes that are not gzip, which content-encoding declares"
                raise MalformedJson(detail) from None
            if decompressor.unused_data:
                raise MalformedJson("body: received bytes after the end of the gzip data")
            chunk = decompressor.unconsumed_tail
            await asyncio.sleep(0)
    if not decompressor.eof:
        raise MalformedJson("body: received gzip data without its end")


async def disconnected(request: Request) -> None:
    """Wait until the client disconnects."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def parse_json(body: bytearray) -> object:
    """The document in a body. A UTF-8 byte order mark before it is skipped (RFC 8259, section 8.1).

    Raises:
        MalformedJson: it is not JSON in UTF-8.
        BodyTooLarge: it has too many values.
    """
    if body.count(b",") >= MAX_JSON_VALUES:
        raise BodyTooLarge(
            f"body: received more than {MAX_JSON_VALUES} values, the maximum; "
            "use gRPC for large arrays"
        )
    if body.startswith(codecs.BOM_UTF8):
        del body[: len(codecs.BOM_UTF8)]
    try:
        return from_json(body)
    except ValueError as error:
        raise MalformedJson(f"body: {_reason_not_json(body, error)}") from None


def _reason_not_json(body: bytearray, error: ValueError) -> str:
    """Why a body is not JSON: what it is instead, or else the parser's own reason."""
    if not body.strip():
        return "received nothing, expected a JSON object"
    if body.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE, codecs.BOM_UTF32_BE)) or (
        0 in body[:2]  # JSON begins with an ASCII character, of which UTF-16 and UTF-32 make zeros
    ):
        return "received UTF-16, UTF-32 or binary data, expected JSON in UTF-8"
    if body.startswith(GZIP_MAGIC):
        return "received gzip data, expected JSON, or content-encoding: gzip"
    try:
        text = body.decode()
    except UnicodeDecodeError as not_utf8:
        return f"received a byte that is not UTF-8 at {not_utf8.start}, expected JSON in UTF-8"
    if "recursion limit" in str(error):
        return f"received lists or objects that are nested too deeply ({error})"
    if "hex escape" in str(error) and (half := LONE_SURROGATE.search(text)):
        return f"received {half[0]}, which is half of a character ({error})"
    return str(error)


def response_to_json(response: Response, latent_encoding: str) -> bytes:
    """A response as JSON, its fields in their order.

    ``latent_encoding`` is that of encoded latents: "float" (lists of numbers) or "base64".
    """
    document = dict(vars(response))
    if isinstance(response, EncodeResponse) and latent_encoding == "base64":
        document["latents"] = [
            vars(item) | {"latent": _to_base64(item.latent)} for item in response.latents
        ]
    if isinstance(response, PlanResponse):
        if response.trajectory is None:
            del document["trajectory"]
        if response.states is None:
            del document["states"], document["violations"]
    # orjson passes arrays that are not C-contiguous to `tolist`, which is slower.
    return orjson.dumps(document, np.ndarray.tolist, orjson.OPT_SERIALIZE_NUMPY)


def count_values(response: Response) -> int:
    """The number of values in the arrays of a response."""
    match response:
        case EncodeResponse():
            return sum(item.latent.size for item in response.latents)
        case PredictResponse():
            return response.latents.size
        case PlanResponse():
            trajectory = response.trajectory
            return response.actions.size + (0 if trajectory is None else trajectory.size)


class LargeResponse(HttpResponse):
    """An answer whose bytes count as held by the server until the client has read most of them."""

    def __init__(
        self,
        content: bytes,
        memory: RequestMemory,
        *,
        media_type: str = JSON_MEDIA_TYPE,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(content, media_type=media_type, headers=headers)
        self._memory = memory

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the answer.

        Raises:
            Overloaded: the server holds too many bytes already.
        """
        with self._memory.reserve() as reservation:
            reservation.add(len(self.body))
            head = {"status": self.status_code, "headers": self.raw_headers}
            await send({"type": "http.response.start", **head})
            await send({"type": "http.response.body", "body": self.body, "more_body": True})
            # Waits until the client has read what was sent before.
            await send({"type": "http.response.body", "body": b"", "more_body": False})


def _to_base64(latent: np.ndarray[Any, Any]) -> str:
    return base64.b64encode(latent.astype("<f4").tobytes()).decode("ascii")


def _check_media_type(request: Request, media_types: Sequence[str]) -> bool:
    """Whether the body is gzip data.

    Raises:
        UnsupportedMediaType: it is of none of the media types, or compressed otherwise.
    """
    received = request.headers.get("content-type", "")
    if received.partition(";")[0].strip().lower() not in media_types:
        expected = " or ".join(filter(None, media_types))
        raise UnsupportedMediaType(
            f"content-type: received {shorten(received)}, expected {expected}"
        )
    encoding = request.headers.get("content-encoding", "identity").strip().lower()
    if encoding not in ("identity", "gzip"):
        raise UnsupportedMediaType(
            f"content-encoding: received {shorten(encoding)}, expected gzip or no encoding"
        )
    return encoding == "gzip"
