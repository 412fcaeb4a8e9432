"""Which roles each path needs, and the check of the key before a request goes on."""

from __future__ import annotations

import base64
import binascii
from dataclasses import replace

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from lewm_serve.access.keys import ADMIN, INFER, READ, Keys, client_of, key_in_header
from lewm_serve.access.keys_file import Role
from lewm_serve.constants import INFERENCE_ENDPOINTS
from lewm_serve.errors import ServiceError
from lewm_serve.transports.exchange import exchange_of
from lewm_serve.transports.http import docs
from lewm_serve.transports.http.problems import READING_METHODS, problem_response

OPEN_PATHS = ("/healthz", "/readyz")
"""The only paths that need no key."""

ROLES_OF_PATHS: dict[str, frozenset[Role]] = {
    **{f"/{endpoint}": INFER for endpoint in INFERENCE_ENDPOINTS},
    "/models": INFER | READ,
    "/metrics": READ,
    "/openapi.json": READ,
    docs.DOCS_PATH: READ,
    "/admin": ADMIN,
}
"""Any of these roles opens the path and those below it."""


def roles_of_path(path: str) -> frozenset[Role] | None:
    """The roles that open a path. None: there is no such path.

    A path that is not listed here is refused, so that a new route cannot be open by mistake.
    """
    path = path.removeprefix("/v1")
    first_part = "/" + path.removeprefix("/").partition("/")[0]
    return ROLES_OF_PATHS.get(first_part)


class KeyMiddleware:
    """Answers requests without a key that opens their path. Passes on the others."""

    def __init__(self, app: ASGIApp, keys: Keys) -> None:
        self._app = app
        self._keys = keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope["path"]
        if path in OPEN_PATHS:
            await self._app(scope, receive, send)
            return
        request = Request(scope)
        exchange = exchange_of(scope)
        exchange.awaits_body = scope["method"] not in READING_METHODS
        try:
            key = await self._keys.start(presented_key(scope), roles_of_path(path), path)
        except ServiceError as error:
            await problem_response(request, error)(scope, receive, send)
            return
        exchange.context = replace(exchange.context, client=client_of(key), key=key.name)
        try:
            await self._app(scope, receive, send)
        finally:
            key.finish()


def presented_key(scope: Scope) -> str | None:
    """The key in `Authorization` or `Api-Key`, or None."""
    headers = Headers(scope=scope)
    authorization = headers.get("authorization")
    if authorization is None:
        return headers.get("api-key")
    if authorization[:6].lower() == "basic " and scope["method"] in READING_METHODS:
        return _password(authorization[6:])
    return key_in_header(authorization)


def _password(credentials: str) -> str | None:
    """The password of Basic (RFC 7617). The user's name does not matter."""
    try:
        user_and_password = base64.b64decode(credentials.strip(), validate=True).decode("ascii")
    except (binascii.Error, UnicodeDecodeError):
        return None
    return user_and_password.partition(":")[2]
