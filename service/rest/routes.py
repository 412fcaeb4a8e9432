"""The routes: inference, models, and what operators ask."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

from fastapi import APIRouter, Request
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.responses import PlainTextResponse, Response

from service.context import RequestContext
from service.errors import Cancelled, Draining, Failed, Loading, UnknownModel
from service.metrics import Metrics
from service.planner import Planner
from service.requests import EncodeRequest, PlanRequest, PredictRequest, parse
from service.requests.base import RequestModel
from service.responses import EncodeResponse, PlanResponse, PredictResponse
from service.rest.body import parse_json, read_body
from service.rest.exchange import exchange_of
from service.rest.render import dumps, render
from service.rest.schema import describe_inference, describe_operation

Q = TypeVar("Q", bound=RequestModel)
R = TypeVar("R", EncodeResponse, PredictResponse, PlanResponse)

JSON = "application/json"


async def _unless_gone(request: Request, work: Awaitable[R]) -> R:
    """The work's result; when the client goes away first, the work is cancelled."""

    async def gone() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    working = asyncio.ensure_future(work)
    tasks = (working, asyncio.ensure_future(gone()))
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise Cancelled
        return working.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def inference_routes(planner: Planner, metrics: Metrics, max_body_bytes: int) -> APIRouter:
    """`/encode`, `/predict`, `/plan`."""
    router = APIRouter(tags=["inference"])

    async def answer(
        request: Request,
        kind: type[Q],
        work: Callable[[Q, RequestContext], Awaitable[R]],
    ) -> Response:
        exchange = exchange_of(request)
        body = await read_body(request, max_body_bytes)
        context = exchange.arrived()
        query = parse(kind, parse_json(body))
        response = await _unless_gone(request, work(query, context))
        exchange.response = response
        started = time.monotonic()
        rendered = render(response, getattr(query, "encoding", "float"))
        metrics.stage_duration.labels("serialize").observe(time.monotonic() - started)
        return Response(rendered, media_type=JSON)

    @router.post("/encode", **describe_inference(EncodeRequest, EncodeResponse))
    async def encode(request: Request) -> Response:
        """Turn frames into latents."""
        return await answer(request, EncodeRequest, planner.encode)

    @router.post("/predict", **describe_inference(PredictRequest, PredictResponse))
    async def predict(request: Request) -> Response:
        """Imagine the latents that follow from frames and actions."""
        return await answer(request, PredictRequest, planner.predict)

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
    async def model(name: str) -> Response:
        """One model, with its card."""
        return Response(dumps(planner.model(name)), media_type=JSON)

    return router


def operation_routes(planner: Planner, metrics: Metrics) -> APIRouter:
    """`/healthz`, `/readyz`, `/metrics`."""
    router = APIRouter(tags=["operation"])

    def status() -> Response:
        return Response(dumps({"status": planner.state}), media_type=JSON)

    @router.get("/healthz", **describe_operation("Status", Failed))
    async def healthz() -> Response:
        """Whether the process is alive: 503 only when it cannot recover by itself."""
        if planner.state == "failed":
            raise Failed
        return status()

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
