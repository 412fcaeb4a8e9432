"""A planner without a transport."""

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

from lewm_serve.api.fields import parse
from lewm_serve.api.requests import EncodeRequest, PlanRequest, RequestContext
from lewm_serve.api.responses import EncodeResponse, PlanResponse
from lewm_serve.constants import Endpoint
from lewm_serve.observability.metrics import Metrics
from lewm_serve.planner.history import PlanHistory
from lewm_serve.planner.planner import Planner
from lewm_serve.settings import Settings
from tests.lewm_serve.support.requests import plan
from tests.patience import PATIENCE_S


class RunningPlanner(NamedTuple):
    """A planner that is ready, and its metrics."""

    planner: Planner
    metrics: Metrics

    async def plan(self, **changes: Any) -> PlanResponse:
        """Answer a small plan with changed fields."""
        return await self.plan_of("robot", **changes)

    async def plan_of(self, client: str, /, **changes: Any) -> PlanResponse:
        """Answer a small plan of a client with changed fields."""
        request = parse(PlanRequest, plan(**changes))
        return await self.planner.plan(request, _context("plan", client))

    async def encode(self, *frames: dict[str, Any], client: str = "robot") -> EncodeResponse:
        """Encode frames."""
        request = parse(EncodeRequest, {"frames": list(frames)})
        return await self.planner.encode(request, _context("encode", client))

    def metric(self, name: str, **labels: str) -> float:
        """The value of one series, which must exist."""
        value = self.metrics.registry.get_sample_value(name, labels)
        assert value is not None, name
        return value


def _context(endpoint: Endpoint, client: str) -> RequestContext:
    return RequestContext("request-1", endpoint, "rest", time.monotonic(), client=client)


@asynccontextmanager
async def running_planner(
    folder: Path, history: PlanHistory | None = None, **changes: Any
) -> AsyncIterator[RunningPlanner]:
    """A planner of a folder's models, with changed settings.

    No choice depends on timing, so two of them can be compared.
    """
    settings = Settings(
        models=(folder,), threads=1, backend="torch", precision="float32", **changes
    )
    metrics = Metrics()
    planner = Planner(settings, metrics, history=history)
    await planner.start()
    yield RunningPlanner(planner, metrics)
    await planner.stop(PATIENCE_S)
