"""What slow, many and large clients may take from the server is limited."""

import json
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import grpc
import httpx
import pytest

from lewm_client import PlannerClient, PlannerError
from tests.lewm_serve.support.frames import ACTION_BLOCK, pixels
from tests.lewm_serve.support.raw_http import RawConnection, post
from tests.lewm_serve.support.requests import rows
from tests.lewm_serve.support.server_process import ServerProcess
from tests.patience import PATIENCE_S, wait_until

MIB = 1 << 20
MAX_CONNECTIONS = 3
HEAD = b"POST /encode HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"


@pytest.fixture(scope="module")
def impatient(
    tmp_path_factory: pytest.TempPathFactory, model_folder: Path
) -> Iterator[ServerProcess]:
    """A server that takes few connections, and waits one second for a head or a body."""
    log = tmp_path_factory.mktemp("impatient") / "log.jsonl"
    limits = ["--receive-s", "1", "--max-connections", str(MAX_CONNECTIONS)]
    with ServerProcess(log, "--models", str(model_folder), *limits) as process:
        yield process.wait_ready()


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory, model_folder: Path) -> Iterator[ServerProcess]:
    """A server that holds one MiB of requests."""
    log = tmp_path_factory.mktemp("small") / "log.jsonl"
    limits = ["--max-body-bytes", str(MIB), "--max-held-bytes", str(MIB)]
    with ServerProcess(log, "--models", str(model_folder), *limits) as process:
        yield process.wait_ready()


def connect(server: ServerProcess) -> socket.socket:
    """A connection to the HTTP port."""
    return socket.create_connection(("127.0.0.1", server.http_port), timeout=PATIENCE_S)


def read_refusal(connection: socket.socket) -> tuple[bytes, dict[str, object]]:
    """The status line and the problem that the server sends before it closes the connection."""
    answer = b"".join(iter(lambda: connection.recv(65536), b""))
    head, _, body = answer.partition(b"\r\n\r\n")
    return head.split(b"\r\n")[0], json.loads(body)


@pytest.mark.parametrize(
    "sent",
    [b"", b"POST /enc", HEAD, HEAD + b"Content-Length: 100\r\n\r\n{"],
    ids=["nothing", "line", "head", "body"],
)
def test_slow_requests_are_refused_and_recorded(impatient: ServerProcess, sent: bytes) -> None:
    with connect(impatient) as connection:
        connection.sendall(sent)
        status_line, problem = read_refusal(connection)
    assert status_line == b"HTTP/1.1 408 Request Timeout"
    assert problem["code"] == "request_timeout"
    (line,) = impatient.wait_logged(str(problem["request_id"]))
    assert (line["status"], line["code"]) == (408, "request_timeout")


def test_an_idle_connection_is_not_slow(impatient: ServerProcess) -> None:
    def client_address(client: httpx.Client) -> object:
        response = client.get("/healthz")
        assert response.status_code == 200
        return response.extensions["network_stream"].get_extra_info("client_addr")

    with httpx.Client(base_url=impatient.url, timeout=PATIENCE_S) as client:
        first = client_address(client)
        with connect(impatient) as silent:
            read_refusal(silent)  # by then the first connection has been idle for longer
        assert client_address(client) == first


def test_connections_are_limited(impatient: ServerProcess) -> None:
    def status_of_new_connection() -> int:
        with httpx.Client(base_url=impatient.url, timeout=PATIENCE_S) as client:
            return client.get("/healthz").status_code

    wait_until(lambda: status_of_new_connection() == 200)  # other tests' connections are closed
    with ExitStack() as stack:
        for _ in range(MAX_CONNECTIONS):
            client = stack.enter_context(httpx.Client(base_url=impatient.url, timeout=PATIENCE_S))
            assert client.get("/healthz").status_code == 200
        with connect(impatient) as connection:
            status_line, problem = read_refusal(connection)
        assert status_line == b"HTTP/1.1 429 Too Many Requests"
        assert problem["code"] == "overloaded"
    wait_until(lambda: status_of_new_connection() == 200)


def test_answers_that_nobody_reads_count_as_held(tmp_path: Path, model_folder: Path) -> None:
    request = {"frames": [pixels()], "candidates": [rows(4 * ACTION_BLOCK)] * 1900}
    limits = ["--max-body-bytes", str(4 * MIB), "--max-held-bytes", str(4 * MIB)]
    with (
        ServerProcess(tmp_path / "log", "--models", str(model_folder), *limits) as server,
        httpx.Client(base_url=server.wait_ready().url, timeout=PATIENCE_S) as client,
        RawConnection(server, receive_buffer=4096) as reader,
    ):
        whole = client.post("/predict", json=request)
        assert (whole.status_code, len(whole.json()["latents"])) == (200, 1900)
        assert len(whole.content) > 8 * MIB  # a single answer may be larger than the limit
        reader.send(post("/predict", request))
        # Answers differ in their request ids and timings.
        wait_until(lambda: server.metric("lewm_held_bytes") > 0.9 * len(whole.content))
        refused = client.post("/predict", json=request)
        assert (refused.status_code, refused.json()["code"]) == (429, "overloaded")
        assert len(reader.read_answer().document["latents"]) == 1900
        wait_until(lambda: server.metric("lewm_held_bytes") == 0)
        assert client.post("/predict", json=request).status_code == 200


def test_the_bytes_of_all_requests_are_limited_over_both_protocols(small: ServerProcess) -> None:
    size = 900_000
    large = json.dumps({"frames": [pixels()], "model": "m" * 500_000}).encode()

    def is_overloaded(client: httpx.Client) -> bool:
        headers = {"content-type": "application/json"}
        response = client.post("/encode", content=large, headers=headers)
        if response.status_code != 429:
            return False
        assert response.json()["code"] == "overloaded"
        assert response.headers["connection"] == "close"  # the body was not read to its end
        return True

    with (
        httpx.Client(base_url=small.url, timeout=PATIENCE_S) as client,
        PlannerClient(small.target) as rpc,
    ):
        assert not is_overloaded(client)
        with connect(small) as unfinished:
            unfinished.sendall(HEAD + b"Content-Length: %d\r\n\r\n" % (size + 1) + b" " * size)
            # Another large request that came earlier would be admitted instead of this one.
            wait_until(lambda: f"lewm_held_bytes {size:.1f}" in client.get("/metrics").text)
            assert is_overloaded(client)
            with pytest.raises(PlannerError) as caught:
                rpc.encode(["x" * 500_000])
            assert caught.value.status is grpc.StatusCode.RESOURCE_EXHAUSTED
            assert caught.value.code == "overloaded"
            assert client.post("/encode", json={"frames": [pixels()]}).status_code == 200
        wait_until(lambda: not is_overloaded(client))
