"""The proxies take their configurations, which agree with the servers and hide what is private."""

import re
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import grpc
import pytest

from lewm.v1 import planner_pb2 as pb
from lewm_serve.settings import Settings
from lewm_serve.transports.http.server import KEEP_ALIVE_S
from loadtests.clients import Access, GrpcClient, RestClient
from loadtests.spec import Address
from tests.fleet.proxies import (
    ENVOY_CONFIGURATION,
    NGINX_CONFIGURATION,
    Envoy,
    Nginx,
    write_certificates,
)
from tests.lewm_serve.support.certificates import HOST, Authority
from tests.lewm_serve.support.ports import free_port

MIB = 1 << 20


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the certificates."""
    folder = tmp_path_factory.mktemp("proxies")
    write_certificates(folder, Authority())
    return folder


@pytest.fixture(scope="module")
def access(folder: Path) -> Access:
    """What clients of the proxies need."""
    return Access(tls_ca=str(folder / "ca.pem"))


@pytest.fixture(scope="module")
def nginx(folder: Path) -> Iterator[Nginx]:
    """nginx without any server behind it."""
    with Nginx(folder, [free_port(), free_port()]) as proxy:
        yield proxy


@pytest.fixture
def rest(nginx: Nginx, access: Access) -> Iterator[RestClient]:
    """A connection to nginx."""
    with closing(RestClient(Address(HOST, nginx.port), access)) as client:
        yield client


def test_nginx_accepts_its_configuration(nginx: Nginx) -> None:
    assert "warn" not in nginx.check()


def test_envoy_accepts_its_configuration_and_says_that_no_server_is_there(
    folder: Path, access: Access
) -> None:
    with Envoy(folder, [free_port(), free_port()]) as envoy:
        assert "warning" not in envoy.check()
        with closing(GrpcClient(Address(HOST, envoy.port), access)) as client:
            request = pb.ListModelsRequest()
            with pytest.raises(grpc.RpcError) as caught:
                client.planner.stub.ListModels(request, metadata=(("x-request-id", "robot-1"),))
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    assert '"request_id":"robot-1"' in envoy.log.read_text()


def value(text: str, name: str) -> str:
    """The only value that a configuration has for a name."""
    found: str
    (found,) = set(re.findall(rf"^\s*{name}:? ([^;\s]+)", text, re.MULTILINE))
    return found


def test_the_limits_are_those_of_the_servers() -> None:
    settings = Settings()
    nginx, envoy = NGINX_CONFIGURATION.read_text(), ENVOY_CONFIGURATION.read_text()
    assert value(nginx, "client_max_body_size") == f"{settings.max_body_bytes // MIB}m"
    assert value(nginx, "client_body_timeout") == f"{settings.receive_s:g}s"
    assert int(value(envoy, "request_body_buffer_limit")) > settings.max_body_bytes
    # The proxy closes an idle connection first, so that it sends no request on one that closes.
    upstream, _ = nginx.split("server {", 1)
    assert int(value(upstream, "keepalive_timeout").removesuffix("s")) < KEEP_ALIVE_S
    # A request that takes too long is not tried on each server.
    next_s, read_s = (
        int(value(nginx, name).removesuffix("s"))
        for name in ("proxy_next_upstream_timeout", "proxy_read_timeout")
    )
    assert next_s < read_s


@pytest.mark.parametrize(
    "path",
    [
        "/metrics",
        "//metrics",
        "/%6detrics",
        "/docs/../metrics",
        "/plan/%2e%2e/metrics",
        "/healthz",
        "/admin/models/reload",
        "/v1/admin/models/reload",
        "/",
    ],
)
def test_the_outside_does_not_see_what_is_private(rest: RestClient, path: str) -> None:
    assert rest.send("POST", path, b"{}", {}) == "unknown_route"


@pytest.mark.parametrize(
    "path",
    ["/plan", "/v1/encode", "/predict", "/models", "/v1/models/two-room", "/docs", "/readyz"],
)
def test_without_a_server_requests_are_refused_as_the_servers_do(
    rest: RestClient, path: str
) -> None:
    rest.connection.request("GET", path, headers={"X-Request-ID": "robot-1"})
    answer = rest.connection.getresponse()
    assert (answer.status, answer.headers["content-type"]) == (503, "application/problem+json")
    assert (answer.headers["retry-after"], answer.headers["x-request-id"]) == ("1", "robot-1")
    assert b'"request_id":"robot-1"' in answer.read()


def test_an_id_that_is_no_plain_word_is_replaced(rest: RestClient) -> None:
    rest.connection.request("GET", "/", headers={"X-Request-ID": '","code":"ok'})
    answer = rest.connection.getresponse()
    text = answer.read().decode()
    assert re.search(r'"code":"unknown_route","request_id":"[0-9a-f]{32}"}$', text)


def test_a_body_that_the_servers_refuse_is_not_taken(rest: RestClient) -> None:
    length = {"content-length": str(32 * MIB + 1)}
    assert rest.send("POST", "/plan", b"", length) == "body_too_large"
