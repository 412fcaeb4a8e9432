"""What operators and developers read: models, probes, metrics and the OpenAPI document."""

from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from lewm_serve.observability.metrics import REGISTERED
from tests.lewm_serve.support.server_process import ServerProcess


def test_models(server: ServerProcess, rest: httpx.Client) -> None:
    document = rest.get("/models").json()
    assert document.keys() == {"models", "removed"}
    assert document["removed"] == []
    (model,) = document["models"]
    name = server.ready["models"][0]
    assert rest.get(f"/models/{name}").json() == model
    assert rest.get(f"/v1/models/{name}").json() == model
    assert model.keys() == {
        "name",
        "version",
        "default",
        "backend",
        "device",
        "precision",
        "card",
        "old_versions",
        "seconds_left",
    }
    assert (model["name"], model["default"]) == (name, True)
    assert (model["backend"], model["device"], model["precision"]) == ("onnx", "cpu", "float32")
    assert model["card"]["action_dim"] == 2


@pytest.mark.parametrize("path", ["/healthz", "/readyz"])
def test_probes(rest: httpx.Client, path: str) -> None:
    response = rest.get(path)
    assert (response.status_code, response.json()) == (200, {"status": "ready"})
    head = rest.head(path)
    assert (head.status_code, head.content) == (200, b"")


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


def test_the_openapi_document_is_complete(rest: httpx.Client) -> None:
    document = rest.get("/openapi.json").json()
    assert {"/encode", "/predict", "/plan", "/models", "/readyz"} <= set(document["paths"])
    for reference in references(document):
        place: Any = document
        for name in reference.removeprefix("#/").split("/"):
            place = place[name]
    operation = document["paths"]["/plan"]["post"]
    assert {"200", "400", "404", "413", "415", "422", "429", "500", "503", "504"} <= set(
        operation["responses"]
    )
    names = {(parameter["in"], parameter["name"]) for parameter in operation["parameters"]}
    assert names == {("header", name) for name in ("X-Request-ID", "Lewm-Robot", "traceparent")}
    plan = document["components"]["schemas"]["PlanRequest"]
    assert set(plan["required"]) == {"frames", "goal"}
    assert plan["examples"]


@pytest.mark.parametrize(
    ("path", "schema"),
    [
        ("/models", "ModelList"),
        ("/models/{name}", "ModelDescription"),
        ("/healthz", "ServerStatus"),
        ("/readyz", "ServerStatus"),
    ],
)
def test_the_openapi_document_describes_small_answers(
    rest: httpx.Client, path: str, schema: str
) -> None:
    document = rest.get("/openapi.json").json()
    answer = document["paths"][path]["get"]["responses"]["200"]
    reference = answer["content"]["application/json"]["schema"]["$ref"]
    assert reference == f"#/components/schemas/{schema}"


def references(value: Any) -> list[str]:
    """All references in a part of the document."""
    if isinstance(value, dict):
        here = [value["$ref"]] if isinstance(value.get("$ref"), str) else []
        return here + [reference for item in value.values() for reference in references(item)]
    if isinstance(value, list):
        return [reference for item in value for reference in references(item)]
    return []
