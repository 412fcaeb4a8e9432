"""Everything that the OpenAPI document shows is true of a server with the embedded model."""

import base64
import json
import re
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from lewm_serve import errors
from lewm_serve.errors import CODES, INVALID_REQUEST_CODES
from lewm_serve.transports.http.examples import REQUEST_ID, START_FRAME
from lewm_serve.transports.http.openapi import NOT_OVER_HTTP
from tests.lewm_serve.support.endless_plan import endless_plan
from tests.lewm_serve.support.frames import png
from tests.lewm_serve.support.server_process import ServerProcess
from tests.patience import PATIENCE_S

INFERENCE = ("encode", "predict", "plan")
Document = dict[str, Any]


@pytest.fixture(scope="module")
def embedded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A ready server with the embedded model."""
    log = tmp_path_factory.mktemp("server") / "log.jsonl"
    with ServerProcess(log) as process:
        yield process.wait_ready()


@pytest.fixture(scope="module")
def client(embedded: ServerProcess) -> Iterator[httpx.Client]:
    """A client of the server."""
    with httpx.Client(base_url=embedded.url, timeout=PATIENCE_S) as http:
        yield http


@pytest.fixture(scope="module")
def document(client: httpx.Client) -> Document:
    """The OpenAPI document."""
    answer: Document = client.get("/openapi.json").json()
    return answer


def requests_of(document: Document, endpoint: str) -> dict[str, Document]:
    """The example requests of an endpoint, by name."""
    content = document["paths"][f"/{endpoint}"]["post"]["requestBody"]["content"]
    examples = content["application/json"]["examples"]
    return {name: example["value"] for name, example in examples.items()}


def problems_of(document: Document, path: str, method: str = "post") -> dict[str, Document]:
    """The example errors of a route, by code."""
    examples = {}
    for status, response in document["paths"][path][method]["responses"].items():
        for content in response["content"].values():
            for code, example in content.get("examples", {}).items():
                assert (str(example["value"]["status"]), example["value"]["code"]) == (status, code)
                examples[code] = example["value"]
    return examples


def send_bytes(server: ServerProcess, data: bytes) -> bytes:
    """All bytes that the server answers until it closes the connection."""
    answer = b""
    with socket.create_connection(("127.0.0.1", server.http_port), PATIENCE_S) as connection:
        connection.sendall(data)
        while part := connection.recv(65536):
            answer += part
    return answer


def without_numbers(problem: Document) -> Document:
    """A problem document in which other times and sizes do not matter."""
    text = json.dumps(problem | {"request_id": ""})
    compared: Document = json.loads(re.sub(r"\d+(\.\d+)?", "0", text))
    return compared


@pytest.mark.parametrize("endpoint", INFERENCE)
def test_every_example_request_is_accepted(
    client: httpx.Client, document: Document, endpoint: str
) -> None:
    requests = requests_of(document, endpoint)
    assert len(requests) >= 3
    schema = document["components"]["schemas"][f"{endpoint.capitalize()}Request"]
    for request in [*requests.values(), *schema["examples"]]:
        answer = client.post(f"/{endpoint}", json=request)
        assert answer.status_code == 200, answer.text


def test_the_frames_in_the_examples_are_usual_frames(
    client: httpx.Client, document: Document
) -> None:
    answer = client.post("/plan", json=requests_of(document, "plan")["images"])
    assert answer.json()["health"]["status"] == "ok"


def all_examples(value: Any, path: str = "") -> Iterator[str]:
    """The paths of everything in a document that is called an example."""
    if isinstance(value, dict):
        for name, item in value.items():
            if name in ("example", "examples"):
                yield path
            else:
                yield from all_examples(item, f"{path}/{name}")
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from all_examples(item, f"{path}/{index}")


def test_there_are_no_other_examples_of_requests(document: Document) -> None:
    of_schemas = {
        path for path in all_examples(document) if path.startswith("/components/schemas/")
    }
    requests = {f"/components/schemas/{name.capitalize()}Request" for name in INFERENCE}
    responses = {"/components/schemas/PlanResponse"}
    assert of_schemas == requests | responses


def shape_of(value: Any) -> Any:
    """The names, the types and the lengths in a document. All numbers are of one type."""
    if isinstance(value, dict):
        return {name: shape_of(item) for name, item in value.items()}
    if isinstance(value, list):
        return [shape_of(item) for item in value]
    return "number" if type(value) in (int, float) else type(value).__name__


def test_the_example_of_a_plan_is_the_answer_to_the_first_request(
    client: httpx.Client, document: Document
) -> None:
    (example,) = document["components"]["schemas"]["PlanResponse"]["examples"]
    request = next(iter(requests_of(document, "plan").values()))
    answer = client.post("/plan", json=request).json()
    assert shape_of(answer) == shape_of(example)
    for name in ("model", "candidates", "iterations", "solver", "seed", "latent_ids"):
        assert answer[name] == example[name]
    assert np.allclose(answer["actions"], example["actions"], atol=0.02)


BASE: dict[str, Document] = {
    "encode": {"frames": [{"image": START_FRAME}]},
    "predict": {"frames": [{"image": START_FRAME}], "actions": [[0.0, 0.0]] * 5},
    "plan": {
        "frames": [{"image": START_FRAME}],
        "goal": {"image": START_FRAME},
        "solver": {"samples": 8, "elites": 2, "iterations": 1},
    },
}


def of_frame(**frame: Any) -> Document:
    """The change of a request to one frame."""
    return {"frames": [frame]}


LARGE_PNG = base64.b64encode(png(4096, 4096)).decode()
REFUSED: dict[str, Document] = {
    "conflicting_fields": of_frame(image=START_FRAME, pixels={"data": "/wAA", "shape": [1, 1, 3]}),
    "image_too_large": of_frame(image=LARGE_PNG),
    "invalid_image": of_frame(image="aGVsbG8="),
    "missing_field": {"frames": ...},
    "not_finite": of_frame(latent=[0.0, float("inf")]),
    "not_square": of_frame(pixels={"data": "/wAA/wAA", "shape": [1, 2, 3]}),
    "out_of_range": of_frame(latent=[1e30]),
    "shape_mismatch": of_frame(pixels={"data": "/wAA", "shape": [8, 8, 3]}),
    "unknown_field": {"colour": "red"},
    "unknown_model": {"model": "arm"},
    "unknown_latent": of_frame(latent_id="5d1e90c47fb24a6f8e02b3d59c7a1164"),
    "wrong_type": {"model": 3},
}
REFUSED_BY = {
    "encode": REFUSED | {"invalid_choice": {"encoding": "hex"}},
    "predict": REFUSED,
    "plan": REFUSED
    | {
        "invalid_choice": {"fallback": {"controller": "brake"}},
        "unknown_solver": {"solver": {"name": "simplex"}},
        "deadline_exceeded": {"deadline_ms": 1e-6},
    },
}


@pytest.mark.parametrize(
    ("endpoint", "code"),
    [(endpoint, code) for endpoint in INFERENCE for code in REFUSED_BY[endpoint]],
)
def test_example_errors_are_what_the_server_answers(
    client: httpx.Client, document: Document, endpoint: str, code: str
) -> None:
    request = BASE[endpoint] | REFUSED_BY[endpoint][code]
    request = {name: value for name, value in request.items() if value is not ...}
    answer = client.post(
        f"/{endpoint}", content=json.dumps(request), headers={"content-type": "application/json"}
    )
    assert answer.headers["content-type"] == "application/problem+json"
    example = problems_of(document, f"/{endpoint}")[code]
    if code == "deadline_exceeded":
        assert without_numbers(answer.json()) == without_numbers(example)
    else:
        assert answer.json() == example | {"request_id": answer.json()["request_id"]}


@pytest.mark.parametrize("endpoint", INFERENCE)
def test_example_errors_of_bodies(client: httpx.Client, document: Document, endpoint: str) -> None:
    examples = problems_of(document, f"/{endpoint}")
    path = f"/{endpoint}"
    answers = [
        client.post(path, content=b'{"frames": [', headers={"content-type": "application/json"}),
        client.post(path, content=b"{}", headers={"content-type": "text/plain"}),
    ]
    for answer in answers:
        problem = answer.json()
        assert problem == examples[problem["code"]] | {"request_id": problem["request_id"]}
    assert [answer.status_code for answer in answers] == [400, 415]


def test_example_errors_of_routes(client: httpx.Client, document: Document) -> None:
    responses = document["components"]["responses"]
    for path, name in (("/plans", "UnknownRoute"), ("/plan", "MethodNotAllowed")):
        problem = client.get(path).json()
        content = responses[name]["content"]["application/problem+json"]
        example = content["examples"][problem["code"]]["value"]
        assert problem == example | {"request_id": problem["request_id"]}


def test_example_errors_of_a_busy_server(tmp_path: Path, document: Document) -> None:
    """Those that need a full queue, a slow or large body, or bytes that are not HTTP."""
    flags = ("--max-queue", "1", "--receive-s", "0.5", "--max-body-bytes", "65536")
    examples = problems_of(document, "/plan")
    body = json.dumps(BASE["plan"]).encode()
    head = b"POST /plan HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    with ServerProcess(tmp_path / "log.jsonl", *flags) as server:
        server.wait_ready()
        raw = {
            "malformed_http": b"hello\r\n\r\n",
            "request_timeout": head + b"Content-Length: 9\r\n\r\n",
            "too_many_headers": head + b"A: b\r\n" * 200,
        }
        for code, data in raw.items():
            content = send_bytes(server, data).partition(b"\r\n\r\n")[2]
            assert without_numbers(json.loads(content)) == without_numbers(examples[code])
        large = httpx.post(
            f"{server.url}/plan",
            content=b" " * 65537,
            headers={"content-type": "application/json"},
            timeout=PATIENCE_S,
        )
        assert without_numbers(large.json()) == without_numbers(examples["body_too_large"])
        with endless_plan(server):
            busy = httpx.post(
                f"{server.url}/plan",
                content=body,
                headers={"content-type": "application/json"},
                timeout=PATIENCE_S,
            )
        assert busy.headers["retry-after"]
        assert without_numbers(busy.json()) == without_numbers(examples["overloaded"])


def test_every_code_over_http_has_an_example(document: Document) -> None:
    shown: set[str] = set()
    for path, operations in document["paths"].items():
        for method in operations:
            shown |= problems_of(document, path, method).keys()
    for response in document["components"]["responses"].values():
        shown |= response["content"]["application/problem+json"]["examples"].keys()
    expected = set(CODES) - set(NOT_OVER_HTTP)
    assert shown == expected
    assert set(document["components"]["schemas"]["Problem"]["properties"]["code"]["enum"]) == shown
    assert set(INVALID_REQUEST_CODES) <= shown


def test_each_endpoint_has_the_codes_that_it_can_answer(document: Document) -> None:
    anywhere = {"malformed_http", "request_timeout", "too_many_headers", "overloaded", "internal"}
    for path, method in (("/models", "get"), ("/metrics", "get"), ("/healthz", "get")):
        assert anywhere <= problems_of(document, path, method).keys()
    assert {"loading", "draining", "failed"} <= problems_of(document, "/readyz", "get").keys()
    assert "unknown_model" in problems_of(document, "/models/{name}", "get")
    assert "422" not in document["paths"]["/models/{name}"]["get"]["responses"]
    for endpoint in INFERENCE:
        codes = problems_of(document, f"/{endpoint}").keys()
        assert codes >= {*anywhere, "loading", "draining", "failed", "malformed_json"}
        assert codes >= REFUSED_BY[endpoint].keys()
    assert "deadline_exceeded" not in problems_of(document, "/encode")


def test_errors_without_a_request_are_shown_as_they_are(document: Document) -> None:
    examples = problems_of(document, "/plan")
    for error in (
        errors.Loading(),
        errors.Draining(),
        errors.Failed(),
        errors.Internal(REQUEST_ID),
    ):
        assert examples[error.code] == error.problem(REQUEST_ID)
