"""HTTP and gRPC listen on the same addresses, whatever the host is, and say why they cannot."""

import socket
from contextlib import closing
from pathlib import Path

import grpc
import httpx
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from lewm_serve.transports.addresses import are_loopback, listen, resolve
from tests.lewm_serve.support.server_process import ServerProcess
from tests.patience import PATIENCE_S

HAS_IPV6 = socket.has_dualstack_ipv6()


def answers_http(server: ServerProcess, address: str) -> bool:
    try:
        url = f"http://{address}:{server.http_port}/healthz"
        return httpx.get(url, timeout=PATIENCE_S).status_code == 200
    except httpx.ConnectError:
        return False


def answers_grpc(server: ServerProcess, address: str) -> bool:
    # A connection first: a gRPC client would try for ever.
    try:
        socket.create_connection((address.strip("[]"), server.grpc_port), PATIENCE_S).close()
    except OSError:
        return False
    with grpc.insecure_channel(f"{address}:{server.grpc_port}") as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        return bool(stub.Check(health_pb2.HealthCheckRequest(), timeout=PATIENCE_S).status)


@pytest.mark.parametrize(
    ("host", "answering"),
    [
        ("127.0.0.1", {"127.0.0.1"}),
        ("::1", {"[::1]"}),
        ("[::1]", {"[::1]"}),
        ("localhost", {"127.0.0.1", "[::1]"}),
        ("::", {"127.0.0.1", "127.0.0.2", "[::1]"}),
        ("0.0.0.0", {"127.0.0.1", "127.0.0.2", "[::1]"}),
    ],
)
@pytest.mark.skipif(not HAS_IPV6, reason="there is no IPv6")
def test_both_transports_listen_on_all_addresses_of_the_host(
    host: str, answering: set[str], tmp_path: Path, model_folder: Path
) -> None:
    if host == "localhost":
        found = socket.getaddrinfo("localhost", None, type=socket.SOCK_STREAM)
        addresses = [str(entry[4][0]) for entry in found]
        answering = {f"[{address}]" if ":" in address else address for address in addresses}
    flags = ("--models", str(model_folder), "--host", host, "--insecure", "1")
    with ServerProcess(tmp_path / "log", *flags).wait_listening() as server:
        possible = ("127.0.0.1", "127.0.0.2", "[::1]")
        assert {address for address in possible if answers_http(server, address)} == answering
        assert {address for address in possible if answers_grpc(server, address)} == answering
        warned = "without authentication" in server.errors()
        assert warned == (host in ("::", "0.0.0.0"))


async def test_addresses() -> None:
    assert await resolve("127.0.0.1") == ["127.0.0.1"]
    assert await resolve("::ffff:127.0.0.1") == ["127.0.0.1"]
    assert await resolve("0.0.0.0") == await resolve("::") == await resolve("[::]")
    assert not are_loopback(await resolve("::"))
    assert are_loopback(await resolve("localhost"))
    assert not are_loopback(["127.0.0.1", "192.168.1.5"])


async def test_a_host_of_another_machine() -> None:
    with pytest.raises(OSError, match=r"cannot listen on 192\.0\.2\.1: this machine has no addr"):
        await resolve("192.0.2.1")


@pytest.mark.parametrize("host", ["nobody.invalid", "a" * 300, "*", "a..b"])
async def test_a_host_that_does_not_resolve(host: str) -> None:
    with pytest.raises(OSError, match="the name does not resolve"):
        await resolve(host)


def test_one_free_port_for_all_addresses() -> None:
    sockets = listen(["127.0.0.1", "127.0.0.2", "127.0.0.3"], 0)
    assert len({listener.getsockname()[1] for listener in sockets}) == 1
    for listener in sockets:
        listener.close()


def test_a_port_in_use_is_reported_with_its_address() -> None:
    with closing(socket.create_server(("127.0.0.2", 0))) as other:
        port = other.getsockname()[1]
        problem = rf"^cannot listen on 127\.0\.0\.2:{port}: address already in use$"
        with pytest.raises(OSError, match=problem):
            listen(["127.0.0.1", "127.0.0.2"], port)
        listen(["127.0.0.1"], port)[0].close()  # nothing stays open
