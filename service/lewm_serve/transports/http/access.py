"""Which roles each path needs, and the check of the key before a request goes on."""

from __future__ import annotations

import base64
import binascii
import re
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

OPEN_PATHS = ("/healthz", "/readyz", "/v2/health/live", "/v2/health/ready")
"""The only paths that need no key."""

CONSOLE_PATH = "/console"
SESSION_PATH = f"{CONSOLE_PATH}/session"
SESSION_COOKIE = "lewm-key"
"""Holds the key that a person has entered on the page."""

ROLES_OF_PATHS: dict[str, frozenset[Role]] = {
    "/": INFER | READ,
    CONSOLE_PATH: READ,
    **{f"/{endpoint}": INFER for endpoint in INFERENCE_ENDPOINTS},
    "/models": INFER | READ,
    "/metrics": READ,
    "/openapi.json": READ,
    docs.DOCS_PATH: READ,
    "/admin": ADMIN,
    "/v2": INFER | READ,
}
"""Any of these roles opens the path and those below it."""

INFER_PATH = re.compile("/v2/models/.*/infer")
"""Paths below `/v2` that do more than describe."""

KEY_OF_REQUEST = "lewm.key"
"""Where the scope of a request has the key that the client presented."""


def is_open(path: str) -> bool:
    """Whether a path needs no key: probes, and the page that asks for a key, with its files."""
    return (
        path in OPEN_PATHS
        or path in (CONSOLE_PATH, SESSION_PATH)
        or path.startswith(f"{CONSOLE_PATH}/static/")
    )


def roles_of_path(path: str, method: str = "GET") -> frozenset[Role] | None:
    """The roles that open a path. None: there is no such path.

    A path that is not listed here is refused, so that a new route cannot be open by mistake.
    """
    is_console = path.startswith(f"{CONSOLE_PATH}/")
    if INFER_PATH.fullmatch(path) or (is_console and method not in READING_METHODS):
        return INFER
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
        if is_open(path):
            await self._app(scope, receive, send)
            return
        request = Request(scope)
        exchange = exchange_of(scope)
        exchange.awaits_body = scope["method"] not in READING_METHODS
        is_websocket = exchange.context.protocol == "openpi"
        try:
            if is_websocket:  # its messages are the requests
                key = await self._keys.find(key_of_websocket(scope), INFER, path)
            else:
                roles = roles_of_path(path, scope["method"])
                key = await self._keys.start(presented_key(scope), roles, path)
        except ServiceError as error:
            await problem_response(request, error)(scope, receive, send)
            return
        scope[KEY_OF_REQUEST] = key
        exchange.context = replace(exchange.context, client=client_of(key), key=key.name)
        try:
            await self._app(scope, receive, send)
        finally:
            if not is_websocket:
                key.finish()


def presented_key(scope: Scope) -> str | None:
    """The key in `Authorization` or `Api-Key`, or None. The console has it in a cookie."""
    headers = Headers(scope=scope)
    if scope["path"].startswith(f"{CONSOLE_PATH}/"):
        cookies = Request(scope).cookies
        if SESSION_COOKIE in cookies:
            return cookies[SESSION_COOKIE]
    authorization = headers.get("authorization")
    if authorization is None:
        return headers.get("api-key")
    if authorization[:6].lower() == "basic " and scope["method"] in READING_METHODS:
        return _password(authorization[6:])
    return key_in_header(authorization)


def key_of_websocket(scope: Scope) -> str | None:
    """The key in `Authorization`, without that of a browser: its pages connect by themselves."""
    return key_in_header(Headers(scope=scope).get("authorization"))


def _password(credentials: str) -> str | None:
    """The password of Basic (RFC 7617). The user's name does not matter."""
    try:
        user_and_password = base64.b64decode(credentials.strip(), validate=True).decode("ascii")
    except (binascii.Error, UnicodeDecodeError):
        return None
    return user_and_password.partition(":")[2]
