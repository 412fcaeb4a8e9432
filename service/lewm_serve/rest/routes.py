"""The routes: inference, models, and what operators ask."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

from fastapi import APIRouter, Request
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.responses import PlainTextResponse, Response

from lewm_serve.access import Exchange
from lewm_serve.context import RequestContext
from lewm_serve.errors import (
    Cancelled,
    Draining,
    Failed,
    InvalidRequest,
    Loading,
    Phrase,
    UnknownModel,
)
from lewm_serve.held import HeldBytes
from lewm_serve.metrics import Metrics
from lewm_serve.planner import Planner
from lewm_serve.requests import EncodeRequest, PlanRequest, PredictRequest, parse
from lewm_serve.requests.base import RequestModel
from lewm_serve.responses import EncodeResponse, PlanResponse, PredictResponse
from lewm_serve.rest.body import parse_json, read_body
from lewm_serve.rest.exchange import exchange_of
from lewm_serve.rest.render import dumps, render, values_of
from lewm_serve.rest.schema import describe_inference, describe_operation
from lewm_serve.settings import Settings

Q = TypeVar("Q", bound=RequestModel)
R = TypeVar("R", EncodeResponse, PredictResponse, PlanResponse)

T = TypeVar("T")

JSON = "application/json"
LARGE_BYTES = 256 * 1024
"""A document of more is read and written in a thread, or all other requests would wait for it."""
BYTES_A_VALUE = 12
"""What a float32 takes as JSON, about."""
MAX_PREDICTED_VALUES = 1_000_000
"""Of one answer; larger ones belong on gRPC."""
FEW_ROWS = 1000
"""So few rows of actions cannot make too large an answer: no model's latents are that wide."""


async def off_loop(size: int, work: Callable[[], T]) -> T:
    """The work's result; a small document's at once, which is quicker than by a thread."""
    return await asyncio.to_thread(work) if size > LARGE_BYTES else work()


def _check_predicted(planner: Planner, query: PredictRequest) -> None:
    """Refuse what JSON cannot carry before it is computed."""
    rows, field = query.candidates, "candidates"
    if rows is None:
        assert query.actions is not None
        rows, field = query.actions[None], "actions"
    if rows.shape[0] * rows.shape[1] <= FEW_ROWS:
        return  # describing the models takes half a millisecond
    for model in planner.models():
        if model.name == query.model or (model.default and query.model is None):
            steps = rows.shape[1] // model.card["action_block"]
            values = len(rows) * steps * model.card["latent_dim"]
            if values > MAX_PREDICTED_VALUES:
                expected = f"at most {MAX_PREDICTED_VALUES} over REST; use gRPC"
                received = Phrase(f"an answer of {values} values")
                raise InvalidRequest("out_of_range", field, received, expected)


async def _unless_gone(request: Request, work: Awaitable[R]) -> R:
    """The work's result; when the client goes away first, the work is cancelled."""
    working = asyncio.current_task()
    assert working is not None
    gone = False

    async def watch() -> None:
        nonlocal gone
        while (await request.receive())["type"] != "http.disconnect":
            pass
        gone = True
        working.cancel()

    watching = asyncio.create_task(watch())
    try:
        return await work
    except asyncio.CancelledError:
        if not gone:
            raise
        working.uncancel()
        raise Cancelled from None
    finally:
        watching.cancel()


def inference_routes(
    planner: Planner, metrics: Metrics, settings: Settings, held: HeldBytes
) -> APIRouter:
    """`/encode`, `/predict`, `/plan`."""
    router = APIRouter(tags=["inference"])

    def read(kind: type[Q], body: bytearray, exchange: Exchange) -> Q:
        document = parse_json(body)
        if isinstance(document, dict):
            exchange.model = planner.label(document.get("model"))
        return parse(kind, document)

    async def answer(
        request: Request,
        kind: type[Q],
        work: Callable[[Q, RequestContext], Awaitable[R]],
    ) -> Response:
        exchange = exchange_of(request)
        with held.request() as mine:
            body = await read_body(request, settings.max_body_bytes, settings.receive_s, mine)
            context = exchange.arrived()
            query = await off_loop(len(body), lambda: read(kind, body, exchange))
            response = await _unless_gone(request, work(query, context))
        exchange.response = response
        started = time.monotonic()
        rendered = await off_loop(
            BYTES_A_VALUE * values_of(response),
            lambda: render(response, getattr(query, "encoding", "float")),
        )
        metrics.stage_duration.labels("serialize").observe(time.monotonic() - started)
        return Response(rendered, media_type=JSON)

    @router.post("/encode", **describe_inference(EncodeRequest, EncodeResponse))
    async def encode(request: Request) -> Response:
        """Turn frames into latents."""
        return await answer(request, EncodeRequest, planner.encode)

    @router.post("/predict", **describe_inference(PredictRequest, PredictResponse))
    async def predict(request: Request) -> Response:
        """Imagine the latents that follow from frames and actions."""

        async def work(query: PredictRequest, context: RequestContext) -> PredictResponse:
            _check_predicted(planner, query)
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

    @router.get("/models", **describe_operation("Models"))
    async def models() -> Response:
        """All models being served."""
        return Response(dumps({"models": planner.models()}), media_type=JSON)

    @router.get("/models/{name}", **describe_operation("ModelDescription", UnknownModel))
    async def model(name: str, request: Request) -> Response:
        """One model, with its card."""
        exchange_of(request).model = planner.label(name)
        return Response(dumps(planner.model(name)), media_type=JSON)

    return router


def operation_routes(planner: Planner, metrics: Metrics) -> APIRouter:
    """`/healthz`, `/readyz`, `/metrics`."""
    router = APIRouter(tags=["operation"])

    def status() -> Response:
        return Response(dumps({"status": planner.state}), media_type=JSON)

    @router.head("/healthz", include_in_schema=False)
    @router.get("/healthz", **describe_operation("Status", Failed))
    async def healthz() -> Response:
        """Whether the process is alive: 503 only when it cannot recover by itself."""
        if planner.state == "failed":
            raise Failed
        return status()

    @router.head("/readyz", include_in_schema=False)
    @router.get("/readyz", **describe_operation("Status", Loading))
    async def readyz() -> Response:
        """Whether requests are being served: 503 while loading or draining."""
        match planner.state:
            case "loading":
                raise Loading
            case "draining":
                raise Draining
            case "failed":
                raise Failed
        return status()

    @router.get("/metrics", response_class=PlainTextResponse)
    async def figures() -> Response:
        """The figures Prometheus collects."""
        return Response(metrics.render(), media_type=CONTENT_TYPE_LATEST)

    return router
