"""What the outside sees of a planner's states, without a process."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any, cast

import httpx
import pytest
from structlog.testing import capture_logs

from lewm_serve.errors import Overloaded
from lewm_serve.observability.metrics import Metrics
from lewm_serve.planner.planner import Planner
from lewm_serve.settings import Settings
from lewm_serve.transports.exchange import RequestMemory
from lewm_serve.transports.http.app import create_app
from tests.lewm_serve.support.requests import plan


@asynccontextmanager
async def serving(**planner: Any) -> AsyncIterator[httpx.AsyncClient]:
    """A client of the application over a planner of which only `planner` is there."""
    methods = {"state": "ready", "encode": None, "predict": None, "plan": None, "label": str}
    stand_in = cast(Planner, SimpleNamespace(**methods | planner))
    app = create_app(stand_in, Settings(), Metrics(), RequestMemory(1 << 30))
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://server") as client:
        yield client


@pytest.mark.parametrize(
    ("state", "alive", "ready", "code"),
    [
        ("loading", 200, 503, "loading"),
        ("ready", 200, 200, None),
        ("draining", 200, 503, "draining"),
        ("failed", 503, 503, "failed"),
    ],
)
async def test_states(state: str, alive: int, ready: int, code: str | None) -> None:
    async with serving(state=state) as client:
        assert (await client.get("/healthz")).status_code == alive
        response = await client.get("/readyz")
    assert response.status_code == ready
    assert response.json().get("code") == code


async def test_retry_after() -> None:
    async def refuse(*_: object) -> None:
        raise Overloaded(retry_after_s=2.3)

    async with serving(plan=refuse) as client:
        response = await client.post("/plan", json=plan())
    assert (response.status_code, response.json()["code"]) == (429, "overloaded")
    assert response.headers["retry-after"] == "3"


async def test_unforeseen_failures_say_nothing() -> None:
    async def fail(*_: object) -> None:
        raise RuntimeError("/secret/path")

    with capture_logs() as logged:
        async with serving(plan=fail) as client:
            response = await client.post("/plan", json=plan(), headers={"x-request-id": "r1"})
    assert (response.status_code, response.json()["code"]) == (500, "internal")
    assert response.json()["detail"] == "internal error; request id r1"
    assert logged[0] == {
        "event": "internal error", "log_level": "error", "exc_info": True, "request_id": "r1"
    }  # fmt: skip
