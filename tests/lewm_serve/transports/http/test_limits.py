"""Clients that are slow, or many, or large together: what the server takes from them is bounded."""

import json
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import grpc
import httpx
import pytest

from lewm_client import PlannerClient, PlannerError
from tests.lewm_serve.support.frames import pixels
from tests.lewm_serve.support.server_process import ServerProcess
from tests.patience import PATIENCE_S, wait_until

MIB = 1 << 20
CONNECTIONS = 3
HEAD = b"POST /encode HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"


@pytest.fixture(scope="module")
def strict(tmp_path_factory: pytest.TempPathFactory, model_folder: Path) -> Iterator[ServerProcess]:
    """A server that takes few connections, and waits one second for a head or a body."""
    log = tmp_path_factory.mktemp("strict") / "log.jsonl"
    bounds = ["--receive-s", "1", "--max-connections", str(CONNECTIONS)]
    with ServerProcess(log, "--models", str(model_folder), *bounds) as process:
        yield process.wait_ready()


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory, model_folder: Path) -> Iterator[ServerProcess]:
    """A server that holds one MiB of requests."""
    log = tmp_path_factory.mktemp("small") / "log.jsonl"
    bounds = ["--max-body-bytes", str(MIB), "--max-held-bytes", str(MIB)]
    with ServerProcess(log, "--models", str(model_folder), *bounds) as process:
        yield process.wait_ready()


def connect(server: ServerProcess) -> socket.socket:
    """A bare connection to the HTTP port."""
    return socket.create_connection(("127.0.0.1", server.http_port), timeout=PATIENCE_S)


def ended(connection: socket.socket) -> tuple[bytes, dict[str, object]]:
    """The status line and the problem that the server sends before it closes the connection."""
    answer = b"".join(iter(lambda: connection.recv(65536), b""))
    head, _, body = answer.partition(b"\r\n\r\n")
    return head.split(b"\r\n")[0], json.loads(body)


@pytest.mark.parametrize(
    "sent",
    [b"", b"POST /enc", HEAD, HEAD + b"Content-Length: 100\r\n\r\n{"],
    ids=["silence", "line", "head", "body"],
)
def test_slow_clients_are_told_and_left(strict: ServerProcess, sent: bytes) -> None:
    with connect(strict) as connection:
        connection.sendall(sent)
        status, problem = ended(connection)
    assert status == b"HTTP/1.1 408 Request Timeout"
    assert problem["code"] == "request_timeout"
    (line,) = strict.wait_logged(str(problem["request_id"]))
    assert (line["status"], line["code"]) == (408, "request_timeout")


def test_a_connection_at_rest_is_not_slow(strict: ServerProcess) -> None:
    with httpx.Client(base_url=strict.url, timeout=PATIENCE_S) as client:
        assert client.get("/healthz").status_code == 200
        with connect(strict) as silent:
            ended(silent)  # longer than that the first connection has been at rest
        stream = client.get("/healthz").extensions["network_stream"]
        first = stream.get_extra_info("client_addr")
        assert (
            client.get("/healthz").extensions["network_stream"].get_extra_info("client_addr")
            == first
        )


def test_connections_are_bounded(strict: ServerProcess) -> None:
    def answers() -> int:
        with httpx.Client(base_url=strict.url, timeout=PATIENCE_S) as client:
            return client.get("/healthz").status_code

    wait_until(lambda: answers() == 200)  # the connections of other tests are gone
    with ExitStack() as stack:
        for _ in range(CONNECTIONS):
            client = stack.enter_context(httpx.Client(base_url=strict.url, timeout=PATIENCE_S))
            assert client.get("/healthz").status_code == 200
        with connect(strict) as connection:
            status, problem = ended(connection)
        assert status == b"HTTP/1.1 429 Too Many Requests"
        assert problem["code"] == "overloaded"
    wait_until(lambda: answers() == 200)


def test_bytes_held_are_bounded_over_both_protocols(small: ServerProcess) -> None:
    size = 900_000
    large = json.dumps({"frames": [pixels()], "model": "m" * 500_000}).encode()

    def refused(client: httpx.Client) -> bool:
        headers = {"content-type": "application/json"}
        response = client.post("/encode", content=large, headers=headers)
        return bool(response.status_code == 429 and response.json()["code"] == "overloaded")

    with (
        httpx.Client(base_url=small.url, timeout=PATIENCE_S) as client,
        PlannerClient(small.target) as rpc,
    ):
        assert not refused(client)
        with connect(small) as unfinished:
            unfinished.sendall(HEAD + b"Content-Length: %d\r\n\r\n" % (size + 1) + b" " * size)
            # A request that came before all of it is there would have it refused instead.
            wait_until(lambda: f"lewm_held_bytes {size:.1f}" in client.get("/metrics").text)
            assert refused(client)
            with pytest.raises(PlannerError) as caught:
                rpc.encode(["x" * 500_000])
            assert (caught.value.status, caught.value.code) == (
                grpc.StatusCode.RESOURCE_EXHAUSTED,
                "overloaded",
            )
            assert client.post("/encode", json={"frames": [pixels()]}).status_code == 200
        wait_until(lambda: not refused(client))


@pytest.mark.parametrize("path", ["/healthz", "/readyz"])
def test_head_of_probes(rest: httpx.Client, path: str) -> None:
    response = rest.head(path)
    assert (response.status_code, response.content) == (200, b"")
