"""The WebSocket at `/`, to which clients of openpi connect."""

from __future__ import annotations

from collections.abc import Callable, Collection
from functools import partial

from starlette.requests import Request
from starlette.routing import Match, Route
from starlette.types import Receive, Scope, Send

from lewm_serve.transports.exchange import exchange_of
from lewm_serve.transports.http.access import key_of_websocket
from lewm_serve.transports.http.admin import check_origin
from lewm_serve.transports.http.websocket import (
    OFFER,
    WEBSOCKET_PATH,
    WebSocketConnection,
    WebSocketOffer,
)
from lewm_serve.transports.openpi.session import Client, OpenpiService, Session


class OpenpiRoute(Route):
    """The route. It matches only requests that offer to speak WebSocket.

    Args:
        service: what the connections share.
        make_connection: makes a `WebSocketConnection` with the server's limits, of its ``record``.
        cors_origins: the origins of web pages that may connect. A browser lets any page try.
    """

    def __init__(
        self,
        service: OpenpiService,
        make_connection: Callable[..., WebSocketConnection],
        cors_origins: Collection[str],
    ) -> None:
        self._service = service
        self._make_connection = make_connection
        self._cors_origins = cors_origins
        super().__init__(WEBSOCKET_PATH, partial(self._accept), methods=["GET"])
        self.app = self._accept

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        """Whether the request is for this route."""
        if scope["type"] == "http" and exchange_of(scope).context.protocol == "openpi":
            return super().matches(scope)
        return Match.NONE, {}

    async def _accept(self, scope: Scope, _receive: Receive, _send: Send) -> None:
        """Accept the offer. The connection is the session's from then on."""
        check_origin(Request(scope).headers, self._cors_origins)
        offer: WebSocketOffer = scope[OFFER]
        service, exchange = self._service, exchange_of(scope)
        metadata = service.metadata()
        client = Client(exchange.context, key_of_websocket(scope))

        async def serve(connection: WebSocketConnection) -> None:
            await Session(service, connection, client).run(metadata)

        exchange.is_recorded = False
        offer.accept(self._make_connection(record=partial(service.record_refusal, client)), serve)
