"""A planner without a transport, asked for small plans."""

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from lewm_serve.api.context import RequestContext
from lewm_serve.api.requests import PlanRequest, parse
from lewm_serve.api.responses import PlanResponse
from lewm_serve.observability.metrics import Metrics
from lewm_serve.planner.planner import Planner
from lewm_serve.settings import Settings
from tests.lewm_serve.cases import plan
from tests.patience import PATIENCE_S

HOLD = {"controller": "hold"}


@asynccontextmanager
async def planning(folder: Path) -> AsyncIterator[tuple[Planner, Metrics]]:
    """A planner of a model that is ready, and its metrics."""
    settings = Settings(models=(folder,), threads=1, backend="torch", precision="float32")
    metrics = Metrics()
    planner = Planner(settings, metrics)
    await planner.start()
    yield planner, metrics
    await planner.stop(PATIENCE_S)


async def ask(planner: Planner, **changes: Any) -> PlanResponse:
    """A small plan, changed."""
    context = RequestContext("r1", "plan", "rest", time.monotonic())
    return await planner.plan(parse(PlanRequest, plan(**changes)), context)


def figure(metrics: Metrics, name: str, **labels: str) -> float:
    """A figure that is shown."""
    value = metrics.registry.get_sample_value(name, labels)
    assert value is not None, name
    return value
