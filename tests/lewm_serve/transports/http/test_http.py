"""What only HTTP has: bodies, request heads, routes, connections."""

import base64
import contextlib
import gzip
import json
import socket
import threading
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import pytest

from lewm_serve.settings import Settings
from lewm_serve.transports.exchange import LARGE_DOCUMENT_BYTES, in_thread_if_large
from tests.lewm_serve.support.endless_plan import ENDLESS_SOLVER
from tests.lewm_serve.support.frames import ACTION_BLOCK, pixels
from tests.lewm_serve.support.requests import plan, rows
from tests.lewm_serve.support.server_process import ServerProcess
from tests.patience import PATIENCE_S, wait_until

JSON = {"content-type": "application/json"}
MAX_BODY_BYTES = Settings.model_fields["max_body_bytes"].default


def assert_problem(response: httpx.Response, status: int, code: str) -> dict[str, Any]:
    """Check that a response is a problem document of this status and code, and return it."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    problem: dict[str, Any] = response.json()
    assert problem["code"] == code
    assert problem["status"] == status
    assert problem["request_id"] == response.headers["x-request-id"]
    assert set(problem) <= {"type", "title", "status", "detail", "code", "request_id", "errors"}
    return problem


def connect(server: ServerProcess) -> socket.socket:
    """A connection to the HTTP port."""
    return socket.create_connection(("127.0.0.1", server.http_port), timeout=PATIENCE_S)


def send_bytes(server: ServerProcess, data: bytes) -> bytes:
    """All bytes that the server answers until it closes the connection."""
    answer = b""
    with connect(server) as connection:
        with contextlib.suppress(ConnectionError):
            connection.sendall(data)
        with contextlib.suppress(ConnectionError):
            while part := connection.recv(65536):
                answer += part
    return answer


def assert_serving(rest: httpx.Client) -> None:
    """Check that the server still answers."""
    assert rest.post("/encode", json={"frames": [pixels()]}).status_code == 200


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("POST", "/", 405, "method_not_allowed"),
        ("GET", "/nowhere", 404, "unknown_route"),
        ("POST", "/v3/plan", 404, "unknown_route"),
        ("POST", "/plan/", 404, "unknown_route"),
        ("GET", "/%ff%00/../../etc/passwd", 404, "unknown_route"),
        ("GET", "/plan", 405, "method_not_allowed"),
        ("DELETE", "/v1/encode", 405, "method_not_allowed"),
        ("POST", "/models", 405, "method_not_allowed"),
        ("GET", "/models/nobody", 404, "unknown_model"),
        ("GET", "/v1/models/nobody", 404, "unknown_model"),
    ],
)
def test_unknown_routes_and_methods(
    rest: httpx.Client, method: str, path: str, status: int, code: str
) -> None:
    response = rest.request(method, path)
    assert_problem(response, status, code)
    if status == 405:
        assert response.headers["allow"]


@pytest.mark.parametrize(
    ("body", "detail"),
    [
        pytest.param(b"", "body: received nothing, expected a JSON object", id="empty"),
        pytest.param(b" \r\n", "body: received nothing, expected a JSON object", id="blank"),
        pytest.param(b"\xef\xbb\xbf", "body: received nothing", id="only-a-mark"),
        pytest.param(b"{", "EOF while parsing an object", id="open"),
        pytest.param(b'{"frames": [', "EOF while parsing a list", id="truncated"),
        pytest.param(b"{'frames': []}", "key must be a string at line 1 column 2", id="quotes"),
        pytest.param(b'{"frames": [],}', "trailing comma", id="comma"),
        pytest.param(b"{} {}", "trailing characters", id="two"),
        pytest.param(b"[" * 100_000, "nested too deeply", id="deep-lists"),
        pytest.param(b'{"a":' * 100_000, "nested too deeply", id="deep-objects"),
        pytest.param(b'{"model": "\xff"}', "not UTF-8 at 11, expected JSON in UTF-8", id="latin-1"),
        pytest.param(b'{"model": "\\ud800"}', "\\ud800, which is half", id="high-surrogate"),
        pytest.param(b'{"model": "\\udc00"}', "\\udc00, which is half", id="low-surrogate"),
        pytest.param('{"frames": []}'.encode("utf-16"), "expected JSON in UTF-8", id="utf-16"),
        pytest.param('{"frames": []}'.encode("utf-16-be"), "in UTF-8", id="utf-16-no-mark"),
        pytest.param('{"frames": []}'.encode("utf-32-le"), "in UTF-8", id="utf-32"),
        pytest.param('{"frames": []}'.encode("utf-32-be"), "in UTF-8", id="utf-32-be"),
        pytest.param(gzip.compress(b"{}"), "received gzip data", id="gzip"),
        pytest.param(b'{"seed": ' + b"9" * 10_000 + b"}", "number", id="long-number"),
        pytest.param(b"\x00\x01\x02", "binary data, expected JSON", id="binary"),
    ],
)
def test_malformed_json_is_refused(rest: httpx.Client, body: bytes, detail: str) -> None:
    problem = assert_problem(rest.post("/plan", content=body, headers=JSON), 400, "malformed_json")
    assert detail in problem["detail"]


def test_a_byte_order_mark_is_skipped(rest: httpx.Client) -> None:
    body = b"\xef\xbb\xbf" + json.dumps({"frames": [pixels()]}).encode()
    assert rest.post("/encode", content=body, headers=JSON).status_code == 200


@pytest.mark.parametrize(
    ("value", "code", "received"),
    [
        ("NaN", "not_finite", "nan"),
        ("Infinity", "not_finite", "inf"),
        ("-Infinity", "not_finite", "-inf"),
        ("1e999", "not_finite", "inf"),
        ("1e38000000", "not_finite", "inf"),
        ("1e-999", "ok", ""),
        ("1e300", "out_of_range", "1e+300"),
        ("1" + "0" * 1000, "out_of_range", "an integer of 3322 bits"),
    ],
)
def test_extreme_numbers_are_named(
    rest: httpx.Client, value: str, code: str, received: str
) -> None:
    body = json.dumps(plan(deadline_ms="VALUE")).replace('"VALUE"', value)
    response = rest.post("/plan", content=body, headers=JSON)
    if code == "ok":
        assert response.json()["errors"][0]["received"] == "0.0"
        return
    (error,) = assert_problem(response, 422, code)["errors"]
    assert (error["field"], error["received"]) == ("deadline_ms", received)


@pytest.mark.parametrize("body", [b"null", b"3", b'"plan"', b"[]", b"true", b"NaN"])
def test_json_that_is_no_object_is_refused(rest: httpx.Client, body: bytes) -> None:
    problem = assert_problem(rest.post("/plan", content=body, headers=JSON), 422, "wrong_type")
    assert problem["detail"].startswith("body: received ")
    assert problem["detail"].endswith(", expected an object")


def test_the_last_of_duplicate_fields_counts(rest: httpx.Client) -> None:
    body = json.dumps(plan()).replace('"seed": 7', '"seed": -1, "seed": 8')
    response = rest.post("/plan", content=body, headers=JSON)
    assert response.json()["seed"] == 8


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"content-type": "text/plain"},
        {"content-type": "multipart/form-data; boundary=x"},
        {"content-type": "application/jsonp"},
        JSON | {"content-encoding": "br"},
    ],
)
def test_other_media_types_are_refused(rest: httpx.Client, headers: dict[str, str]) -> None:
    response = rest.post("/plan", content=b"{}", headers=headers)
    assert_problem(response, 415, "unsupported_media_type")


@pytest.mark.parametrize("charset", ["utf-8", "UTF8", "us-ascii", "iso-8859-1", "utf-16"])
def test_a_media_type_may_have_parameters(rest: httpx.Client, charset: str) -> None:
    # RFC 8259 has no such parameter: JSON is in UTF-8 whatever it says.
    headers = {"content-type": f"Application/JSON; charset={charset}"}
    content = json.dumps({"frames": [pixels()]})
    assert rest.post("/encode", content=content, headers=headers).status_code == 200


def test_errors_name_the_field_what_came_and_what_was_expected(rest: httpx.Client) -> None:
    frame = {"pixels": {"data": "AAAA", "shape": [8, 8, 3]}}
    problem = assert_problem(
        rest.post("/encode", json={"frames": [pixels(), frame]}), 422, "shape_mismatch"
    )
    assert problem["errors"] == [
        {
            "field": "frames[1].pixels.data",
            "code": "shape_mismatch",
            "received": "3 bytes",
            "expected": "192 bytes, height × width × 3",
        }
    ]
    assert "frames[1].pixels.data" in problem["detail"]


def test_thousands_of_unknown_fields_give_a_short_answer(rest: httpx.Client) -> None:
    response = rest.post("/plan", json=plan(**{f"field{i}": i for i in range(50_000)}))
    assert_problem(response, 422, "unknown_field")
    assert len(response.content) < 4000


@pytest.mark.parametrize("announced", [True, False], ids=["content-length", "chunked"])
def test_a_body_that_is_too_large_is_refused(rest: httpx.Client, announced: bool) -> None:
    def chunks() -> Iterator[bytes]:
        for _ in range(MAX_BODY_BYTES // (1 << 20) + 8):
            yield bytes(1 << 20)

    content = b"".join(chunks()) if announced else chunks()
    response = rest.post("/plan", content=content, headers=JSON)
    assert_problem(response, 413, "body_too_large")
    assert response.headers["connection"] == "close"
    assert_serving(rest)


def test_a_body_with_too_many_values_is_refused(rest: httpx.Client) -> None:
    content = b'{"frames":[' + b"0," * 300_000 + b"0]}"
    problem = assert_problem(
        rest.post("/plan", content=content, headers=JSON), 413, "body_too_large"
    )
    assert "300000 values" in problem["detail"]


def test_an_answer_with_too_many_values_is_refused(rest: httpx.Client) -> None:
    candidates = [rows(10 * ACTION_BLOCK)] * 800  # 800 · 10 · 128 values
    problem = assert_problem(
        rest.post("/predict", json={"frames": [pixels()], "candidates": candidates}),
        422,
        "out_of_range",
    )
    assert problem["errors"][0]["field"] == "candidates"
    assert "an answer of 1024000 values" in problem["detail"]
    assert "use gRPC" in problem["detail"]


def test_large_bodies_and_answers(rest: httpx.Client) -> None:
    candidates = np.random.default_rng(0).uniform(-1, 1, (600, 4 * ACTION_BLOCK, 2)).tolist()
    request = {"frames": [pixels()], "candidates": candidates}
    many = rest.post("/predict", json=request).json()["latents"]
    few = rest.post("/predict", json=request | {"candidates": candidates[:2]}).json()["latents"]
    assert np.shape(many) == (600, 4, 128)
    assert np.allclose(many[:2], few, atol=1e-5)


@pytest.mark.parametrize(
    ("size", "in_thread"), [(LARGE_DOCUMENT_BYTES, False), (LARGE_DOCUMENT_BYTES + 1, True)]
)
async def test_large_documents_are_handled_in_a_thread(size: int, in_thread: bool) -> None:
    thread = await in_thread_if_large(size, threading.get_ident)
    assert (thread != threading.get_ident()) is in_thread


def test_a_large_body_is_refused_before_it_is_sent(server: ServerProcess) -> None:
    head = (
        b"POST /plan HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        b"Content-Length: %d\r\nExpect: 100-continue\r\n\r\n" % (MAX_BODY_BYTES + 1)
    )
    assert send_bytes(server, head).startswith(b"HTTP/1.1 413")


@pytest.mark.parametrize(
    "data",
    [
        b"hello\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(64),
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"POST /plan HTTP/1.1\r\nContent-Length: many\r\n\r\n",
        b"POST /plan HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
        b"GET /" + b"a" * 700_000,
        b"GET / HTTP/1.1\r\nX: " + b"a" * 700_000,
    ],
)
def test_bytes_that_are_not_http(server: ServerProcess, rest: httpx.Client, data: bytes) -> None:
    answer = send_bytes(server, data)
    assert answer.startswith(b"HTTP/1.1 400")
    request_id = json.loads(answer.partition(b"\r\n\r\n")[2])["request_id"]
    (line,) = server.wait_logged(request_id)
    assert (line["endpoint"], line["code"], line["status"]) == ("other", "malformed_http", 400)
    name = 'lewm_requests_total{code="malformed_http",endpoint="other",protocol="rest"}'
    assert name in rest.get("/metrics").text
    assert_serving(rest)


def test_aborted_uploads(server: ServerProcess, rest: httpx.Client) -> None:
    head = b"POST /plan HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    for length in (0, 10, 100_000):
        request_id = f"aborted after {length}"
        fields = b"X-Request-ID: %s\r\nContent-Length: 1000000\r\n\r\n" % request_id.encode()
        with connect(server) as connection:
            connection.sendall(head + fields + b"[" * length)
        (line,) = server.wait_logged(request_id)
        assert (line["code"], line["status"]) == ("cancelled", 499)
    assert_serving(rest)


def test_an_error_keeps_the_connection_open(server: ServerProcess) -> None:
    limits = httpx.Limits(max_connections=1)
    with httpx.Client(base_url=server.url, timeout=PATIENCE_S, limits=limits) as client:
        for _ in range(3):
            assert_problem(client.post("/plan", content=b"{", headers=JSON), 400, "malformed_json")
            assert_serving(client)


def test_a_plan_is_dropped_when_its_client_goes_away(
    server: ServerProcess, rest: httpx.Client
) -> None:
    cancelled_plans = 'lewm_requests_total{code="cancelled",endpoint="plan",protocol="rest"}'
    active_plans = "lewm_active_plans"
    before = server.metric(cancelled_plans)
    wait_until(lambda: server.metric(active_plans) == 0)
    body = json.dumps(plan(solver=ENDLESS_SOLVER)).encode()
    head = b"POST /plan HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    with connect(server) as connection:
        connection.sendall(head + b"Content-Length: %d\r\n\r\n" % len(body) + body)
        wait_until(lambda: server.metric(active_plans) == 1)
    wait_until(lambda: server.metric(cancelled_plans) == before + 1)
    wait_until(lambda: server.metric(active_plans) == 0)
    assert_serving(rest)


@pytest.mark.parametrize("path", ["/encode", "/nowhere", "/healthz", "/models"])
def test_the_request_id_is_returned(rest: httpx.Client, path: str) -> None:
    response = rest.get(path, headers={"x-request-id": "robot 7, step 12"})
    assert response.headers["x-request-id"] == "robot 7, step 12"


@pytest.mark.parametrize("received", ["", "x" * 129, "tab\there", "\x80\xff"])
def test_an_unusable_request_id_is_replaced(rest: httpx.Client, received: str) -> None:
    headers = {b"x-request-id": received.encode("latin-1")}
    response = rest.get("/readyz", headers=headers)
    assert response.headers["x-request-id"] != received
    assert len(response.headers["x-request-id"]) == 32


def test_the_log_line_of_a_request(server: ServerProcess, rest: httpx.Client) -> None:
    headers = {"x-request-id": "logged", "traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-0-01"}
    rest.post("/encode", json={"frames": [pixels()]}, headers=headers)
    (line,) = server.wait_logged("logged")
    assert line["traceparent"] == headers["traceparent"]
    assert (line["endpoint"], line["protocol"], line["code"]) == ("encode", "rest", "ok")
    assert line["model"] == server.ready["models"][0]
    assert set(line["timing_ms"]) == {"queue", "decode", "encode", "solve", "total"}


def test_the_versioned_path_is_the_same(rest: httpx.Client) -> None:
    plans = [rest.post(path, json=plan()).json()["actions"] for path in ("/plan", "/v1/plan")]
    assert plans[0] == plans[1]


def test_base64_latents_are_the_same_numbers(rest: httpx.Client) -> None:
    request = {"frames": [pixels()]}
    numbers = rest.post("/encode", json=request).json()["latents"][0]["latent"]
    packed = rest.post("/encode", json=request | {"encoding": "base64"}).json()
    data = base64.b64decode(packed["latents"][0]["latent"])
    assert np.array_equal(np.frombuffer(data, "<f4"), np.asarray(numbers, np.float32))
