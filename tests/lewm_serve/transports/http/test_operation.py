"""What operators and backend developers read: models, health, metrics, the description."""

from typing import Any

import httpx
from prometheus_client.parser import text_string_to_metric_families

from lewm_serve.observability.metrics import REGISTERED
from tests.lewm_serve.support.server_process import ServerProcess


def test_models(server: ServerProcess, rest: httpx.Client) -> None:
    (described,) = rest.get("/models").json()["models"]
    name = server.ready["models"][0]
    assert rest.get(f"/models/{name}").json() == described
    assert rest.get(f"/v1/models/{name}").json() == described
    assert set(described) == {
        "name",
        "version",
        "default",
        "backend",
        "device",
        "precision",
        "card",
    }
    assert described["default"] is True
    assert described["card"]["action_dim"] == 2


def test_health(rest: httpx.Client) -> None:
    for path in ("/healthz", "/readyz"):
        response = rest.get(path)
        assert (response.status_code, response.json()) == (200, {"status": "ready"})


def test_metrics(rest: httpx.Client) -> None:
    response = rest.get("/metrics")
    assert response.headers["content-type"].startswith("text/plain")
    families = list(text_string_to_metric_families(response.text))
    totals = {f"{family.name}_total" for family in families if family.type == "counter"}
    others = {family.name for family in families if family.type != "counter"}
    assert totals | others == set(REGISTERED)
    requests = next(family for family in families if family.name == "lewm_requests")
    labels = [sample.labels for sample in requests.samples]
    for endpoint in ("encode", "predict", "plan", "models"):
        assert {"endpoint": endpoint, "protocol": "grpc", "code": "overloaded"} in labels


def test_documentation(rest: httpx.Client) -> None:
    assert "swagger" in rest.get("/docs").text


def test_description_is_complete(rest: httpx.Client) -> None:
    document = rest.get("/openapi.json").json()
    assert {"/encode", "/predict", "/plan", "/models", "/readyz"} <= set(document["paths"])
    for reference in _references(document):
        place: Any = document
        for name in reference.removeprefix("#/").split("/"):
            place = place[name]
    operation = document["paths"]["/plan"]["post"]
    assert {"200", "400", "404", "413", "415", "422", "429", "500", "503", "504"} <= set(
        operation["responses"]
    )
    plan = document["components"]["schemas"]["PlanRequest"]
    assert set(plan["required"]) == {"frames", "goal"}
    assert plan["examples"]


def _references(value: Any) -> list[str]:
    if isinstance(value, dict):
        own = [value["$ref"]] if isinstance(value.get("$ref"), str) else []
        return own + [reference for item in value.values() for reference in _references(item)]
    if isinstance(value, list):
        return [reference for item in value for reference in _references(item)]
    return []
