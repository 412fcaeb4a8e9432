"""From a request's bytes to a JSON document, never holding more than the limit."""

import asyncio

from pydantic_core import from_json
from starlette.requests import Request

from lewm_serve.errors import (
    BodyTooLarge,
    MalformedJson,
    Overloaded,
    RequestTimeout,
    UnsupportedMediaType,
    shorten,
)
from lewm_serve.held import HeldRequest

# Small values take 30 times their bytes once parsed; larger arrays belong on gRPC.
MAX_VALUES = 300_000
DISCARD_FACTOR = 8
DISCARD_S = 5.0


async def read_body(request: Request, limit: int, receive_s: float, held: HeldRequest) -> bytearray:
    """The whole body, its bytes counted in `held`.

    Raises:
        UnsupportedMediaType: it is not declared as JSON.
        BodyTooLarge: it has more than `limit` bytes.
        RequestTimeout: it takes longer than `receive_s` seconds to arrive.
        Overloaded: the server holds too many bytes already.
    """
    _check_media_type(request)
    announced = request.headers.get("content-length", "0")
    if int(announced) > limit:
        if "expect" not in request.headers:  # else the client waits and sends nothing
            await _discard(request, limit)
        raise BodyTooLarge(f"body: received {announced} bytes, expected at most {limit}")
    body = bytearray()
    try:
        async with asyncio.timeout(receive_s):
            async for chunk in request.stream():
                held.add(len(chunk))
                body += chunk
                if len(body) > limit:
                    detail = f"body: received more than the {limit} bytes expected at most"
                    raise BodyTooLarge(detail)
    except (BodyTooLarge, Overloaded):
        await _discard(request, limit)
        raise
    except TimeoutError:
        detail = f"body: received {len(body)} bytes in {receive_s:g} s, expected all of it"
        raise RequestTimeout(detail) from None
    return body


def parse_json(body: bytearray) -> object:
    """The document in a body; `MalformedJson`, or `BodyTooLarge` for too many values."""
    if body.count(b",") >= MAX_VALUES:
        raise BodyTooLarge(
            f"body: received more than the {MAX_VALUES} values expected at most; "
            "use gRPC for large arrays"
        )
    try:
        return from_json(body)
    except ValueError as error:
        raise MalformedJson(f"body: {error}") from None


def _check_media_type(request: Request) -> None:
    received = request.headers.get("content-type", "")
    if received.partition(";")[0].strip().lower() != "application/json":
        raise UnsupportedMediaType(
            f"content-type: received {shorten(received)}, expected application/json"
        )
    encoding = request.headers.get("content-encoding", "identity")
    if encoding.strip().lower() != "identity":
        raise UnsupportedMediaType(
            f"content-encoding: received {shorten(encoding)}, expected no encoding"
        )


async def _discard(request: Request, limit: int) -> None:
    """Let a client finish sending what is refused, within reason.

    Closing at once would reset the connection under it before it could read the answer.
    """
    received = 0
    try:
        async with asyncio.timeout(DISCARD_S):
            while received < DISCARD_FACTOR * limit:
                message = await request.receive()
                received += len(message.get("body", b""))
                if not message.get("more_body", False):
                    return
    except TimeoutError:
        return
