"""TLS, mutual TLS, the key and the robot's name, with a real gRPC server."""

import datetime
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
import trustme

from lewm.v1 import planner_pb2 as pb
from lewm.v1.planner_pb2_grpc import (
    PlannerServiceServicer,
    add_PlannerServiceServicer_to_server,
)
from lewm_client import AsyncPlannerClient, PlannerClient, PlannerError
from lewm_client.connection import is_loopback_target
from tests.patience import PATIENCE_S

CA, OTHER_CA = trustme.CA(), trustme.CA()
LONG_AGO: dict[str, Any] = {
    "not_before": datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC),
    "not_after": datetime.datetime(2020, 2, 1, tzinfo=datetime.UTC),
}
SERVER = CA.issue_cert("127.0.0.1")
EXPIRED_SERVER = CA.issue_cert("127.0.0.1", **LONG_AGO)
SERVER_OF_ANOTHER_NAME = CA.issue_cert("planner.example")
ROBOT = CA.issue_cert("robot@example.org")
EXPIRED_ROBOT = CA.issue_cert("robot@example.org", **LONG_AGO)
UNKNOWN_ROBOT = OTHER_CA.issue_cert("robot@example.org")

TRUST = CA.cert_pem.bytes()


def pem(certificate: trustme.LeafCert) -> dict[str, Any]:
    """A client's certificate and its key."""
    return {
        "certificate": b"".join(part.bytes() for part in certificate.cert_chain_pems),
        "key": certificate.private_key_pem.bytes(),
    }


class Servicer(PlannerServiceServicer):
    """A planner without models that records the metadata of its calls."""

    def __init__(self) -> None:
        self.metadata: list[dict[str, str]] = []

    def ListModels(  # noqa: N802
        self, _request: pb.ListModelsRequest, context: grpc.ServicerContext
    ) -> pb.ListModelsResponse:
        self.metadata.append(dict(context.invocation_metadata()))  # type: ignore[arg-type]
        return pb.ListModelsResponse()


@contextmanager
def running(
    certificate: trustme.LeafCert | None, *, mutual: bool = False
) -> Iterator[tuple[str, Servicer]]:
    """A server in this process, and its address; without a certificate it speaks no TLS."""
    server, servicer = grpc.server(ThreadPoolExecutor(1)), Servicer()
    add_PlannerServiceServicer_to_server(servicer, server)  # type: ignore[no-untyped-call]
    if certificate is None:
        port = server.add_insecure_port("127.0.0.1:0")
    else:
        pair = pem(certificate)
        credentials = grpc.ssl_server_credentials(
            [(pair["key"], pair["certificate"])], TRUST if mutual else None, mutual
        )
        port = server.add_secure_port("127.0.0.1:0", credentials)
    server.start()
    try:
        yield f"127.0.0.1:{port}", servicer
    finally:
        server.stop(None).wait()


def call(target: str, **arguments: Any) -> None:
    with PlannerClient(target, retries=0, **arguments) as client:
        assert client.models(PATIENCE_S) == []


def test_tls_with_bytes_and_with_files(tmp_path: Path) -> None:
    pair = pem(ROBOT)
    files: dict[str, Path | str] = {"tls": tmp_path / "ca.pem"}
    (tmp_path / "ca.pem").write_bytes(TRUST)
    for name, content in pair.items():
        (tmp_path / f"{name}.pem").write_bytes(content)
        files[name] = str(tmp_path / f"{name}.pem")
    with running(SERVER) as (target, _):
        call(target, tls=TRUST)
        call(target, tls=tmp_path / "ca.pem")
    with running(SERVER, mutual=True) as (target, _):
        call(target, tls=TRUST, **pair)
        call(target, **files)


async def test_tls_with_the_asyncio_client() -> None:
    with running(SERVER, mutual=True) as (target, servicer):
        async with AsyncPlannerClient(target, tls=TRUST, api_key="k-1", **pem(ROBOT)) as client:
            assert await client.models(PATIENCE_S) == []
        assert servicer.metadata[0]["authorization"] == "Bearer k-1"
        async with AsyncPlannerClient(target, tls=OTHER_CA.cert_pem.bytes(), retries=0) as client:
            with pytest.raises(PlannerError, match="`tls` trusts"):
                await client.models(PATIENCE_S)


NO_TLS: dict[str, Any] = {}
CLOSED = "the server closed the connection at once; it may require TLS, or a client certificate"


@pytest.mark.parametrize(
    ("server", "arguments", "meaning"),
    [
        pytest.param({}, {"tls": OTHER_CA.cert_pem.bytes()}, "`tls` trusts", id="other CA"),
        pytest.param({}, {"tls": True}, "`tls` trusts", id="private CA"),
        pytest.param(
            {"certificate": EXPIRED_SERVER}, {"tls": TRUST}, "has expired", id="expired server"
        ),
        pytest.param(
            {"certificate": SERVER_OF_ANOTHER_NAME},
            {"tls": TRUST},
            "is for another name than the target's",
            id="other name",
        ),
        pytest.param({"certificate": None}, {"tls": TRUST}, "does not speak TLS", id="no TLS"),
        pytest.param({}, NO_TLS, CLOSED, id="TLS required"),
        pytest.param({"mutual": True}, {"tls": TRUST}, CLOSED, id="no client certificate"),
        pytest.param(
            {"mutual": True}, {"tls": TRUST, **pem(UNKNOWN_ROBOT)}, CLOSED, id="unknown client"
        ),
        pytest.param(
            {"mutual": True}, {"tls": TRUST, **pem(EXPIRED_ROBOT)}, CLOSED, id="expired client"
        ),
    ],
)
def test_a_connection_that_fails_says_why(
    server: dict[str, Any], arguments: dict[str, Any], meaning: str
) -> None:
    with (
        running(**{"certificate": SERVER} | server) as (target, _),
        pytest.raises(PlannerError) as caught,
    ):
        call(target, **arguments)
    assert meaning in caught.value.detail
    assert "failed to connect" in caught.value.detail  # gRPC's own words follow
    assert caught.value.code == "unavailable"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"tls": b"junk"}, r"tls: expected PEM \(-----BEGIN …\), got 4 bytes"),
        ({"tls": TRUST, "certificate": b"", "key": TRUST}, "certificate: expected PEM"),
        ({"tls": TRUST, "key": TRUST}, "certificate: expected together with"),
        ({"tls": TRUST, "certificate": TRUST}, "key: expected together with"),
        (pem(ROBOT), "certificate and key need TLS: set tls=True"),
    ],
)
def test_wrong_arguments_of_tls_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PlannerClient("127.0.0.1:1", **arguments)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no-such\.pem"):
        PlannerClient("127.0.0.1:1", tls=tmp_path / "no-such.pem")


def test_key_and_robot_are_sent_with_every_call() -> None:
    with running(None) as (target, servicer):
        call(target)
        call(target, api_key="secret-1", robot="arm 7")
    without, with_both = servicer.metadata
    assert not {"authorization", "lewm-robot"} & set(without)
    assert with_both["authorization"] == "Bearer secret-1"
    assert with_both["lewm-robot"] == "arm 7"


def test_a_key_is_not_sent_in_the_clear_to_another_machine() -> None:
    with pytest.raises(ValueError, match=r"everybody between this machine and planner:50051"):
        PlannerClient("planner:50051", api_key="secret-1")
    PlannerClient("planner:50051", api_key="secret-1", allow_insecure_key=True).close()
    PlannerClient("planner:50051", api_key="secret-1", tls=True).close()


@pytest.mark.parametrize("key", ["", "two words", "new\nline", "schlüssel"])
def test_a_key_that_cannot_be_sent_is_refused_and_not_shown(key: str) -> None:
    with pytest.raises(ValueError, match="api_key: expected printable ASCII") as caught:
        PlannerClient("127.0.0.1:1", api_key=key)
    assert not key or key not in str(caught.value)


@pytest.mark.parametrize("robot", ["", "a" * 129, "Brüderchen", "new\nline"])
def test_a_name_that_cannot_be_sent_is_refused(robot: str) -> None:
    with pytest.raises(ValueError, match="robot: expected 1 to 128 printable ASCII characters"):
        PlannerClient("127.0.0.1:1", robot=robot)


@pytest.mark.parametrize(
    ("target", "is_loopback"),
    [
        ("localhost:50051", True),
        ("127.0.0.1:50051", True),
        ("127.8.0.1", True),
        ("[::1]:50051", True),
        ("dns:///localhost:50051", True),
        ("ipv4:127.0.0.1:50051", True),
        ("ipv6:[::1]:50051", True),
        ("unix:/run/planner", True),
        ("unix-abstract:planner", True),
        ("10.0.0.1:50051", False),
        ("localhost.example.org:50051", False),
        ("127.0.0.1.example.org:50051", False),
        ("dns://10.0.0.1/localhost:50051", False),
        ("ipv4:127.0.0.1:50051,10.0.0.1:50051", False),
    ],
)
def test_targets_of_this_machine(target: str, is_loopback: bool) -> None:
    assert is_loopback_target(target) == is_loopback


def test_a_proxy_of_the_environment_is_not_used_for_this_machine(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("http_proxy", "https_proxy", "grpc_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    for name in ("no_proxy", "NO_PROXY", "no_grpc_proxy"):
        monkeypatch.delenv(name, raising=False)
    with running(None) as (target, _):
        call(target)


def test_options_of_the_channel_replace_the_clients_own(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[dict[str, Any]] = []
    monkeypatch.setattr(grpc, "insecure_channel", lambda _, options: made.append(dict(options)))
    monkeypatch.setattr("lewm_client.connection.PlannerServiceStub", lambda _channel: None)
    PlannerClient("127.0.0.1:1", channel_options=[("grpc.keepalive_time_ms", 1)])
    (options,) = made
    assert options["grpc.keepalive_time_ms"] == 1
    assert options["grpc.max_send_message_length"] == -1
