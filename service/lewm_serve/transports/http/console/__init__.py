"""The console: pages on which people watch plans, replay them, and drive simulated robots."""

from __future__ import annotations

from importlib.metadata import version

from fastapi import FastAPI

from lewm_serve.access.keys import Keys
from lewm_serve.observability.metrics import Metrics
from lewm_serve.planner.planner import Planner
from lewm_serve.transports.exchange import RequestMemory, RequestRecorder
from lewm_serve.transports.http.console import pages
from lewm_serve.transports.http.console.api import ConsoleApi
from lewm_serve.transports.http.console.data import ConsoleData
from lewm_serve.transports.http.console.drive_api import DriveApi


def install(
    app: FastAPI,
    planner: Planner,
    data: ConsoleData,
    *,
    metrics: Metrics,
    memory: RequestMemory,
    recorder: RequestRecorder,
    keys: Keys | None,
) -> None:
    """Add the console to an application."""
    pages.install(app, keys=keys, memory=memory)
    api = ConsoleApi(
        planner,
        data,
        metrics=metrics,
        memory=memory,
        keys=keys,
        version=version("lewm-serve"),
    )
    api.install(app)
    DriveApi(planner, recorder, memory).install(app)
