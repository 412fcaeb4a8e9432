"""The REST interface as one ASGI application."""

from fastapi import FastAPI
from starlette.types import ASGIApp

from lewm_serve.held import HeldBytes
from lewm_serve.metrics import Metrics
from lewm_serve.planner import Planner
from lewm_serve.rest import problems, schema
from lewm_serve.rest.exchange import ExchangeMiddleware
from lewm_serve.rest.routes import inference_routes, model_routes, operation_routes
from lewm_serve.settings import Settings

TITLE = "LeWM planner"
API_VERSION = "1"


def create_app(planner: Planner, settings: Settings, metrics: Metrics, held: HeldBytes) -> ASGIApp:
    """The application that serves `planner` over HTTP."""
    app = FastAPI(title=TITLE, version=API_VERSION, redirect_slashes=False, redoc_url=None)
    for router in (
        inference_routes(planner, metrics, settings, held),
        model_routes(planner),
    ):
        app.include_router(router)
        app.include_router(router, prefix="/v1", include_in_schema=False)
    app.include_router(operation_routes(planner, metrics))
    problems.install(app)
    schema.install(app)
    return ExchangeMiddleware(app, metrics)
