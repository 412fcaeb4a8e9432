"""The routes: inference, models, and what operators ask for.

FastAPI provides the routing, the OpenAPI document and the answers of the small routes. The
inference routes read and write their bodies themselves, for the reasons in `bodies`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

from fastapi import APIRouter, Request
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.responses import PlainTextResponse, Response

from lewm_serve.api.context import RequestContext
from lewm_serve.api.fields import RequestModel, parse
from lewm_serve.api.requests import EncodeRequest, PlanRequest, PredictRequest
from lewm_serve.api.responses import (
    EncodeResponse,
    ModelDescription,
    ModelList,
    PlanResponse,
    PredictResponse,
    ServerStatus,
)
from lewm_serve.errors import (
    Cancelled,
    Draining,
    Failed,
    InvalidRequest,
    Loading,
    UnknownModel,
    Unquoted,
)
from lewm_serve.observability.metrics import Metrics
from lewm_serve.planner.planner import Planner
from lewm_serve.settings import Settings
from lewm_serve.transports.exchange import Exchange, RequestMemory
from lewm_serve.transports.http.bodies import (
    count_values,
    parse_json,
    read_body,
    response_to_json,
)
from lewm_serve.transports.http.openapi import describe_inference, error_responses

RequestT = TypeVar("RequestT", bound=RequestModel)
ResponseT = TypeVar("ResponseT", EncodeResponse, PredictResponse, PlanResponse)
T = TypeVar("T")

JSON_MEDIA_TYPE = "application/json"

LARGE_DOCUMENT_BYTES = 256 * 1024
"""Larger documents are read and written in a thread. Otherwise all other requests wait for them."""

JSON_BYTES_PER_VALUE = 12
"""The approximate size of a float32 in JSON."""

MAX_PREDICTED_VALUES = 1_000_000
"""The most values of one answer. Larger answers belong on gRPC."""

FEW_PREDICTED_ROWS = 1000
"""So few rows of actions cannot give too large an answer: no model's latents are that wide."""


def exchange_of(request: Request) -> Exchange:
    """The exchange that the middleware started for a request."""
    exchange = request.scope["lewm.exchange"]
    assert isinstance(exchange, Exchange)
    return exchange


def inference_routes(
    planner: Planner, settings: Settings, metrics: Metrics, memory: RequestMemory
) -> APIRouter:
    """`/encode`, `/predict`, `/plan`."""
    router = APIRouter(tags=["inference"])

    def parse_body(model: type[RequestT], body: bytearray, exchange: Exchange) -> RequestT:
        document = parse_json(body)
        if isinstance(document, dict):
            exchange.model = planner.log_label(document.get("model"))
        return parse(model, document)

    async def answer(
        http_request: Request,
        model: type[RequestT],
        work: Callable[[RequestT, RequestContext], Awaitable[ResponseT]],
    ) -> Response:
        exchange = exchange_of(http_request)
        with memory.reserve() as reservation:
            body = await read_body(
                http_request,
                limit=settings.max_body_bytes,
                timeout_s=settings.receive_s,
                memory=reservation,
            )
            context = exchange.mark_received()
            request = await _in_thread_if_large(
                len(body), lambda: parse_body(model, body, exchange)
            )
            response = await _cancel_on_disconnect(http_request, work(request, context))
        exchange.response = response
        started = time.monotonic()
        encoding = request.encoding if isinstance(request, EncodeRequest) else "float"
        content = await _in_thread_if_large(
            JSON_BYTES_PER_VALUE * count_values(response),
            lambda: response_to_json(response, encoding),
        )
        metrics.stage_duration.labels("serialize").observe(time.monotonic() - started)
        return Response(content, media_type=JSON_MEDIA_TYPE)

    @router.post("/encode", **describe_inference(EncodeRequest, EncodeResponse))
    async def encode(request: Request) -> Response:
        """Turn frames into latents."""
        return await answer(request, EncodeRequest, planner.encode)

    @router.post("/predict", **describe_inference(PredictRequest, PredictResponse))
    async def predict(request: Request) -> Response:
        """Predict the latents that follow from frames and actions."""

        async def work(query: PredictRequest, context: RequestContext) -> PredictResponse:
            _check_answer_size(planner, query)
            return await planner.predict(query, context)

        return await answer(request, PredictRequest, work)

    @router.post("/plan", **describe_inference(PlanRequest, PlanResponse))
    async def plan(request: Request) -> Response:
        """Find actions that lead from the frames to the goal."""
        return await answer(request, PlanRequest, planner.plan)

    return router


def model_routes(planner: Planner) -> APIRouter:
    """`/models` and `/models/{name}`."""
    router = APIRouter(tags=["models"])

    @router.get("/models", responses=error_responses())
    async def models() -> ModelList:
        """All models."""
        return ModelList(planner.models())

    @router.get("/models/{name}", responses=error_responses(UnknownModel))
    async def model(name: str, request: Request) -> ModelDescription:
        """One model, with its card."""
        exchange_of(request).model = planner.log_label(name)
        return planner.model(name)

    return router


def operation_routes(planner: Planner, metrics: Metrics) -> APIRouter:
    """`/healthz`, `/readyz`, `/metrics`."""
    router = APIRouter(tags=["operation"])

    @router.head("/healthz", include_in_schema=False)
    @router.get("/healthz", responses=error_responses(Failed))
    async def healthz() -> ServerStatus:
        """Whether the process is alive: 503 only if it cannot recover by itself."""
        if planner.state == "failed":
            raise Failed
        return ServerStatus(planner.state)

    @router.head("/readyz", include_in_schema=False)
    @router.get("/readyz", responses=error_responses(Loading))
    async def readyz() -> ServerStatus:
        """Whether requests are being served: 503 while loading or draining."""
        match planner.state:
            case "loading":
                raise Loading
            case "draining":
                raise Draining
            case "failed":
                raise Failed
        return ServerStatus(planner.state)

    @router.get("/metrics", response_class=PlainTextResponse)
    async def prometheus_metrics() -> Response:
        """The metrics that Prometheus collects."""
        planner.count_batches()  # also those of requests that are still in progress
        return Response(metrics.render(), media_type=CONTENT_TYPE_LATEST)

    return router


async def _in_thread_if_large(size: int, work: Callable[[], T]) -> T:
    """The result of the work. For small documents, a thread would take longer."""
    return await asyncio.to_thread(work) if size > LARGE_DOCUMENT_BYTES else work()


async def _cancel_on_disconnect(request: Request, work: Awaitable[T]) -> T:
    """The result of the work. If the client goes away first, the work is cancelled.

    Raises:
        Cancelled: the client went away.
    """
    working = asyncio.current_task()
    assert working is not None
    disconnected = False

    async def watch() -> None:
        nonlocal disconnected
        while (await request.receive())["type"] != "http.disconnect":
            pass
        disconnected = True
        working.cancel()

    watching = asyncio.create_task(watch())
    try:
        return await work
    except asyncio.CancelledError:
        if not disconnected:
            raise
        working.uncancel()
        raise Cancelled from None
    finally:
        watching.cancel()


def _check_answer_size(planner: Planner, query: PredictRequest) -> None:
    """Refuse a prediction that is too large for JSON before it is computed."""
    rows, field = query.candidates, "candidates"
    if rows is None:
        assert query.actions is not None
        rows, field = query.actions[None], "actions"
    if rows.shape[0] * rows.shape[1] <= FEW_PREDICTED_ROWS:
        return  # describing the models takes half a millisecond
    for model in planner.models():
        if model.name == query.model or (model.default and query.model is None):
            steps = rows.shape[1] // model.card["action_block"]
            values = len(rows) * steps * model.card["latent_dim"]
            if values > MAX_PREDICTED_VALUES:
                raise InvalidRequest(
                    "out_of_range",
                    field,
                    received=Unquoted(f"an answer of {values} values"),
                    expected=f"at most {MAX_PREDICTED_VALUES} over REST; use gRPC",
                )
