"""One connection of an openpi client: metadata first, then an answer to each observation."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from importlib.metadata import version
from typing import Any, Protocol

import numpy as np

from lewm_serve.access.keys import INFER, Keys, client_of
from lewm_serve.api.fields import parse
from lewm_serve.api.requests import PlanRequest, RequestContext, request_id_from
from lewm_serve.api.responses import PlanResponse
from lewm_serve.errors import (
    Cancelled,
    Draining,
    Failed,
    Forbidden,
    Internal,
    InvalidRequest,
    ServiceError,
    Unauthenticated,
)
from lewm_serve.observability.logging import log
from lewm_serve.observability.metrics import Metrics
from lewm_serve.planner.planner import Planner
from lewm_serve.transports.exchange import (
    Exchange,
    RequestRecorder,
    cancel_when_gone,
    check_accepts,
    in_thread_if_large,
)
from lewm_serve.transports.openpi.messages import pack, unpack
from lewm_serve.transports.openpi.observations import (
    Document,
    in_words_of_observations,
    metadata_of,
    to_answer,
    to_request,
)

OPERATION = {"rpc.system.name": "openpi", "rpc.method": "openpi/infer"}

MAX_GOAL_BYTES = 64 * 1024 * 1024
"""How many bytes the goals of all connections may take. Then the least recently used one goes."""

STATE_BYTES = 100
"""About how much memory a named number takes, beside the characters of its name."""

LAST_ERRORS = (Draining, Failed, Unauthenticated, Forbidden)
"""After one of these the connection is closed: nothing that the client sends can succeed."""

INTERNAL_ERROR = 1011
"""The closing code after an error, as servers of openpi send it."""


class Connection(Protocol):
    """What a session needs of its connection."""

    async def wait_gone(self) -> None:
        """Wait until the client goes away."""

    async def receive(self) -> Any:
        """The next message, whose bytes count as held in a ``with`` block; None at the end."""

    async def send(self, message: bytes | str) -> None:
        """Send a message: bytes for an answer, text for an error."""

    def close(self, code: int, reason: str) -> None:
        """Close the connection."""


@dataclass(frozen=True)
class Client:
    """Who has connected: the context of the handshake, and the key that it presented."""

    context: RequestContext
    presented_key: str | None


class Goals:
    """The last goal of each connection, as a frame of a request."""

    def __init__(self, max_bytes: int = MAX_GOAL_BYTES) -> None:
        self._max_bytes = max_bytes
        self._goals: OrderedDict[Connection, tuple[Document, int]] = OrderedDict()
        self._bytes = 0

    def get(self, connection: Connection) -> Document | None:
        """The goal of a connection, if it has one."""
        goal = self._goals.get(connection)
        if goal is None:
            return None
        self._goals.move_to_end(connection)
        return goal[0]

    def keep(self, connection: Connection, goal: Document) -> None:
        """Keep the goal of a connection, in place of its last one."""
        if self.get(connection) is goal:
            return
        self.forget(connection)
        size = sum(map(_size_in_bytes, goal.values()))
        self._goals[connection] = goal, size
        self._bytes += size
        while self._bytes > self._max_bytes:
            self.forget(next(iter(self._goals)))

    def forget(self, connection: Connection) -> None:
        """The connection needs its goal no longer."""
        _, size = self._goals.pop(connection, (None, 0))
        self._bytes -= size


class OpenpiService:
    """What all connections share.

    Args:
        planner: makes the plans.
        metrics: has the time that it takes to write answers.
        recorder: records each observation as a request.
        keys: None: clients need none.
    """

    def __init__(
        self, planner: Planner, *, metrics: Metrics, recorder: RequestRecorder, keys: Keys | None
    ) -> None:
        self.planner = planner
        self.metrics = metrics
        self.recorder = recorder
        self.keys = keys
        self.goals = Goals()

    def metadata(self) -> bytes:
        """The first message.

        Raises:
            Loading, Draining, Failed: the planner cannot answer.
        """
        check_accepts(self.planner)
        return pack(metadata_of(self.planner.describe_models(), version("lewm-serve")))

    def record_refusal(self, client: Client, error: ServiceError) -> None:
        """Record an observation that is refused before it is complete."""
        exchange = Exchange(_context(client), OPERATION, code=error.code)
        self.recorder.record(exchange, error.grpc_status)


class Session:
    """Answers the observations of one connection."""

    def __init__(self, service: OpenpiService, connection: Connection, client: Client) -> None:
        self._service = service
        self._connection = connection
        self._client = client
        self._previous_ms: float | None = None

    async def run(self, metadata: bytes) -> None:
        """Send the metadata, and answer observations until the connection ends."""
        connection = self._connection
        await connection.send(metadata)
        try:
            while (message := await connection.receive()) is not None:
                received = time.monotonic()
                with message:
                    answer, is_last = await self._answer(message.data)
                await connection.send(answer)
                if is_last:
                    connection.close(INTERNAL_ERROR, str(answer))
                    return
                self._previous_ms = 1000 * (time.monotonic() - received)
        finally:
            self._service.goals.forget(connection)

    async def _answer(self, data: bytes | bytearray) -> tuple[bytes | str, bool]:
        """The answer to one observation, and whether it is the last one."""
        context = _context(self._client)
        exchange = Exchange(context, OPERATION)
        error: ServiceError | None = None
        try:
            async with self._key(exchange):
                response = await cancel_when_gone(
                    self._connection.wait_gone, self._plan(data, exchange)
                )
            exchange.response = response
            return self._serialize(response), False
        except InvalidRequest as invalid:
            error = in_words_of_observations(invalid)
        except ServiceError as service_error:
            error = service_error
        except asyncio.CancelledError:
            error = Cancelled()
            raise
        except Exception:
            log.exception("internal error", request_id=context.request_id)
            error = Internal(context.request_id)
        finally:
            if error is not None:
                exchange.code = error.code
            status = "OK" if error is None else error.grpc_status
            self._service.recorder.record(exchange, status)
        return _in_text(error, context.request_id), isinstance(error, LAST_ERRORS)

    @asynccontextmanager
    async def _key(self, exchange: Exchange) -> AsyncIterator[None]:
        """Check the key anew for each observation: it has limits, and may have been revoked."""
        keys = self._service.keys
        if keys is None:
            yield
            return
        key = await keys.start(self._client.presented_key, INFER, "/")
        exchange.context = replace(exchange.context, client=client_of(key), key=key.name)
        try:
            yield
        finally:
            key.finish()

    async def _plan(self, data: bytes | bytearray, exchange: Exchange) -> PlanResponse:
        planner, goals = self._service.planner, self._service.goals
        kept_goal = goals.get(self._connection)

        def read() -> tuple[PlanRequest, Document]:
            document = to_request(unpack(data), kept_goal)
            exchange.model = planner.log_label(document.get("model"))
            return parse(PlanRequest, document), document["goal"]

        request, goal = await in_thread_if_large(len(data), read)
        response = await planner.plan(request, exchange.context)
        goals.keep(self._connection, goal)
        return response

    def _serialize(self, response: PlanResponse) -> bytes:
        started = time.monotonic()
        answer = pack(to_answer(response, self._previous_ms))
        serialize_s = time.monotonic() - started
        self._service.metrics.stage_duration.labels("serialize").observe(serialize_s)
        return answer


def _size_in_bytes(part: Any) -> int:
    """About how much memory a part of a goal takes: pixels, states by name, numbers, or bytes."""
    if isinstance(part, np.ndarray):
        return part.nbytes
    if not isinstance(part, dict):
        return len(part)
    if "data" in part:
        return len(part["data"])
    return STATE_BYTES * len(part) + sum(map(len, part))


def _context(client: Client) -> RequestContext:
    """The context of a request that has just arrived on the connection."""
    return replace(client.context, request_id=request_id_from(None), received=time.monotonic())


def _in_text(error: ServiceError, request_id: str) -> str:
    """An error as the client shows it."""
    retry = "" if error.retry_after_s is None else f"; try again in {error.retry_after_s:.3g} s"
    return f"{error.code}: {error.detail}{retry} (request {request_id})"
