"""TLS and mutual TLS on both ports, with right, wrong, expired and missing certificates."""

import socket
import ssl
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import grpc
import httpx
import pytest

from lewm.v1 import planner_pb2 as pb
from lewm.v1.planner_pb2_grpc import PlannerServiceStub
from lewm_client import frame
from lewm_serve.access import file_watch
from lewm_serve.settings import Settings, SettingsError
from lewm_serve.transports.tls import Certificates, TlsError, load_certificates
from tests.lewm_serve.support.certificates import (
    Authority,
    CertificateFiles,
    Identity,
    channel_credentials,
    client_context,
)
from tests.lewm_serve.support.frames import picture
from tests.lewm_serve.support.http2 import PLAN, Http2Connection, message_head
from tests.lewm_serve.support.raw_http import RawConnection, get, post_head
from tests.lewm_serve.support.requests import SMALL_SOLVER, plan
from tests.lewm_serve.support.server_process import ServerProcess
from tests.patience import PATIENCE_S, wait_until

RECEIVE_S = 5
MAX_CONNECTIONS = 12
MIB = 1 << 20


def methods_of(channel: grpc.Channel) -> Any:
    """The methods of the service."""
    return PlannerServiceStub(channel)  # type: ignore[no-untyped-call]


class TlsServer(NamedTuple):
    """A server that asks clients for a certificate."""

    process: ServerProcess
    folder: Path
    files: CertificateFiles
    authority: Authority
    clients: Authority

    def context(self, identity: Identity | None = None) -> ssl.SSLContext:
        """What a client uses that trusts the server."""
        return client_context(self.folder, self.authority, identity)

    @property
    def right_context(self) -> ssl.SSLContext:
        """What a client uses that the server takes."""
        return self.context(self.clients.issue())

    def rest(self, context: ssl.SSLContext) -> httpx.Client:
        """An HTTP client."""
        url = f"https://127.0.0.1:{self.process.http_port}"
        return httpx.Client(base_url=url, verify=context, timeout=PATIENCE_S)

    def models_over_grpc(self, identity: Identity | None) -> list[str]:
        """The names of the models, asked on a channel of its own."""
        credentials = channel_credentials(self.authority, identity)
        # Channels with the same arguments share a connection.
        options = (("grpc.use_local_subchannel_pool", 1),)
        with grpc.secure_channel(self.process.target, credentials, options) as channel:
            answer = methods_of(channel).ListModels(pb.ListModelsRequest(), timeout=30)
            return [model.name for model in answer.models]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, model_folder: Path) -> Iterator[TlsServer]:
    """A ready server that asks clients for a certificate."""
    folder = tmp_path_factory.mktemp("tls")
    files = CertificateFiles.in_folder(folder)
    authority, clients = Authority(), Authority()
    files.write(authority.issue())
    files.client_ca.write_bytes(clients.certificate)
    flags = [*files.flags, "--tls-client-ca", str(files.client_ca), "--models", str(model_folder)]
    flags += ["--receive-s", str(RECEIVE_S), "--max-connections", str(MAX_CONNECTIONS)]
    flags += ["--max-body-bytes", str(MIB), "--log-level", "debug"]
    with ServerProcess(folder / "log", *flags) as process:
        yield TlsServer(process.wait_ready(), folder, files, authority, clients)
        assert process.stop() == 0
        assert "Traceback" not in process.errors()


def test_the_right_certificate(server: TlsServer) -> None:
    with server.rest(server.right_context) as rest:
        answer = rest.post("/plan", json=plan())
        assert answer.status_code == 200
        address = rest.get("/openapi.json")
        assert address.status_code == 200
    credentials = channel_credentials(server.authority, server.clients.issue())
    with grpc.secure_channel(server.process.target, credentials) as channel:
        request = pb.PlanRequest(
            frames=[frame(picture(0))],
            goal=frame(picture(1)),
            solver=pb.SolverSettings(**SMALL_SOLVER),
        )
        planned = methods_of(channel).Plan(request, timeout=PATIENCE_S)
        assert planned.status == "completed"


@pytest.mark.parametrize("kind", ["missing", "wrong", "expired"])
def test_a_client_whose_certificate_is_not_right(kind: str, server: TlsServer) -> None:
    identity = {
        "missing": None,
        "wrong": Authority().issue(),
        "expired": server.clients.issue(expired=True),
    }[kind]
    with server.rest(server.context(identity)) as rest, pytest.raises(httpx.TransportError):
        rest.get("/healthz")
    with pytest.raises(grpc.RpcError) as caught:
        server.models_over_grpc(identity)
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


def test_a_client_that_does_not_trust_the_server(server: TlsServer) -> None:
    stranger = client_context(server.folder, Authority(), server.clients.issue())
    with server.rest(stranger) as rest, pytest.raises(httpx.ConnectError, match="verify failed"):
        rest.get("/healthz")
    credentials = channel_credentials(Authority(), server.clients.issue())
    with (
        grpc.secure_channel(server.process.target, credentials) as channel,
        pytest.raises(grpc.RpcError) as caught,
    ):
        methods_of(channel).ListModels(pb.ListModelsRequest(), timeout=30)
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


def test_a_client_that_speaks_in_the_clear(server: TlsServer) -> None:
    with RawConnection(server.process) as connection:
        connection.send(get("/healthz"))
        assert connection.is_closed()


def test_old_versions_of_tls_are_refused(server: TlsServer) -> None:
    context = server.right_context
    context.minimum_version = ssl.TLSVersion.MINIMUM_SUPPORTED
    with pytest.warns(DeprecationWarning, match="TLSv1_1"):
        context.maximum_version = ssl.TLSVersion.TLSv1_1
    with pytest.raises((ssl.SSLError, ConnectionResetError)):
        RawConnection(server.process, tls=context)


def test_a_refused_body_is_answered_before_the_connection_ends(server: TlsServer) -> None:
    with RawConnection(server.process, tls=server.right_context) as connection:
        connection.send(post_head("/plan", 3 * MIB), bytes(2 * MIB))
        answer = connection.read_answer()
        assert (answer.status, answer.document["code"]) == (413, "body_too_large")
        with pytest.raises((ConnectionError, ssl.SSLEOFError)):
            connection.send(bytes(50 * MIB))


def test_a_slow_head_is_refused(server: TlsServer) -> None:
    with RawConnection(server.process, tls=server.right_context) as connection:
        connection.send(b"GET /healthz HT")
        answer = connection.read_answer()
        assert (answer.status, answer.document["code"]) == (408, "request_timeout")


def test_a_client_that_goes_away_loses_its_plan(server: TlsServer) -> None:
    solver = {"samples": 4096, "iterations": 200, "horizon": 5, "tolerance": 0}
    context = server.right_context
    with RawConnection(server.process, tls=context) as connection:
        body = httpx.Request("POST", "http://x", json=plan(solver=solver)).content
        connection.send(post_head("/plan", len(body), b"X-Request-ID: left"), body)
        with server.rest(context) as rest:
            wait_until(lambda: "lewm_active_plans 1.0" in rest.get("/metrics").text)
    (line,) = server.process.wait_logged("left")
    assert (line["code"], line["status"]) == ("cancelled", 499)


def test_connections_without_a_handshake_make_room(server: TlsServer) -> None:
    context = server.right_context
    with ExitStack() as stack:
        for _ in range(MAX_CONNECTIONS):
            address = ("127.0.0.1", server.process.http_port)
            stack.enter_context(socket.create_connection(address))

        def is_answered() -> bool:
            try:
                with server.rest(context) as rest:
                    return rest.get("/healthz").status_code == 200
            except httpx.TransportError:
                return False

        wait_until(is_answered)


def test_a_connection_without_a_handshake_is_closed(server: TlsServer) -> None:
    with RawConnection(server.process) as connection:
        assert connection.is_closed()
    with socket.create_connection(("127.0.0.1", server.process.grpc_port)) as silent:
        silent.settimeout(PATIENCE_S)
        while silent.recv(65536):
            pass


def test_incomplete_grpc_messages_are_measured_and_given_up(server: TlsServer) -> None:
    context = server.right_context
    context.set_alpn_protocols(["h2"])
    with (
        Http2Connection(server.process.grpc_port, tls=context) as connection,
        server.rest(server.right_context) as rest,
    ):
        stream = connection.start_call(PLAN)
        connection.send_data(stream, message_head(MIB) + bytes(MIB // 2))

        def held_bytes() -> float:
            lines = rest.get("/metrics").text.splitlines()
            return next(float(line.split()[1]) for line in lines if "lewm_held_bytes " in line[:16])

        wait_until(lambda: held_bytes() >= MIB // 2)
        assert held_bytes() < 0.6 * MIB

        def is_ended() -> bool:
            connection.receive(0.02)
            return stream in connection.ended or connection.closed

        wait_until(is_ended)
        assert b"message: not received within 5 s" in connection.received[stream]


def test_new_certificates_are_used_without_a_restart(server: TlsServer) -> None:
    """This test is the last one of the server: it ends with other certificates."""
    old_client, other_clients, other = server.clients.issue(), Authority(), Authority()
    process = server.process
    old_certificate = Identity(server.files.certificate.read_bytes(), server.files.key.read_bytes())
    server.files.certificate.write_bytes(other.issue().certificate)

    def healthz(authority: Authority, identity: Identity) -> int:
        context = client_context(server.folder, authority, identity)
        try:
            with server.rest(context) as rest:
                return rest.get("/healthz").status_code
        except httpx.TransportError:
            return 0

    def old_is_used_and_error_is_logged() -> bool:
        assert healthz(server.authority, old_client) == 200
        return "the certificates cannot be used" in process.errors()

    wait_until(old_is_used_and_error_is_logged)
    server.files.write(other.issue())
    server.files.client_ca.write_bytes(other_clients.certificate)
    new_client = other_clients.issue()
    wait_until(lambda: healthz(other, new_client) == 200)
    assert healthz(other, old_client) == 0
    assert healthz(server.authority, new_client) == 0
    new = server._replace(authority=other, clients=other_clients)
    assert new.models_over_grpc(new_client) == process.ready["models"]
    with pytest.raises(grpc.RpcError):
        new.models_over_grpc(old_client)
    server.files.write(old_certificate)


@pytest.fixture
def files(tmp_path: Path) -> CertificateFiles:
    """A certificate and its key."""
    files = CertificateFiles.in_folder(tmp_path)
    files.write(Authority().issue())
    return files


def test_an_expired_certificate_of_the_server(
    files: CertificateFiles, tmp_path: Path, model_folder: Path
) -> None:
    authority = Authority()
    files.write(authority.issue(expired=True))
    flags = (*files.flags, "--models", str(model_folder))
    with ServerProcess(tmp_path / "log", *flags).wait_listening() as process:
        url = f"https://127.0.0.1:{process.http_port}/healthz"
        context = client_context(tmp_path, authority)
        with pytest.raises(httpx.ConnectError, match="certificate has expired"):
            httpx.get(url, verify=context, timeout=PATIENCE_S)
        files.write(authority.issue())

        def is_answered() -> bool:
            try:
                return httpx.get(url, verify=context, timeout=PATIENCE_S).status_code == 200
            except httpx.TransportError:
                return False

        wait_until(is_answered)


def test_files_that_cannot_be_used(files: CertificateFiles, tmp_path: Path) -> None:
    nowhere = tmp_path / "nowhere"
    with pytest.raises(TlsError, match=r"LEWM_TLS_CERT .*nowhere: no such file or directory"):
        Certificates(nowhere, files.key, None)
    with pytest.raises(TlsError, match=r"LEWM_TLS_KEY .*nowhere: no such file or directory"):
        Certificates(files.certificate, nowhere, None)
    with pytest.raises(TlsError, match=r"LEWM_TLS_CLIENT_CA .*nowhere: no such file or directory"):
        Certificates(files.certificate, files.key, nowhere)
    files.client_ca.write_text("no certificate")
    with pytest.raises(TlsError, match=r"LEWM_TLS_CLIENT_CA .*expected certificates in PEM form"):
        Certificates(files.certificate, files.key, files.client_ca)
    files.key.write_bytes(Authority().issue().key)
    with pytest.raises(TlsError, match=r"LEWM_TLS_CERT .* and LEWM_TLS_KEY .*mismatch"):
        Certificates(files.certificate, files.key, None)


@pytest.mark.parametrize(
    ("name", "missing"),
    [
        ("tls_cert", "LEWM_TLS_KEY"),
        ("tls_key", "LEWM_TLS_CERT"),
        ("tls_client_ca", "LEWM_TLS_CERT and LEWM_TLS_KEY"),
    ],
)
def test_a_setting_that_is_missing(name: str, missing: str) -> None:
    settings = Settings.model_validate({name: "/some/file"})
    with pytest.raises(SettingsError, match=f"^LEWM_{name.upper()} is set, so set {missing} too$"):
        load_certificates(settings)


def test_files_are_read_again_only_when_they_change(
    files: CertificateFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(file_watch, "READ_AGAIN_S", 0.0)
    certificates = Certificates(files.certificate, files.key, None)
    first = certificates.context()
    assert certificates.context() is first
    files.write(Authority().issue())
    assert certificates.context() is not first
