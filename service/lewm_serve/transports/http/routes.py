"""The routes: inference, models, and what operators ask for.

FastAPI provides the routing, the OpenAPI document and the answers of the small routes. The
inference routes read and write their bodies themselves, for the reasons in `bodies`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Annotated, TypeVar

from fastapi import APIRouter, Path, Request
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.responses import PlainTextResponse, Response

from lewm_serve.api.fields import RequestModel, parse
from lewm_serve.api.requests import EncodeRequest, PlanRequest, PredictRequest, RequestContext
from lewm_serve.api.responses import (
    EncodeResponse,
    ModelDescription,
    ModelList,
    PlanResponse,
    PredictResponse,
    ServerStatus,
)
from lewm_serve.constants import JSON_MEDIA_TYPE
from lewm_serve.errors import (
    Draining,
    Failed,
    Loading,
    Restarting,
    UnknownModel,
)
from lewm_serve.observability.metrics import Metrics
from lewm_serve.planner.planner import Planner
from lewm_serve.settings import Settings
from lewm_serve.transports.exchange import (
    LARGE_DOCUMENT_BYTES,
    MemoryReservation,
    RequestMemory,
    cancel_when_gone,
    check_accepts,
    check_ready,
    exchange_of,
    in_thread_if_large,
)
from lewm_serve.transports.http.bodies import (
    JSON_BYTES_PER_VALUE,
    LargeResponse,
    count_values,
    disconnected,
    parse_json,
    read_body,
    response_to_json,
)
from lewm_serve.transports.http.openapi import (
    KEY_ERRORS,
    describe_inference,
    error_responses,
)

RequestT = TypeVar("RequestT", bound=RequestModel)
ResponseT = TypeVar("ResponseT", EncodeResponse, PredictResponse, PlanResponse)

ModelPath = Annotated[str, Path(description="its name, or `name@version`")]

RENDERING_SHARE = 0.1
"""The largest share of the event loop's time in which metrics are rendered."""


class InferenceRoutes:
    """`/encode`, `/predict` and `/plan`: read the body, call the planner, write its response."""

    def __init__(
        self, planner: Planner, settings: Settings, *, metrics: Metrics, memory: RequestMemory
    ) -> None:
        self._planner = planner
        self._settings = settings
        self._metrics = metrics
        self._memory = memory

    def router(self) -> APIRouter:
        """The routes."""
        router, planner = APIRouter(tags=["inference"]), self._planner

        @router.post("/encode", **describe_inference("encode", EncodeResponse))
        async def encode(http_request: Request) -> Response:
            """Turn frames into latents."""
            return await self._handle(http_request, EncodeRequest, planner.encode)

        @router.post("/predict", **describe_inference("predict", PredictResponse))
        async def predict(http_request: Request) -> Response:
            """Predict the latents that follow from frames and actions."""
            return await self._handle(http_request, PredictRequest, planner.predict)

        @router.post("/plan", **describe_inference("plan", PlanResponse))
        async def plan(http_request: Request) -> Response:
            """Find actions that lead from the frames to the goal."""
            return await self._handle(http_request, PlanRequest, planner.plan)

        return router

    async def _handle(
        self,
        http_request: Request,
        request_type: type[RequestT],
        work: Callable[[RequestT, RequestContext], Awaitable[ResponseT]],
    ) -> Response:
        exchange = exchange_of(http_request.scope)
        exchange.awaits_body = True
        check_accepts(self._planner)
        with self._memory.reserve() as reservation:
            request = await self._read_request(http_request, request_type, reservation)
            response = await cancel_when_gone(
                partial(disconnected, http_request), work(request, exchange.context)
            )
        exchange.response = response
        encoding = request.encoding if isinstance(request, EncodeRequest) else "float"
        return await self._write_response(response, encoding)

    async def _read_request(
        self,
        http_request: Request,
        request_type: type[RequestT],
        reservation: MemoryReservation,
    ) -> RequestT:
        body = await read_body(
            http_request,
            limit=self._settings.max_body_bytes,
            timeout_s=self._settings.receive_s,
            memory=reservation,
        )
        exchange = exchange_of(http_request.scope)
        exchange.mark_received()

        def parse_body() -> RequestT:
            document = parse_json(body)
            if isinstance(document, dict):
                exchange.model = self._planner.log_label(document.get("model"))
            return parse(request_type, document)

        return await in_thread_if_large(len(body), parse_body)

    async def _write_response(self, response: ResponseT, latent_encoding: str) -> Response:
        started = time.monotonic()
        content = await in_thread_if_large(
            JSON_BYTES_PER_VALUE * count_values(response),
            lambda: response_to_json(response, latent_encoding),
        )
        self._metrics.stage_duration.labels("serialize").observe(time.monotonic() - started)
        if len(content) > LARGE_DOCUMENT_BYTES:
            return LargeResponse(content, self._memory)
        return Response(content, media_type=JSON_MEDIA_TYPE)


def model_routes(planner: Planner) -> APIRouter:
    """`/models` and `/models/{name}`."""
    router = APIRouter(tags=["models"])

    @router.get("/models", responses=error_responses(*KEY_ERRORS, Loading, Failed))
    async def list_models() -> ModelList:
        """All current models, and what is left of removed ones."""
        return planner.describe_models()

    @router.get(
        "/models/{name}", responses=error_responses(*KEY_ERRORS, UnknownModel, Loading, Failed)
    )
    async def get_model(name: ModelPath, http_request: Request) -> ModelDescription:
        """One model, or one version of it (`name@version`), with its card."""
        exchange_of(http_request.scope).model = planner.log_label(name)
        return planner.describe_model(name)

    return router


def operation_routes(planner: Planner, metrics: Metrics) -> APIRouter:
    """`/healthz`, `/readyz`, `/metrics`."""
    router = APIRouter(tags=["operation"])

    def render_metrics() -> bytes:
        planner.count_batches()  # also those of requests that are still in progress
        return metrics.render()

    scrapes = SharedRendering(render_metrics)

    @router.head("/healthz", include_in_schema=False)
    @router.get("/healthz", responses=error_responses(Failed))
    async def healthz() -> ServerStatus:
        """Whether the process is alive: 503 only if it cannot recover by itself."""
        if planner.state == "failed":
            raise Failed
        return ServerStatus(planner.state)

    @router.head("/readyz", include_in_schema=False)
    @router.get("/readyz", responses=error_responses(Loading, Restarting, Draining, Failed))
    async def readyz() -> ServerStatus:
        """Whether requests are being served: 503 while loading, restarting, leaving or draining."""
        check_ready(planner)
        return ServerStatus(planner.state)

    @router.get(
        "/metrics", response_class=PlainTextResponse, responses=error_responses(*KEY_ERRORS)
    )
    async def get_metrics() -> Response:
        """The metrics that Prometheus collects."""
        return Response(await scrapes.render(), media_type=CONTENT_TYPE_LATEST)

    return router


class SharedRendering:
    """A text for many clients that takes a limited share of the event loop's time.

    The next rendering starts when the last one has become old enough, at once if nobody has asked
    for a while. All who ask until then get its text. So it is never older than the question.
    """

    def __init__(self, render: Callable[[], bytes]) -> None:
        self._render = render
        self._may_start = 0.0
        self._next: asyncio.Task[bytes] | None = None

    async def render(self) -> bytes:
        """The text, rendered after this call."""
        if self._next is None:
            self._next = asyncio.create_task(self._render_in_time())
        return await asyncio.shield(self._next)

    async def _render_in_time(self) -> bytes:
        loop = asyncio.get_running_loop()
        await asyncio.sleep(self._may_start - loop.time())
        self._next = None
        started = time.thread_time()
        text = self._render()
        spent_s = time.thread_time() - started
        self._may_start = loop.time() + spent_s * (1 / RENDERING_SHARE - 1)
        return text
