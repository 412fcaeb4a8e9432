"""How the console's pages send requests, and how they are answered."""

from __future__ import annotations

from typing import Any, TypeVar

import orjson
from starlette.requests import Request
from starlette.responses import Response

from lewm_serve.api.fields import RequestModel, parse
from lewm_serve.constants import JSON_MEDIA_TYPE
from lewm_serve.errors import Forbidden
from lewm_serve.transports.exchange import RequestMemory, exchange_of
from lewm_serve.transports.http.bodies import parse_json, read_body

PAGE_HEADER = "lewm-console"
"""What the console's pages send with every request that changes something. A page of another site
cannot: browsers ask first whether it may, and the server never allows it."""

MAX_BODY_BYTES, BODY_TIMEOUT_S = 16_384, 10.0

NO_STORE = {"Cache-Control": "no-store"}

RequestT = TypeVar("RequestT", bound=RequestModel)


def check_page(request: Request) -> None:
    """Refuse what a page of another site sends.

    Raises:
        Forbidden: the header of the console's pages is missing.
    """
    if PAGE_HEADER not in request.headers:
        raise Forbidden(f"{PAGE_HEADER}: received no such header, expected that of the console")


async def read_document(
    request: Request, request_type: type[RequestT], memory: RequestMemory
) -> RequestT:
    """The body of a request.

    Raises:
        ServiceError: it cannot be read, or a field is wrong.
    """
    with memory.reserve() as reservation:
        body = await read_body(
            request, limit=MAX_BODY_BYTES, timeout_s=BODY_TIMEOUT_S, memory=reservation
        )
    exchange_of(request.scope).mark_received()
    return parse(request_type, parse_json(body))


def answer(document: Any) -> Response:
    """A JSON document that no cache keeps."""
    content = document if isinstance(document, bytes) else orjson.dumps(document)
    return Response(content, media_type=JSON_MEDIA_TYPE, headers=NO_STORE)
