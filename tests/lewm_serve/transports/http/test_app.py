"""The ASGI application over a planner that is a stand-in: states, errors and `Retry-After`."""

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
from lewm_serve.transports.exchange import RequestMemory, RequestRecorder
from lewm_serve.transports.http.app import create_app
from tests.lewm_serve.support.requests import plan


@asynccontextmanager
async def client_of(**planner: Any) -> AsyncIterator[httpx.AsyncClient]:
    """A client of the application. Its planner has only the attributes that are given."""
    attributes = {"state": "ready", "encode": None, "predict": None, "plan": None, "log_label": str}
    stand_in = cast(Planner, SimpleNamespace(**attributes | planner))
    metrics = Metrics()
    app, _ = create_app(
        stand_in,
        Settings(),
        metrics=metrics,
        memory=RequestMemory(1 << 30),
        recorder=RequestRecorder(metrics),
        keys=None,
    )
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://server") as client:
        yield client


@pytest.mark.parametrize(
    ("state", "healthz", "readyz", "code"),
    [
        ("loading", 200, 503, "loading"),
        ("ready", 200, 200, None),
        ("restarting", 200, 503, "restarting"),
        ("leaving", 200, 503, "draining"),
        ("draining", 200, 503, "draining"),
        ("failed", 503, 503, "failed"),
    ],
)
async def test_the_probes_show_the_state_of_the_planner(
    state: str, healthz: int, readyz: int, code: str | None
) -> None:
    async with client_of(state=state, retry_after_s=3.0) as client:
        alive, ready = await client.get("/healthz"), await client.get("/readyz")
        v2_live = await client.get("/v2/health/live")
        v2_ready = await client.get("/v2/health/ready")
    assert (alive.status_code, ready.status_code) == (healthz, readyz)
    assert (v2_live.status_code, v2_ready.status_code) == (healthz, readyz)
    assert ready.json().get("code") == v2_ready.json().get("code") == code
    if healthz == 200:
        assert alive.json() == {"status": state}
    if readyz == 200:
        assert ready.json() == {"status": state}


async def test_retry_after_is_in_whole_seconds() -> None:
    async def refuse(*_: object) -> None:
        raise Overloaded(retry_after_s=2.3)

    async with client_of(plan=refuse) as client:
        response = await client.post("/plan", json=plan())
    assert (response.status_code, response.json()["code"]) == (429, "overloaded")
    assert response.headers["retry-after"] == "3"


async def test_an_unexpected_error_is_logged_and_not_shown() -> None:
    async def fail(*_: object) -> None:
        raise RuntimeError("/secret/path")

    with capture_logs() as logged:
        async with client_of(plan=fail) as client:
            response = await client.post("/plan", json=plan(), headers={"x-request-id": "r1"})
    assert (response.status_code, response.json()["code"]) == (500, "internal")
    assert response.json()["detail"] == "internal error; request id r1"
    assert logged[0] == {
        "event": "internal error",
        "log_level": "error",
        "exc_info": True,
        "request_id": "r1",
    }


@pytest.mark.parametrize(
    ("path", "document"),
    [
        ("/plan", plan()),
        (
            "/v2/models/two-room/infer",
            {
                "inputs": [
                    {"name": "frame_ids", "datatype": "BYTES", "shape": [1, 1], "data": ["a"]},
                    {"name": "goal_id", "datatype": "BYTES", "shape": [1], "data": ["b"]},
                ]
            },
        ),
    ],
)
@pytest.mark.parametrize("state", ["failed", "restarting"])
async def test_without_an_engine_the_planner_decides(
    state: str, path: str, document: dict[str, Any]
) -> None:
    """A plan may name a fallback, which needs no engine."""

    async def refuse(*_: object) -> None:
        raise Overloaded(retry_after_s=2.3)

    async with client_of(state=state, plan=refuse) as client:
        response = await client.post(path, json=document)
    assert (response.status_code, response.json()["code"]) == (429, "overloaded")


@pytest.mark.parametrize("state", ["loading", "draining"])
async def test_requests_are_refused_before_their_body_is_read(state: str) -> None:
    async with client_of(state=state) as client:
        response = await client.post("/plan", content=b"{")
        inference = await client.post("/v2/models/two-room/infer", content=b"{")
        probe = await client.get("/readyz")
    for answer in (response, inference, probe):
        assert (answer.status_code, answer.json()["code"]) == (503, state)
        assert answer.headers["retry-after"]
    assert response.headers["connection"] == inference.headers["connection"] == "close"
    assert ("connection" in probe.headers) is (state == "draining")


async def test_a_connection_stays_open_if_the_body_of_a_refused_request_was_read() -> None:
    async def refuse(*_: object) -> None:
        raise Overloaded(retry_after_s=1.0)

    async with client_of(plan=refuse) as client:
        response = await client.post("/plan", json=plan())
    assert response.status_code == 429
    assert "connection" not in response.headers
