"""What stands between clients and the application: path prefixes, proxies, and other web pages."""

from __future__ import annotations

from collections.abc import Collection

from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

from lewm_serve.errors import UnknownRoute, shorten
from lewm_serve.settings import Settings
from lewm_serve.transports.http.problems import problem_response

CORS_REQUEST_HEADERS = (
    "Api-Key",
    "Authorization",
    "Content-Encoding",
    "Content-Type",
    "Lewm-Robot",
    "X-Request-ID",
    "traceparent",
)
CORS_ANSWER_HEADERS = ("Retry-After", "X-Request-ID")

MONITORING_PATHS = ("/healthz", "/readyz", "/metrics")
"""What the port of `LEWM_METRICS_PORT` has."""


def allow_web_pages(app: ASGIApp, settings: Settings) -> ASGIApp:
    """The application for web pages of other origins too, if the settings name some.

    Browsers ask without a key whether they may send one, so this comes before the check of keys.
    """
    if not settings.cors_origins:
        return app
    return CORSMiddleware(
        app,
        allow_origins=settings.cors_origins,
        allow_methods=("GET", "POST"),
        allow_headers=CORS_REQUEST_HEADERS,
        expose_headers=CORS_ANSWER_HEADERS,
    )


def behind_proxies(app: ASGIApp, settings: Settings) -> ASGIApp:
    """The application as it is to be called: with a path prefix, and through trusted proxies."""
    if settings.root_path:
        app = _WithoutPrefix(app, settings.root_path)
    if settings.trusted_proxies:
        app = ProxyHeadersMiddleware(  # type: ignore[assignment]
            app,  # type: ignore[arg-type]
            list(settings.trusted_proxies),
        )
    return app


class SelectPaths:
    """Answers paths as unknown, either all but some or only some.

    Args:
        app: answers the others.
        paths: the paths.
        only: whether these are the paths that there are, or those that there are not.
    """

    def __init__(self, app: ASGIApp, paths: Collection[str], *, only: bool) -> None:
        self._app, self._paths, self._only = app, paths, only

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope["path"]
        if (path in self._paths) == self._only:
            await self._app(scope, receive, send)
        else:
            error = UnknownRoute(f"there is no {shorten(path)}")
            await problem_response(Request(scope), error)(scope, receive, send)


class _WithoutPrefix:
    """Removes the prefix from paths that have it. Some proxies remove it themselves."""

    def __init__(self, app: ASGIApp, prefix: str) -> None:
        self._app, self._prefix = app, prefix

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path: str = scope.get("path", "")
        if path.startswith(self._prefix + "/"):
            scope = {**scope, "path": path[len(self._prefix) :]}
            scope["raw_path"] = scope["raw_path"].removeprefix(self._prefix.encode())
        await self._app(scope, receive, send)
