"""The REST interface as one ASGI application."""

from fastapi import FastAPI
from starlette.types import ASGIApp

from service.held import HeldBytes
from service.metrics import Metrics
from service.planner import Planner
from service.rest import problems, schema
from service.rest.exchange import ExchangeMiddleware
from service.rest.routes import inference_routes, model_routes, operation_routes
from service.settings import Settings

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
