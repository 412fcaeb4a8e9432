"""The route of administrators: `/admin/models/reload`.

With keys, `access` asks for one with the role `admin`. Without keys, whoever can send a request
could use the route. So it is there only if no other machine can reach the server, not for requests
that a proxy passes on, and not for web pages: a browser on this machine sends a request without a
body wherever any page says, and only keeps the answer from the page. A proxy is known by its
headers, or by a `Host` that is not this machine's.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from urllib.parse import urlsplit

from fastapi import APIRouter, Request
from starlette.datastructures import Headers

from lewm_serve.api.responses import ReloadReport
from lewm_serve.errors import (
    Draining,
    Failed,
    Forbidden,
    Loading,
    ReloadFailed,
    Restarting,
    UnknownRoute,
)
from lewm_serve.planner.planner import Planner
from lewm_serve.transports.addresses import are_loopback
from lewm_serve.transports.http.openapi import KEY_ERRORS, error_responses

RELOAD_PATH = "/admin/models/reload"

PROXY_HEADERS = ("forwarded", "via", "x-real-ip")
PROXY_HEADER_PREFIXES = ("x-forwarded-", "x-envoy-")


def admin_routes(
    planner: Planner, *, cors_origins: Collection[str], is_local: Callable[[], bool] | None
) -> APIRouter:
    """The route.

    Args:
        planner: whose models are read again.
        cors_origins: the origins of web pages that may call the server.
        is_local: says whether only this machine can reach the server. None: clients need keys.
    """
    router = APIRouter(tags=["admin"])

    @router.post(
        RELOAD_PATH,
        responses=error_responses(
            *KEY_ERRORS, UnknownRoute, ReloadFailed, Loading, Restarting, Draining, Failed
        ),
    )
    async def reload_models(http_request: Request) -> ReloadReport:
        """Read the model folders again, and serve what they hold.

        The answer comes when all new versions are loaded, warmed up and serve. Those that cannot be
        loaded change nothing: then the answer is an error with the same list. The role `admin` is
        needed. Without keys, the route exists only on a server that no other machine can reach.
        """
        if is_local is not None:
            if not is_local() or _comes_through_proxy(http_request.headers):
                raise UnknownRoute(f"there is no '{RELOAD_PATH}' here without keys")
            check_origin(http_request.headers, cors_origins)
        return await planner.reload_models()

    return router


def check_origin(headers: Headers, cors_origins: Collection[str]) -> None:
    """Refuse the requests of web pages that are neither the server's own nor in the settings.

    The server's own pages are those at the `Host` of the request, which is local.

    Raises:
        Forbidden: a browser sends the request for another page.
    """
    origin = headers.get("origin")
    if origin is None or origin in cors_origins:
        return
    if origin.partition("://")[2] == headers.get("host"):
        return
    raise Forbidden(
        f"origin: received {origin[:80]!r}, expected none, or one of LEWM_CORS_ORIGINS by its name"
    )


def _comes_through_proxy(headers: Headers) -> bool:
    """Whether the headers are those of a proxy, or name another host than this machine.

    Such a name may also be one that another site has pointed at this machine.
    """
    return any(
        name in PROXY_HEADERS or name.startswith(PROXY_HEADER_PREFIXES) for name in headers
    ) or not _is_local(headers.get("host", ""))


def _is_local(host: str) -> bool:
    """Whether a `Host`, with or without a port, names this machine."""
    try:
        name = urlsplit(f"//{host}").hostname or ""
        return name == "localhost" or are_loopback([name])
    except ValueError:
        return False
